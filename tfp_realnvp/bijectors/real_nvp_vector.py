"""Real NVP for vectors, whole, as one bijector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tfp_realnvp.bijectors.assembled_flow import AssembledFlow, default_network_dtype
from tfp_realnvp.bijectors.coupling_layers import (
    NORMALIZATIONS,
    CouplingLayers,
    NetworkFn,
    check_transformer,
)
from tfp_realnvp.bijectors.flow_chain import FlowChain
from tfp_realnvp.bijectors.masks import ChannelMask, Mask
from tfp_realnvp.bijectors.standardization import Standardization
from tfp_realnvp.bijectors.transformers import TransformerFn
from tfp_realnvp.internal import validation
from tfp_realnvp.networks import DenseResNet

__all__ = ["RealNVPVector"]

_MIXINGS = ("lu", "permutation", None)


class RealNVPVector(AssembledFlow):
    r"""Real NVP for vectors [..., D]: tables, toys, posteriors.

    Couplings alternate between keeping the first D / 2 elements, rounded down, and the others. A
    normalization and a mixing of all elements come before each coupling, seen from the data. The
    networks start at zero, so that the flow starts as a rotation, or with `mixing=None` as the
    identity.

    ```
    flow = tfd.TransformedDistribution(tfd.Sample(tfd.Normal(0., 1.), [D]), RealNVPVector(D))
    nats = -flow.log_prob(x)
    ```

    With D = 1 the networks have no input but the condition: each coupling is an elementwise map
    with learned parameters, so that a transformer other than the affine one is needed for anything
    but a normal distribution.

    #### Example

    >>> import tensorflow as tf, tensorflow_probability as tfp, tfp_realnvp as tfr
    >>> tfd = tfp.distributions
    >>> base = tfd.Sample(tfd.Normal(0., 1.), [5])
    >>> flow = tfd.TransformedDistribution(
    ...     base, tfr.RealNVPVector(5, num_couplings=4, num_filters=16))
    >>> x = flow.sample(7)
    >>> x.shape, flow.log_prob(x).shape
    (TensorShape([7, 5]), TensorShape([7]))

    #### References

    Dinh, Sohl-Dickstein, Bengio: Density estimation using Real NVP, section 3 and figure 1.
    Kingma, Dhariwal: Glow, section 3.2, for the mixing; Durkan et al.: Neural spline flows, section
    3.2, for its use with vectors.
    """

    def __init__(
        self,
        event_size: int,
        num_couplings: int = 8,
        num_blocks: int = 2,
        num_filters: int = 64,
        *,
        activation: str = "relu",
        mixing: str | None = "lu",
        normalization: str | None = "actnorm",
        momentum: float = 0.9,
        use_scale: bool = True,
        transformer: str | TransformerFn | None = None,
        recompute: bool = False,
        standardization: Standardization | None = None,
        network_fn: NetworkFn | None = None,
        network_dtype: str | None = None,
        conditional_event_shape: Sequence[int] | None = None,
        num_classes: int | None = None,
        condition_dropout: float | None = None,
        embedding_size: int = 64,
        flow: FlowChain | None = None,
        dtype: Any = tf.float32,
        validate_args: bool = False,
        name: str = "real_nvp_vector",
    ) -> None:
        """Constructs the flow and its networks.

        Args:
          event_size: D, length of the vectors.
          num_couplings: number of couplings.
          num_blocks: residual blocks of each network.
          num_filters: units of each dense layer of the networks.
          activation: name of a Keras activation, of the networks. With `'swish'` the density has no
            kinks.
          mixing: `'lu'`: a learned `InvertibleConv1x1` before each coupling; `'permutation'`: a
            fixed random permutation; or `None`.
          normalization: `'actnorm'`: an `ActNorm` before each coupling; `'batch'`: batch
            normalization after each; or `None`.
          momentum: of the moving statistics of batch normalization.
          use_scale: `False` makes all couplings additive, as in NICE.
          transformer: of the couplings, instead of the affine one: `'rational_quadratic_spline'`,
            `'logistic_mixture'`, or a function that returns a new `Transformer`.
          recompute: whether gradients compute the activations of the networks again, one coupling
            at a time, instead of keeping them: less memory for one more forward pass.
          standardization: of the data, for example `Standardization.of(training_data)`.
          network_fn: makes the network of a coupling from the keyword arguments `mask`,
            `input_channels`, `output_channels`, `num_filters`, `name` and `dtype` (the
            `network_dtype`), and of a conditional flow `conditional_event_shape`, that of the
            embedded condition; by default a `DenseResNet`. A Keras layer is built here.
          network_dtype: name of the Keras dtype policy of the networks; by default the global
            policy, or float64 if `dtype` is.
          conditional_event_shape: [K], shape of the condition of a vector. The flow then needs a
            `conditional_input` [..., K], see `ConditionEmbedding`.
          num_classes: the same for integer labels in [0, num_classes), of shape [...].
          condition_dropout: the probability with which `FlowModel.fit` leaves out the condition of
            a vector. `conditional_input=None` then gives the density without a condition.
          embedding_size: length of the embedding of the condition, from which each network predicts
            scales and shifts of its activations.
          flow: the flow between latents and standardized data of another bijector of the same
            configuration, to share its networks, as copies do.
          dtype: `tf.float32` or `tf.float64`, of values and log det.
          validate_args: whether to assert that values and log dets are finite.
          name: of the operations.

        Raises:
          ValueError: if an argument is out of range.
          TypeError: if an argument has a wrong type, or `dtype` is not float32 or float64.
        """
        parameters = dict(locals())
        event_size, num_couplings, num_blocks, num_filters = (
            validation.integer(
                value, at_least, f"{name}: expected {argument} of at least {at_least}"
            )
            for argument, value, at_least in (
                ("event_size", event_size, 1),
                ("num_couplings", num_couplings, 1),
                ("num_blocks", num_blocks, 0),
                ("num_filters", num_filters, 1),
            )
        )
        expected = f"{name}: expected the name of an activation"
        validation.require(isinstance(activation, str), expected, activation, TypeError)
        validation.choice(mixing, _MIXINGS, f"{name}: expected a mixing")
        validation.choice(normalization, NORMALIZATIONS, f"{name}: expected a normalization")
        validation.flag(use_scale, f"{name}: expected a bool as use_scale")
        validation.flag(recompute, f"{name}: expected a bool as recompute")
        check_transformer(transformer, name)
        expected = f"{name}: expected a function as network_fn"
        is_function = network_fn is None or callable(network_fn)
        validation.require(is_function, expected, network_fn, TypeError)
        expected = f"{name}: expected a Standardization"
        is_valid = standardization is None or isinstance(standardization, Standardization)
        validation.require(is_valid, expected, standardization, TypeError)
        dtype = validation.float_dtype(dtype, name)
        if standardization is not None and len(standardization.parameters["mean"]) != event_size:
            raise ValueError(
                f"{name}: expected a Standardization of vectors of length {event_size}, got one of "
                f"length {len(standardization.parameters['mean'])}."
            )
        network_dtype = default_network_dtype(network_dtype, dtype)
        layers = {
            "network_dtype": network_dtype,
            "normalization": normalization,
            "momentum": momentum,
            "use_scale": use_scale,
            "transformer": transformer,
            "mixing": mixing,
            "dtype": dtype,
        }

        def dense_resnet(*, mask: Mask, input_channels: int, **kwargs: Any) -> DenseResNet:
            del mask, input_channels
            return DenseResNet(num_blocks=num_blocks, activation=activation, **kwargs)

        def build(condition_shape: tuple[int, ...] | None) -> FlowChain:
            # A single element is never kept.
            parities = [i % 2 if event_size > 1 else 0 for i in range(num_couplings)]
            masks = [ChannelMask(parity, num_first=event_size // 2) for parity in parities]
            bijectors = CouplingLayers(
                **layers, network_fn=network_fn or dense_resnet, event_ndims=1
            ).sequence(masks, event_size, num_filters, condition_shape, "layer")
            return FlowChain(bijectors, dtype=dtype, name="layers")

        parameters["network_dtype"] = network_dtype
        self._event_size = event_size
        super().__init__(
            build,
            {
                **layers,
                "event_size": event_size,
                "num_couplings": num_couplings,
                "num_blocks": num_blocks,
                "num_filters": num_filters,
                "activation": activation,
                "network_fn": network_fn,
            },
            {
                "conditional_event_shape": conditional_event_shape,
                "num_classes": num_classes,
                "size": embedding_size,
                "dropout": condition_dropout,
            },
            flow,
            [] if standardization is None else [standardization],
            event_ndims=1,
            recompute=recompute,
            dtype=dtype,
            validate_args=validate_args,
            parameters=parameters,
            name=name,
        )

    @property
    def event_size(self) -> int:
        """D, the argument."""
        return self._event_size

    def _check_event_shape(self, shape: tf.TensorShape, inverse: bool) -> None:
        if shape[-1] not in (None, self._event_size):
            raise ValueError(
                f"{self.name}: expected vectors of length {self._event_size}, got shape {shape}."
            )

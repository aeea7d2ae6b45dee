"""The complete Real NVP for vectors, as one bijector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tfp_realnvp.bijectors.architecture import (
    NetworkFn,
    VectorArchitecture,
)
from tfp_realnvp.bijectors.assembled_flow import AssembledFlow
from tfp_realnvp.bijectors.coupling_layers import ConditionShape, coupling_layers
from tfp_realnvp.bijectors.flow_chain import FlowChain
from tfp_realnvp.bijectors.masks import ChannelMask
from tfp_realnvp.bijectors.standardization import Standardization
from tfp_realnvp.bijectors.transformers import TransformerFn
from tfp_realnvp.internal import validation

__all__ = ["RealNVPVector"]


class RealNVPVector(AssembledFlow):
    r"""Real NVP for vectors [..., D], for example rows of tables or parameters of posteriors.

    Couplings alternate between keeping the first D / 2 elements, rounded down, and the others. A
    normalization and a mixing of all elements come before each coupling, seen from the data. The
    networks start at zero, so that the flow starts as a rotation, or with `mixing=None` as the
    identity.

    ```
    flow = tfd.TransformedDistribution(tfd.Sample(tfd.Normal(0., 1.), [D]), RealNVPVector(D))
    nats = -flow.log_prob(x)
    ```

    With D = 1 nothing is kept. The input of the networks is then the embedded condition, as in the
    regression p(y | x) of one number y; without a condition it is a constant. In both cases each
    coupling is an elementwise map, so that p(y | x) is normal with affine transformers, and of any
    shape with splines.

    #### Example

    >>> import tensorflow as tf, tensorflow_probability as tfp, tfp_realnvp as tfr
    >>> tfd = tfp.distributions
    >>> base = tfd.Sample(tfd.Normal(0., 1.), [5])
    >>> flow = tfd.TransformedDistribution(
    ...     base, tfr.RealNVPVector(5, num_couplings=4, num_filters=16))
    >>> x = flow.sample(7)
    >>> x.shape, flow.log_prob(x).shape
    (TensorShape([7, 5]), TensorShape([7]))

    Vectors given a label, of ten classes:

    >>> flow = tfd.TransformedDistribution(
    ...     base, tfr.RealNVPVector(5, num_couplings=4, num_filters=16, num_classes=10))
    >>> of_class_3 = tfr.condition(flow, 3)
    >>> x = of_class_3.sample(7)
    >>> of_class_3.log_prob(x).shape, tfr.condition(flow, tf.range(7)).log_prob(x).shape
    (TensorShape([7]), TensorShape([7]))

    #### References

    Dinh, Sohl-Dickstein, Bengio: Density estimation using Real NVP, section 3 and figure 1.
    Kingma, Dhariwal: Glow, section 3.2, for the mixing; Durkan et al.: Neural spline flows, section
    3.2, for its use with vectors.
    """

    architecture_type = VectorArchitecture

    def __init__(
        self,
        event_size: int,
        num_couplings: int = 10,
        num_blocks: int | None = None,
        num_filters: int = 64,
        *,
        activation: str | None = None,
        mixing: str | None = "lu",
        normalization: str | None = "actnorm",
        momentum: float | None = None,
        use_scale: bool | None = None,
        transformer: str | TransformerFn | None = None,
        recompute: bool = False,
        standardization: Standardization | None = None,
        network_fn: NetworkFn | None = None,
        network_dtype: str | None = None,
        conditional_event_shape: Sequence[int] | None = None,
        num_classes: int | None = None,
        condition_dropout: float | None = None,
        embedding_size: int | None = None,
        flow: FlowChain | None = None,
        dtype: Any = tf.float32,
        validate_args: bool = False,
        name: str = "real_nvp_vector",
    ) -> None:
        """Constructs the flow and its networks.

        Args:
          event_size: D, length of the vectors.
          num_couplings: number of couplings. The default, 10 with networks of one block, takes
            about as long as 8 with two blocks, and depends less on the seed.
          num_blocks: residual blocks of each network; by default 1. Only without a `network_fn`.
          num_filters: units of each dense layer of the networks.
          activation: name of the Keras activation of the networks; by default `'tanh'`: the output
            of a network is then smooth, and bounded far from the training data, so that held-out
            rows of a small table do not get absurd densities. Only without a `network_fn`.
          mixing: `'lu'`: a learned `InvertibleConv1x1` before each coupling; `'permutation'`: a
            fixed random permutation, of several elements; or `None`.
          normalization: `'actnorm'`: an `ActNorm` before each coupling; `'batch'`: batch
            normalization after each; or `None`.
          momentum: momentum of the moving statistics of batch normalization; by default 0.9.
          use_scale: `False` is short for `transformer='additive'`.
          transformer: transformer of the couplings: `'affine'`, the default, `'additive'` as in
            NICE, `'sigmoid_affine'`, `'rational_quadratic_spline'`, `'logistic_mixture'`, or a
            function that returns a new `Transformer`.
          recompute: whether gradients compute the activations of the networks again, one coupling
            at a time, instead of keeping them: less memory for one more forward pass. Only with
            networks that are Keras layers.
          standardization: standardization of the data, for example
            `Standardization.of(training_data)`. With `normalization='actnorm'` training does as
            well without: the first `ActNorm` starts with the moments of the first batch.
          network_fn: function that returns the network of a coupling; by default a `DenseResNet`.
            It gets the keyword arguments `mask`, `input_channels`, `output_channels`,
            `num_filters`, `name` and `dtype` (the `network_dtype`), and in a conditional flow
            `conditional_event_shape`, the shape of the embedded condition. The constructor builds
            Keras layers.
          network_dtype: name of the Keras dtype policy of the networks; by default the global
            policy, or float64 if `dtype` is.
          conditional_event_shape: [K], shape of the condition of a vector. The flow then needs a
            `conditional_input` [..., K].
          num_classes: number of classes, for a flow that needs a `conditional_input` of integer
            labels [...] in [0, num_classes).
          condition_dropout: the probability with which `FlowModel.fit` leaves out the condition of
            a vector. `conditional_input=None` then gives the density without a condition.
          embedding_size: length of the embedding of the condition, from which each network predicts
            scales and shifts of its activations; by default 64.
          flow: the attribute `flow` of another bijector of the same architecture, to share its
            networks, as copies do.
          dtype: `tf.float32` or `tf.float64`, of values and log det.
          validate_args: whether to assert that values and log dets are finite.
          name: name of the operations.

        Raises:
          ValueError: if an argument is out of range, or has no effect beside the others.
          TypeError: if an argument has a wrong type, or `dtype` is not float32 or float64.
        """
        parameters = dict(locals())
        options = VectorArchitecture.resolve(parameters)
        architecture = VectorArchitecture.of(options, dtype)
        if standardization is not None:
            _check_standardization(standardization, architecture)
        super().__init__(
            architecture,
            options,
            _layers,
            [] if standardization is None else [standardization],
            flow=flow,
            validate_args=validate_args,
            parameters=parameters,
            name=name,
        )

    @property
    def event_size(self) -> int:
        """The argument `event_size`: D."""
        return self.architecture.event_size

    def _expected_shape(self, inverse: bool) -> tf.TensorShape:
        return tf.TensorShape([self.event_size])


def _layers(architecture: VectorArchitecture, condition_shape: ConditionShape) -> FlowChain:
    size = architecture.event_size
    # A single element is never kept.
    parities = [i % 2 if size > 1 else 0 for i in range(architecture.num_couplings)]
    masks = [ChannelMask(parity, num_first=size // 2) for parity in parities]
    filters = architecture.num_filters
    bijectors = coupling_layers(architecture, masks, size, filters, condition_shape, "layer")
    return FlowChain(bijectors, dtype=architecture.dtype, name="layers")


def _check_standardization(standardization: Any, architecture: VectorArchitecture) -> None:
    expected = f"{architecture.flow_name}: expected a Standardization"
    is_valid = isinstance(standardization, Standardization)
    validation.require(is_valid, expected, standardization, TypeError)
    size = len(standardization.parameters["mean"])
    if size != architecture.event_size:
        raise ValueError(
            f"{architecture.flow_name}: expected a Standardization of vectors of length "
            f"{architecture.event_size}, got one of length {size}."
        )

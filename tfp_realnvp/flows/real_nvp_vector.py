"""The complete Real NVP for vectors, as one bijector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf
import tensorflow_probability as tfp

from tfp_realnvp.bijectors.masks import ChannelMask
from tfp_realnvp.bijectors.standardization import Standardization
from tfp_realnvp.bijectors.transformers import TransformerFn
from tfp_realnvp.flows.conditional_layers import conditional_layers
from tfp_realnvp.flows.coupling_layer import (
    ConditionShape,
    NetworkFn,
    coupling_layer,
    network_of,
)
from tfp_realnvp.flows.vector_flow import VectorFlow
from tfp_realnvp.internal import validation
from tfp_realnvp.networks import DenseResNet

__all__ = ["RealNVPVector"]

tfb = tfp.bijectors

_NAME = "RealNVPVector"


class RealNVPVector(VectorFlow):
    r"""Real NVP for vectors [..., D], for example rows of tables or parameters of posteriors.

    Couplings alternate between keeping the first D / 2 elements, rounded down, and the others. A
    normalization and a mixing of all elements come before each coupling, seen from the data. The
    networks start at zero, so that the flow starts as a rotation, or with `mixing=None` as the
    identity.

    ```
    flow = tfd.TransformedDistribution(tfd.Sample(tfd.Normal(0., 1.), [D]), RealNVPVector(D))
    nats = -flow.log_prob(x)
    ```

    The result is a `VectorFlow`.

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

    def __new__(  # type: ignore[misc]
        cls,
        event_size: int,
        num_couplings: int = 10,
        num_blocks: int | None = None,
        num_filters: int = 64,
        *,
        activation: str | None = None,
        mixing: str | None = "lu",
        normalization: str | None = "actnorm",
        transformer: str | TransformerFn = "affine",
        recompute: bool = False,
        standardization: Standardization | None = None,
        network_fn: NetworkFn | None = None,
        network_dtype: str | None = None,
        conditional_event_shape: Sequence[int] | None = None,
        num_classes: int | None = None,
        condition_dropout: float | None = None,
        embedding_size: int | None = None,
        dtype: Any = tf.float32,
        validate_args: bool = False,
        name: str = "real_nvp_vector",
    ) -> VectorFlow:
        """Returns the flow, with new networks.

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
          transformer: transformer of the couplings, as in `coupling_layer`.
          recompute: whether gradients compute the activations of the networks again, one coupling
            at a time, instead of keeping them: less memory for one more forward pass. Only with
            networks that are Keras layers.
          standardization: standardization of the data, for example
            `Standardization.of(training_data)`. With `normalization='actnorm'` training does as
            well without: the first `ActNorm` starts with the moments of the first batch.
          network_fn: function that returns the network of a coupling, as in `coupling_layer`; by
            default a `DenseResNet`.
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
          dtype: `tf.float32` or `tf.float64`, of values and log det.
          validate_args: whether to assert that values and log dets are finite.
          name: name of the operations.

        Raises:
          ValueError: if an argument is out of range, or has no effect beside the others.
          TypeError: if an argument has a wrong type, or `dtype` is not float32 or float64.
        """
        size = validation.count(event_size, "event_size", 1, _NAME)
        num_couplings = validation.count(num_couplings, "num_couplings", 1, _NAME)
        is_default = network_fn is None
        for option, value in (("num_blocks", num_blocks), ("activation", activation)):
            validation.only(value, option, is_default, "with the default network", _NAME)
        if size == 1 and mixing == "permutation":
            raise ValueError(
                f"{_NAME}: expected mixing='permutation' only with several elements, got a size of "
                "1; mixing='lu' has an effect."
            )
        if network_fn is None:
            expected = f"{_NAME}: expected the name of an activation"
            activation = "tanh" if activation is None else activation
            validation.require(isinstance(activation, str), expected, activation, TypeError)
            num_blocks = 1 if num_blocks is None else num_blocks
            network_fn = network_of(DenseResNet, num_blocks=num_blocks, activation=activation)
        if standardization is not None:
            _check_standardization(standardization, size)
        layer = coupling_layer(
            network_fn,
            num_filters,
            transformer=transformer,
            normalization=normalization,
            mixing=mixing,
            network_dtype=network_dtype,
        )

        def layers(condition_shape: ConditionShape) -> list[tfb.Bijector]:
            options = {"condition_shape": condition_shape, "dtype": dtype}
            bijectors = []
            for i in range(num_couplings):
                # A single element is never kept.
                mask = ChannelMask(i % 2 if size > 1 else 0, num_first=size // 2)
                bijectors += layer(mask, (size,), f"layer{i}", **options, seed=i)
            return bijectors

        bijectors = conditional_layers(
            layers,
            conditional_event_shape=conditional_event_shape,
            num_classes=num_classes,
            condition_dropout=condition_dropout,
            embedding_size=embedding_size,
            event_ndims=1,
            dtype=dtype,
            name=name,
        )
        return VectorFlow(
            [*([] if standardization is None else [standardization]), *bijectors],
            size,
            recompute=recompute,
            dtype=dtype,
            validate_args=validate_args,
            name=name,
        )


def _check_standardization(standardization: Any, size: int) -> None:
    is_valid = isinstance(standardization, Standardization)
    expected = f"{_NAME}: expected a Standardization"
    validation.require(is_valid, expected, standardization, TypeError)
    length = len(standardization.parameters["mean"])
    if length != size:
        raise ValueError(
            f"{_NAME}: expected a Standardization of vectors of length {size}, got one of length "
            f"{length}."
        )

"""The complete Real NVP for vectors, as one bijector."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf
from tensorflow_probability import bijectors as tfb

from tfp_realnvp.bijectors import ChannelMask, Standardization
from tfp_realnvp.bijectors.flow_chain import ComposedFlow
from tfp_realnvp.bijectors.transformers import TransformerFn
from tfp_realnvp.flows.conditional_flow import check_options, conditional_flow
from tfp_realnvp.flows.coupling_layer import ConditionShape, NetworkFn, coupling_layer, network_of
from tfp_realnvp.internal import initial_seeds, validation
from tfp_realnvp.networks import DenseResNet

_NAME = "RealNVPVector"


class VectorFlow(ComposedFlow):
    """A `FlowChain` between latents and vectors, with an attribute for their length.

    `RealNVPVector` is a subclass.

    #### Example

    >>> import tfp_realnvp as tfr
    >>> flow = tfr.RealNVPVector(5, num_couplings=2, num_filters=8)
    >>> type(flow).__name__, flow.event_size
    ('RealNVPVector', 5)

    Attributes:
      event_size: D, length of the vectors.
    """

    def __init__(
        self,
        bijectors: Sequence[tfb.Bijector],
        event_size: int,
        *,
        name: str = "vector_flow",
        **options: Any,
    ) -> None:
        """Constructs the flow from its bijectors.

        Args:
          event_size: length of the vectors.
          bijectors, name, **options: as in `FlowChain`, for vectors.

        Raises:
          TypeError, ValueError: as in `FlowChain`, or if `event_size` is not a positive integer.
        """
        self.event_size = validation.count(event_size, "event_size", 1, name)
        super().__init__(bijectors, 1, name, options, event_size=self.event_size)

    def _expected_shape(self, inverse: bool) -> tf.TensorShape:
        return tf.TensorShape([self.event_size])


class RealNVPVector(VectorFlow):
    r"""Real NVP for vectors [..., D], for example rows of tables or parameters of posteriors.

    Couplings alternately keep the first D / 2 elements (rounded down) and the other elements. From
    data to latents, a normalization and a mixing of all elements come before each coupling. The
    networks start at zero, so that the flow starts as a random orthogonal map, or with
    `mixing=None` as the identity.

    ```
    flow = tfd.TransformedDistribution(tfd.Sample(tfd.Normal(0., 1.), [D]), RealNVPVector(D))
    nats = -flow.log_prob(x)
    ```

    With D = 1, the networks' input is the embedded condition, or a constant without a condition.
    Such a flow models, for example, p(y | x) of one number y. With affine transformers, p(y | x) is
    a normal distribution; with splines, it can have any shape.

    #### Example

    >>> import tensorflow as tf, tensorflow_probability as tfp, tfp_realnvp as tfr
    >>> tfd = tfp.distributions
    >>> base = tfd.Sample(tfd.Normal(0., 1.), [5])
    >>> flow = tfd.TransformedDistribution(
    ...     base, tfr.RealNVPVector(5, num_couplings=4, num_filters=16))
    >>> x = flow.sample(7)
    >>> x.shape, flow.log_prob(x).shape
    (TensorShape([7, 5]), TensorShape([7]))

    A conditional flow, with labels of ten classes:

    >>> flow = tfd.TransformedDistribution(
    ...     base, tfr.RealNVPVector(5, num_couplings=4, num_filters=16, num_classes=10))
    >>> of_class_3 = tfr.condition(flow, 3)
    >>> x = of_class_3.sample(7)
    >>> of_class_3.log_prob(x).shape, tfr.condition(flow, tf.range(7)).log_prob(x).shape
    (TensorShape([7]), TensorShape([7]))

    #### References

    Dinh, Sohl-Dickstein, Bengio: Density estimation using Real NVP, section 3 and figure 1.
    Kingma, Dhariwal: Glow, section 3.2, for the mixing; Durkan et al.: Neural spline flows, section
    3.2, for mixing in flows of vectors.
    """

    def __init__(
        self,
        event_size: int,
        num_couplings: int = 12,
        num_blocks: int | None = None,
        num_filters: int = 64,
        *,
        activation: str | None = None,
        mixing: str | None = "lu",
        normalization: str | None = "actnorm",
        transformer: str | TransformerFn = "affine",
        standardization: Standardization | None = None,
        seed: int | None = None,
        network_fn: NetworkFn | None = None,
        network_dtype: str | None = None,
        dtype: Any = tf.float32,
        name: str = "real_nvp_vector",
        **options: Any,
    ) -> None:
        """Constructs the flow, with new networks.

        Args:
          event_size: D, length of the vectors.
          num_couplings: number of couplings. With fewer, results depend more on the seed.
          num_blocks: residual blocks of each network; by default 1. Only without a `network_fn`.
          num_filters: units of each dense layer of the networks.
          activation: name of the Keras activation of the networks; by default `'tanh'`, whose
            bounded outputs avoid extreme densities of held-out rows. Only without a `network_fn`.
          mixing, normalization, transformer, network_dtype: as in `coupling_layer`.
          standardization: standardization of the data, for example
            `Standardization.of(training_data)`. With `normalization='actnorm'` standardization is
            unnecessary for columns with a standard deviation of at least 0.01: the first `ActNorm`
            starts with the moments of the first batch.
          seed: seed of the initial weights and permutations. By default Keras' global generator
            draws the weights, and permutations are the same in every flow.
          network_fn: function that returns the network of a coupling, as in `coupling_layer`; by
            default a `DenseResNet`.
          dtype, name: as in `image_flow`.
          **options: the options of `image_flow`, for vectors.

        Raises:
          TypeError, ValueError: if an argument is invalid or has no effect.
        """
        check_options(RealNVPVector.__init__, options, _NAME)
        size = validation.count(event_size, "event_size", 1, _NAME)
        num_couplings = validation.count(num_couplings, "num_couplings", 1, _NAME)
        for option, value in (("num_blocks", num_blocks), ("activation", activation)):
            validation.only(value, option, network_fn is None, "with the default network", _NAME)
        expected = f"{_NAME}: expected an event_size of at least 2 for mixing='permutation'"
        validation.require(mixing != "permutation" or size > 1, expected, size)
        if network_fn is None:
            num_blocks = 1 if num_blocks is None else num_blocks
            activation = "tanh" if activation is None else activation
            network_fn = network_of(DenseResNet, num_blocks=num_blocks, activation=activation)
        kinds: dict[str, Any] = {"transformer": transformer, "normalization": normalization}
        kinds |= {"mixing": mixing, "network_dtype": network_dtype}
        layer = coupling_layer(network_fn, num_filters, **kinds)

        def layers(condition_shape: ConditionShape) -> list[tfb.Bijector]:
            of_all = {"condition_shape": condition_shape, "dtype": dtype}
            bijectors: list[tfb.Bijector] = []
            for i in range(num_couplings):
                # A coupling of a single element always transforms the element.
                mask = ChannelMask(i % 2 if size > 1 else 0, num_first=size // 2)
                bijectors += layer(mask, (size,), f"layer{i}", **of_all)
            return bijectors

        options |= {"event_size": size, "dtype": dtype, "name": name}
        with initial_seeds.initial_seeds_from(seed):
            flow = conditional_flow(VectorFlow, layers, standardization, **options)
        super().__init__(**flow.parameters)

"""Base distributions that depend on a condition: of any family, or a mixture of classes."""

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf
from tensorflow_probability import distributions as tfd

from tfp_realnvp.bijectors.flow_bijector import surrounding_pass
from tfp_realnvp.condition_spec import ConditionSpec
from tfp_realnvp.internal import private_api, validation


class ConditionalDistribution:
    """Mixin of a distribution p(x | c): `given(c)` returns the distribution for a condition c.

    If its methods get no `conditional_input`, they use the condition of the context.
    """

    condition_spec: Any = None  # a `ConditionSpec`, if the condition is declared
    accepts_conditional_input = True

    def given(self, conditional_input: Any) -> tfd.Distribution:
        """Returns p(x | c). The leading shape of the condition is the batch shape."""
        raise NotImplementedError

    def _log_prob(self, value: tf.Tensor, conditional_input: Any = None) -> tf.Tensor:
        return self.given(given_or_surrounding(conditional_input)).log_prob(value)

    def _call_sample_n(
        self, sample_shape: Any, seed: Any, conditional_input: Any = None, **kwargs: Any
    ) -> tf.Tensor:
        # The rightmost dimensions of the sample shape are the condition's batch dimensions.
        distribution = self.given(given_or_surrounding(conditional_input))
        shape = tf.reshape(tf.convert_to_tensor(sample_shape, tf.int32), [-1])
        batch = tf.broadcast_dynamic_shape(shape, distribution.batch_shape_tensor())
        number = tf.size(batch) - tf.size(distribution.batch_shape_tensor())
        wide = tfd.BatchBroadcast(distribution, batch[number:])
        return wide.sample(batch[:number], seed=seed, **kwargs)


def given_or_surrounding(conditional_input: Any) -> Any:
    """Returns a condition, or the condition of the context instead of `None`."""
    return surrounding_pass().condition if conditional_input is None else conditional_input


class ConditionalBase(ConditionalDistribution, tfd.Distribution):
    r"""A distribution p(x | c), defined by a function that maps conditions to distributions.

    ```
    log_prob(x, conditional_input=c) = make_distribution(c, *variables).log_prob(x)
    ```

    As the base of a `tfd.TransformedDistribution`, it gets the condition through
    `distribution_kwargs`; `FlowModel` and `condition` pass the condition automatically. The flow
    must not have `condition_dropout`, because the function needs a condition.

    The `reparameterization_type` of `condition(flow, c)` is that of the distribution for c. Without
    a condition this distribution is unknown, and the type is `tfd.NOT_REPARAMETERIZED`.

    #### Example

    A learned Normal for each of ten classes:

    >>> import tensorflow as tf, tensorflow_probability as tfp, tfp_realnvp as tfr
    >>> tfd = tfp.distributions
    >>> means = tf.Variable(tf.zeros([10, 4, 4, 1]))
    >>> base = tfr.ConditionalBase(
    ...     lambda label, means: tfd.Independent(tfd.Normal(tf.gather(means, label), 1.), 3),
    ...     [means], event_shape=[4, 4, 1])
    >>> flow = tfd.TransformedDistribution(base, tfr.RealNVPImage((4, 4, 1)))
    >>> conditioned = tfr.condition(flow, [3, 7])
    >>> x = conditioned.sample(5)
    >>> conditioned.batch_shape, x.shape, conditioned.log_prob(x).shape
    (TensorShape([2]), TensorShape([5, 2, 4, 4, 1]), TensorShape([5, 2]))
    """

    def __init__(
        self,
        make_distribution: Callable[..., tfd.Distribution],
        variables: Sequence[tf.Variable] = (),
        *,
        event_shape: Sequence[int],
        dtype: Any = tf.float32,
        validate_args: bool = False,
        allow_nan_stats: bool = True,
        name: str = "ConditionalBase",
    ) -> None:
        """Constructs the distribution.

        Args:
          make_distribution: function that takes a condition, a tensor with any leading shape, and
            the variables. It returns a distribution with this leading shape as batch shape.
          variables: trainable variables for `make_distribution`.
          event_shape: shape of one event.
          dtype: dtype of the events.
          validate_args, allow_nan_stats, name: as in `tfd.Distribution`.
        """
        parameters = dict(locals())
        with tf.name_scope(name) as name:
            self._make = make_distribution
            self._parameter_variables = tuple(variables)
            self._static_event_shape = self._no_dependency(tf.TensorShape(event_shape))
            dtype, kind = tf.as_dtype(dtype), tfd.NOT_REPARAMETERIZED
            super().__init__(dtype, kind, validate_args, allow_nan_stats, parameters, name=name)

    def given(self, conditional_input: Any) -> tfd.Distribution:
        """Calls `make_distribution`; raises `ValueError` if the condition is `None`."""
        expected, condition = f"{self.name}: expected a conditional_input", conditional_input
        validation.require(condition is not None, expected, condition)
        distribution = self._make(tf.convert_to_tensor(condition), *self._parameter_variables)
        is_shape = distribution.event_shape.is_compatible_with(self._static_event_shape)
        expected = f"{self.name}: expected a distribution of event_shape {self._static_event_shape}"
        validation.require(is_shape, expected, distribution)
        return distribution

    @classmethod
    def _parameter_properties(cls, dtype: Any, num_classes: int | None = None) -> dict[str, Any]:
        return {}

    def _event_shape(self) -> tf.TensorShape:
        return self._static_event_shape


class ClassMixture(ConditionalDistribution, tfd.MixtureSameFamily):
    r"""A `tfd.MixtureSameFamily` with one component per class, for known and missing labels.

    ```
    log p(z | y),                       for a label y in [0, K)
    log p(z) = log sum_y p(y) p(z | y)  for a label of -1, or without one
    ```

    `conditional_input` contains the labels. A flow with this base distribution learns to classify
    from few labels. `FlowModel.fit(x, labels)` maximizes a sum: `log p(x | y)` of labeled rows,
    `log p(x)` of rows with the label -1, and 0.1 times the mean `log p(y | x)` of the labeled rows
    in each batch. The bijector does not depend on the class. `flow.log_prob(x)` is `log p(x)`, and
    `class_log_probs(flow, x)` is `log p(y | x)`.

    Construct the mixture with equal means, a `tf.Variable` of zeros [K, ...]. `fit` then
    initializes each mean to the mean latent of the labeled rows of its class. In the first half of
    training `fit` moves the means apart, to a mean distance of at least 6 standard deviations, so
    that class boundaries lie where rows are rare. If the initial means differ, training starts from
    these means, and the result depends on them.

    #### Example

    >>> import numpy as np, tensorflow as tf, tensorflow_probability as tfp, tfp_realnvp as tfr
    >>> tfd = tfp.distributions
    >>> means = tf.Variable(tf.zeros([2, 2]))   # placed by `fit`
    >>> base = tfr.ClassMixture(
    ...     tfd.Categorical(logits=tf.zeros(2)), tfd.Independent(tfd.Normal(means, 1.), 1))
    >>> flow = tfd.TransformedDistribution(
    ...     base, tfr.RealNVPVector(2, num_couplings=2, num_filters=8))
    >>> model = tfr.FlowModel(flow)
    >>> model.compile()
    >>> x = np.random.default_rng(0).normal([[-1., 0.]] * 50 + [[1., 0.]] * 50, 0.2)
    >>> labels = np.full(100, -1)   # unknown
    >>> labels[[0, 99]] = 0, 1
    >>> history = model.fit(x, labels, verbose=0)
    >>> tfr.class_log_probs(flow, x).shape, tfr.condition(flow, 1).sample(5).shape
    (TensorShape([100, 2]), TensorShape([5, 2]))

    The constructor takes the arguments of `tfd.MixtureSameFamily`: `mixture_distribution`, a
    `tfd.Categorical`, is p(y); `components_distribution`, of batch shape [K], is p(z | y). Training
    updates parameters of type `tf.Variable`. Samples are not reparameterized.

    #### References

    Rose: Deterministic annealing for clustering, compression, classification, regression, and
    related optimization problems (1998).
    Izmailov, Kirichenko, Finzi, Wilson: Semi-supervised learning with normalizing flows (2020).
    """

    @property
    def condition_spec(self) -> ConditionSpec:
        """The condition: labels in [0, K), or -1."""
        shape = self.components_distribution.batch_shape
        expected = "ClassMixture: expected a components_distribution of batch_shape [num_classes]"
        is_shape = shape.rank == 1 and shape[0] is not None
        validation.require(is_shape, expected, self.components_distribution)
        return ConditionSpec(num_classes=shape[0], dropout=0.0)

    @property
    def loc(self) -> tf.Variable | None:
        """The component means [K, ...] if they are a trainable `tf.Variable`, else `None`."""
        part = components = self.components_distribution
        while isinstance(part, private_api.Independent):
            part = part.distribution
        loc = part.parameters.get("loc")
        if not isinstance(loc, tf.Variable) or not loc.trainable:
            return None
        return loc if loc.shape == components.batch_shape + components.event_shape else None

    def log_weights(self, conditional_input: Any = None) -> tf.Tensor:
        """Returns log class weights, [..., K]: log p(y) for the label -1, else log of a one-hot."""
        spec = self.condition_spec
        condition = spec.as_tensor(conditional_input, "ClassMixture", self.dtype)
        prior = tf.math.log_softmax(self.mixture_distribution.logits_parameter())
        log_weights = tf.math.log(tf.one_hot(condition, spec.num_classes, dtype=self.dtype))
        return tf.where(condition[..., tf.newaxis] < 0, prior, log_weights)

    def given(self, conditional_input: Any) -> tfd.Distribution:
        """Returns the mixture given labels [...]. Its batch shape is the shape of the labels."""
        labels = tfd.Categorical(logits=self.log_weights(conditional_input))
        return tfd.MixtureSameFamily(labels, self.components_distribution)

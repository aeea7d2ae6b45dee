"""A distribution with a fixed condition."""

from typing import Any

import tensorflow as tf
import tensorflow_probability as tfp

from tfp_realnvp.bijectors.flow_bijector import surround_with
from tfp_realnvp.distributions import conditional_bases, routing
from tfp_realnvp.internal import private_api, validation

tfd = tfp.distributions


def condition(
    distribution: tfd.Distribution, conditional_input: Any, *, name: str | None = None
) -> "ConditionedDistribution":
    r"""Returns p(x | c) for a fixed condition c. The leading shape of c is the batch shape.

    `sample` draws a latent for each sample and condition. By contrast, `flow.sample(n,
    bijector_kwargs={'conditional_input': c})` draws n latents, as all distributions of TFP do: the
    conditions broadcast with them, so that several conditions can share one latent.

    #### Example

    >>> import tensorflow_probability as tfp, tfp_realnvp as tfr
    >>> tfd = tfp.distributions
    >>> base = tfd.Sample(tfd.Normal(0., 1.), [4, 4, 1])
    >>> flow = tfd.TransformedDistribution(base, tfr.RealNVPImage((4, 4, 1), num_classes=10))
    >>> conditioned = tfr.condition(flow, [3, 7])
    >>> x = conditioned.sample(5)
    >>> conditioned.batch_shape, x.shape, conditioned.log_prob(x).shape
    (TensorShape([2]), TensorShape([5, 2, 4, 4, 1]), TensorShape([5, 2]))

    Args:
      distribution: a distribution or `FlowModel` that takes `conditional_input`.
      conditional_input: labels, vectors or images, with any leading dimensions. With
        `condition_dropout`, `None` gives the unconditional distribution.
      name: name scope of the operations.

    Raises:
      TypeError, ValueError: if `distribution` is neither a distribution nor a `FlowModel`, or takes
        no condition, or the condition does not fit its declaration.
    """
    return ConditionedDistribution(distribution, conditional_input, name=name)


class ConditionedDistribution(tfd.Distribution):
    """A distribution with a fixed condition; see `condition`."""

    # Its parts get its own condition, not the condition of the context.
    accepts_conditional_input = False
    condition_spec = None

    def __init__(
        self, distribution: tfd.Distribution, conditional_input: Any, name: str | None = None
    ) -> None:
        """Constructs the distribution; see `condition`."""
        distribution = routing.distribution_of(distribution, "condition")
        parameters = dict(locals())
        expected = "condition: expected a distribution that takes a conditional_input"
        validation.require(routing.takes_condition(distribution), expected, distribution)
        with tf.name_scope(name or f"conditioned_{distribution.name}") as name:
            spec, base = routing.find_condition_spec(distribution), distribution
            while isinstance(base, (private_api.TransformedDistribution, private_api.Independent)):
                base = base.distribution
            is_made = isinstance(base, conditional_bases.ConditionalBase)
            if spec is not None:
                condition = spec.as_tensor(conditional_input, "condition", distribution.dtype)
            else:
                condition = tf.convert_to_tensor(conditional_input)
                expected = "condition: expected couplings with a conditional_event_shape, which "
                expected += f"tells the batch shape of a condition of shape {condition.shape}"
                validation.require(is_made, expected, distribution)
            base = base.given(condition) if is_made else base
            if spec is None:
                shape = base.batch_shape
            else:
                shape = condition.shape[: condition.shape.rank - spec.event_ndims]
            # The bijector makes a missing condition image, which has the size of the events.
            condition = None if conditional_input is None else condition
            self.distribution, self.conditional_input = distribution, condition
            parameters["conditional_input"] = condition
            self._static_batch_shape = self._no_dependency(shape)
            names = ("dtype", "validate_args", "allow_nan_stats")
            options = {key: getattr(distribution, key) for key in names}
            options["reparameterization_type"] = base.reparameterization_type
            super().__init__(parameters=parameters, name=name, **options)

    @classmethod
    def _parameter_properties(cls, dtype: Any, num_classes: int | None = None) -> dict[str, Any]:
        return {}

    def __getitem__(self, slices: Any) -> "ConditionedDistribution":
        """Slices the batch shape, as TFP does; `IndexError` for more indices than it has axes."""
        slices = slices if isinstance(slices, tuple) else (slices,)
        batch_ndims = self._static_batch_shape.rank
        number = sum(part is not Ellipsis and part is not tf.newaxis for part in slices)
        expected = f"{self.name}: expected at most {batch_ndims} indices of the batch shape"
        validation.require(number <= batch_ndims, expected, slices, IndexError)
        if self.conditional_input is None:
            return self
        if any(part is Ellipsis for part in slices):
            event_ndims = self.conditional_input.shape.rank - batch_ndims
            slices = (*slices, *[slice(None)] * event_ndims)
        name = self.parameters["name"]
        return ConditionedDistribution(self.distribution, self.conditional_input[slices], name)

    def _event_shape(self) -> tf.TensorShape:
        return self.distribution.event_shape

    def _event_shape_tensor(self) -> tf.Tensor:
        return self.distribution.event_shape_tensor()

    def _batch_shape(self) -> tf.TensorShape:
        return self._static_batch_shape

    def _batch_shape_tensor(self) -> tf.Tensor:
        if self.conditional_input is None:
            return tf.zeros([0], tf.int32)
        return tf.shape(self.conditional_input)[: self._static_batch_shape.rank]

    def _given(self, kwargs: dict[str, Any]) -> Any:
        """Returns the context of the fixed condition, and of the keyword argument `training`."""
        validation.known_options(kwargs, ["training"], self.name)
        given = {name: value for name, value in kwargs.items() if value is not None}
        return surround_with(condition=self.conditional_input, **given)

    def _log_prob(self, value: tf.Tensor, **kwargs: Any) -> tf.Tensor:
        with self._given(kwargs):
            return self.distribution.log_prob(routing.unseen(self.distribution, value))

    # Otherwise TFP would reshape the sample, and the bijector's cache would not find it.
    def _call_sample_n(self, sample_shape: Any, seed: Any, **kwargs: Any) -> tf.Tensor:
        shape = tf.reshape(tf.convert_to_tensor(sample_shape, tf.int32), [-1])
        shape = tf.concat([shape, self.batch_shape_tensor()], axis=0)
        with self._given(kwargs):
            return self.distribution.sample(shape, seed=seed)

    def _default_event_space_bijector(self) -> tfp.bijectors.Bijector:
        return self.distribution.experimental_default_event_space_bijector()

"""A distribution given a condition, for example as the base of a conditional flow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf
import tensorflow_probability as tfp

from tfp_realnvp.internal import validation

__all__ = ["ConditionalBase"]

tfd = tfp.distributions


class ConditionalBase(tfd.Distribution):
    r"""p(x | c), given by a function from conditions to distributions.

    ```
    log_prob(x, conditional_input=c) = make_distribution(c, *variables).log_prob(x)
    ```

    As the base of a `tfd.TransformedDistribution` it gets the condition by `distribution_kwargs`;
    `FlowModel` and `condition` pass it there.

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
          make_distribution: function of a condition, a tensor with any leading dimensions, and of
            the variables. It returns a distribution whose batch shape is the leading dimensions.
          variables: trainable variables that `make_distribution` gets.
          event_shape: shape of one event.
          dtype: dtype of the events.
          validate_args: as in `tfd.Distribution`.
          allow_nan_stats: as in `tfd.Distribution`.
          name: name of the operations.

        Raises:
          TypeError: if `make_distribution` is not a function.
        """
        parameters = dict(locals())
        expected = f"{name}: expected a function as make_distribution"
        validation.require(callable(make_distribution), expected, make_distribution, TypeError)
        with tf.name_scope(name) as name:
            self._make = make_distribution
            self._parameter_variables = tuple(variables)
            self._static_event_shape = self._no_dependency(tf.TensorShape(event_shape))
            super().__init__(
                dtype=tf.as_dtype(dtype),
                reparameterization_type=tfd.FULLY_REPARAMETERIZED,
                validate_args=validate_args,
                allow_nan_stats=allow_nan_stats,
                parameters=parameters,
                name=name,
            )

    def given(self, conditional_input: Any) -> tfd.Distribution:
        """Returns the distribution given a condition.

        Raises:
          ValueError: if the condition is missing, or the result has another event shape.
        """
        if conditional_input is None:
            raise ValueError(f"{self.name}: expected a conditional_input, got None.")
        distribution = self._make(
            tf.convert_to_tensor(conditional_input), *self._parameter_variables
        )
        if not distribution.event_shape.is_compatible_with(self._static_event_shape):
            raise ValueError(
                f"{self.name}: expected a distribution of event_shape {self._static_event_shape}, "
                f"got {distribution}."
            )
        return distribution

    @classmethod
    def _parameter_properties(cls, dtype: Any, num_classes: int | None = None) -> dict[str, Any]:
        return {}

    def _event_shape(self) -> tf.TensorShape:
        return self._static_event_shape

    def _event_shape_tensor(self) -> tf.Tensor:
        return tf.constant(self._static_event_shape, tf.int32)

    def _batch_shape(self) -> tf.TensorShape:
        return tf.TensorShape([])

    def _batch_shape_tensor(self) -> tf.Tensor:
        return tf.constant([], tf.int32)

    def _log_prob(self, value: tf.Tensor, conditional_input: Any = None) -> tf.Tensor:
        return self.given(conditional_input).log_prob(value)

    def _call_sample_n(
        self, sample_shape: Any, seed: Any, conditional_input: Any = None, **kwargs: Any
    ) -> tf.Tensor:
        # The last dimensions of the sample are the batch of the condition.
        distribution = self.given(conditional_input)
        shape = tf.reshape(tf.convert_to_tensor(sample_shape, tf.int32), [-1])
        batch = tf.broadcast_dynamic_shape(shape, distribution.batch_shape_tensor())
        number = tf.size(batch) - tf.size(distribution.batch_shape_tensor())
        wide = tfd.BatchBroadcast(distribution, batch[number:])
        return wide.sample(batch[:number], seed=seed, **kwargs)

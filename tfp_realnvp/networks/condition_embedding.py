"""A declared condition and its embedding, which all networks of a flow share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfp_realnvp.internal import validation
from tfp_realnvp.networks.conditioner import checked_condition_shape

__all__ = ["ConditionEmbedding"]


@keras.saving.register_keras_serializable(package="tfp_realnvp")
class ConditionEmbedding(keras.layers.Layer):
    r"""Checks a condition and embeds it.

    | argument | condition | embedding |
    | --- | --- | --- |
    | `num_classes=K` | integer labels [...] | a row of a learned table, [..., E] |
    | | weights of the classes [..., K] | the weighted sum of its rows |
    | `conditional_event_shape=[K]` | vectors [..., K] | two dense layers, [..., E] |
    | `conditional_event_shape=[H, W, K]` | images [..., H, W, K] | the image itself |

    With `dropout` there is also "no condition", a learned embedding that starts at zero. It stands
    for `None`, for a negative label, and for a vector or an image that contains a NaN.

    #### Example

    >>> import tensorflow as tf
    >>> embedding = ConditionEmbedding(num_classes=10, size=16)
    >>> embedding(tf.constant([3, 7])).shape, embedding.event_ndims
    (TensorShape([2, 16]), 0)
    """

    def __init__(
        self,
        conditional_event_shape: Sequence[int | None] | None = None,
        *,
        num_classes: int | None = None,
        size: int = 64,
        dropout: float | None = None,
        **kwargs: Any,
    ) -> None:
        """Constructs the embedding.

        Args:
          conditional_event_shape: [K], or [H, W, K], where H and W can be `None`.
          num_classes: K, for labels in [0, K), instead of a `conditional_event_shape`.
          size: E, length of the embedding of labels and vectors.
          dropout: the probability with which `FlowModel.fit` leaves out the condition of an image;
            `None` if there always is a condition.
          **kwargs: `name`, `dtype`, as in `keras.layers.Layer`.

        Raises:
          ValueError: if not exactly one of the first two arguments is given, or one of the
            arguments is out of range.
          TypeError: if one has a wrong type.
        """
        super().__init__(**kwargs)
        if (conditional_event_shape is None) == (num_classes is None):
            raise ValueError(
                f"{self.name}: expected either a conditional_event_shape or num_classes, got "
                f"{conditional_event_shape} and {num_classes}."
            )
        if num_classes is not None:
            num_classes = validation.integer(
                num_classes, 1, f"{self.name}: expected num_classes of at least 1"
            )
        else:
            conditional_event_shape = checked_condition_shape(conditional_event_shape, self.name)
        if dropout is not None:
            expected = f"{self.name}: expected a condition_dropout in [0, 1)"
            dropout = float(validation.real(dropout, lambda x: 0 <= x < 1, expected))
        self.conditional_event_shape = conditional_event_shape or ()
        self.num_classes = num_classes
        self.size = validation.integer(size, 1, f"{self.name}: expected a size of at least 1")
        self.dropout = dropout

    def build(self, input_shape: Any = None) -> None:
        """Creates the variables, whatever the leading shape of the conditions."""
        depth = self.num_classes or self.conditional_event_shape[-1]
        if self.num_classes is not None:
            self.table = self.add_weight(
                name="table", shape=(depth, self.size), initializer="random_normal"
            )
        elif self.event_ndims == 1:
            self.dense = [
                keras.layers.Dense(self.size, activation, dtype=self.dtype_policy, name=name)
                for name, activation in (("dense1", "swish"), ("dense2", None))
            ]
            self.dense[0].build([None, depth])
            self.dense[1].build([None, self.size])
        if self.dropout is not None:
            width = self.embedded_shape[-1]
            self.no_condition = self.add_weight(
                name="no_condition", shape=(width,), initializer="zeros"
            )

    @property
    def event_ndims(self) -> int:
        """Rank of one condition: 0 for labels, 1 for vectors, 3 for images."""
        return len(self.conditional_event_shape)

    @property
    def embedded_shape(self) -> tuple[int | None, ...]:
        """Shape of one embedded condition: (E,), or (H, W, K)."""
        return self.conditional_event_shape if self.event_ndims == 3 else (self.size,)

    def as_condition(self, value: Any, owner: str) -> tf.Tensor:
        """Returns a condition as a tensor: int32 labels, or floats.

        Args:
          value: a tensor, an array or a number; with `dropout` also `None`, for "no condition".
          owner: the name that an error begins with.

        Raises:
          ValueError: if it is not a condition as declared; labels are checked where they are known.
        """
        if value is None:
            return self._nothing(owner)
        if not tf.is_tensor(value):
            value = np.asarray(value)
            if value.dtype == np.float64:
                value = value.astype(self.compute_dtype)
        value = tf.convert_to_tensor(value)
        self.check_spec(value, owner)
        if self.num_classes is not None and value.dtype.is_integer:
            return self._checked_labels(value, owner)
        return tf.cast(value, self.compute_dtype)

    def check_spec(self, spec: tf.Tensor | tf.TensorSpec, owner: str) -> None:
        """Raises `ValueError` if dtype and shape are not those of conditions as declared."""
        event = self._event_shape_of(spec.dtype)
        fits = spec.dtype.is_floating or spec.dtype.is_integer
        if spec.shape.rank is not None:
            ends = spec.shape[max(spec.shape.rank - len(event), 0) :]
            fits = fits and ends.is_compatible_with(event)
        if not fits:
            raise ValueError(
                f"{owner}: expected a conditional_input of {self.description}, got "
                f"{spec.dtype.name} of shape {spec.shape}."
            )

    def _event_shape_of(self, dtype: tf.DType) -> tuple[int | None, ...]:
        is_weights = self.num_classes is not None and dtype.is_floating
        return (self.num_classes,) if is_weights else self.conditional_event_shape

    def _nothing(self, owner: str) -> tf.Tensor:
        if self.dropout is None:
            raise ValueError(
                f"{owner}: expected a conditional_input of {self.description}, got None."
            )
        if self.num_classes is not None:
            return tf.constant(-1, tf.int32)
        shape = [size or 1 for size in self.conditional_event_shape]
        return tf.fill(shape, tf.constant(np.nan, self.compute_dtype))

    def _checked_labels(self, labels: tf.Tensor, owner: str) -> tf.Tensor:
        lowest = 0 if self.dropout is None else -1
        known = tf.get_static_value(labels)
        expected = f"{owner}: expected a conditional_input of {self.description}"
        if known is not None:
            wrong = known[(known < lowest) | (known >= self.num_classes)]
            if wrong.size:
                raise ValueError(f"{expected}, got {sorted(set(wrong.ravel().tolist()))[:5]}.")
            return tf.cast(labels, tf.int32)
        labels = tf.cast(labels, tf.int64)
        assertions = [
            tf.debugging.assert_greater_equal(labels, tf.cast(lowest, tf.int64), expected),
            tf.debugging.assert_less(labels, tf.cast(self.num_classes, tf.int64), expected),
        ]
        with tf.control_dependencies(assertions):
            return tf.cast(labels, tf.int32)

    @property
    def description(self) -> str:
        """The declared condition in words, for errors."""
        if self.num_classes is not None:
            lowest = "" if self.dropout is None else " or -1"
            k = self.num_classes
            return f"integer labels in [0, {k}){lowest}, or weights of the classes [..., {k}]"
        sizes = ", ".join("any" if n is None else str(n) for n in self.conditional_event_shape)
        return f"{'vectors' if self.event_ndims == 1 else 'images'} [..., {sizes}]"

    def batch_shape(self, condition: tf.Tensor | tf.TensorSpec) -> tf.TensorShape:
        """Returns the static leading shape of a condition that is as declared."""
        event = self._event_shape_of(condition.dtype)
        return condition.shape[: condition.shape.rank - len(event)]

    def without(self, condition: tf.Tensor, is_left_out: tf.Tensor) -> tf.Tensor:
        """Returns conditions [B, ...] with "no condition" where `is_left_out`, [B]."""
        nothing = tf.constant(-1 if condition.dtype.is_integer else np.nan, condition.dtype)
        rank = condition.shape.rank
        is_left_out = tf.reshape(is_left_out, tf.concat([[-1], tf.ones([rank - 1], tf.int32)], 0))
        return tf.where(is_left_out, nothing, condition)

    def call(self, condition: tf.Tensor) -> tf.Tensor:
        """Returns the embedded condition, [..., *embedded_shape]."""
        if self.num_classes is not None and condition.dtype.is_integer:
            is_given = condition[..., tf.newaxis] >= 0
            # Not `tf.gather`: clipping sums the squares of its sparse gradient, label by label.
            embedded = self._embed(tf.one_hot(condition, self.num_classes, dtype=self.table.dtype))
        else:
            axes = [-1] if self.event_ndims < 3 else [-3, -2, -1]
            is_nan = tf.math.is_nan(condition)
            is_given = ~tf.reduce_any(is_nan, axes, keepdims=True)
            # Both branches of tf.where have gradients, and that of a NaN would be NaN.
            if self.dropout is not None:
                condition = tf.where(is_nan, tf.zeros_like(condition), condition)
            embedded = self._embed(condition)
        if self.dropout is None:
            return embedded
        return tf.where(is_given, embedded, self.no_condition)

    def _embed(self, condition: tf.Tensor) -> tf.Tensor:
        if self.num_classes is not None:
            return tf.tensordot(condition, tf.convert_to_tensor(self.table), 1)
        if self.event_ndims == 1:
            # Keras layers expect a batch.
            batch = condition if condition.shape.rank > 1 else condition[tf.newaxis]
            for dense in self.dense:
                batch = dense(batch)
            return batch if condition.shape.rank > 1 else batch[0]
        return condition

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Returns the shape of the embedding of integer labels, vectors or images."""
        batch = input_shape[: len(input_shape) - self.event_ndims]
        return (*batch, *self.embedded_shape)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of `from_config`."""
        shape = None if self.num_classes is not None else list(self.conditional_event_shape)
        return {
            **super().get_config(),
            "conditional_event_shape": shape,
            "num_classes": self.num_classes,
            "size": self.size,
            "dropout": self.dropout,
        }

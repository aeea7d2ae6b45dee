"""Declares a condition: its shape, its classes, and whether it may be missing."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfp_realnvp.internal import validation


@dataclasses.dataclass(frozen=True)
class ConditionSpec:
    r"""Declares a condition, and checks and converts its values.

    | arguments | condition | one condition |
    | --- | --- | --- |
    | `num_classes=K` | integer labels [...] in [0, K) | [] |
    | `event_shape=[K]` | vectors [..., K] | [K] |
    | `event_shape=[H, W, K]` | images [..., H, W, K] | [H, W, K] |

    With `dropout`, these values mean a missing condition: `None`, the label -1, or a vector or
    image that contains a NaN.

    Attributes:
      event_shape: [K], or [H, W, K] where H and W can be `None`; [] for labels.
      num_classes: K, for labels.
      dropout: probability that `FlowModel.fit` drops the condition of an event. With `None`,
        every event needs a condition.

    Raises:
      ValueError: if both or none of `event_shape` and `num_classes` are given, or one is invalid.
    """

    event_shape: Sequence[int | None] | None = None
    num_classes: int | None = None
    dropout: float | None = None

    def __post_init__(self) -> None:
        shape, num_classes, dropout = self.event_shape, self.num_classes, self.dropout
        expected = "expected either a conditional_event_shape or num_classes"
        given = {"conditional_event_shape": shape, "num_classes": num_classes}
        validation.require((shape is None) != (num_classes is None), expected, given)
        if num_classes is None:
            shape = checked_condition_shape(shape)
        else:
            expected = "expected num_classes of at least 1"
            shape, num_classes = (), validation.integer(num_classes, 1, expected)
        if dropout is not None:
            expected = "expected a condition_dropout in [0, 1)"
            dropout = float(validation.fraction(dropout, expected))
        self.__dict__.update(event_shape=shape, num_classes=num_classes, dropout=dropout)

    @property
    def event_ndims(self) -> int:
        """Rank of one condition: 0 for labels, 1 for vectors, 3 for images."""
        return len(self.event_shape)

    @property
    def may_be_missing(self) -> bool:
        """Whether a condition may be missing."""
        return self.dropout is not None

    @property
    def description(self) -> str:
        """Describes valid conditions, for error messages."""
        if self.num_classes is not None:
            lowest = " or -1" if self.may_be_missing else ""
            return f"integer labels in [0, {self.num_classes}){lowest}"
        sizes = ", ".join("any" if size is None else str(size) for size in self.event_shape)
        return f"{'vectors' if self.event_ndims == 1 else 'images'} [..., {sizes}]"

    def check(self, value: Any, caller: str) -> None:
        """Raises `ValueError` if an array or tensor of conditions is not as declared.

        Inside a graph, label values are unknown and not checked; see `in_range`.
        """
        shape, dtype = tf.TensorShape(value.shape), tf.as_dtype(value.dtype)
        expected = f"{caller}: expected a conditional_input of {self.description}"
        is_float = dtype.is_floating or dtype.is_bool
        is_number = dtype.is_integer or (is_float and self.num_classes is None)
        event = shape if shape.rank is None else shape[max(shape.rank - self.event_ndims, 0) :]
        if not (is_number and self._fits(event)):
            what = "values that are not numbers" if dtype == tf.string else dtype.name
            raise ValueError(f"{expected}, got {what} of shape {shape}{self._advice(dtype)}.")
        labels = tf.get_static_value(value) if tf.is_tensor(value) else value
        if self.num_classes is not None and labels is not None:
            wrong = labels[~self.in_range(labels)]
            if wrong.size:
                raise ValueError(f"{expected}, got {sorted(set(wrong.ravel().tolist()))[:5]}.")

    def as_tensor(
        self,
        value: Any,
        caller: str = "ConditionSpec",
        dtype: Any = tf.float32,
        like: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Returns checked conditions as a tensor: int32 labels, or floats of `dtype`.

        `None` is a missing condition; a missing image has the height and width of the images
        `like`. Error messages begin with `caller`.
        """
        dtype = self.tensor_spec(dtype).dtype
        if value is None:
            if not self.may_be_missing:
                raise ValueError(
                    f"{caller}: expected a conditional_input of {self.description}, got None; "
                    "pass `conditional_input=...`, for a `tfd.TransformedDistribution` in "
                    "`bijector_kwargs={'conditional_input': ...}`, in a `tfb.Chain` in "
                    f"`bijector_kwargs={{{caller!r}: {{'conditional_input': ...}}}}`, or in the "
                    "context `tfr.call_options`, or fix it by `tfr.condition`."
                )
            shape = self.event_shape
            if None in shape:
                sides = [1, 1] if like is None else tf.unstack(tf.shape(like)[-3:-1])
                shape = [*sides, shape[-1]]
            return tf.fill(shape, _missing_value(dtype))
        value = value if tf.is_tensor(value) else np.asarray(value)
        self.check(value, caller)
        return tf.cast(value, dtype)

    def of_events(self, value: Any, caller: str) -> Any:
        """Returns checked conditions [B, ...]; reshapes labels [B, 1] and numbers [B] if needed."""
        value = self._with_column(value if tf.is_tensor(value) else np.asarray(value))
        self.check(value, caller)
        if len(value.shape) != 1 + self.event_ndims:
            raise ValueError(
                f"{caller}: expected conditions of {self.description}, one for each event, got "
                f"shape {tuple(value.shape)}{self._advice(tf.as_dtype(value.dtype))}."
            )
        return value

    def in_range(self, labels: Any) -> Any:
        """Returns which labels are valid: 0 to num_classes - 1, and -1 if labels may be missing."""
        lowest = -1 if self.may_be_missing else 0
        return (labels >= lowest) & (labels < self.num_classes)

    def _advice(self, dtype: tf.DType) -> str:
        """Returns advice for an error message: how to convert values to what is declared."""
        is_other = dtype == tf.string
        if self.num_classes is None:
            return "; `frame.astype(float)` converts a frame of numbers and bools" * is_other
        if is_other:
            return "; `np.unique(labels, return_inverse=True)[1]` converts names"
        labels = "np.nan_to_num(labels, nan=-1)" if self.may_be_missing else "labels"
        what = "bools" if dtype.is_bool else "whole floats"
        is_whole = dtype.is_floating or dtype.is_bool
        whole = f"`{labels}.astype(int)` converts {what}, and " * is_whole
        return f"; {whole}`labels.argmax(-1)` converts one-hot vectors"

    def _fits(self, shape: tf.TensorShape) -> bool:
        return shape.is_compatible_with(self.event_shape)

    def without(self, condition: tf.Tensor, is_left_out: tf.Tensor) -> tf.Tensor:
        """Replaces conditions [B, ...] by missing ones where `is_left_out`, [B], is true."""
        rank = condition.shape.rank
        is_left_out = tf.reshape(is_left_out, tf.concat([[-1], tf.ones([rank - 1], tf.int32)], 0))
        return tf.where(is_left_out, _missing_value(condition.dtype), condition)

    def with_and_without(self, condition: tf.Tensor) -> tf.Tensor:
        """Stacks conditions [B, ...] and as many missing conditions to [2, B, ...]."""
        return tf.stack([condition, tf.fill(tf.shape(condition), _missing_value(condition.dtype))])

    def tensor_spec(self, dtype: Any = tf.float32) -> tf.TensorSpec:
        """Returns the `tf.TensorSpec` of a batch of conditions, [B, ...]."""
        dtype = dtype if self.num_classes is None else tf.int32
        return tf.TensorSpec([None, *self.event_shape], dtype, "conditional_input")

    def _with_column(self, value: Any) -> Any:
        """Reshapes labels [B, 1] to [B], and numbers [B] to [B, 1] if `event_shape` is [1]."""
        shape, is_labels = tf.TensorShape(value.shape), self.num_classes is not None
        if shape.rank is None:
            # Keras traces one graph for shapes [B] and [B, 1], in which the rank is unknown.
            if is_labels or self.event_shape == (1,):
                return tf.reshape(value, [-1] if is_labels else [-1, 1])
            return tf.ensure_shape(value, [None] * (1 + self.event_ndims))
        if is_labels and shape.rank == 2 and shape[1] == 1:
            return value[:, 0]
        return value[:, np.newaxis] if self.event_shape == (1,) and shape.rank == 1 else value


def checked_condition_shape(shape: Any) -> tuple[int | None, ...]:
    """Returns a valid shape of a condition, [K] or [H, W, K], as a tuple."""
    expected = "expected a conditional_event_shape [K] or [H, W, K]"
    validation.require(hasattr(shape, "__len__"), expected, shape, TypeError)
    shape = tuple(shape)
    validation.require(len(shape) in (1, 3) and shape[-1] is not None, expected, shape)
    return tuple(None if n is None else validation.integer(n, 1, expected) for n in shape)


def _missing_value(dtype: tf.DType) -> tf.Tensor:
    return tf.constant(-1 if dtype.is_integer else np.nan, dtype)

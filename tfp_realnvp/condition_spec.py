"""The declaration of a condition: its shape, its classes, and whether it may be missing."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfp_realnvp.internal import validation

__all__ = ["ConditionSpec", "checked_condition_shape", "sentences_of_labels"]

# What an assertion has between the expected labels and those that came.
_GOT = "got labels out of range:"
_ASSERTION = re.compile(rf"assertion failed: \[(.*?)\] \[{_GOT}\] (\[.*?\])", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class ConditionSpec:
    r"""Declares a condition. All code that takes a condition checks and converts it here.

    | arguments | condition | one condition |
    | --- | --- | --- |
    | `num_classes=K` | integer labels [...] in [0, K) | [] |
    | | floating weights of the classes [..., K] | [K] |
    | `event_shape=[K]` | vectors [..., K] | [K] |
    | `event_shape=[H, W, K]` | images [..., H, W, K] | [H, W, K] |

    With `dropout` the condition may be missing: `None`, a label of -1, or a vector or an image that
    contains a NaN.

    Attributes:
      event_shape: [K], or [H, W, K], where H and W can be `None`; [] for labels.
      num_classes: K, for labels.
      dropout: the probability with which `FlowModel.fit` leaves out the condition of an event;
        `None` if there is always a condition.

    Raises:
      ValueError: if not exactly one of `event_shape` and `num_classes` is given, or one of the
        arguments is out of range.
      TypeError: if an argument has a wrong type.
    """

    event_shape: Sequence[int | None] | None = None
    num_classes: int | None = None
    dropout: float | None = None

    def __post_init__(self) -> None:
        shape, num_classes, dropout = self.event_shape, self.num_classes, self.dropout
        if num_classes is not None and isinstance(shape, tuple) and not shape:
            shape = None
        if (shape is None) == (num_classes is None):
            raise ValueError(
                "expected either a conditional_event_shape or num_classes, got "
                f"{shape} and {num_classes}."
            )
        if num_classes is None:
            shape = checked_condition_shape(shape)
        else:
            shape = ()
            expected = "expected num_classes of at least 1"
            num_classes = validation.integer(num_classes, 1, expected)
        if dropout is not None:
            expected = "expected a condition_dropout in [0, 1)"
            dropout = float(validation.real(dropout, lambda x: 0 <= x < 1, expected))
        values = {"event_shape": shape, "num_classes": num_classes, "dropout": dropout}
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def event_ndims(self) -> int:
        """Rank of one condition: 0 for labels, 1 for vectors, 3 for images."""
        return len(self.event_shape)

    @property
    def may_be_missing(self) -> bool:
        """Whether the condition may be missing."""
        return self.dropout is not None

    @property
    def description(self) -> str:
        """The condition in words, for errors."""
        if self.num_classes is not None:
            lowest = " or -1" if self.may_be_missing else ""
            k = self.num_classes
            return f"integer labels in [0, {k}){lowest}, or weights of the classes [..., {k}]"
        sizes = ", ".join("any" if size is None else str(size) for size in self.event_shape)
        return f"{'vectors' if self.event_ndims == 1 else 'images'} [..., {sizes}]"

    def as_tensor(
        self, value: Any, caller: str = "ConditionSpec", dtype: Any = tf.float32
    ) -> tf.Tensor:
        """Returns a condition as a tensor: int32 labels, or floats of `dtype`.

        Args:
          value: a tensor, an array, a pandas frame or series, a list or a number; or `None`, if the
            condition may be missing.
          caller: name that begins the error message.
          dtype: dtype of vectors, images, and weights of classes.

        Raises:
          ValueError: if the condition is not as declared. In a graph, unknown labels are checked
            when it runs.
        """
        if value is None:
            return self._missing(caller, dtype)
        if not tf.is_tensor(value):
            value = np.asarray(value)
            if value.dtype == object:
                raise ValueError(
                    f"{caller}: expected a conditional_input of {self.description}, got values "
                    "that are not numbers, or rows of different lengths."
                )
            if value.dtype == np.float64:
                value = value.astype(tf.as_dtype(dtype).as_numpy_dtype)
        value = tf.convert_to_tensor(value)
        self._check(value, caller)
        if self.num_classes is not None and value.dtype.is_integer:
            return self._checked_labels(value, caller)
        return tf.cast(value, dtype)

    def as_batch(self, value: Any, caller: str, dtype: Any = tf.float32) -> tf.Tensor:
        """Returns conditions as a tensor [B, ...], one for each event of a batch.

        Labels [B, 1] are taken as [B]. For vectors of length 1, numbers [B] are taken as [B, 1].

        Args:
          value: as in `as_tensor`.
          caller: name that begins the error message.
          dtype: as in `as_tensor`.

        Raises:
          ValueError: if conditions are not as declared, or do not have one leading dimension.
        """
        if value is not None and not tf.is_tensor(value):
            value = np.asarray(value)
        condition = self.as_tensor(_with_column(value, self), caller, dtype)
        if value is not None and self.batch_shape(condition).rank != 1:
            raise ValueError(
                f"{caller}: expected conditions {self.description}, one for each event, got shape "
                f"{tuple(value.shape)}{self.advice(value)}."
            )
        return condition

    def advice(self, value: Any) -> str:
        """Returns the end of a sentence about a shape that does not fit, for one-hot integers."""
        value = value if hasattr(value, "shape") else np.asarray(value)
        shape = tf.TensorShape(value.shape)
        is_one_hot = self.num_classes is not None and tf.as_dtype(value.dtype).is_integer
        if not (is_one_hot and shape.rank and shape[-1] == self.num_classes):
            return ""
        return (
            "; integers are labels: `labels.argmax(-1)` are those of one-hot vectors, and "
            "`labels.astype('float32')` are weights of the classes"
        )

    def _check(self, value: tf.Tensor, caller: str) -> None:
        """Raises `ValueError` if the dtype or the shape is not as declared."""
        is_number = value.dtype.is_floating or value.dtype.is_integer
        event = self._shape_of_one(value.dtype)
        trailing_shape = tf.TensorShape(None)
        if value.shape.rank is not None:
            trailing_shape = value.shape[max(value.shape.rank - len(event), 0) :]
        if not (is_number and self._fits(trailing_shape, event)):
            raise ValueError(
                f"{caller}: expected a conditional_input of {self.description}, got "
                f"{value.dtype.name} of shape {value.shape}."
            )

    def _fits(self, shape: tf.TensorShape, expected: Sequence[int | None]) -> bool:
        """Returns whether the shape of one condition is as declared."""
        return shape.is_compatible_with(expected)

    def batch_shape(self, condition: tf.Tensor | tf.TensorSpec) -> tf.TensorShape:
        """Returns the static leading shape of conditions, the result of `as_tensor`."""
        return condition.shape[: condition.shape.rank - self.ndims_of(condition)]

    def ndims_of(self, condition: Any) -> int:
        """Returns the rank of one of the conditions: `event_ndims`, or 1 for weights of classes."""
        dtype = condition.dtype if hasattr(condition, "dtype") else np.asarray(condition).dtype
        return len(self._shape_of_one(tf.as_dtype(dtype)))

    def without(self, condition: tf.Tensor, is_left_out: tf.Tensor) -> tf.Tensor:
        """Returns conditions [B, ...], missing where `is_left_out`, [B], is true."""
        rank = condition.shape.rank
        is_left_out = tf.reshape(is_left_out, tf.concat([[-1], tf.ones([rank - 1], tf.int32)], 0))
        return tf.where(is_left_out, _missing_value(condition.dtype), condition)

    def tensor_spec(self, dtype: Any = tf.float32) -> tf.TensorSpec:
        """Returns the specification of a batch of conditions [B, ...]."""
        dtype = tf.int32 if self.num_classes is not None else dtype
        return tf.TensorSpec([None, *self.event_shape], dtype, "conditional_input")

    def _shape_of_one(self, dtype: tf.DType) -> Sequence[int | None]:
        is_weights = self.num_classes is not None and dtype.is_floating
        return (self.num_classes,) if is_weights else self.event_shape

    def _missing(self, caller: str, dtype: Any) -> tf.Tensor:
        if not self.may_be_missing:
            raise ValueError(
                f"{caller}: expected a conditional_input of {self.description}, got None; it "
                "goes to `log_prob` and `sample` of a distribution as "
                "`bijector_kwargs={'conditional_input': ...}`, or is fixed by `tfr.condition`."
            )
        dtype = tf.int32 if self.num_classes is not None else tf.as_dtype(dtype)
        return tf.fill([size or 1 for size in self.event_shape], _missing_value(dtype))

    def _checked_labels(self, labels: tf.Tensor, caller: str) -> tf.Tensor:
        lowest = -1 if self.may_be_missing else 0
        expected = f"{caller}: expected a conditional_input of {self.description}"
        static_labels = tf.get_static_value(labels)
        if static_labels is not None:
            wrong = static_labels[(static_labels < lowest) | (static_labels >= self.num_classes)]
            if wrong.size:
                raise ValueError(f"{expected}, got {sorted(set(wrong.ravel().tolist()))[:5]}.")
            return tf.cast(labels, tf.int32)
        flat_labels = tf.reshape(tf.cast(labels, tf.int64), [-1])
        is_wrong = (flat_labels < lowest) | (flat_labels >= self.num_classes)
        # A graph that XLA compiles has no assertions: see `ConditionEmbedding`.
        assertion = tf.debugging.Assert(
            ~tf.reduce_any(is_wrong), [expected, _GOT, tf.boolean_mask(flat_labels, is_wrong)], 5
        )
        with tf.control_dependencies([] if assertion is None else [assertion]):
            return tf.cast(labels, tf.int32)


@contextlib.contextmanager
def sentences_of_labels() -> Iterator[None]:
    """Raises for labels out of range in a graph the `ValueError` of labels in an array."""
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        sentence = _ASSERTION.search(error.message)
        if sentence is None:
            raise
        labels = sorted(set(map(int, re.findall(r"-?\d+", sentence[2]))))
        raise ValueError(f"{sentence[1]}, got {labels}.") from error


def checked_condition_shape(shape: Any) -> tuple[int | None, ...]:
    """Returns the shape of a condition, [K] or [H, W, K], as a tuple; raises otherwise."""
    expected = "expected a conditional_event_shape [K] or [H, W, K]"
    is_shape = isinstance(shape, (Sequence, np.ndarray, tf.TensorShape))
    validation.require(is_shape and not isinstance(shape, str), expected, shape, TypeError)
    shape = tuple(shape)
    validation.require(len(shape) in (1, 3) and shape[-1] is not None, expected, shape)
    return tuple(None if n is None else validation.integer(n, 1, expected) for n in shape)


def _missing_value(dtype: tf.DType) -> tf.Tensor:
    return tf.constant(-1 if dtype.is_integer else np.nan, dtype)


def _with_column(value: Any, spec: ConditionSpec) -> Any:
    """Returns labels [B, 1] as [B], and numbers [B] as vectors [B, 1] where those are expected."""
    if value is None or value.dtype == object:
        return value
    is_labels = spec.num_classes is not None and tf.as_dtype(value.dtype).is_integer
    if tf.TensorShape(value.shape).rank is None:
        # Keras traces one function for calls with [B] and with [B, 1].
        if is_labels:
            return tf.reshape(value, [tf.shape(value)[0]])
        if spec.event_shape == (1,):
            return tf.reshape(value, [-1, 1])
        return tf.ensure_shape(value, [None] * (1 + len(spec._shape_of_one(value.dtype))))
    if is_labels and tuple(value.shape[1:]) == (1,):
        return value[:, 0]
    if spec.event_shape == (1,) and len(value.shape) == 1:
        return value[:, np.newaxis]
    return value

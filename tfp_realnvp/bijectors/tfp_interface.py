"""Implements the interface of `tfb.Bijector` by one method per direction."""

from __future__ import annotations

import abc
import dataclasses
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_realnvp.bijectors.call_context import Pass, surrounding_pass
from tfp_realnvp.condition_spec import ConditionSpec
from tfp_realnvp.internal.batch_dims import (
    broadcast_batch,
    cut_to_batch,
    flatten_batch,
    may_be_empty,
    unflatten_batch,
    without_empty_axes,
)
from tfp_realnvp.internal.bijector_cache import ComputationState, OnePassCache

__all__ = ["TFPInterface"]

tfb = tfp.bijectors


class TFPInterface(tfb.Bijector):
    """Implements the interface of `tfb.Bijector` by two methods; the base class of `FlowBijector`.

    The bijector that the user calls converts and checks the value and the condition, and makes a
    `Pass` from `training` and `conditional_input`. Then it calls the two methods of nested
    bijectors, which skip the conversion.
    """

    # Whether a network takes a condition, and the condition that networks declare.
    _accepts_condition = False
    _condition_spec: ConditionSpec | None = None

    _hash: int | None = None

    _cache = OnePassCache(forward_name="_forward_with_ildj", inverse_name="_inverse_with_ildj")

    def __hash__(self) -> int:
        # In each call TFP hashes all parameters, nested bijectors included, several times.
        # Parameters never change, so we keep the hash.
        if self._hash is None:
            self._hash = super().__hash__()
        return self._hash

    __eq__ = tfb.Bijector.__eq__

    # Methods for subclasses.

    @abc.abstractmethod
    def _forward_and_log_det(self, x: tf.Tensor, p: Pass) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns `y` and `log |det dy/dx|`."""

    @abc.abstractmethod
    def _inverse_and_log_det(self, y: tf.Tensor, p: Pass) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns `x` and `log |det dx/dy|`."""

    def _expected_shape(self, inverse: bool) -> tf.TensorShape:
        """Returns the shape of an input event, [H, W, C] or [D]; unknown sizes are `None`."""
        return tf.TensorShape([None] * self.event_ndims)

    def _event_shape(self, shape: Any, inverse: bool) -> Any:
        """Returns the output shape for an input shape: a `tf.TensorShape`, or a shape tensor."""
        if isinstance(shape, tf.TensorShape):
            self._check_shape(shape, inverse)
        return shape

    def _check_event_shape(self, shape: tf.TensorShape, inverse: bool) -> None:
        """Raises `ValueError` if events of this partially known shape do not fit."""

    def _assertions(self, value: tf.Tensor, inverse: bool) -> list[tf.Operation]:
        """Returns the assertions about an input that `validate_args` adds."""
        return [tf.debugging.assert_all_finite(value, f"{self.name}: input is not finite")]

    @property
    def event_ndims(self) -> int:
        """3 for images [..., H, W, C], 1 for vectors [..., D]."""
        return self.forward_min_event_ndims

    @property
    def accepts_conditional_input(self) -> bool:
        """Whether a network of this bijector takes `conditional_input`."""
        return self._accepts_condition

    # The two public methods.

    def forward_and_log_det(
        self, x: tf.Tensor, *, training: bool = False, conditional_input: Any = None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns `y = forward(x)` and `log |det dy/dx|`, in nats, in one pass.

        Args:
          x: latents, [..., H, W, C] or [..., D], a tensor of this bijector's dtype or an array.
          training: whether to normalize by batch statistics and update the moving statistics.
          conditional_input: the condition of the networks.

        Raises:
          TypeError: if a tensor has another dtype, or images are an integer array.
          ValueError: if the shape does not fit.
        """
        return self._both(x, inverse=False, training=training, conditional_input=conditional_input)

    def inverse_and_log_det(
        self, y: tf.Tensor, *, training: bool = False, conditional_input: Any = None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns `x = inverse(y)` and `log |det dx/dy|`; see `forward_and_log_det`."""
        return self._both(y, inverse=True, training=training, conditional_input=conditional_input)

    # AutoGraph would convert all functions called from here, which takes longer than tracing them.
    @tf.autograph.experimental.do_not_convert
    def _both(self, value: Any, inverse: bool, **options: Any) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.name_scope(self.name):
            value = self._as_input(value, inverse)
            return self._outermost_pass(value, inverse=inverse, **self._cache_key(options))

    # TFP's hooks.

    def _forward_with_ildj(self, x: tf.Tensor, **kwargs: Any) -> tuple[tf.Tensor, dict]:
        y, fldj = self._outermost_pass(x, inverse=False, **kwargs)
        return y, {"ildj": -fldj, "state": ComputationState(self), "served": set()}

    def _inverse_with_ildj(self, y: tf.Tensor, **kwargs: Any) -> tuple[tf.Tensor, dict]:
        x, ildj = self._outermost_pass(y, inverse=True, **kwargs)
        return x, {"ildj": ildj, "state": ComputationState(self), "served": set()}

    def _forward(self, x: tf.Tensor, **kwargs: Any) -> tf.Tensor:
        return self._cache.forward(x, **kwargs)

    def _inverse(self, y: tf.Tensor, **kwargs: Any) -> tf.Tensor:
        return self._cache.inverse(y, **kwargs)

    def _forward_log_det_jacobian(self, x: tf.Tensor, **kwargs: Any) -> tf.Tensor:
        return -self._cache.forward_attributes(x, **kwargs)["ildj"]

    def _inverse_log_det_jacobian(self, y: tf.Tensor, **kwargs: Any) -> tf.Tensor:
        return self._cache.inverse_attributes(y, **kwargs)["ildj"]

    def _call_forward(self, x: Any, name: str, **kwargs: Any) -> tf.Tensor:
        x = self._as_input(x, inverse=False)
        return super()._call_forward(x, name, **self._cache_key(kwargs))

    def _call_inverse(self, y: Any, name: str, **kwargs: Any) -> tf.Tensor:
        y = self._as_input(y, inverse=True)
        return super()._call_inverse(y, name, **self._cache_key(kwargs))

    def _call_forward_log_det_jacobian(self, x: Any, *args: Any, **kwargs: Any) -> tf.Tensor:
        x = self._as_input(x, inverse=False)
        return super()._call_forward_log_det_jacobian(x, *args, **self._cache_key(kwargs))

    def _call_inverse_log_det_jacobian(self, y: Any, *args: Any, **kwargs: Any) -> tf.Tensor:
        y = self._as_input(y, inverse=True)
        return super()._call_inverse_log_det_jacobian(y, *args, **self._cache_key(kwargs))

    def _forward_event_shape(self, input_shape: Any) -> Any:
        return self._event_shape(input_shape, inverse=False)

    def _inverse_event_shape(self, output_shape: Any) -> Any:
        return self._event_shape(output_shape, inverse=True)

    _forward_event_shape_tensor = _forward_event_shape
    _inverse_event_shape_tensor = _inverse_event_shape

    # Checks.

    def _as_input(self, value: Any, inverse: bool) -> tf.Tensor:
        # As in TFP, float arrays and lists become tensors of the bijector's dtype. Integer vectors
        # do too; integer images are an error, because gray levels need noise.
        dtype = getattr(value, "dtype", self.dtype)
        kinds = "f" if self.event_ndims == 3 else "fiu"
        if not (isinstance(dtype, np.dtype) and dtype.kind in kinds):
            dtype = tf.as_dtype(dtype)
            if dtype != self.dtype:
                advice = f"cast them, `tf.cast(x, '{self.dtype.name}')`"
                if self.event_ndims == 3 and dtype.is_integer:
                    advice = "add noise to gray levels, `tfr.dequantize(x, seed=(0, 1))`"
                raise TypeError(
                    f"{self.name}: expected {self.dtype.name} values, got {dtype.name}; {advice}."
                )
        value = tf.convert_to_tensor(value, dtype=self.dtype)
        self._check_shape(value.shape, inverse)
        return value

    def _check_shape(self, shape: tf.TensorShape, inverse: bool) -> None:
        if shape.rank is None:
            return
        ndims, expected = self.event_ndims, self._expected_shape(inverse)
        event = shape[-ndims:]
        if not event.is_compatible_with(expected):
            events = {1: "vectors", 3: "images"}[ndims]
            names = ("height", "width", "channels") if ndims == 3 else ("size",)
            sizes = [name if n is None else str(n) for name, n in zip(names, expected, strict=True)]
            raise ValueError(
                f"{self.name}: expected {events} [..., {', '.join(sizes)}], got shape {shape}."
            )
        if ndims == 3 and 0 in event:
            raise ValueError(f"{self.name}: expected images with pixels, got shape {shape}.")
        self._check_event_shape(event.merge_with(expected), inverse)

    def _cache_key(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Returns normalized options of a call, so that equivalent calls share cached results."""
        kwargs = dict(kwargs)
        training = kwargs.pop("training", False)
        condition = kwargs.pop("conditional_input", None)
        if kwargs:
            raise TypeError(
                f"{self.name}: expected the keyword arguments `training` and `conditional_input`, "
                f"got {sorted(kwargs)}."
            )
        if not (training is None or isinstance(training, (bool, np.bool_))):
            raise TypeError(f"{self.name}: expected a Python bool as `training`, got {training!r}.")
        key = {"training": bool(training), "surrounding": surrounding_pass()}
        if condition is None:
            return key
        if not self.accepts_conditional_input:
            raise ValueError(
                f"{self.name}: got a `conditional_input`, but no network here takes one: expected "
                "a network whose call has an argument of that name."
            )
        if isinstance(condition, (tf.Variable, keras.Variable)):
            condition = tf.convert_to_tensor(condition)
        elif isinstance(condition, np.ndarray) and not condition.dtype.hasobject:
            condition = _Array(condition.dtype, condition.shape, condition.tobytes())
        return {**key, "conditional_input": condition}

    # The pass.

    def _outermost_pass(
        self,
        value: tf.Tensor,
        *,
        inverse: bool,
        training: bool = False,
        conditional_input: Any = None,
        surrounding: Pass | None = None,
        has_events: bool = False,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the value and log det in one direction, for a call by the user.

        `has_events` promises that the batch is not empty, which saves operations.
        """
        if training and value.shape.rank is not None and 0 in value.shape:
            # An empty batch has no moments.
            raise ValueError(
                f"{self.name}: expected at least one event for training=True, got shape "
                f"{value.shape}."
            )
        spec, condition = self._condition_spec, conditional_input
        if isinstance(condition, _Array):
            condition = np.frombuffer(condition.data, condition.dtype).reshape(condition.shape)
        ndims = self.event_ndims
        if spec is not None:
            condition = spec.as_tensor(condition, self.name, self.dtype)
            value, condition = broadcast_batch(value, ndims, condition, spec.event_ndims)
        like = value
        if like.shape.rank is None:
            value = flatten_batch(value, ndims)
            if spec is not None:
                condition = flatten_batch(condition, spec.event_ndims)
        batch, event = value.shape[:-ndims], value.shape[-ndims:]
        shape = batch.concatenate(self._expected_shape(inverse).merge_with(event))
        if shape != value.shape:
            value = tf.ensure_shape(value, shape)
        events = value
        is_filled = not (training or has_events) and may_be_empty(events, ndims)
        if is_filled:
            value, condition = without_empty_axes(value), without_empty_axes(condition)
        p = (surrounding or surrounding_pass()).but(training=training, condition=condition)
        value, log_det = self._checked_pass(value, p, inverse)
        if log_det.shape.rank == 0:
            # The log det is equal for all events.
            log_det = tf.fill(tf.shape(value)[:-ndims], log_det)
        if is_filled:
            value = cut_to_batch(value, events, ndims, ndims)
            log_det = cut_to_batch(log_det, events, ndims, 0)
        if like.shape.rank is None:
            value, log_det = (unflatten_batch(each, like, ndims) for each in (value, log_det))
        return value, log_det

    def _checked_pass(
        self, value: tf.Tensor, p: Pass, inverse: bool
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the value and log det in one direction, with the checks of `validate_args`."""
        self._check_shape(value.shape, inverse)
        if self.validate_args:
            value = _after(self._assertions(value, inverse), value)
        one_pass = self._inverse_and_log_det if inverse else self._forward_and_log_det
        value, log_det = one_pass(value, p)
        if self.validate_args:
            kind = "latents" if inverse else "data"
            assertions = [
                tf.debugging.assert_all_finite(tensor, f"{self.name}: expected finite {what}")
                for what, tensor in ((kind, value), ("log dets", log_det))
            ]
            value, log_det = _after(assertions, value), _after(assertions, log_det)
        return value, log_det


def _after(assertions: list[tf.Operation | None], tensor: tf.Tensor) -> tf.Tensor:
    # In eager mode, an assertion that passes returns `None`.
    with tf.control_dependencies([a for a in assertions if a is not None]):
        return tf.identity(tensor)


@dataclasses.dataclass(frozen=True)
class _Array:
    """A copy of an array as a cache key, because the array can change between calls."""

    dtype: np.dtype
    shape: tuple[int, ...]
    data: bytes

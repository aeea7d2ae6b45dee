"""A composition of bijectors that makes one pass through all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf
import tensorflow_probability as tfp

from tfp_realnvp import checks
from tfp_realnvp.bijectors import parts
from tfp_realnvp.bijectors.flow_bijector import FlowBijector
from tfp_realnvp.bijectors.recomputed_run import Pass, apply_run, runs_of

__all__ = ["FlowChain"]

tfb = tfp.bijectors


class FlowChain(FlowBijector):
    r"""Composes bijectors as `tfb.Chain` does: `FlowChain([f, g]).forward(x) = f(g(x))`.

    The first bijector is the one next to the data, the last the one next to the latents. Log dets
    are added up in the same pass that gives the value, and all parts of this package get the
    keyword arguments `training` and `conditional_input`, where `tfb.Chain` routes them by name.

    #### Example

    >>> import tensorflow as tf, tensorflow_probability as tfp, tfp_realnvp as tfr
    >>> tfb = tfp.bijectors
    >>> chain = FlowChain([tfr.PixelLogit(), tfb.Scale(3.), tfb.Invert(tfr.Squeeze())])
    >>> y, fldj = chain.forward_and_log_det(tf.random.normal([5, 4, 4, 12]))
    >>> y.shape, fldj.shape
    (TensorShape([5, 8, 8, 3]), TensorShape([5]))
    """

    def __init__(
        self,
        bijectors: Sequence[tfb.Bijector],
        *,
        recompute: bool = False,
        dtype: Any = tf.float32,
        validate_args: bool = False,
        name: str = "flow_chain",
    ) -> None:
        """Constructs the composition.

        Args:
          bijectors: bijectors on [..., H, W, C], of this package or of TFP; may be empty.
          recompute: whether the gradient computes the activations of the networks again, one
            coupling at a time, instead of keeping them: less memory for one more forward pass.
          dtype: `tf.float32` or `tf.float64`.
          validate_args: whether to look for values that are not finite.
          name: of the operations.

        Raises:
          TypeError: if `bijectors` is no list, one of them not a bijector, `dtype` another one, or
            a flag no bool.
        """
        parameters = dict(locals())
        if not isinstance(bijectors, Sequence) or isinstance(bijectors, (str, bytes)):
            raise TypeError(f"{name}: expected a list of bijectors, got {bijectors!r}.")
        parameters["bijectors"] = bijectors = tuple(bijectors)
        dtype = checks.float_dtype(dtype, name)
        for part in bijectors:
            if not isinstance(part, tfb.Bijector):
                raise TypeError(f"{name}: expected bijectors, got {part!r}.")
            if part.dtype is not None and part.dtype != dtype:
                raise TypeError(
                    f"{name}: expected parts of dtype {dtype.name}, got {part.name} of "
                    f"{tf.as_dtype(part.dtype).name}."
                )
        checks.flag(recompute, f"{name}: expected a bool as recompute")
        with tf.name_scope(name):
            self._bijectors = bijectors
            self._recompute = recompute
            super().__init__(
                dtype=dtype,
                is_constant_jacobian=all(part.is_constant_jacobian for part in bijectors),
                validate_args=validate_args,
                parameters=parameters,
                name=name,
            )

    @property
    def bijectors(self) -> tuple[tfb.Bijector, ...]:
        """The parts, the one next to the data first."""
        return tuple(self._bijectors)

    @property
    def recompute(self) -> bool:
        """Whether the gradient computes the activations of the networks again."""
        return self._recompute

    @property
    def accepts_conditional_input(self) -> bool:
        """Whether a part takes `conditional_input`."""
        return any(parts.accepts_conditional_input(part) for part in self._bijectors)

    def _forward_and_log_det(self, x: tf.Tensor, **options: Any) -> tuple[tf.Tensor, tf.Tensor]:
        log_dets = []
        options = self._with_recompute(options)
        for part in reversed(self._bijectors):
            x, fldj = parts.forward_and_log_det(part, x, **options)
            log_dets.append(fldj)
        return x, _sum(log_dets, x)

    def _inverse_and_log_det(self, y: tf.Tensor, **options: Any) -> tuple[tf.Tensor, tf.Tensor]:
        log_dets = []
        options = self._with_recompute(options)
        runs = [[part] for part in self._bijectors]
        if options.get("recompute"):
            runs = runs_of(self._bijectors, **options)
        for run in runs:
            if len(run) == 1:
                y, ildj = parts.inverse_and_log_det(run[0], y, **options)
                log_dets.append(ildj)
            else:
                y, ildjs = apply_run([_step_of(part, options) for part in run], y)
                log_dets.extend(ildjs)
        return y, _sum(log_dets, y)

    def _with_recompute(self, options: dict[str, Any]) -> dict[str, Any]:
        return {**options, "recompute": True} if self._recompute else options

    def _forward_event_shape(self, input_shape: tf.TensorShape) -> tf.TensorShape:
        for part in reversed(self._bijectors):
            input_shape = part.forward_event_shape(input_shape)
        return input_shape

    def _inverse_event_shape(self, output_shape: tf.TensorShape) -> tf.TensorShape:
        for part in self._bijectors:
            output_shape = part.inverse_event_shape(output_shape)
        return output_shape

    def _forward_event_shape_tensor(self, input_shape: tf.Tensor) -> tf.Tensor:
        for part in reversed(self._bijectors):
            input_shape = part.forward_event_shape_tensor(input_shape)
        return input_shape

    def _inverse_event_shape_tensor(self, output_shape: tf.Tensor) -> tf.Tensor:
        for part in self._bijectors:
            output_shape = part.inverse_event_shape_tensor(output_shape)
        return output_shape


def _step_of(part: FlowBijector, options: dict[str, Any]) -> Callable[[tf.Tensor], Any]:
    def step(y: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, Pass]:
        part._check_shape(y.shape, inverse=True)
        return part.inverse_step(y, **options)

    return step


def _sum(log_dets: list[tf.Tensor], image: tf.Tensor) -> tf.Tensor:
    # One operation: those of a chain of additions, and of its gradient, are many.
    return tf.add_n(log_dets) if log_dets else tf.zeros(tf.shape(image)[:-3], image.dtype)

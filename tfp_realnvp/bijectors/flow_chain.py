"""A composition of bijectors, in one pass through all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf
import tensorflow_probability as tfp

from tfp_realnvp.bijectors import parts
from tfp_realnvp.bijectors.conditional_bijector import ConditionalBijector
from tfp_realnvp.bijectors.flow_bijector import FlowBijector
from tfp_realnvp.bijectors.normalized_conv1x1 import join
from tfp_realnvp.bijectors.passes import Pass
from tfp_realnvp.internal import validation
from tfp_realnvp.networks import ConditionEmbedding

__all__ = ["RECOMPUTE_APPLIES", "FlowChain"]

tfb = tfp.bijectors

RECOMPUTE_APPLIES = "with networks that are Keras layers"


class FlowChain(FlowBijector):
    r"""Composes bijectors as `tfb.Chain` does: `FlowChain([f, g]).forward(x) = f(g(x))`.

    The first bijector is next to the data, the last one next to the latents. The pass that gives
    the value sums the log dets. Unlike `tfb.Chain`, which routes keyword arguments by name, the
    chain gives `training` and `conditional_input` to all bijectors of this package.

    #### Example

    >>> import tensorflow as tf, tensorflow_probability as tfp, tfp_realnvp as tfr
    >>> tfb = tfp.bijectors
    >>> chain = tfr.FlowChain([tfr.PixelLogit(), tfb.Scale(3.), tfb.Invert(tfr.Squeeze())])
    >>> y, fldj = chain.forward_and_log_det(tf.random.normal([5, 4, 4, 12]))
    >>> y.shape, fldj.shape
    (TensorShape([5, 8, 8, 3]), TensorShape([5]))
    """

    def __init__(
        self,
        bijectors: Sequence[tfb.Bijector],
        *,
        recompute: bool = False,
        event_ndims: int | None = None,
        dtype: Any = tf.float32,
        validate_args: bool = False,
        parameters: dict[str, Any] | None = None,
        name: str = "flow_chain",
    ) -> None:
        """Constructs the composition.

        Args:
          bijectors: bijectors of this package or of TFP, all on [..., H, W, C] or all on
            [..., D]. The list may be empty.
          recompute: whether the gradient computes the activations of the networks again, one
            coupling at a time, instead of keeping them: less memory for one more forward pass.
            Networks must be Keras layers.
          event_ndims: 3 for images [..., H, W, C], 1 for vectors [..., D]. Defaults to the value of
            the bijectors of this package, or to 3.
          dtype, validate_args, name: as in `FlowBijector`.
          parameters: the constructor arguments of a subclass.

        Raises:
          TypeError: if an argument has a wrong type, or a bijector has another dtype.
          ValueError: if some bijectors are on images and others on vectors, or no network can be
            recomputed.
        """
        arguments = dict(locals())
        del arguments["parameters"]
        if not isinstance(bijectors, Sequence) or isinstance(bijectors, (str, bytes)):
            raise TypeError(f"{name}: expected a list of bijectors, got {bijectors!r}.")
        arguments["bijectors"] = bijectors = tuple(bijectors)
        dtype = validation.float_dtype(dtype, name)
        for part in bijectors:
            if not isinstance(part, tfb.Bijector):
                raise TypeError(f"{name}: expected bijectors, got {part!r}.")
            if part.dtype is not None and part.dtype != dtype:
                raise TypeError(
                    f"{name}: expected parts of dtype {dtype.name}, got {part.name} of "
                    f"{tf.as_dtype(part.dtype).name}."
                )
        if validation.flag(recompute, f"{name}: expected a bool as recompute"):
            modules = [module for part in bijectors for module in (part, *part.submodules)]
            has_network = any(isinstance(part, FlowBijector) and part.layers for part in modules)
            expected = f"{name}: expected recompute only {RECOMPUTE_APPLIES}"
            validation.require(has_network, expected, recompute)
        event_ndims = _event_ndims(bijectors, event_ndims, name)
        with tf.name_scope(name):
            self._bijectors = bijectors
            self._condition_spec = next(filter(None, map(parts.condition_spec, bijectors)), None)
            self._recompute = recompute
            super().__init__(
                event_ndims=event_ndims,
                dtype=dtype,
                is_constant_jacobian=all(part.is_constant_jacobian for part in bijectors),
                validate_args=validate_args,
                parameters=arguments if parameters is None else parameters,
                name=name,
            )

    @property
    def bijectors(self) -> tuple[tfb.Bijector, ...]:
        """The bijectors, the one next to the data first."""
        return tuple(self._bijectors)

    @property
    def recompute(self) -> bool:
        """Whether the gradient computes the activations of the networks again."""
        return self._recompute

    @property
    def accepts_conditional_input(self) -> bool:
        """Whether a part takes `conditional_input`."""
        return any(parts.accepts_conditional_input(part) for part in self._bijectors)

    @property
    def condition_embedding(self) -> ConditionEmbedding | None:
        """The embedding of the condition that all layers share; `None` without one."""
        parts = [part for part in self._bijectors if isinstance(part, ConditionalBijector)]
        return parts[0].embedding if parts else None

    def _forward_and_log_det(self, x: tf.Tensor, p: Pass) -> tuple[tf.Tensor, tf.Tensor]:
        p, log_dets = self._of_parts(p), []
        for part in reversed(self._parts):
            x = part._checked_input(x, p, inverse=False)
            x, fldj = part._checked_results(*part._forward_and_log_det(x, p), p, inverse=False)
            log_dets.append(fldj)
        return x, self._sum(log_dets, x, p)

    def _inverse_and_log_det(self, y: tf.Tensor, p: Pass) -> tuple[tf.Tensor, tf.Tensor]:
        p, log_dets = self._of_parts(p), []
        for part in self._parts:
            y = part._checked_input(y, p, inverse=True)
            y, ildj = part._checked_results(*part._inverse_and_log_det(y, p), p, inverse=True)
            log_dets.append(ildj)
        return y, self._sum(log_dets, y, p)

    def _expected_shape(self, inverse: bool) -> tf.TensorShape:
        if (part := self._outermost(inverse)) is None:
            return super()._expected_shape(inverse)
        return part._expected_shape(inverse)

    def _assertions(self, value: tf.Tensor, inverse: bool) -> list[tf.Operation]:
        if (part := self._outermost(inverse)) is None:
            return super()._assertions(value, inverse)
        return part._assertions(value, inverse)

    def _outermost(self, inverse: bool) -> FlowBijector | None:
        """Returns the part that the input goes through first; `None` if it is one of TFP."""
        part = self._bijectors[0 if inverse else -1] if self._bijectors else None
        return part if isinstance(part, FlowBijector) else None

    @property
    def _parts(self) -> list[Any]:
        return list(join([parts.as_part(b, self.event_ndims) for b in self._bijectors]))

    def _of_parts(self, p: Pass) -> Pass:
        return p.but(recompute=True) if self._recompute else p

    def _sum(self, log_dets: list[tf.Tensor], value: tf.Tensor, p: Pass) -> tf.Tensor:
        if not log_dets:
            return self._log_det_of_positions(value, 0.0, p)
        # One operation replaces many additions and their gradients. Log dets that are equal for all
        # events are scalars.
        kinds: tuple[list[tf.Tensor], list[tf.Tensor]] = ([], [])
        for log_det in log_dets:
            kinds[log_det.shape.rank == 0].append(log_det)
        return sum(tf.add_n(kind) for kind in kinds if kind)

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


def _event_ndims(bijectors: Sequence[tfb.Bijector], event_ndims: int | None, name: str) -> int:
    """Returns the rank of events, which all bijectors of this package must share."""
    by_name = {
        part.name: part.forward_min_event_ndims
        for part in bijectors
        if isinstance(part, FlowBijector)
        or any(isinstance(module, FlowBijector) for module in part.submodules)
    }
    ranks = {*by_name.values(), *([] if event_ndims is None else [event_ndims])}
    if len(ranks) > 1:
        argument = "" if event_ndims is None else f"event_ndims={event_ndims} and "
        raise ValueError(
            f"{name}: expected bijectors with equal event_ndims, got {argument}{by_name}."
        )
    return ranks.pop() if ranks else 3

"""The parts of a composition: bijectors of this package and of TFP, with one interface."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tensorflow_probability as tfp

from tfp_realnvp.bijectors.flow_bijector import FlowBijector
from tfp_realnvp.bijectors.passes import Pass, surround_with, surrounding_pass
from tfp_realnvp.condition_spec import ConditionSpec
from tfp_realnvp.internal import private_api

__all__ = [
    "accepts_conditional_input",
    "as_part",
    "call_options",
    "condition_spec",
]

tfb = tfp.bijectors


def as_part(bijector: tfb.Bijector, event_ndims: int = 3) -> Any:
    """Returns an object with the methods of `FlowBijector` that a composition calls.

    A `FlowBijector` is returned itself; `tfb.Invert` of it exchanges the two directions. Any other
    bijector, on images or with `event_ndims=1` on vectors, is called by its public methods.
    """
    if isinstance(bijector, FlowBijector):
        return bijector
    if isinstance(bijector, private_api.Invert):
        return _Inverted(as_part(bijector.bijector, event_ndims))
    return _TFPBijector(bijector, event_ndims)


class _Inverted:
    """A part with its two directions exchanged."""

    def __init__(self, part: Any) -> None:
        self._part = part

    def _outermost_pass(self, value: tf.Tensor, *, inverse: bool, **options: Any) -> Any:
        return self._part._outermost_pass(value, inverse=not inverse, **options)

    def _checked_input(self, value: tf.Tensor, p: Pass, inverse: bool) -> tf.Tensor:
        return self._part._checked_input(value, p, not inverse)

    def _forward_and_log_det(self, x: tf.Tensor, p: Pass) -> tuple[tf.Tensor, tf.Tensor]:
        return self._part._inverse_and_log_det(x, p)

    def _inverse_and_log_det(self, y: tf.Tensor, p: Pass) -> tuple[tf.Tensor, tf.Tensor]:
        return self._part._forward_and_log_det(y, p)

    def _checked_results(self, value: tf.Tensor, log_det: tf.Tensor, p: Pass, inverse: bool) -> Any:
        return self._part._checked_results(value, log_det, p, not inverse)


class _TFPBijector:
    """A bijector of TFP, which checks its arguments itself."""

    def __init__(self, bijector: tfb.Bijector, event_ndims: int) -> None:
        self._bijector = bijector
        self._event_ndims = event_ndims

    def _outermost_pass(
        self, value: tf.Tensor, *, inverse: bool, conditional_input: Any, has_events: bool
    ) -> Any:
        p = surrounding_pass().but(condition=conditional_input)
        value = self._checked_input(value, p, inverse)
        one_pass = self._inverse_and_log_det if inverse else self._forward_and_log_det
        return self._checked_results(*one_pass(value, p), p, inverse)

    def _checked_input(self, value: tf.Tensor, p: Pass, inverse: bool) -> tf.Tensor:
        if p.terms is not None:
            p.terms.expect()
        return value

    def _forward_and_log_det(self, x: tf.Tensor, p: Pass) -> tuple[tf.Tensor, tf.Tensor]:
        return self._call(self._bijector.forward, self._bijector.forward_log_det_jacobian, x, p)

    def _inverse_and_log_det(self, y: tf.Tensor, p: Pass) -> tuple[tf.Tensor, tf.Tensor]:
        return self._call(self._bijector.inverse, self._bijector.inverse_log_det_jacobian, y, p)

    def _checked_results(self, value: tf.Tensor, log_det: tf.Tensor, p: Pass, inverse: bool) -> Any:
        if p.terms is not None:
            p.terms.require(self._bijector.name)
        if p.observer is not None:
            p.observer(self._bijector, value, log_det)
        return value, log_det

    def _call(
        self,
        direction: Callable[..., tf.Tensor],
        log_det_of: Callable[..., tf.Tensor],
        value: tf.Tensor,
        p: Pass,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        options = {"training": p.training, "conditional_input": p.condition}
        kwargs = call_options(self._bijector, **options)
        # Each bijector of this package in a `tfb.Chain` is an outermost one.
        with surround_with(**vars(p.but(terms=None))):
            log_det = log_det_of(value, event_ndims=self._event_ndims, **kwargs)
            result = direction(value, **kwargs)
        if p.terms is not None and self._bijector.forward_min_event_ndims <= 1:
            log_dets = log_det_of(value, event_ndims=1, **kwargs)
            p.record(tf.broadcast_to(log_dets, tf.shape(result)[:-1])[..., tf.newaxis])
        return result, tf.broadcast_to(log_det, tf.shape(result)[: -self._event_ndims])


def accepts_conditional_input(bijector: tfb.Bijector) -> bool:
    """Returns whether a network of `bijector` takes `conditional_input`."""
    return bool(call_options(bijector, conditional_input=None))


def condition_spec(bijector: tfb.Bijector) -> ConditionSpec | None:
    """Returns the condition that the networks of `bijector` declare, or `None`."""
    if isinstance(bijector, FlowBijector):
        return bijector._condition_spec
    if isinstance(bijector, private_api.Invert):
        return condition_spec(bijector.bijector)
    if isinstance(bijector, private_api.Chain):
        return next(filter(None, map(condition_spec, bijector.bijectors)), None)
    return None


def call_options(bijector: tfb.Bijector, **options: Any) -> dict[str, Any]:
    """Returns the keyword arguments that route `options` to each `FlowBijector` in `bijector`.

    `tfb.Chain` routes keyword arguments by the names of its bijectors; `tfb.Invert` passes them on.
    Only bijectors that take a condition get the option `conditional_input`. The result is empty if
    `bijector` contains no `FlowBijector`.
    """
    if isinstance(bijector, FlowBijector):
        if not bijector.accepts_conditional_input:
            options.pop("conditional_input", None)
        return dict(options)
    if isinstance(bijector, private_api.Invert):
        return call_options(bijector.bijector, **options)
    if isinstance(bijector, private_api.Chain):
        routed = {part.name: call_options(part, **options) for part in bijector.bijectors}
        return {name: kwargs for name, kwargs in routed.items() if kwargs}
    return {}

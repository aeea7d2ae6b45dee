"""Calls nested bijectors, of this package or of TFP."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf
import tensorflow_probability as tfp

from tfp_realnvp.bijectors.flow_bijector import FlowBijector
from tfp_realnvp.internal import by_position, private_api
from tfp_realnvp.networks import ConditionSpec

__all__ = [
    "accepts_conditional_input",
    "call_options",
    "condition_spec",
    "forward_and_log_det",
    "inverse_and_log_det",
    "observe_inverse",
]

tfb = tfp.bijectors

_observer: contextvars.ContextVar[Callable[..., None] | None] = contextvars.ContextVar(
    "observer", default=None
)


def forward_and_log_det(
    bijector: tfb.Bijector, x: tf.Tensor, *, event_ndims: int = 3, **options: Any
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns `bijector.forward(x)` and its log det.

    A `FlowBijector` computes both in one pass, also under `tfb.Invert`, with the options. Any other
    bijector is called by its public methods; a `tfb.Chain` hands the options to its parts.

    Args:
      bijector: the nested bijector.
      x: [..., H, W, C], or [..., D].
      event_ndims: 3 for images, 1 for vectors.
      **options: `training`, `conditional_input`.

    Returns:
      The value, and the log det in nats, of the leading shape of `x`.
    """
    if isinstance(bijector, FlowBijector):
        bijector._check_shape(x.shape, inverse=False)
        return bijector.validated_pass(x, inverse=False, **options)
    if isinstance(bijector, private_api.Invert):
        return inverse_and_log_det(bijector.bijector, x, event_ndims=event_ndims, **options)
    log_det = bijector.forward_log_det_jacobian
    return _call_tfp(bijector, bijector.forward, log_det, x, event_ndims, options)


def inverse_and_log_det(
    bijector: tfb.Bijector, y: tf.Tensor, *, event_ndims: int = 3, **options: Any
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns `bijector.inverse(y)` and its log det; see `forward_and_log_det`."""
    if isinstance(bijector, FlowBijector):
        bijector._check_shape(y.shape, inverse=True)
        x, ildj = bijector.validated_pass(y, inverse=True, **options)
    elif isinstance(bijector, private_api.Invert):
        return forward_and_log_det(bijector.bijector, y, event_ndims=event_ndims, **options)
    else:
        log_det = bijector.inverse_log_det_jacobian
        x, ildj = _call_tfp(bijector, bijector.inverse, log_det, y, event_ndims, options)
    observer = _observer.get()
    if observer is not None:
        observer(bijector, x, ildj)
    return x, ildj


def _call_tfp(
    bijector: tfb.Bijector,
    direction: Callable[..., tf.Tensor],
    log_det_of: Callable[..., tf.Tensor],
    value: tf.Tensor,
    event_ndims: int,
    options: dict[str, Any],
) -> tuple[tf.Tensor, tf.Tensor]:
    kwargs = call_options(bijector, **options)
    log_det = log_det_of(value, event_ndims=event_ndims, **kwargs)
    result = direction(value, **kwargs)
    if by_position.is_collecting():
        if bijector.forward_min_event_ndims > 1:
            raise by_position.no_positions(bijector.name)
        log_dets = log_det_of(value, event_ndims=1, **kwargs)
        by_position.record(tf.broadcast_to(log_dets, tf.shape(result)[:-1])[..., tf.newaxis])
    return result, tf.broadcast_to(log_det, tf.shape(result)[:-event_ndims])


@contextlib.contextmanager
def observe_inverse(observer: Callable[[tfb.Bijector, tf.Tensor, tf.Tensor], None]) -> Iterator:
    """Calls `observer(bijector, x, ildj)` after each nested inverse pass, inner ones first."""
    token = _observer.set(observer)
    try:
        yield
    finally:
        _observer.reset(token)


def accepts_conditional_input(bijector: tfb.Bijector) -> bool:
    """Returns whether a network of `bijector` takes `conditional_input`."""
    return bool(call_options(bijector, conditional_input=None))


def condition_spec(bijector: tfb.Bijector) -> ConditionSpec | None:
    """Returns the condition that the networks of `bijector` declare, `None` without one."""
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

    #### Example

    >>> import tensorflow_probability as tfp
    >>> from tfp_realnvp.bijectors.nested import call_options
    >>> from tfp_realnvp.bijectors import Squeeze
    >>> chain = tfp.bijectors.Chain([tfp.bijectors.Exp(), tfp.bijectors.Invert(Squeeze(name='s'))])
    >>> call_options(chain, training=True)
    {'invert_s': {'training': True}}

    Args:
      bijector: any TFP bijector.
      **options: `training`, `conditional_input`; the latter goes to bijectors that take it.

    Returns:
      The keyword arguments for a method of `bijector`, empty without a `FlowBijector` in it.
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

"""Calls the parts of a composition: bijectors of this package and of TFP."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tensorflow_probability as tfp

from tfp_realnvp.bijectors.call_context import Pass, surround_with
from tfp_realnvp.bijectors.flow_bijector import FlowBijector
from tfp_realnvp.condition_spec import ConditionSpec
from tfp_realnvp.internal import private_api

__all__ = ["accepts_conditional_input", "call_options", "call_part", "condition_spec"]

tfb = tfp.bijectors


def call_part(
    part: Any, value: tf.Tensor, p: Pass, inverse: bool, event_ndims: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the value and log det of a part in one direction, and calls the observer."""
    if isinstance(part, private_api.Invert):
        return call_part(part.bijector, value, p, not inverse, event_ndims)
    num_terms = len(p.terms or ())
    if isinstance(part, tfb.Bijector) and not isinstance(part, FlowBijector):
        results = _call_tfp(part, value, p, inverse, event_ndims)
    else:
        results = part._checked_pass(value, p, inverse)
    if p.terms is not None and len(p.terms) == num_terms:
        raise ValueError(
            f"{part.name}: expected a bijector whose log det has positions in the image. Compose "
            "bijectors by `tfr.FlowChain` instead of `tfb.Chain`. In your own bijector, sum log "
            "dets by the methods `_sum_over_event` and `_log_det_of_positions` of `FlowBijector`."
        )
    if p.observer is not None:
        p.observer(part, *results)
    return results


def _call_tfp(
    bijector: tfb.Bijector, value: tf.Tensor, p: Pass, inverse: bool, event_ndims: int
) -> tuple[tf.Tensor, tf.Tensor]:
    direction = "inverse" if inverse else "forward"
    log_det_of = getattr(bijector, f"{direction}_log_det_jacobian")
    options = call_options(bijector, training=p.training, conditional_input=p.condition)
    # A `tfb.Chain` drops the other fields of the pass, so its parts read them from the context.
    with surround_with(**vars(p.but(terms=None))):
        log_det = log_det_of(value, event_ndims=event_ndims, **options)
        result = getattr(bijector, direction)(value, **options)
    if p.terms is not None and bijector.forward_min_event_ndims <= 1:
        log_dets = log_det_of(value, event_ndims=1, **options)
        p.record(tf.broadcast_to(log_dets, tf.shape(result)[:-1])[..., tf.newaxis])
    return result, tf.broadcast_to(log_det, tf.shape(result)[:-event_ndims])


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
    """Returns keyword arguments that pass `options` to each `FlowBijector` in `bijector`.

    `tfb.Chain` routes by bijector name. Only bijectors with a condition get `conditional_input`.
    """
    if isinstance(bijector, FlowBijector):
        if not bijector.accepts_conditional_input:
            options.pop("conditional_input", None)
        return options
    if isinstance(bijector, private_api.Invert):
        return call_options(bijector.bijector, **options)
    if isinstance(bijector, private_api.Chain):
        routed = {part.name: call_options(part, **options) for part in bijector.bijectors}
        return {name: kwargs for name, kwargs in routed.items() if kwargs}
    return {}

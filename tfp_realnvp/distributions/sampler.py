"""Samples a distribution with one graph for any number of samples."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_realnvp.bijectors.flow_bijector import surround_with
from tfp_realnvp.bijectors.flow_chain import condition_spec_of
from tfp_realnvp.distributions import clusters, routing
from tfp_realnvp.internal import memoize, private_api, validation

tfd = tfp.distributions

_CALLER = "FlowModel.sample"


def sample(
    distribution: tfd.Distribution,
    num_samples: int,
    seed: int | Sequence[int] | None,
    temperature: float,
    guidance: float,
    conditional_input: Any,
) -> tf.Tensor:
    """Draws samples with one graph for any number of samples; see `FlowModel.sample`."""
    num_samples = validation.count(num_samples, "num_samples", 1, _CALLER)
    for value, name in ((temperature, "temperature"), (guidance, "guidance")):
        expected = f"{_CALLER}: expected a finite {name} of at least 0"
        validation.real(value, lambda x: 0 <= x < np.inf, expected)
    expected = f"{_CALLER}: expected temperature=1, because the base is not a fixed standard normal"
    validation.require(temperature == 1 or _is_tempered(distribution), expected, temperature)
    condition = _conditions(distribution, conditional_input, num_samples)
    if guidance:
        expected = f"{_CALLER}: expected guidance only for a flow trained with and without "
        expected += "its condition, as `RealNVPImage(..., num_classes=10, condition_dropout=0.1)`"
        validation.require(has_dropout(clusters.flow_of(distribution)), expected, guidance)
        has_condition = condition is not None or clusters.flow_of(distribution) is not distribution
        expected = f"{_CALLER}: expected a conditional_input with guidance={guidance}"
        validation.require(has_condition, expected, condition)
    seed = (seed, 0) if isinstance(seed, (int, np.integer)) else seed
    tensors = [tf.constant(num_samples), *tf.unstack(tfp.random.sanitize_seed(seed))]
    tensors += [tf.constant(weight, distribution.dtype) for weight in (temperature, guidance)]
    tensors += [] if condition is None else [condition]
    return memoize.call_traced(_sample, distribution, (bool(guidance),), *tensors)


def _sample(
    distribution: tfd.Distribution, is_guided: bool, num_samples: tf.Tensor, *tensors: tf.Tensor
) -> tf.Tensor:
    *seeds, temperature, guidance = tensors[:4]
    seed, condition = tf.stack(seeds), tensors[4] if len(tensors) > 4 else None
    seed, condition = clusters.condition_of_samples(distribution, [num_samples], seed, condition)
    distribution = clusters.flow_of(distribution)
    guidance = guidance if is_guided else None
    with surround_with(guidance=guidance, condition=condition, training=False):
        if not _is_tempered(distribution):
            return distribution.sample(num_samples, seed=seed)
        latents = temperature * distribution.distribution.sample(num_samples, seed=seed)
        return distribution.bijector.forward(latents)


def has_dropout(flow: tfd.Distribution) -> bool:
    """Returns whether a flow was trained with and without its condition, as guidance requires."""
    bijector = getattr(flow, "bijector", None)
    spec = None if bijector is None else condition_spec_of(bijector)
    return spec is not None and bool(spec.dropout)


def is_standard_normal(base: tfd.Distribution) -> bool:
    """Returns whether a base distribution is a fixed standard normal."""
    if base.variables or not isinstance(base, (tfd.Sample, private_api.Independent)):
        return False
    normal = base.distribution
    if not isinstance(normal, tfd.Normal):
        return False
    return bool(np.all(np.equal(normal.loc, 0)) and np.all(np.equal(normal.scale, 1)))


def _is_tempered(distribution: tfd.Distribution) -> bool:
    """Returns whether a distribution is a flow whose base is a fixed standard normal."""
    flow = clusters.flow_of(distribution)
    is_flow = isinstance(flow, private_api.TransformedDistribution)
    return is_flow and is_standard_normal(flow.distribution)


def _conditions(distribution: tfd.Distribution, value: Any, num_samples: int) -> tf.Tensor | None:
    spec = routing.find_condition_spec(distribution)
    routing.check_context(spec is not None, _CALLER, value)
    if value is None and (spec is None or spec.may_be_missing):
        return None
    expected = f"{_CALLER}: expected no conditional_input, because the distribution declares none; "
    expected += "a flow with `RealNVPImage(..., num_classes=10)` does"
    validation.require(spec is not None, expected, value)
    condition = spec.as_tensor(value, _CALLER, distribution.dtype)
    batch = condition.shape[: condition.shape.rank - spec.event_ndims]
    expected = f"{_CALLER}: expected one condition, or one for each of {num_samples} samples"
    validation.require(batch in ([], [1], [num_samples]), expected, condition.shape)
    return tf.broadcast_to(condition, [num_samples, *condition.shape[batch.rank :]])

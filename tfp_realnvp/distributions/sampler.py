"""`FlowModel.sample`: samples a distribution with one graph for any number of samples."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_realnvp.bijectors.flow_bijector import surround_with
from tfp_realnvp.bijectors.flow_chain import condition_spec_of
from tfp_realnvp.distributions.clusters import ClusterMixture, flow_of
from tfp_realnvp.distributions.routing import find_condition_spec
from tfp_realnvp.internal import private_api, validation
from tfp_realnvp.internal.memoize import call_traced

tfd = tfp.distributions

_CALLER = "FlowModel.sample"


def sample(
    self: Any,
    num_samples: int,
    seed: int | Sequence[int] | None = None,
    *,
    temperature: float = 1.0,
    guidance: float = 0.0,
    conditional_input: Any = None,
) -> tf.Tensor:
    """Draws samples with a graph that is traced once, for any number of samples.

    With `temperature=1` and `guidance=0` the results are samples of `model.distribution`, equal
    to `distribution.sample(num_samples, seed=tf.constant([seed, 0]))`. A lower `temperature`
    and a higher `guidance` make samples more typical and less diverse. `temperature` scales the
    latents, `guidance` changes the parameters of each coupling:

    ```
    z ~ temperature * N(0, I);    parameters (1 + guidance) * a(c) - guidance * a(no condition)
    ```

    Args:
      num_samples: number of samples N.
      seed: one or two int32 numbers, or `None` for different samples in each call.
      temperature: standard deviation of the latents; the base must be standard normal.
      guidance: weight of the guidance, at least 0, for a flow that was trained with
        `condition_dropout`. Guidance needs a condition, and evaluates each network twice.
      conditional_input: one condition, or one for each sample, [N, ...]. With
        `condition_dropout`, `None` leaves the condition out.

    Returns:
      Continuous pixel values [N, H, W, C], which `tfr.to_uint8` rounds; or vectors [N, D].

    Raises:
      ValueError: if an argument does not apply to the model, or is out of range.
      TypeError: if an argument is not a number, but must be one.

    #### References

    Ho, Salimans: Classifier-free diffusion guidance (2022).
    """
    distribution = self.distribution
    num_samples = validation.count(num_samples, "num_samples", 1, _CALLER)
    for value, name in ((temperature, "temperature"), (guidance, "guidance")):
        expected = f"{_CALLER}: expected a finite {name} of at least 0"
        validation.real(value, lambda x: 0 <= x < math.inf, expected)
    expected = f"{_CALLER}: expected temperature=1, because the base is not a fixed standard normal"
    validation.require(temperature == 1 or _is_tempered(distribution), expected, temperature)
    condition = _conditions(distribution, conditional_input, num_samples)
    if guidance:
        expected = (
            f"{_CALLER}: expected guidance only for a flow that was trained with and without its "
            "condition, such as `RealNVPImage(..., num_classes=10, condition_dropout=0.1)`"
        )
        validation.require(has_dropout(flow_of(distribution)), expected, guidance)
        has_condition = condition is not None or isinstance(distribution, ClusterMixture)
        expected = f"{_CALLER}: expected a conditional_input with guidance={guidance}"
        validation.require(has_condition, expected, condition)
    seed = (seed, 0) if isinstance(seed, (int, np.integer)) else seed
    tensors = [tf.constant(num_samples), *tf.unstack(tfp.random.sanitize_seed(seed))]
    tensors += [tf.constant(weight, distribution.dtype) for weight in (temperature, guidance)]
    tensors += [] if condition is None else [condition]
    return call_traced(_sample, distribution, (bool(guidance),), *tensors)


def _sample(
    distribution: tfd.Distribution, is_guided: bool, num_samples: tf.Tensor, *tensors: tf.Tensor
) -> tf.Tensor:
    *seeds, temperature, guidance = tensors[:4]
    seed, condition = tf.stack(seeds), tensors[4] if len(tensors) > 4 else None
    if isinstance(distribution, ClusterMixture):
        seed, condition = distribution.draw_clusters([num_samples], seed, condition)
        distribution = distribution.components_distribution
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
    flow = flow_of(distribution)
    is_flow = isinstance(flow, private_api.TransformedDistribution)
    return is_flow and is_standard_normal(flow.distribution)


def _conditions(distribution: tfd.Distribution, value: Any, num_samples: int) -> tf.Tensor | None:
    spec = find_condition_spec(distribution)
    if value is None and (spec is None or spec.may_be_missing):
        return None
    expected = (
        f"{_CALLER}: expected no conditional_input, because the distribution declares none; a "
        "flow with `RealNVPImage(..., num_classes=10)` does"
    )
    validation.require(spec is not None, expected, value)
    condition = spec.as_tensor(value, _CALLER, distribution.dtype)
    batch = condition.shape[: condition.shape.rank - spec.event_ndims]
    expected = f"{_CALLER}: expected one condition, or one for each of {num_samples} samples"
    validation.require(batch in ([], [1], [num_samples]), expected, condition.shape)
    return tf.broadcast_to(condition, [num_samples, *condition.shape[batch.rank :]])

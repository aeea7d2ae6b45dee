"""The scorer: log densities of events at noise samples, given conditions or for all classes."""

from __future__ import annotations

import functools
from typing import Any

import tensorflow as tf
import tensorflow_probability as tfp

from tfp_realnvp import pixels
from tfp_realnvp.distributions.routing import route
from tfp_realnvp.internal.kept import call_traced

__all__ = ["log_prob_of", "score", "scores"]

tfd = tfp.distributions


def scores(
    distribution: tfd.Distribution,
    noise: Any,
    events: tf.Tensor,
    *condition: tf.Tensor,
    num_samples: int = 1,
    seed: int = 0,
    num_classes: int | None = None,
    training: bool = False,
    jit_compile: bool = False,
) -> tf.Tensor:
    r"""Returns log p(x + u_k) - log q(u_k | x) in nats for noise samples u_1 … u_K, [K, B].

    The noise samples of an event are determined by the seed and its gray levels, so that its scores
    depend neither on its place nor on other events. Each sample is one call of a graph, which is
    traced once for a distribution.

    Args:
      distribution: over images or vectors.
      noise: of the density q: `UniformNoise`, `NoNoise` or a `VariationalDequantization`.
      events: [B, ...], gray levels or continuous values, of the distribution's dtype.
      *condition: of the events, if there is any, [B, ...], the result of `as_conditions`.
      num_samples: number of noise samples K.
      seed: of the noise, an int32.
      num_classes: number of classes C, for p(x | y) of all classes y, [K, B, C], in place of the
        density given a condition.
      training: as in `FlowBijector`.
      jit_compile: whether XLA compiles the graph.
    """
    options = noise, num_classes, training
    call = functools.partial(call_traced, score, distribution, options, jit_compile=jit_compile)
    draws = [(tf.constant(seed), tf.constant(k)) for k in range(num_samples)]
    return tf.stack([call(events, *draw, *condition) for draw in draws])


def score(
    distribution: tfd.Distribution,
    noise: Any,
    num_classes: int | None,
    training: bool,
    events: tf.Tensor,
    seed: tf.Tensor | int,
    draw: tf.Tensor | int = 0,
    condition: tf.Tensor | None = None,
) -> tf.Tensor:
    """Returns the scores of one noise sample, [B] or [B, C]; see `scores`."""
    noise_fn = functools.partial(pixels.event_noise, seed=pixels.evaluation_seed(seed, draw))
    values, log_noise = noise.add_noise(events, noise_fn)
    if num_classes is None:
        return log_prob_of(distribution, values, condition, training) - log_noise
    labels = tf.range(num_classes)[:, tf.newaxis]
    options = route(distribution, conditional_input=labels, training=training)
    # One pass of the bijector is enough if only the base depends on the label.
    is_repeated = "conditional_input" in options.get("bijector_kwargs", {})
    shape = tf.concat([[num_classes if is_repeated else 1], tf.shape(values)], axis=0)
    log_probs = distribution.log_prob(tf.broadcast_to(values, shape), **options)
    return tf.transpose(log_probs - log_noise)


def log_prob_of(
    distribution: tfd.Distribution,
    values: tf.Tensor,
    condition: tf.Tensor | None,
    training: bool = False,
) -> tf.Tensor:
    """Returns log p(x | c), [B], given the result of `as_conditions`."""
    options = {} if condition is None else {"conditional_input": condition}
    return distribution.log_prob(values, **route(distribution, training=training, **options))

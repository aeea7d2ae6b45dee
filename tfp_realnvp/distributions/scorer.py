"""Log densities of events with noise, given their conditions or given each class."""

import functools
from typing import Any

import tensorflow as tf
from tensorflow_probability import distributions as tfd

from tfp_realnvp import pixels
from tfp_realnvp.bijectors.flow_bijector import surround_with
from tfp_realnvp.distributions.routing import bijector_takes_condition, unseen
from tfp_realnvp.internal.memoize import call_traced


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
    r"""Returns log p(x + u_k) - log q(u_k | x), [K, B], in nats, for noise samples u_1 … u_K.

    The noise q is a `UniformNoise`, `NoNoise` or `VariationalDequantization`. An event's noise
    depends only on the int32 seed and the event's gray levels. `events`, [B, ...], have the
    distribution's dtype. `condition` is the result of `as_conditions`; omit it if that is `None`.
    With `num_classes=C`, returns [K, B, C], with p(x + u_k | y) for each class y. Each distribution
    has one graph, which runs once per noise sample. With `jit_compile`, XLA compiles the graph.
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
    """Returns `scores` for one noise sample, [B] or [B, C]."""
    noise_fn = functools.partial(pixels.event_noise, seed=seed, draw=draw)
    values, log_noise = noise.add_noise(events, noise_fn)
    if num_classes is not None:
        condition = tf.range(num_classes)[:, tf.newaxis]
        # If only the base depends on the label, the bijector evaluates each event once.
        number = num_classes if bijector_takes_condition(distribution) else 1
        values = tf.broadcast_to(values, tf.concat([[number], tf.shape(values)], axis=0))
    with surround_with(condition=condition, training=training):
        log_probs = distribution.log_prob(unseen(distribution, values))
    return log_probs - log_noise if num_classes is None else tf.transpose(log_probs - log_noise)

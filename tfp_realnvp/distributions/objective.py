"""What training maximizes: the log density, or what a distribution defines in its place."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf
from tensorflow_probability import distributions as tfd

from tfp_realnvp import pixels
from tfp_realnvp.bijectors.flow_bijector import surround_with
from tfp_realnvp.condition_spec import ConditionSpec
from tfp_realnvp.distributions import conditional_bases, routing
from tfp_realnvp.internal import private_api, replicas, streams

_LABEL_WEIGHT = 0.1  # weight of the mean log p(y | x) of the labeled events in a batch

# A function of the declared condition and of conditions [B, ...], which leaves some of them out.
Drop = Callable[[ConditionSpec, tf.Tensor], tf.Tensor]


def training_log_prob(
    distribution: tfd.Distribution, values: tf.Tensor, condition: tf.Tensor | None, drop: Drop
) -> tf.Tensor:
    """Returns the log densities that a training step maximizes, [B], in nats.

    These are the results of `distribution.training_log_prob(values, condition, drop)` if the
    distribution has this method, and of `distribution.log_prob` otherwise. Given the labels of a
    `ClassMixture`, returns the log densities with and without the labels, with shape [2, B].
    """
    method = getattr(distribution, "training_log_prob", None)
    if method is not None:
        return method(values, condition, drop)
    spec = routing.find_condition_spec(distribution)
    if condition is not None and spec is not None:
        condition = drop(spec, condition)
        if class_mixture_of(distribution) is not None:
            condition = spec.with_and_without(condition)
    with surround_with(condition=condition):
        return distribution.log_prob(routing.unseen(distribution, values))


def approximation_of(distribution: tfd.Distribution) -> tfd.Distribution:
    """Returns `distribution.approximation()` if there is this method, or else the distribution.

    `FlowModel.fit` validates with the approximation, which is faster.
    """
    method = getattr(distribution, "approximation", None)
    return distribution if method is None else method()


def drop_conditions(
    spec: ConditionSpec, condition: tf.Tensor, seed: tf.Tensor, first: tf.Tensor | int
) -> tf.Tensor:
    """Replaces each of the conditions [B, ...] by a missing one with probability `spec.dropout`.

    `first` is the position of this replica's first event in the batch of all replicas.
    """
    if not spec.dropout:
        return condition
    seed = tf.stack([seed[0] ^ streams.DROPPED_CONDITIONS, seed[1]])
    noise = pixels.batch_noise(tf.zeros(tf.shape(condition)[:1]), seed, first=first)
    return spec.without(condition, noise < spec.dropout)


def training_mean(
    distribution: tfd.Distribution,
    log_probs: tf.Tensor,
    condition: tf.Tensor | None,
    weights: tf.Tensor | None,
    total: tf.Tensor,
) -> tf.Tensor:
    """Returns this replica's term of the weighted mean of `training_log_prob`.

    For a `ClassMixture`, adds 0.1 times the mean log p(y | x) over the labeled events. `total` is
    as in `part_of_mean`.
    """
    if log_probs.shape.rank == 1:
        return part_of_mean(log_probs, weights, total)
    prior = class_mixture_of(distribution).mixture_distribution
    log_prior = tf.cast(prior.log_prob(tf.maximum(condition, 0)), log_probs.dtype)
    weights_of_labeled = tf.cast(condition >= 0, log_probs.dtype)
    weights_of_labeled *= 1 if weights is None else weights
    [of_labeled] = replicas.sum_over_replicas([tf.reduce_sum(weights_of_labeled)])
    log_posterior = log_probs[0] + log_prior - log_probs[1]
    weighted = tf.math.multiply_no_nan(log_posterior, weights_of_labeled)
    label_term = tf.math.divide_no_nan(tf.reduce_sum(weighted), of_labeled)
    return part_of_mean(log_probs, weights, total) + _LABEL_WEIGHT * label_term


def part_of_mean(log_prob: tf.Tensor, weights: tf.Tensor | None, total: tf.Tensor) -> tf.Tensor:
    """Returns this replica's term of the weighted mean over the batch of all replicas.

    `total` is the sum of all weights, or the number of events without weights. If the log densities
    are [2, B], with and without labels, the first row counts.
    """
    log_prob = log_prob[0] if log_prob.shape.rank == 2 else log_prob
    if weights is None:
        return tf.reduce_sum(log_prob) / tf.cast(total, log_prob.dtype)
    weighted = tf.math.multiply_no_nan(log_prob, weights)
    return tf.math.divide_no_nan(tf.reduce_sum(weighted), total)


def parts_of(distribution: tfd.Distribution) -> list[Any]:
    """Returns the bijectors of nested transformed distributions, outermost first, and the base."""
    if isinstance(distribution, private_api.TransformedDistribution):
        return [distribution.bijector, *parts_of(distribution.distribution)]
    return [distribution]


def class_mixture_of(distribution: tfd.Distribution) -> conditional_bases.ClassMixture | None:
    """Returns the base of a flow if it is a `ClassMixture`."""
    base = parts_of(distribution)[-1]
    return base if isinstance(base, conditional_bases.ClassMixture) else None

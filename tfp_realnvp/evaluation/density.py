"""Log likelihoods of images and vectors, and bits per dimension of images."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_realnvp import pixels
from tfp_realnvp.distributions import (
    VariationalDequantization,
    as_conditions,
    route,
)
from tfp_realnvp.evaluation.batches import (
    checked_arguments,
    checked_batches,
    event_name,
    model_parts,
    needs_noise,
    noise_function,
)

__all__ = ["Evaluation", "LogLikelihood", "bits_per_dim", "log_likelihood"]

tfd = tfp.distributions


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The result of `bits_per_dim` on one set of images.

    Attributes:
      bits_per_dim: mean over images and noise samples.
      standard_error: standard error of `bits_per_dim` over random images; NaN for a single image.
      importance_weighted: the tighter bound, mean over images; at most `bits_per_dim`.
      importance_weighted_error: standard error of `importance_weighted`.
      num_images: number of images.
      num_draws: number of noise samples for each image, K.
    """

    bits_per_dim: float
    standard_error: float
    importance_weighted: float
    importance_weighted_error: float
    num_images: int
    num_draws: int


@dataclasses.dataclass(frozen=True)
class LogLikelihood:
    """The result of `log_likelihood` on one set of vectors or images.

    Attributes:
      log_likelihood: mean over events and noise samples, in nats an event.
      standard_error: standard error of `log_likelihood` over random events; NaN for a single one.
      importance_weighted: the tighter bound, mean over events; at least `log_likelihood`. `None`
        without noise, where `log_likelihood` is no bound.
      importance_weighted_error: standard error of `importance_weighted`, or `None`.
      num_events: number of events.
      num_draws: number of noise samples for each event, K.
    """

    log_likelihood: float
    standard_error: float
    importance_weighted: float | None
    importance_weighted_error: float | None
    num_events: int
    num_draws: int


def bits_per_dim(
    distribution: tfd.Distribution,
    images: Any,
    num_draws: int = 1,
    *,
    dequantizer: VariationalDequantization | None = None,
    seed: int = 0,
    batch_size: int = 64,
) -> Evaluation:
    r"""Evaluates a density over pixel values on images, given their conditions if there are any.

    With K noise samples u₁ … u_K from U[0, 1)ᴰ for each image x of integers, and D = H W C,

    ```
    average             = mean over x of    -1/D mean_k log2 p(x + u_k)
    importance_weighted = mean over x of    -1/D log2 mean_k p(x + u_k)
    ```

    In expectation both are upper bounds on the bits/dim of the integer images,
    `-1/D log2 ∫ p(x + u) du`. The second is tighter and improves with K; for K = 1 they are equal.
    `FlowModel.evaluate` uses the first noise sample, for a model with this `seed` and equal
    batches.

    With a `VariationalDequantization` q, the noise is drawn from q(u | x), and p(x + u) / q(u | x)
    takes the place of p(x + u).

    For a distribution that takes a condition, p is p(· | c) with the condition c of each image.
    Images without conditions give the density without a condition, if the flow has
    `condition_dropout`.

    #### Example

    >>> import numpy as np, tensorflow_probability as tfp
    >>> from tfp_realnvp import evaluation
    >>> uniform = tfp.distributions.Sample(tfp.distributions.Uniform(0., 256.), [4, 4, 3])
    >>> images = np.random.default_rng(0).integers(0, 256, [10, 4, 4, 3], dtype=np.uint8)
    >>> result = evaluation.bits_per_dim(uniform, images, num_draws=2)
    >>> round(result.bits_per_dim, 5), result.num_images
    (8.0, 10)

    A class-conditional flow:

    >>> import tfp_realnvp as tfr
    >>> base = tfp.distributions.Sample(tfp.distributions.Normal(0., 1.), [4, 4, 3])
    >>> flow = tfp.distributions.TransformedDistribution(
    ...     base, tfr.RealNVPImage((4, 4, 3), num_blocks=0, num_filters=4, num_classes=10))
    >>> evaluation.bits_per_dim(flow, (images, np.arange(10))).num_images
    10

    #### References

    Theis, van den Oord, Bethge: A note on the evaluation of generative models, section 3.1.
    Burda, Grosse, Salakhutdinov: Importance weighted autoencoders, section 3.

    Args:
      distribution: distribution over continuous pixel values [H, W, C] in [0, number of levels), or
        the `FlowModel` of one.
      images: gray levels, [N, H, W, C]; a tuple of them and their conditions or labels; a
        dictionary with `'image'` and `'conditional_input'` or `'label'`; or a finite
        `tf.data.Dataset` of batches of one of these. Distributions that take no condition ignore
        labels.
      num_draws: number of noise samples K.
      dequantizer: distribution of the noise; by default that of the `FlowModel`, else uniform.
      seed: seed of the noise.
      batch_size: number of images in a batch. Not used for a dataset.

    Returns:
      An `Evaluation`.

    Raises:
      ValueError: if there are no images, if they are not gray levels of the shape of events, if
        conditions are missing or not as declared, if an argument is out of range, or if a log
        density is not finite.
      TypeError: if `distribution` is neither a distribution nor a `FlowModel`.
    """
    distribution, _, dequantizer = model_parts("bits_per_dim", distribution, True, dequantizer)
    if event_name("bits_per_dim", distribution) != "images":
        raise ValueError(
            "bits_per_dim: expected a distribution over images, got events of shape "
            f"{distribution.event_shape}; log_likelihood evaluates vectors, in nats."
        )
    options: dict[str, Any] = {"dequantizer": dequantizer, "seed": seed, "batch_size": batch_size}
    bounds = [
        _bounds(log_prob) / (-math.prod(event_shape) * math.log(2))
        for log_prob, event_shape in _log_probs(
            "bits_per_dim", distribution, images, num_draws, dequantize=True, **options
        )
    ]
    average, importance_weighted = np.concatenate(bounds, axis=1)
    return Evaluation(
        *_mean_and_error(average),
        *_mean_and_error(importance_weighted),
        num_images=len(average),
        num_draws=int(num_draws),
    )


def log_likelihood(
    distribution: tfd.Distribution,
    data: Any,
    num_draws: int = 1,
    *,
    dequantize: bool | None = None,
    dequantizer: VariationalDequantization | None = None,
    seed: int = 0,
    batch_size: int = 64,
) -> LogLikelihood:
    r"""Evaluates a density on vectors or images, given their conditions if there are any, in nats.

    ```
    log_likelihood = mean over x of    log p(x)
    ```

    For values that are integers, as gray levels are, p is the density of values with noise. With K
    noise samples u₁ … u_K of the density q, which is 1 for uniform noise,

    ```
    log_likelihood      = mean over x of    mean_k log (p(x + u_k) / q(u_k | x))
    importance_weighted = mean over x of    log mean_k p(x + u_k) / q(u_k | x)
    ```

    are lower bounds on the log probability of the integers, in expectation. The second is tighter.

    #### Example

    >>> import numpy as np, tensorflow_probability as tfp, tfp_realnvp as tfr
    >>> from tfp_realnvp import evaluation
    >>> tfd = tfp.distributions
    >>> x = np.random.default_rng(0).normal(size=[1000, 5])
    >>> result = evaluation.log_likelihood(tfd.Sample(tfd.Normal(0., 1.), [5]), x)
    >>> round(result.log_likelihood, 2), round(result.standard_error, 2)
    (-7.07, 0.05)

    A flow of vectors given a label:

    >>> flow = tfd.TransformedDistribution(
    ...     tfd.Sample(tfd.Normal(0., 1.), [5]),
    ...     tfr.RealNVPVector(5, num_couplings=2, num_filters=8, num_classes=10))
    >>> evaluation.log_likelihood(flow, (x, np.arange(1000) % 10)).num_events
    1000

    Args:
      distribution: distribution over vectors [D] or images [H, W, C], or the `FlowModel` of one.
      data: vectors [N, D] or images [N, H, W, C], in the forms that `bits_per_dim` takes. In a
        dictionary the vectors are `'image'`.
      num_draws: number of noise samples K; 1 without noise.
      dequantize: whether values are integers that get noise; by default as the `FlowModel` has it,
        else `True` for images and with a `dequantizer`, `False` for vectors.
      dequantizer: distribution of the noise; by default that of the `FlowModel`, else uniform.
      seed: seed of the noise.
      batch_size: number of events in a batch. Not used for a dataset.

    Returns:
      A `LogLikelihood`.

    Raises:
      ValueError: as for `bits_per_dim`, or if there are several draws or a `dequantizer` and no
        noise.
      TypeError: if `distribution` is neither a distribution nor a `FlowModel`.
    """
    distribution, dequantize, dequantizer = model_parts(
        "log_likelihood", distribution, dequantize, dequantizer
    )
    dequantize = needs_noise("log_likelihood", distribution, dequantize, dequantizer, num_draws)
    options: dict[str, Any] = {"dequantizer": dequantizer, "seed": seed, "batch_size": batch_size}
    bounds = [
        _bounds(log_prob)
        for log_prob, _ in _log_probs(
            "log_likelihood", distribution, data, num_draws, dequantize=dequantize, **options
        )
    ]
    average, importance_weighted = np.concatenate(bounds, axis=1)
    return LogLikelihood(
        *_mean_and_error(average),
        *(_mean_and_error(importance_weighted) if dequantize else (None, None)),
        num_events=len(average),
        num_draws=int(num_draws),
    )


def _log_probs(
    caller: str,
    distribution: tfd.Distribution,
    data: Any,
    num_draws: int,
    *,
    dequantize: bool,
    dequantizer: VariationalDequantization | None,
    seed: int,
    batch_size: int,
) -> Iterator[tuple[np.ndarray, tuple[int, ...]]]:
    """Yields log p - log q, float64 [num_draws, B], and the shape of an event, for each batch."""
    num_draws, batch_size, seed = checked_arguments(caller, num_draws, batch_size, seed)
    noise_fn = noise_function(distribution, dequantize, dequantizer)
    log_prob_fn = None
    batches = checked_batches(caller, distribution, data, batch_size, dequantize)
    for number, (events, condition) in enumerate(batches, start=1):
        conditions = _conditions(caller, condition, distribution, len(events))
        log_prob_fn = log_prob_fn or _log_prob_function(distribution, conditions)
        log_prob = np.empty([num_draws, len(events)], np.float64)
        for draw in range(num_draws):
            values, log_noise = noise_fn(events, pixels.evaluation_seed(seed, number, draw))
            log_prob[draw] = log_prob_fn(values, *conditions) - log_noise
        if not np.isfinite(log_prob).all():
            index = int(np.argwhere(~np.isfinite(log_prob))[0, 1])
            raise ValueError(
                f"{caller}: expected finite log densities, got {log_prob[:, index]} for "
                f"{event_name(caller, distribution)[:-1]} {index} of batch {number}."
            )
        yield log_prob, events.shape[1:]


def _bounds(log_prob: np.ndarray) -> np.ndarray:
    """Returns the mean over draws of log p, and the log of the mean of p, [2, B]."""
    log_mean = np.logaddexp.reduce(log_prob) - math.log(len(log_prob))
    return np.stack([log_prob.mean(axis=0), log_mean])


def _conditions(
    caller: str, condition: Any, distribution: tfd.Distribution, num_events: int
) -> list[tf.Tensor]:
    """Returns a list of the conditions of a batch, one tensor; empty without conditions."""
    condition = as_conditions(distribution, condition, caller)
    if condition is None:
        return []
    if condition.shape[0] != num_events:
        raise ValueError(
            f"{caller}: expected one condition for each of {num_events} "
            f"{event_name(caller, distribution)}, got shape {condition.shape}."
        )
    return [condition]


def _log_prob_function(
    distribution: tfd.Distribution, conditions: list[tf.Tensor]
) -> Callable[..., tf.Tensor]:
    """Returns `distribution.log_prob` as a function of values, and of conditions if any."""

    def log_prob(values: tf.Tensor, *conditions: tf.Tensor) -> tf.Tensor:
        options = {"conditional_input": conditions[0]} if conditions else {}
        return distribution.log_prob(values, **route(distribution, **options))

    # The unknown batch size avoids a second trace for a smaller last batch.
    signature = [tf.TensorSpec([None, *distribution.event_shape], distribution.dtype)]
    signature += [tf.TensorSpec([None, *c.shape[1:]], c.dtype) for c in conditions]
    return tf.function(log_prob, input_signature=signature, autograph=False)


def _mean_and_error(values: np.ndarray) -> tuple[float, float]:
    error = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return float(values.mean()), float(error)

"""Bits per dimension of images."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
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
    checked_levels,
    image_batches,
    noisy_function,
)

__all__ = ["Evaluation", "bits_per_dim"]

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
      distribution: distribution over continuous pixel values [H, W, C] in [0, number of levels).
      images: gray levels, [N, H, W, C]; a tuple of them and their conditions or labels; a
        dictionary with `'image'` and `'conditional_input'` or `'label'`; or a finite
        `tf.data.Dataset` of batches of one of these. Distributions that take no condition ignore
        labels.
      num_draws: number of noise samples K.
      dequantizer: distribution of the noise; by default uniform.
      seed: seed of the noise.
      batch_size: number of images in a batch. Not used for a dataset.

    Returns:
      An `Evaluation`.

    Raises:
      ValueError: if there are no images, if they are not gray levels of the shape of events, if
        conditions are missing or not as declared, if an argument is out of range, or if a log
        density is not finite.
    """
    caller = "bits_per_dim"
    num_draws, batch_size, seed = checked_arguments(caller, num_draws, batch_size, seed)
    log_prob_fn = None
    noisy_fn = noisy_function(distribution, dequantizer)
    average, importance_weighted = [], []
    for number, (batch, condition) in enumerate(image_batches(caller, images, batch_size), start=1):
        levels = checked_levels(caller, batch, distribution.event_shape, number)
        conditions = _conditions(caller, condition, distribution, len(levels))
        log_prob_fn = log_prob_fn or _log_prob_function(distribution, conditions)
        log_prob = np.empty([num_draws, len(levels)], np.float64)
        for draw in range(num_draws):
            values, log_noise = noisy_fn(levels, pixels.evaluation_seed(seed, number, draw))
            log_prob[draw] = log_prob_fn(values, *conditions) - log_noise
        if not np.isfinite(log_prob).all():
            index = int(np.argwhere(~np.isfinite(log_prob))[0, 1])
            raise ValueError(
                f"bits_per_dim: expected finite log densities, got {log_prob[:, index]} for image "
                f"{index} of batch {number}."
            )
        nats_per_bit_per_dim = math.prod(levels.shape[1:]) * math.log(2)
        log_mean = np.logaddexp.reduce(log_prob) - math.log(num_draws)
        average.append(-log_prob.mean(axis=0) / nats_per_bit_per_dim)
        importance_weighted.append(-log_mean / nats_per_bit_per_dim)
    if not average:
        raise ValueError("bits_per_dim: expected images, got none.")
    mean, error = _mean_and_error(np.concatenate(average))
    tighter, tighter_error = _mean_and_error(np.concatenate(importance_weighted))
    return Evaluation(
        bits_per_dim=mean,
        standard_error=error,
        importance_weighted=tighter,
        importance_weighted_error=tighter_error,
        num_images=sum(map(len, average)),
        num_draws=num_draws,
    )


def _conditions(
    caller: str, condition: Any, distribution: tfd.Distribution, num_images: int
) -> list[tf.Tensor]:
    """Returns a list of the conditions of a batch, one tensor; empty without conditions."""
    condition = as_conditions(distribution, condition, caller)
    if condition is None:
        return []
    if condition.shape[0] != num_images:
        raise ValueError(
            f"{caller}: expected one condition for each of {num_images} images, got shape "
            f"{condition.shape}."
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
    return tf.function(log_prob, input_signature=signature)


def _mean_and_error(values: np.ndarray) -> tuple[float, float]:
    error = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return float(values.mean()), float(error)

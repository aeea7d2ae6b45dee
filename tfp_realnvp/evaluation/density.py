"""Log likelihoods of images and vectors, and bits per dimension of images."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import tensorflow_probability as tfp

from tfp_realnvp import pixels
from tfp_realnvp.distributions import VariationalDequantization
from tfp_realnvp.evaluation.batched_scores import (
    check_no_weights,
    log_mean_exp,
    map_batches,
    model_of,
    scorer,
)
from tfp_realnvp.training.flow_model import FlowModel

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
      num_samples: number of noise samples for each image, K.
    """

    bits_per_dim: float
    standard_error: float
    importance_weighted: float
    importance_weighted_error: float
    num_images: int
    num_samples: int


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
      num_samples: number of noise samples for each event, K.
    """

    log_likelihood: float
    standard_error: float
    importance_weighted: float | None
    importance_weighted_error: float | None
    num_events: int
    num_samples: int


def bits_per_dim(
    model: FlowModel | tfd.Distribution,
    data: Any,
    *,
    num_samples: int = 1,
    dequantizer: VariationalDequantization | None = None,
    seed: int = 0,
    batch_size: int = 64,
) -> Evaluation:
    r"""Evaluates a density over pixel values on images: mean bits/dim, and its standard error.

    `tfr.bits_per_dim` converts log densities that are known.

    With K noise samples u₁ … u_K from U[0, 1)ᴰ for each image x of integers, and D = H W C,

    ```
    average             = mean over x of    -1/D mean_k log2 p(x + u_k)
    importance_weighted = mean over x of    -1/D log2 mean_k p(x + u_k)
    ```

    In expectation both are upper bounds on the bits/dim of the integer images,
    `-1/D log2 ∫ p(x + u) du`. The second is tighter and improves with K; for K = 1 they are equal.
    The noise of an image is determined by the seed and its gray levels. `FlowModel.evaluate` uses
    the first sample, for a model with this `seed`.

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
    >>> result = evaluation.bits_per_dim(uniform, images, num_samples=2)
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
      model: a `FlowModel`, or a distribution over continuous pixel values [H, W, C] in
        [0, number of levels).
      data: gray levels, [N, H, W, C], in any form that `FlowModel.predict` takes: also a tuple of
        them and their conditions, a dictionary with `'image'` and `'conditional_input'` or
        `'label'`, or a finite `tf.data.Dataset` of batches of one of these. For a `FlowModel` with
        `dequantize=False` values are taken as they are.
      num_samples: number of noise samples K.
      dequantizer: distribution of the noise; by default that of the `FlowModel`, else uniform.
      seed: seed of the noise.
      batch_size: number of images in a batch. Not used for a dataset.

    Returns:
      An `Evaluation`.

    Raises:
      ValueError: if there are no images, if they are not gray levels of the shape of events, if
        conditions are missing or not as declared, if an argument is out of range, or if a log
        density is not finite.
      TypeError: if `model` is neither a `FlowModel` nor a distribution.
    """
    caller = "bits_per_dim"
    model = model_of(model, caller, dequantizer=dequantizer, seed=seed)
    if model.event_ndims != 3:
        raise ValueError(
            "bits_per_dim: expected a distribution over images, got events of shape "
            f"{model.distribution.event_shape}; log_likelihood evaluates vectors, in nats."
        )
    log_prob, num_dims = _log_probs(caller, model, data, num_samples, batch_size)
    bits = pixels.bits_per_dim(_bounds(log_prob), num_dims).numpy()
    return Evaluation(
        *_mean_and_error(bits[0]),
        *_mean_and_error(bits[1]),
        num_images=len(log_prob),
        num_samples=int(num_samples),
    )


def log_likelihood(
    model: FlowModel | tfd.Distribution,
    data: Any,
    *,
    num_samples: int = 1,
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
      model: a `FlowModel`, or a distribution over vectors [D] or images [H, W, C].
      data: vectors [N, D] or images [N, H, W, C], in the forms that `bits_per_dim` takes. In a
        dictionary the vectors are `'image'`.
      num_samples: number of noise samples K; 1 without noise.
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
      TypeError: if `model` is neither a `FlowModel` nor a distribution.
    """
    caller = "log_likelihood"
    options: dict[str, Any] = {"dequantizer": dequantizer, "seed": seed}
    model = model_of(model, caller, dequantize=dequantize, **options)
    log_prob, _ = _log_probs(caller, model, data, num_samples, batch_size)
    average, importance_weighted = _bounds(log_prob)
    return LogLikelihood(
        *_mean_and_error(average),
        *(_mean_and_error(importance_weighted) if model.dequantize else (None, None)),
        num_events=len(log_prob),
        num_samples=int(num_samples),
    )


def _log_probs(
    caller: str, model: FlowModel, data: Any, num_samples: int, batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns log p - log q, float64 [N, K], and the number of elements of events, [N]."""
    check_no_weights(data, caller)
    score = scorer(model, caller, num_samples)

    def score_and_size(events: Any, *condition: Any) -> tuple[np.ndarray, np.ndarray]:
        return score(events, *condition), np.full(len(events), math.prod(events.shape[1:]))

    log_prob, sizes = map_batches(score_and_size, model, caller, data, batch_size=batch_size)
    log_prob = log_prob.astype(np.float64)
    is_finite = np.isfinite(log_prob).all(axis=1)
    if not is_finite.all():
        index = int(is_finite.argmin())
        event = "image" if model.event_ndims == 3 else "vector"
        raise ValueError(
            f"{caller}: expected finite log densities, got {log_prob[index]} for {event} {index}."
        )
    return log_prob, sizes


def _bounds(log_prob: np.ndarray) -> np.ndarray:
    """Returns the mean over draws of log p, and the log of the mean of p, [2, N]."""
    return np.stack([log_prob.mean(axis=1), log_mean_exp(log_prob)])


def _mean_and_error(values: np.ndarray) -> tuple[float, float]:
    error = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return float(values.mean()), float(error)

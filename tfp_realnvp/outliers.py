"""Outlier scores from log densities, and p-values with a guaranteed false alarm rate.

A score is a number per event, higher for outliers. The simplest is -log p, `-tfr.log_prob(model,
x)`. This score fails if outliers are simpler than the data: a flow that was trained on CIFAR-10
assigns higher densities to images of SVHN than to CIFAR-10 (Nalisnick et al. 2019). Even typical
samples of the data have a lower density than the density's mode. The table lists the scores:

| score | an outlier is | needs |
| --- | --- | --- |
| `-log_prob` | an event of low density | one model |
| `typicality` | a group of events whose mean log density is too low or too high | one model |
| `complexity_corrected` | an event that PNG finds simple, and the model does not | gray levels |
| `committee` | an event of low density, or on which models disagree | several models |

Start with `complexity_corrected` for gray levels, and with `-log_prob` for other events. `p_values`
turns any score into a decision. For images, `tfr.log_prob(model, images, num_samples=16)` averages
over 16 noise samples. `examples/outliers.py` compares all four scores.
"""

import io
import math
import warnings
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from tfp_realnvp.internal import optional_packages, validation

__all__ = ["committee", "complexity_corrected", "p_values", "typicality"]


def typicality(log_probs: Any, reference_log_probs: Any, group_size: int = 1) -> np.ndarray:
    """Returns the distance of a group's mean log p from the mean over reference events.

    The score of a group of M events is, in nats,

    ```
    |1/M sum_m log p(x_m) - mean of log p over the reference events|
    ```

    A group's mean has a standard deviation proportional to 1 / √M, so large groups reveal small
    deviations. The score cannot find outliers with the same mean log density as the data.

    #### Example

    The second group is too close to the mode of a 100-dimensional normal distribution.

    >>> import numpy as np
    >>> from tfp_realnvp import outliers
    >>> rng = np.random.default_rng(0)
    >>> log_prob = lambda x: -0.5 * (x**2 + np.log(2 * np.pi)).sum(axis=-1)
    >>> reference = log_prob(rng.normal(size=[1_000, 100]))
    >>> new = log_prob(rng.normal(size=[10, 100]) * np.repeat([[1.], [0.5]], 5, axis=0))
    >>> outliers.typicality(new, reference, group_size=5).round()
    array([ 3., 38.])

    #### References

    Nalisnick, Matsukawa, Teh, Lakshminarayanan: Detecting out-of-distribution inputs to deep
    generative models using typicality, 2019 (arXiv 1906.02994).

    Args:
      log_probs: log densities [N] in nats. Each M consecutive events form a group.
      reference_log_probs: log densities [R] of data like the training data. If you also use these
        events as held-out data of `p_values`, its guarantee becomes approximate.
      group_size: M, a divisor of N.

    Raises:
      ValueError: if N is not a multiple of `group_size`, or a log density is NaN or +inf, or a
        reference is -inf.
    """
    log_probs = _log_probs("typicality", log_probs, "shape [N]")
    reference = _log_probs("typicality", reference_log_probs, "shape [R]")
    size = validation.count(group_size, "group_size", 1, "typicality")
    expected = f"typicality: expected a number of log_probs divisible by group_size={size}"
    validation.require(len(log_probs) % size == 0, expected, len(log_probs))
    expected = "typicality: expected finite reference_log_probs, without densities of 0"
    validation.require(bool(np.isfinite(reference).all()), expected, reference.min())
    return np.abs(log_probs.reshape(-1, size).mean(axis=1) - reference.mean())


def complexity_corrected(
    log_probs: Any, events: Any, code: Callable[[np.ndarray], bytes] | None = None
) -> np.ndarray:
    """Returns each event's code length under the model, minus its lossless code length, in bits.

    ```
    -log2 p(x) - 8 · (number of bytes of the code of x)
    ```

    A general-purpose code needs few bits for simple events, such as blank or blurred images. If the
    model needs many more bits than the code, the event is an outlier, even if its density is high.
    A better lossless codec than PNG, such as WebP, can help.

    #### Example

    The constant image has the highest log density, but also the highest score.

    >>> import numpy as np
    >>> from tfp_realnvp import outliers
    >>> images = np.random.default_rng(0).integers(0, 256, [4, 16, 16, 1], dtype=np.uint8)
    >>> images[3] = 255
    >>> log_probs = [-1_400., -1_410., -1_390., -1_300.]
    >>> scores = outliers.complexity_corrected(log_probs, images)
    >>> int(scores.argmax())
    3

    #### References

    Serrà, Álvarez, Gómez, Slizovskaia, Núñez, Luque: Input complexity and out-of-distribution
    detection with likelihood-based generative models, 2020 (arXiv 1909.11480).

    Args:
      log_probs: log densities [N] in nats, with noise on gray levels, as from `tfr.log_prob`.
      events: gray levels 0 to 255 of any dtype, images [N, H, W, C] or other arrays [N, ...].
      code: function that compresses a `uint8` event to bytes. Defaults to PNG for images of 1 or 3
        channels, and zlib for other arrays; both vary slightly between releases.

    Raises:
      ValueError: if the numbers of log densities and events differ, a log density is NaN or +inf,
        or events are not gray levels.
      ImportError: if images have 1 or 3 channels and Pillow is not installed.
    """
    log_probs = _log_probs("complexity_corrected", log_probs, "shape [N]")
    events = np.asarray(events)
    is_shape = events.ndim > 1 and len(events) == len(log_probs) and events.size > 0
    expected = f"complexity_corrected: expected an event for each of {len(log_probs)} log densities"
    validation.require(is_shape, expected, events.shape)
    with np.errstate(invalid="ignore"):
        levels = events.astype(np.uint8)
    if not np.array_equal(levels, events):
        raise ValueError(
            "complexity_corrected: expected gray levels 0, 1, …, 255, got values from "
            f"{events.min()} to {events.max()}, or fractions. For continuous values use "
            "`-log_probs` or `typicality`."
        )
    if code is None:
        is_image = levels.ndim == 4 and levels.shape[-1] in (1, 3)
        code = _png if is_image else lambda event: zlib.compress(event.tobytes(), 9)
    num_bytes = np.array([len(code(event)) for event in levels])
    return -log_probs / math.log(2.0) - 8.0 * num_bytes


def committee(log_probs: Any) -> np.ndarray:
    """Returns the variance of log p_m(x) over models m, minus its mean.

    This is the negative widely applicable information criterion (WAIC) of each event. The variance
    estimate is unbiased. If a model assigns density 0, the score is +inf. Train the models with
    different seeds, on the same data or on random subsets. Models tend to disagree where there were
    no training data, but often agree on outliers that are simpler than the data.

    #### Example

    >>> from tfp_realnvp import outliers
    >>> outliers.committee([[-10., -10.], [-11., -2.], [-9., -18.]])   # three models, two events
    array([11., 74.])

    #### References

    Choi, Jang, Alemi: WAIC, but why? Generative ensembles for robust anomaly detection, 2018
    (arXiv 1810.01392).
    Watanabe: Asymptotic equivalence of Bayes cross validation and widely applicable information
    criterion in singular learning theory, 2010.

    Args:
      log_probs: log densities [M, N] of N events under M ≥ 2 models, in nats.

    Raises:
      ValueError: if there are fewer than two models, or a log density is NaN or +inf.
    """
    log_probs = _log_probs("committee", log_probs, "shape [M, N] with M ≥ 2")
    is_finite = np.isfinite(log_probs).all(axis=0)
    finite = np.where(is_finite, log_probs, 0.0)
    return np.where(is_finite, finite.var(axis=0, ddof=1) - finite.mean(axis=0), np.inf)


def p_values(scores: Any, held_out_scores: Any) -> np.ndarray:
    """Returns conformal p-values, the ranks of scores among held-out scores.

    Given scores s_1 … s_n of held-out data, the p-value of a score s is

    ```
    p(s) = (1 + number of held-out scores s_i ≥ s) / (n + 1)
    ```

    If new and held-out events are exchangeable, for example independent draws of one distribution,
    the rule `p ≤ α` has a false alarm rate of at most α, for any score, model and n:
    `P(p(s) ≤ α) ≤ α`. This bound holds on average over held-out sets of size n; the rates for
    single sets have a standard deviation of about `sqrt(α (1 - α) / n)`. No p-value is below
    1 / (n + 1), so α = 5% needs n ≥ 19.

    Do not use the held-out data to train or select the model. For many new events, apply the
    Benjamini-Hochberg procedure to the p-values: it bounds the fraction of false alarms among the
    reported events (Bates et al. 2023).

    #### Example

    >>> import numpy as np, tensorflow_probability as tfp, tfp_realnvp as tfr
    >>> from tfp_realnvp import outliers
    >>> model = tfp.distributions.MultivariateNormalDiag([0., 0.])   # or a trained `FlowModel`
    >>> held_out = np.random.default_rng(0).normal(size=[99, 2]).astype(np.float32)
    >>> new = np.array([[0.5, -0.5], [5., 5.]], np.float32)
    >>> outliers.p_values(-tfr.log_prob(model, new), -tfr.log_prob(model, held_out)) <= 0.05
    array([False,  True])

    #### References

    Vovk, Gammerman, Shafer: Algorithmic learning in a random world, 2005.
    Bates, Candès, Lei, Romano, Sesia: Testing for outliers with conformal p-values, 2023 (arXiv
    2104.08279).

    Args:
      scores: scores of new events of any shape, higher for outliers. ±inf is allowed.
      held_out_scores: scores [n] of held-out events, computed by the same function.

    Warns:
      UserWarning: if all scores are below all held-out scores, which has a probability of less than
        1% for exchangeable events. Log densities were passed in place of their negatives, or the
        new events are simpler than the held-out events, such as blank images.

    Raises:
      ValueError: if a score is NaN, or there are no held-out scores.
    """
    scores, held_out = (np.asarray(s, np.float64) for s in (scores, held_out_scores))
    expected = "p_values: expected held-out scores [n] of at least one event"
    validation.require(held_out.ndim == 1 and held_out.size > 0, expected, held_out.shape)
    for kind, values in (("scores", scores), ("held_out_scores", held_out)):
        expected = f"p_values: expected {kind} without NaN"
        validation.require(not np.isnan(values).any(), expected, values)
    # N new scores are below n held-out ones with a probability of at most 1 / (1 + N n).
    if scores.size * held_out.size >= 100 and scores.max() < held_out.min():
        warnings.warn(
            f"p_values: all scores are below all {held_out.size} held-out scores, so all p-values "
            "are 1. Scores are higher for outliers: pass `-log_probs` and `-held_out_log_probs`. "
            "Simple outliers have high densities: see `typicality` and `complexity_corrected`.",
            stacklevel=2,
        )
    num_lower = np.searchsorted(np.sort(held_out), scores)
    return (1.0 + len(held_out) - num_lower) / (len(held_out) + 1.0)


def _log_probs(caller: str, log_probs: Any, shape: str) -> np.ndarray:
    """Returns valid log densities as float64; `shape` describes the expected shape in errors."""
    log_probs = np.asarray(log_probs, np.float64)
    is_table = "[M" in shape
    is_shape = log_probs.ndim == 1 + is_table and log_probs.size > 0 and len(log_probs) > is_table
    validation.require(is_shape, f"{caller}: expected log densities of {shape}", log_probs.shape)
    is_invalid = np.isnan(log_probs) | (log_probs == np.inf)
    if is_invalid.any():
        raise ValueError(
            f"{caller}: expected log densities that are finite or -inf, got "
            f"{log_probs[is_invalid][0]} at index {np.argwhere(is_invalid)[0].tolist()}."
        )
    return log_probs


def _png(image: np.ndarray) -> bytes:
    pillow = optional_packages.load("PIL.Image", "`complexity_corrected` of images", "pillow")
    file = io.BytesIO()
    pixels = image[..., 0] if image.shape[-1] == 1 else image
    pillow.fromarray(pixels).save(file, "png", optimize=True)
    return file.getvalue()

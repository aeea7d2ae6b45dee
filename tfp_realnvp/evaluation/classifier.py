"""Classification by a class-conditional density, with Bayes' rule."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import tensorflow_probability as tfp
from numpy.typing import ArrayLike

from tfp_realnvp.distributions import VariationalDequantization, class_log_prior, distribution_of
from tfp_realnvp.evaluation.batched_scores import (
    check_no_weights,
    log_mean_exp,
    map_batches,
    model_of,
    scorer,
)
from tfp_realnvp.internal import batch_parts, validation
from tfp_realnvp.training.flow_model import FlowModel

__all__ = ["Classification", "classification", "expected_calibration_error"]

tfd = tfp.distributions


@dataclasses.dataclass(frozen=True)
class Classification:
    """The result of `classification` on one set of images or vectors.

    Attributes:
      accuracy: share of the images whose label is the most probable class.
      expected_calibration_error: mean of |accuracy - confidence| over 15 bins of confidence, with
        their numbers of images as weights (Guo, Pleiss, Sun, Weinberger 2017, equation 3).
      log_loss: mean of -log p(label | image), in nats.
      num_images: number of images or vectors.
      confusion_matrix: number of images of each label (row) and most probable class (column),
        integers [num_classes, num_classes] as nested tuples; `numpy.array` makes an array of them.
    """

    accuracy: float
    expected_calibration_error: float
    log_loss: float
    num_images: int
    confusion_matrix: tuple[tuple[int, ...], ...]


def classification(
    model: FlowModel | tfd.Distribution,
    data: Any,
    labels: ArrayLike | None = None,
    prior: ArrayLike | None = None,
    *,
    num_samples: int = 1,
    dequantize: bool | None = None,
    dequantizer: VariationalDequantization | None = None,
    seed: int = 0,
    batch_size: int = 64,
) -> Classification:
    r"""Evaluates a class-conditional density as a classifier, by Bayes' rule.

    With K noise samples u₁ … u_K from U[0, 1)ᴰ for each image x of integers, the same samples for
    all classes and in `bits_per_dim`,

    ```
    p(y | x) = p(y) mean_k p(x + u_k | y) / sum_y' p(y') mean_k p(x + u_k | y')
    ```

    The means estimate the probabilities of the integers. More samples make the estimates and the
    classifier more accurate. With a `VariationalDequantization` q, the noise is drawn from q(u |
    x), and p(x + u | y) / q(u | x) takes the place of p(x + u | y). Vectors get no noise, unless
    `dequantize`.

    #### Example

    >>> import numpy as np, tensorflow_probability as tfp, tfp_realnvp as tfr
    >>> from tfp_realnvp import evaluation
    >>> base = tfp.distributions.Sample(tfp.distributions.Normal(0., 1.), [4, 4, 1])
    >>> flow = tfp.distributions.TransformedDistribution(
    ...     base, tfr.RealNVPImage((4, 4, 1), num_scales=1, num_blocks=0, num_filters=4,
    ...                            num_classes=2))
    >>> images = np.random.default_rng(0).integers(0, 256, [10, 4, 4, 1], dtype=np.uint8)
    >>> result = evaluation.classification(flow, images, np.arange(10) % 2)
    >>> result.accuracy, round(result.log_loss, 3)   # Before training, classes are alike.
    (0.5, 0.693)
    >>> np.array(result.confusion_matrix).sum(axis=1)   # Images of each label.
    array([5, 5])

    Args:
      model: as `distribution` in `class_log_probs`.
      data: gray levels [N, H, W, C], or vectors [N, D]; or one of these with labels, as tuple,
        dictionary or `tf.data.Dataset`, as in `log_likelihood`.
      labels: integers [N], if `data` has no labels.
      prior: as in `class_log_probs`.
      num_samples: number of noise samples; 1 without noise.
      dequantize: as in `log_likelihood`.
      dequantizer: as in `log_likelihood`.
      seed: seed of the noise.
      batch_size: number of images in a batch. Not used for a dataset. The density is evaluated on
        K times as many at a time.

    Returns:
      A `Classification`.

    Raises:
      ValueError: if the number of classes is unknown, if labels are missing or no integers in
        [0, K), or if a probability is NaN; see also `bits_per_dim`.
      TypeError: if `model` is neither a `FlowModel` nor a distribution.
    """
    caller = "classification"
    log_prior = class_log_prior(distribution_of(model, caller), prior, caller).numpy()
    options: dict[str, Any] = {"dequantizer": dequantizer, "seed": seed}
    model = model_of(model, caller, dequantize=dequantize, **options)
    check_no_weights(data, caller)
    if labels is not None:
        data = (batch_parts.events_in(data), labels)
    score = scorer(model, caller, num_samples, num_classes=len(log_prior))

    def score_and_label(events: Any, *condition: Any) -> tuple[np.ndarray, np.ndarray]:
        return score(events), np.asarray(condition[0]) if condition else np.full(len(events), -1)

    samples, labels = map_batches(score_and_label, model, caller, data, batch_size=batch_size)
    log_joint = log_mean_exp(samples) + log_prior
    log_probs = log_joint - np.logaddexp.reduce(log_joint, axis=-1, keepdims=True)
    if np.isnan(log_probs).any():
        raise ValueError(f"{caller}: expected log densities, got NaN.")
    labels = _checked_labels(labels, log_joint.shape)
    predicted, num_classes = log_probs.argmax(axis=-1), log_probs.shape[-1]
    is_correct = predicted == labels
    confusion = np.bincount(num_classes * labels.astype(int) + predicted, minlength=num_classes**2)
    return Classification(
        accuracy=float(is_correct.mean()),
        expected_calibration_error=expected_calibration_error(
            np.exp(log_probs.max(axis=-1)), is_correct
        ),
        log_loss=float(-log_probs[np.arange(len(labels)), labels].mean()),
        num_images=len(labels),
        confusion_matrix=tuple(map(tuple, confusion.reshape(num_classes, num_classes).tolist())),
    )


def expected_calibration_error(
    confidence: ArrayLike, is_correct: ArrayLike, num_bins: int = 15
) -> float:
    r"""Returns the mean difference between accuracy and confidence, over bins of confidence.

    ```
    sum over bins of    n_bin / n |accuracy of the bin - mean confidence of the bin|
    ```

    The bins are ((m - 1) / M, m / M], as in equation 3 of Guo, Pleiss, Sun, Weinberger: "On
    calibration of modern neural networks". `tfp.stats.expected_calibration_error` includes the
    lower end of a bin instead, and takes logits in float32.

    Args:
      confidence: probability of the predicted class, [N].
      is_correct: whether the prediction is correct, [N].
      num_bins: number of bins M.

    Raises:
      ValueError: if they are not two vectors of equal length, or if a confidence is not in [0, 1].
    """
    confidence, is_correct = np.asarray(confidence, np.float64), np.asarray(is_correct, np.float64)
    expected = "expected_calibration_error: expected num_bins of at least 1"
    num_bins = validation.integer(num_bins, 1, expected)
    if confidence.ndim != 1 or confidence.shape != is_correct.shape or not confidence.size:
        raise ValueError(
            "expected_calibration_error: expected two vectors of equal length, got shapes "
            f"{confidence.shape} and {is_correct.shape}."
        )
    if not ((confidence >= 0) & (confidence <= 1 + 1e-6)).all():
        raise ValueError(
            "expected_calibration_error: expected probabilities as confidence, got values in "
            f"[{confidence.min()}, {confidence.max()}]."
        )
    bins = np.digitize(confidence, np.arange(1, num_bins) / num_bins, right=True)
    differences = np.bincount(bins, is_correct - confidence, num_bins)
    return float(np.abs(differences).sum() / len(confidence))


def _checked_labels(labels: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    num_images, num_classes = shape
    expected = (
        f"classification: expected integer labels in [0, {num_classes}), one for each of "
        f"{num_images} events"
    )
    if labels.shape != (num_images,) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"{expected}, got {labels.dtype} of shape {labels.shape}.")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(f"{expected}, got labels in [{labels.min()}, {labels.max()}].")
    return labels

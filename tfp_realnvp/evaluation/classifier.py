"""Classification by a class-conditional density, with Bayes' rule."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from numpy.typing import ArrayLike

from tfp_realnvp.condition_spec import ConditionSpec
from tfp_realnvp.distributions import VariationalDequantization, class_log_probs
from tfp_realnvp.evaluation.scores import (
    check_no_weights,
    checked_num_samples,
    map_batches,
    model_of,
)
from tfp_realnvp.internal import batch_parts
from tfp_realnvp.training.flow_model import FlowModel

__all__ = ["Classification", "calibration_error", "classification"]

tfd = tfp.distributions


@dataclasses.dataclass(frozen=True)
class Classification:
    """The result of `classification` on one set of images or vectors.

    Attributes:
      accuracy: share of the images whose label is the most probable class.
      expected_calibration_error: mean of |accuracy - confidence| over 15 bins of confidence,
        weighted by their numbers of images (Guo, Pleiss, Sun, Weinberger 2017, equation 3).
      log_loss: mean of -log p(label | image), in nats.
      num_images: number of images or vectors.
      confusion_matrix: number of images of each label (row) and most probable class (column), as
        nested tuples.
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

    With K noise samples u₁ … u_K from U[0, 1)ᴰ for each image x of integers, the same for all
    classes and in `bits_per_dim`,

    ```
    p(y | x) = p(y) mean_k p(x + u_k | y) / sum_y' p(y') mean_k p(x + u_k | y')
    ```

    More samples make the classifier more accurate. With a `VariationalDequantization` q,
    p(x + u | y) / q(u | x) takes the place of p(x + u | y). Vectors get no noise, unless
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
      num_samples, dequantize, dequantizer, seed: as in `log_likelihood`.
      batch_size: number of images in a batch of arrays, each with all classes.

    Returns:
      A `Classification`.

    Raises:
      ValueError: if the number of classes is unknown, labels are missing or no integers in [0, K),
        or a probability is NaN; see also `bits_per_dim`.
      TypeError: if `model` is neither a `FlowModel` nor a distribution.
    """
    caller = "classification"
    model = model_of(model, caller, dequantize=dequantize, dequantizer=dequantizer, seed=seed)
    check_no_weights(data, caller)
    if labels is not None:
        data = (batch_parts.events_in(data), labels)
    num_samples = checked_num_samples(caller, model, num_samples)
    number = num_samples if model.dequantize else None

    def classify(events: tf.Tensor, labels: Any = None) -> tuple[np.ndarray, np.ndarray]:
        log_probs = class_log_probs(model, events, prior, num_samples=number, seed=model.seed)
        labels = np.full(len(events), -1) if labels is None else np.asarray(labels)
        return log_probs.numpy().astype(np.float64), labels

    log_probs, labels = map_batches(classify, model, caller, data, batch_size=batch_size)
    if np.isnan(log_probs).any():
        raise ValueError(f"{caller}: expected log densities, got NaN.")
    num_classes = log_probs.shape[1]
    labels = ConditionSpec(num_classes=num_classes).of_events(labels, caller)
    predicted = log_probs.argmax(axis=-1)
    is_correct = predicted == labels
    confusion = np.zeros([num_classes, num_classes], int)
    np.add.at(confusion, (labels, predicted), 1)
    return Classification(
        accuracy=float(is_correct.mean()),
        expected_calibration_error=calibration_error(np.exp(log_probs.max(axis=-1)), is_correct),
        log_loss=float(-log_probs[np.arange(len(labels)), labels].mean()),
        num_images=len(labels),
        confusion_matrix=tuple(map(tuple, confusion.tolist())),
    )


def calibration_error(confidence: np.ndarray, is_correct: np.ndarray) -> float:
    """Returns the mean of |accuracy - confidence| over 15 bins, weighted by numbers of events.

    The bins of confidence are ((m - 1) / 15, m / 15]. `tfp.stats.expected_calibration_error`
    includes the lower end of a bin instead, and takes logits in float32.
    """
    bins = np.digitize(confidence, np.arange(1, 15) / 15, right=True)
    return float(np.abs(np.bincount(bins, is_correct - confidence)).sum() / len(confidence))

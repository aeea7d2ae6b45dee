"""Bits per dimension and classification of a dataset, and the paper's results."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from numpy.typing import ArrayLike

from tfp_realnvp import pixels
from tfp_realnvp.distributions import (
    VariationalDequantization,
    class_log_joint,
    find_embedding,
    route,
    takes_condition,
)
from tfp_realnvp.internal import validation
from tfp_realnvp.internal.tf_data import without_autotune

__all__ = [
    "PAPER_RESULTS",
    "Classification",
    "Evaluation",
    "PaperResult",
    "as_json",
    "as_markdown",
    "bits_per_dim",
    "classification",
    "expected_calibration_error",
]

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
class Classification:
    """The result of `classification` on one set of images.

    Attributes:
      accuracy: share of the images whose label is the most probable class.
      expected_calibration_error: see `expected_calibration_error`.
      log_loss: mean of -log p(label | image), in nats.
      num_images: number of images.
    """

    accuracy: float
    expected_calibration_error: float
    log_loss: float
    num_images: int


@dataclasses.dataclass(frozen=True)
class PaperResult:
    """A row of table 1 of the paper, in bits/dim; `None` where the table has no entry.

    Attributes:
      real_nvp: Real NVP, on the test or validation images.
      real_nvp_train: Real NVP, on the training images.
      pixel_rnn: PixelRNN.
      conv_draw: Conv DRAW, an upper bound.
      iaf_vae: IAF-VAE, an upper bound.
    """

    real_nvp: float
    real_nvp_train: float | None = None
    pixel_rnn: float | None = None
    conv_draw: float | None = None
    iaf_vae: float | None = None


PAPER_RESULTS: dict[str, PaperResult] = {
    "cifar10": PaperResult(3.49, pixel_rnn=3.00, conv_draw=3.59, iaf_vae=3.28),
    "imagenet32": PaperResult(4.28, 4.26, pixel_rnn=3.86, conv_draw=4.40),
    "imagenet64": PaperResult(3.98, 3.75, pixel_rnn=3.63, conv_draw=4.10),
    "lsun/bedroom": PaperResult(2.72, 2.70),
    "lsun/tower": PaperResult(2.81, 2.78),
    "lsun/church_outdoor": PaperResult(3.08, 2.94),
    "celeb_a": PaperResult(3.02, 2.97),
}


def bits_per_dim(
    distribution: tfd.Distribution,
    images: Any,
    num_draws: int = 1,
    *,
    dequantizer: VariationalDequantization | None = None,
    seed: int = 0,
    batch_size: int = 64,
) -> Evaluation:
    r"""Evaluates a density over pixel values on a set of images, given their conditions if any.

    With K noise samples u₁ … u_K from U[0, 1)ᴰ for each image x of integers, and D = H W C,

    ```
    average             = mean over x of    -1/D mean_k log2 p(x + u_k)
    importance_weighted = mean over x of    -1/D log2 mean_k p(x + u_k)
    ```

    In expectation both are upper bounds on the bits/dim of the integer images,
    `-1/D log2 ∫ p(x + u) du`. The second is tighter and improves with K; for K = 1 they are equal.
    The first noise sample is that of `FlowModel.evaluate`, for a model with this `seed` and equal
    batches.

    With a `VariationalDequantization` q, the noise is drawn from q(u | x), and p(x + u) / q(u | x)
    takes the place of p(x + u).

    For a distribution that takes a condition, p is p(· | c) with the condition c of each image. A
    flow with `condition_dropout` and images without conditions give the density without condition.

    #### Example

    >>> import numpy as np, tensorflow_probability as tfp
    >>> uniform = tfp.distributions.Sample(tfp.distributions.Uniform(0., 256.), [4, 4, 3])
    >>> images = np.random.default_rng(0).integers(0, 256, [10, 4, 4, 3], dtype=np.uint8)
    >>> result = bits_per_dim(uniform, images, num_draws=2)
    >>> round(result.bits_per_dim, 5), result.num_images
    (8.0, 10)

    A class-conditional flow:

    >>> import tfp_realnvp as tfr
    >>> base = tfp.distributions.Sample(tfp.distributions.Normal(0., 1.), [4, 4, 3])
    >>> flow = tfp.distributions.TransformedDistribution(
    ...     base, tfr.RealNVPImage((4, 4, 3), num_blocks=0, num_filters=4, num_classes=10))
    >>> bits_per_dim(flow, (images, np.arange(10))).num_images
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
      dequantizer: of the noise; by default it is uniform.
      seed: seed of the noise.
      batch_size: number of images in a batch. Not used for a dataset.

    Returns:
      An `Evaluation`.

    Raises:
      ValueError: if there are no images, if their shape or values are not those of gray levels, if
        conditions are missing or not as declared, if an argument is out of range, or if a log
        density is not finite.
    """
    owner = "bits_per_dim"
    num_draws, batch_size, seed = _checked_arguments(owner, num_draws, batch_size, seed)
    has_condition, log_prob_fn = takes_condition(distribution), None
    noisy_fn = _noisy_function(distribution, dequantizer)
    average, importance_weighted = [], []
    for number, (batch, condition) in enumerate(_batches(owner, images, batch_size), start=1):
        levels = _checked_images(owner, batch, distribution.event_shape, number)
        given = [] if not has_condition else _as_given(owner, condition, distribution, len(levels))
        log_prob_fn = log_prob_fn or _log_prob_function(distribution, given)
        log_prob = np.empty([num_draws, len(levels)], np.float64)
        for draw in range(num_draws):
            values, log_noise = noisy_fn(levels, pixels.evaluation_seed(seed, number, draw))
            log_prob[draw] = log_prob_fn(values, *given) - log_noise
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


def classification(
    distribution: tfd.Distribution,
    images: Any,
    labels: ArrayLike | None = None,
    prior: ArrayLike | None = None,
    *,
    num_draws: int = 1,
    dequantizer: VariationalDequantization | None = None,
    seed: int = 0,
    batch_size: int = 64,
) -> Classification:
    r"""Evaluates the classifier that a class-conditional density is, by Bayes' rule.

    With K noise samples u₁ … u_K from U[0, 1)ᴰ for each image x of integers, the same for all
    classes and those of `bits_per_dim`,

    ```
    p(y | x) = p(y) mean_k p(x + u_k | y) / sum_y' p(y') mean_k p(x + u_k | y')
    ```

    The means estimate the probabilities of the integers; more samples make them, and with them the
    classifier, more accurate. With a `VariationalDequantization` q, the noise is drawn from
    q(u | x), and p(x + u | y) / q(u | x) takes the place of p(x + u | y).

    #### Example

    >>> import numpy as np, tensorflow_probability as tfp, tfp_realnvp as tfr
    >>> base = tfp.distributions.Sample(tfp.distributions.Normal(0., 1.), [4, 4, 1])
    >>> flow = tfp.distributions.TransformedDistribution(
    ...     base, tfr.RealNVPImage((4, 4, 1), num_scales=1, num_blocks=0, num_filters=4,
    ...                            num_classes=2))
    >>> images = np.random.default_rng(0).integers(0, 256, [10, 4, 4, 1], dtype=np.uint8)
    >>> result = classification(flow, images, np.arange(10) % 2)
    >>> result.accuracy, round(result.log_loss, 3)   # Before training, classes are alike.
    (0.5, 0.693)

    Args:
      distribution: with a `RealNVPImage(..., num_classes=K)`, or a `ConditionalDistribution`.
      images: gray levels, [N, H, W, C]; or images and labels, as tuple, dictionary or
        `tf.data.Dataset`, as in `bits_per_dim`.
      labels: integers [N], for images without labels.
      prior: p(y), [K], which sum to one; by default 1 / K. Needed without `num_classes`.
      num_draws: number of noise samples.
      dequantizer: of the noise; by default it is uniform.
      seed: seed of the noise.
      batch_size: number of images in a batch. Not used for a dataset. The density is evaluated on
        K times as many at a time.

    Returns:
      A `Classification`.

    Raises:
      ValueError: if the number of classes is unknown, if labels are missing or no integers in
        [0, K), or if a probability is NaN; see also `bits_per_dim`.
    """
    owner = "classification"
    num_draws, batch_size, seed = _checked_arguments(owner, num_draws, batch_size, seed)
    if labels is not None:
        images = (pixels.image_component(images), labels)
    spec = tf.TensorSpec([None, *distribution.event_shape], distribution.dtype)
    joint_fn = tf.function(
        lambda values: class_log_joint(distribution, values, prior),
        input_signature=[spec],
        autograph=False,
    )
    noisy_fn = _noisy_function(distribution, dequantizer)
    log_probs, all_labels = [], []
    for number, (batch, of_batch) in enumerate(_batches(owner, images, batch_size), start=1):
        levels = _checked_images(owner, batch, distribution.event_shape, number)
        draws = []
        for draw in range(num_draws):
            values, log_noise = noisy_fn(levels, pixels.evaluation_seed(seed, number, draw))
            draw_log_joint = joint_fn(values).numpy().astype(np.float64)
            draws.append(draw_log_joint - np.asarray(log_noise)[..., np.newaxis])
        log_joint = np.logaddexp.reduce(draws)
        log_probs.append(log_joint - np.logaddexp.reduce(log_joint, axis=-1, keepdims=True))
        if np.isnan(log_probs[-1]).any():
            raise ValueError(f"{owner}: expected log densities, got NaN in batch {number}.")
        all_labels.append(_checked_labels(of_batch, log_joint.shape, number))
    if not log_probs:
        raise ValueError(f"{owner}: expected images, got none.")
    log_probs, labels = np.concatenate(log_probs), np.concatenate(all_labels)
    is_correct = log_probs.argmax(axis=-1) == labels
    return Classification(
        accuracy=float(is_correct.mean()),
        expected_calibration_error=expected_calibration_error(
            np.exp(log_probs.max(axis=-1)), is_correct
        ),
        log_loss=float(-log_probs[np.arange(len(labels)), labels].mean()),
        num_images=len(labels),
    )


def expected_calibration_error(
    confidence: ArrayLike, is_correct: ArrayLike, num_bins: int = 15
) -> float:
    r"""Returns the mean difference between accuracy and confidence, over bins of confidence.

    ```
    sum over bins of    n_bin / n |accuracy of the bin - mean confidence of the bin|
    ```

    with bins ((m - 1) / M, m / M].

    #### Example

    Three predictions with a confidence of 0.9, of which two are correct, and one with 0.5:

    >>> round(expected_calibration_error([0.9, 0.9, 0.9, 0.5], [True, True, False, True]), 4)
    0.3

    #### References

    Guo, Pleiss, Sun, Weinberger: On calibration of modern neural networks, equation 3.

    Args:
      confidence: probability of the predicted class, [N].
      is_correct: whether the prediction is correct, [N].
      num_bins: number of bins M.

    Raises:
      ValueError: if they are not two vectors of equal length, or if a confidence is not in [0, 1].
    """
    confidence, is_correct = np.asarray(confidence, np.float64), np.asarray(is_correct, np.float64)
    num_bins = validation.integer(
        num_bins, 1, "expected_calibration_error: expected num_bins of at least 1"
    )
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


def as_markdown(
    results: Mapping[str, Evaluation],
    dataset: str | None = None,
    classifications: Mapping[str, Classification] | None = None,
) -> str:
    """Returns a table of results, with those of the paper on the same dataset.

    #### Example

    >>> result = Evaluation(3.5, 0.01, 3.45, 0.01, num_images=10_000, num_draws=8)
    >>> print(as_markdown({"test": result}, "cifar10"))
    | model | split | images | bits/dim | importance-weighted |
    | --- | --- | ---: | ---: | ---: |
    | this model | test | 10,000 | 3.500 ± 0.010 | 3.450 ± 0.010 (K = 8) |
    | Real NVP (paper) | test | | 3.49 | |
    | PixelRNN | test | | 3.00 | |
    | Conv DRAW | test | | < 3.59 | |
    | IAF-VAE | test | | < 3.28 | |

    Args:
      results: the results, by name of the split.
      dataset: a key of `PAPER_RESULTS`. For other names the table has no rows of the paper.
      classifications: the results of `classification`, by name of the split, for a second table.
    """
    rows = [
        ["model", "split", "images", "bits/dim", "importance-weighted"],
        ["---", "---", "---:", "---:", "---:"],
    ]
    for split, result in results.items():
        tighter = _with_error(result.importance_weighted, result.importance_weighted_error)
        rows.append(
            [
                "this model",
                split,
                f"{result.num_images:,}",
                _with_error(result.bits_per_dim, result.standard_error),
                f"{tighter} (K = {result.num_draws})",
            ]
        )
    paper = PAPER_RESULTS.get(dataset or "")
    if paper is not None:
        for model, split, bits, bound in (
            ("Real NVP (paper)", "train", paper.real_nvp_train, ""),
            ("Real NVP (paper)", "test", paper.real_nvp, ""),
            ("PixelRNN", "test", paper.pixel_rnn, ""),
            ("Conv DRAW", "test", paper.conv_draw, "< "),
            ("IAF-VAE", "test", paper.iaf_vae, "< "),
        ):
            if bits is not None:
                rows.append([model, split, "", f"{bound}{bits:.2f}", ""])
    if classifications:
        rows += [
            [],
            ["split", "images", "accuracy", "expected calibration error", "log loss (nats)"],
            ["---", "---:", "---:", "---:", "---:"],
        ]
        for split, result in classifications.items():
            error, loss = result.expected_calibration_error, result.log_loss
            figures = [f"{100 * result.accuracy:.2f}%", f"{error:.4f}", f"{loss:.4f}"]
            rows.append([split, f"{result.num_images:,}", *figures])
    return "\n".join(
        "|" + "".join(f" {cell} |" if cell else " |" for cell in row) if row else "" for row in rows
    )


def as_json(
    results: Mapping[str, Evaluation],
    dataset: str | None = None,
    classifications: Mapping[str, Classification] | None = None,
) -> dict[str, Any]:
    """Returns the content of `as_markdown` as a dictionary that is serializable as JSON.

    Args:
      results: the results, by name of the split.
      dataset: a key of `PAPER_RESULTS`, or another name.
      classifications: the results of `classification`, by name of the split.

    Returns:
      `{"dataset": …, "results": {split: {…}}, "classification": {split: {…}}, "paper": {…} or
      None}`, with the attributes of `Evaluation`, `Classification` and `PaperResult`. Numbers that
      are not finite become `None`.
    """
    paper = PAPER_RESULTS.get(dataset or "")
    return {
        "dataset": dataset,
        "results": _as_dictionaries(results),
        "classification": _as_dictionaries(classifications or {}),
        "paper": None if paper is None else dataclasses.asdict(paper),
    }


def _as_dictionaries(results: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        split: {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in dataclasses.asdict(result).items()
        }
        for split, result in results.items()
    }


def _checked_arguments(
    owner: str, num_draws: int, batch_size: int, seed: int
) -> tuple[int, int, int]:
    num_draws, batch_size = (
        validation.integer(value, 1, f"{owner}: expected {argument} of at least 1")
        for argument, value in (("num_draws", num_draws), ("batch_size", batch_size))
    )
    int32 = range(-(2**31), 2**31)
    seed = validation.real(seed, lambda x: x in int32, f"{owner}: expected an int32 seed")
    return num_draws, batch_size, int(seed)


def _batches(owner: str, data: Any, batch_size: int) -> Iterator[tuple[np.ndarray, Any]]:
    """Yields batches of images, each with its conditions or labels, `None` without."""
    if isinstance(data, tf.data.Dataset):
        if data.cardinality() == tf.data.INFINITE_CARDINALITY:
            raise ValueError(f"{owner}: expected a finite dataset, got an infinite one.")
        for batch in without_autotune(data).as_numpy_iterator():
            yield np.asarray(pixels.image_component(batch)), pixels.condition_component(batch)
        return
    images, conditions = np.asarray(pixels.image_component(data)), pixels.condition_component(data)
    for start in range(0, len(images), batch_size):
        part = slice(start, start + batch_size)
        yield images[part], None if conditions is None else np.asarray(conditions)[part]


def _checked_images(
    owner: str, images: np.ndarray, event_shape: tf.TensorShape, number: int
) -> np.ndarray:
    if images.ndim != 4 or not event_shape.is_compatible_with(images.shape[1:]):
        raise ValueError(
            f"{owner}: expected images [batch, {', '.join(map(str, event_shape))}], got "
            f"shape {images.shape} in batch {number}."
        )
    if np.issubdtype(images.dtype, np.floating):
        if not np.isfinite(images).all():
            raise ValueError(f"{owner}: expected finite gray levels in batch {number}.")
        if images.max() <= 1 and (images % 1).any():
            raise ValueError(
                f"{owner}: expected gray levels 0, 1, 2, …, got fractions up to "
                f"{images.max()}. Multiply images in [0, 1] by 255."
            )
    return images


def _as_given(
    owner: str, condition: Any, distribution: tfd.Distribution, num_images: int
) -> list[tf.Tensor]:
    """Returns the conditions of a batch as a list of one tensor; an empty one without."""
    embedding = find_embedding(distribution)
    if condition is None:
        if embedding is not None and embedding.dropout is None:
            raise ValueError(
                f"{owner}: expected images and conditions, {embedding.description}, for example "
                "`(images, labels)`, got images only."
            )
        return []
    if embedding is None:
        condition = tf.convert_to_tensor(condition)
        batch_shape = condition.shape[:1]
    else:
        condition = embedding.as_condition(condition, owner)
        batch_shape = embedding.batch_shape(condition)
    if batch_shape != [num_images]:
        raise ValueError(
            f"{owner}: expected one condition for each of {num_images} images, got shape "
            f"{condition.shape}."
        )
    return [condition]


def _noisy_function(
    distribution: tfd.Distribution, dequantizer: VariationalDequantization | None
) -> Callable[..., tuple[tf.Tensor, Any]]:
    """Returns the function from gray levels and a seed to values and the log density of noise."""
    if dequantizer is None:
        return lambda levels, seed: (pixels.dequantize(levels, seed, distribution.dtype), 0.0)
    noisy_fn = tf.function(dequantizer.dequantize, autograph=False)
    return lambda levels, seed: noisy_fn(tf.constant(levels), seed)


def _log_prob_function(
    distribution: tfd.Distribution, given: list[tf.Tensor]
) -> Callable[..., tf.Tensor]:
    """Returns `distribution.log_prob` as a function of values, and of conditions if any."""

    def log_prob(values: tf.Tensor, *given: tf.Tensor) -> tf.Tensor:
        options = {"conditional_input": given[0]} if given else {}
        return distribution.log_prob(values, **route(distribution, **options))

    # The unknown batch size avoids a second trace for a smaller last batch.
    signature = [tf.TensorSpec([None, *distribution.event_shape], distribution.dtype)]
    signature += [tf.TensorSpec([None, *each.shape[1:]], each.dtype) for each in given]
    return tf.function(log_prob, input_signature=signature)


def _checked_labels(labels: Any, shape: tuple[int, int], number: int) -> np.ndarray:
    num_images, num_classes = shape
    expected = (
        f"classification: expected integer labels in [0, {num_classes}), one for each of "
        f"{num_images} images in batch {number}"
    )
    if labels is None:
        raise ValueError(f"{expected}, got none.")
    labels = np.asarray(labels)
    if labels.shape != (num_images,) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"{expected}, got {labels.dtype} of shape {labels.shape}.")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(f"{expected}, got labels in [{labels.min()}, {labels.max()}].")
    return labels


def _mean_and_error(values: np.ndarray) -> tuple[float, float]:
    error = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return float(values.mean()), float(error)


def _with_error(value: float, error: float) -> str:
    return f"{value:.3f}" if math.isnan(error) else f"{value:.3f} ± {error:.3f}"

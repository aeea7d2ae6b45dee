"""Bits per dimension of a dataset, with standard errors and bounds, and the paper's results."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_realnvp import pixels
from tfp_realnvp.internal import validation
from tfp_realnvp.internal.tf_data import without_autotune

__all__ = ["PAPER_RESULTS", "Evaluation", "PaperResult", "as_json", "as_markdown", "bits_per_dim"]

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
    seed: int = 0,
    batch_size: int = 64,
) -> Evaluation:
    r"""Evaluates a density over pixel values on a set of images.

    With K noise samples u₁ … u_K from U[0, 1)ᴰ for each image x of integers, and D = H W C,

    ```
    average             = mean over x of    -1/D mean_k log2 p(x + u_k)
    importance_weighted = mean over x of    -1/D log2 mean_k p(x + u_k)
    ```

    In expectation both are upper bounds on the bits/dim of the integer images,
    `-1/D log2 ∫ p(x + u) du`. The second is tighter and improves with K; for K = 1 they are equal.
    The first noise sample is that of `FlowModel.evaluate`, for a model with this `seed` and equal
    batches.

    #### Example

    >>> import numpy as np, tensorflow_probability as tfp
    >>> uniform = tfp.distributions.Sample(tfp.distributions.Uniform(0., 256.), [4, 4, 3])
    >>> images = np.random.default_rng(0).integers(0, 256, [10, 4, 4, 3], dtype=np.uint8)
    >>> result = bits_per_dim(uniform, images, num_draws=2)
    >>> round(result.bits_per_dim, 5), result.num_images
    (8.0, 10)

    #### References

    Theis, van den Oord, Bethge: A note on the evaluation of generative models, section 3.1.
    Burda, Grosse, Salakhutdinov: Importance weighted autoencoders, section 3.

    Args:
      distribution: distribution over continuous pixel values [H, W, C] in [0, number of levels).
      images: gray levels, [N, H, W, C]; or a finite `tf.data.Dataset` of batches of them, of tuples
        with the batch as first element, or of dictionaries with the batch as `'image'`.
      num_draws: number of noise samples K.
      seed: seed of the noise.
      batch_size: number of images in a batch. Not used for a dataset.

    Returns:
      An `Evaluation`.

    Raises:
      ValueError: if there are no images, if their shape or values are not those of gray levels, if
        an argument is out of range, or if a log density is not finite.
    """
    num_draws, batch_size = (
        validation.integer(value, 1, f"bits_per_dim: expected {argument} of at least 1")
        for argument, value in (("num_draws", num_draws), ("batch_size", batch_size))
    )
    int32 = range(-(2**31), 2**31)
    seed = int(validation.real(seed, lambda x: x in int32, "bits_per_dim: expected an int32 seed"))
    # The unknown batch size avoids a second trace for a smaller last batch.
    spec = tf.TensorSpec([None, *distribution.event_shape], distribution.dtype)
    log_prob_fn = tf.function(distribution.log_prob, input_signature=[spec])
    average, importance_weighted = [], []
    for number, batch in enumerate(_batches(images, batch_size), start=1):
        levels = _checked(batch, distribution.event_shape, number)
        log_prob = np.empty([num_draws, len(levels)], np.float64)
        for draw in range(num_draws):
            noise_seed = pixels.evaluation_seed(seed, number, draw)
            values = pixels.dequantize(levels, noise_seed, distribution.dtype)
            log_prob[draw] = log_prob_fn(values)
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


def as_markdown(results: Mapping[str, Evaluation], dataset: str | None = None) -> str:
    """Returns a table of results and those of the paper on the same dataset.

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
    return "\n".join("|" + "".join(f" {cell} |" if cell else " |" for cell in row) for row in rows)


def as_json(results: Mapping[str, Evaluation], dataset: str | None = None) -> dict[str, Any]:
    """Returns the content of `as_markdown` as a dictionary that is serializable as JSON.

    Args:
      results: the results, by name of the split.
      dataset: a key of `PAPER_RESULTS`, or another name.

    Returns:
      `{"dataset": …, "results": {split: {…}}, "paper": {…} or None}`, with the attributes of
      `Evaluation` and `PaperResult`. Standard errors that are NaN become `None`.
    """
    paper = PAPER_RESULTS.get(dataset or "")
    return {
        "dataset": dataset,
        "results": {
            split: {
                key: None if isinstance(value, float) and math.isnan(value) else value
                for key, value in dataclasses.asdict(result).items()
            }
            for split, result in results.items()
        },
        "paper": None if paper is None else dataclasses.asdict(paper),
    }


def _batches(images: Any, batch_size: int) -> Iterator[np.ndarray]:
    if isinstance(images, tf.data.Dataset):
        if images.cardinality() == tf.data.INFINITE_CARDINALITY:
            raise ValueError("bits_per_dim: expected a finite dataset, got an infinite one.")
        for batch in without_autotune(images).as_numpy_iterator():
            yield np.asarray(pixels.image_component(batch))
        return
    images = np.asarray(pixels.image_component(images))
    for start in range(0, len(images), batch_size):
        yield images[start : start + batch_size]


def _checked(images: np.ndarray, event_shape: tf.TensorShape, number: int) -> np.ndarray:
    if images.ndim != 4 or not event_shape.is_compatible_with(images.shape[1:]):
        raise ValueError(
            f"bits_per_dim: expected images [batch, {', '.join(map(str, event_shape))}], got "
            f"shape {images.shape} in batch {number}."
        )
    if np.issubdtype(images.dtype, np.floating):
        if not np.isfinite(images).all():
            raise ValueError(f"bits_per_dim: expected finite gray levels in batch {number}.")
        if images.max() <= 1 and (images % 1).any():
            raise ValueError(
                "bits_per_dim: expected gray levels 0, 1, 2, …, got fractions up to "
                f"{images.max()}. Multiply images in [0, 1] by 255."
            )
    return images


def _mean_and_error(values: np.ndarray) -> tuple[float, float]:
    error = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return float(values.mean()), float(error)


def _with_error(value: float, error: float) -> str:
    return f"{value:.3f}" if math.isnan(error) else f"{value:.3f} ± {error:.3f}"

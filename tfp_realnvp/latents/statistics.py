"""Statistics of the latents of images, to compare with the standard normal distribution."""

from __future__ import annotations

import dataclasses

import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike

from tfp_realnvp.latents.codec import Flow, encode, image_bijector_of

__all__ = ["ScaleStatistics", "latent_statistics"]


@dataclasses.dataclass(frozen=True)
class ScaleStatistics:
    """Moments of the latents of one scale, over images, positions and channels.

    For the standard normal, the mean, standard deviation, skewness and excess kurtosis are 0, 1, 0
    and 0.

    Attributes:
      shape: shape of the latents of one image at this scale, (height, width, channels).
      mean: the mean.
      std: the standard deviation σ.
      skewness: E[(z - mean)³] / σ³.
      excess_kurtosis: E[(z - mean)⁴] / σ⁴ - 3.
      largest: the largest |z|.
    """

    shape: tuple[int, int, int]
    mean: float
    std: float
    skewness: float
    excess_kurtosis: float
    largest: float


def latent_statistics(
    flow: Flow,
    images: ArrayLike,
    batch_size: int = 64,
    *,
    conditional_input: ArrayLike | None = None,
) -> tuple[ScaleStatistics, ...]:
    """Returns the moments of the latents of images for each scale, from fine to coarse.

    #### Example

    >>> import numpy as np, tfp_realnvp as tfr
    >>> from tfp_realnvp import latents
    >>> flow = tfr.RealNVPImage((8, 8, 1), num_scales=2, num_blocks=0, num_filters=4)
    >>> images = np.random.default_rng(0).integers(0, 256, [3, 8, 8, 1], dtype=np.uint8)
    >>> [scale.shape for scale in latents.latent_statistics(flow, images)]
    [(4, 4, 2), (4, 4, 2)]

    Args:
      flow: as in `encode`, of images.
      images: images [..., H, W, C], as in `encode`.
      batch_size: number of images that are encoded at a time.
      conditional_input: the condition of the images, as in `encode`.

    Returns:
      One `ScaleStatistics` for each scale, in the order of `RealNVPImage.split_latents`.

    Raises:
      TypeError: see `encode`.
      ValueError: see `encode`.
    """
    bijector = image_bijector_of(flow)
    latents = encode(flow, images, batch_size, conditional_input=conditional_input)
    by_scale = bijector.split_latents(tf.constant(latents))
    return tuple(_statistics(z.numpy().astype(np.float64)) for z in by_scale)


def _statistics(z: np.ndarray) -> ScaleStatistics:
    mean, std = z.mean(), z.std()
    scaled = (z - mean) / std if std > 0 else np.zeros_like(z)
    return ScaleStatistics(
        shape=z.shape[-3:],
        mean=float(mean),
        std=float(std),
        skewness=float(np.mean(scaled**3)),
        excess_kurtosis=float(np.mean(scaled**4) - 3),
        largest=float(np.abs(z).max()),
    )

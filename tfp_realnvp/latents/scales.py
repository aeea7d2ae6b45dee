"""The effect and the statistics of the latents of each scale of an image."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from numpy.typing import ArrayLike

from tfp_realnvp.distributions import route
from tfp_realnvp.flows import ImageFlow
from tfp_realnvp.internal import private_api, validation
from tfp_realnvp.latents.codec import (
    Flow,
    bijector_of,
    decode,
    encode,
    with_axis,
    without_model,
)
from tfp_realnvp.latents.sampling import sample_latents, stateless_seed

__all__ = ["ScaleStatistics", "latent_statistics", "levels_of_representation"]

tfd = tfp.distributions


def levels_of_representation(
    flow: Flow,
    images: ArrayLike,
    base: tfd.Distribution | None = None,
    mode: Literal["redraw", "zero"] = "redraw",
    *,
    seed: int | Sequence[int] = 0,
    conditional_input: ArrayLike | None = None,
) -> np.ndarray:
    """Keeps the latents of coarse scales and replaces the latents of finer scales (Appendix D).

    Column k of the result keeps the latents of the k + 1 coarsest scales. The last column keeps all
    latents and is the reconstruction; the column before it replaces the latents that are factored
    out first, one half of all. The images of a row share what the coarse latents represent, such as
    composition and not texture.

    #### Example

    >>> import numpy as np, tfp_realnvp as tfr
    >>> from tfp_realnvp import latents
    >>> flow = tfr.RealNVPImage((8, 8, 1), num_scales=2, num_blocks=0, num_filters=4)
    >>> images = np.random.default_rng(0).integers(0, 256, [3, 8, 8, 1], dtype=np.uint8)
    >>> latents.levels_of_representation(flow, images).shape
    (3, 2, 8, 8, 1)

    #### References

    Dinh, Sohl-Dickstein, Bengio: Density estimation using Real NVP, Appendix D.

    Args:
      flow, images: as in `encode`, images [..., H, W, C].
      base: distribution over latents [H, W, C] to draw from. Defaults to the base distribution of
        `flow`, or the standard normal if `flow` is a bijector.
      mode: `'redraw'` replaces latents by samples, the same ones in each column, `'zero'` by zeros.
      seed: one or two integers. Equal seeds give equal samples.
      conditional_input: the condition of the images, as in `encode`, and of a conditional base.

    Returns:
      Continuous pixel values, [..., num_scales, H, W, C].

    Raises:
      TypeError: see `encode`.
      ValueError: if `mode` is unknown, or `base` has another event shape; see also `encode`.
    """
    validation.choice(mode, ("redraw", "zero"), "levels_of_representation: expected a mode")
    flow = without_model(flow)
    bijector = bijector_of(flow, ImageFlow)
    latents = encode(flow, images, conditional_input=conditional_input)
    if base is None and isinstance(flow, private_api.TransformedDistribution):
        base = flow.distribution
    if mode == "zero":
        others = np.zeros_like(latents)
    elif base is None:
        others = sample_latents(
            latents.shape[-3:], latents.shape[:-3], seed=seed, dtype=bijector.dtype
        )
    else:
        if not base.event_shape.is_compatible_with(latents.shape[-3:]):
            raise ValueError(
                f"levels_of_representation: expected a base with event_shape {latents.shape[-3:]}, "
                f"got {base.event_shape}."
            )
        options = {} if conditional_input is None else {"conditional_input": conditional_input}
        others = base.sample(
            latents.shape[:-3], seed=stateless_seed(seed), **route(base, **options)
        ).numpy()
    kept, replaced = (bijector.split_latents(tf.constant(z)) for z in (latents, others))
    columns = [
        bijector.merge_latents([*replaced[:number], *kept[number:]])
        for number in reversed(range(bijector.num_scales))
    ]
    conditions = with_axis(flow, conditional_input)
    return decode(flow, tf.stack(columns, axis=-4), conditional_input=conditions)


@dataclasses.dataclass(frozen=True)
class ScaleStatistics:
    """Moments of the latents of one scale, over images, positions and channels.

    The standard normal has mean 0, standard deviation 1, skewness 0 and excess kurtosis 0.

    Attributes:
      shape: shape (height, width, channels) of the latents of one image at this scale.
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
    *,
    batch_size: int = 64,
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
      flow, images, batch_size, conditional_input: as in `encode`, images [..., H, W, C].

    Returns:
      One `ScaleStatistics` for each scale, in the order of `ImageFlow.split_latents`.

    Raises:
      TypeError: see `encode`.
      ValueError: see `encode`.
    """
    bijector = bijector_of(flow, ImageFlow)
    latents = encode(flow, images, batch_size=batch_size, conditional_input=conditional_input)
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

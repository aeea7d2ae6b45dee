"""Samples latents for images of any size or for some scales; computes moments by scale."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike
from tensorflow_probability import distributions as tfd

from tfp_realnvp.bijectors.flow_bijector import surround_with
from tfp_realnvp.flows import ImageFlow
from tfp_realnvp.internal import private_api, validation
from tfp_realnvp.latents import codec


def sample_latents(
    shape: Sequence[int],
    num_samples: int | Sequence[int],
    *,
    seed: int | Sequence[int] = 0,
    temperature: float = 1.0,
    truncation: float | None = None,
    dtype: Any = tf.float32,
) -> np.ndarray:
    r"""Samples normal latents with a temperature and, optionally, truncation.

    ```
    z = temperature * n,    n ~ N(0, 1), or N(0, 1) given |n| <= truncation
    ```

    A temperature below 1 (Kingma, Dhariwal: Glow, 2018, section 5), or truncation (Brock, Donahue,
    Simonyan 2019, section 3.1), makes samples less diverse and more probable. With `temperature=1`
    and no truncation, decoded latents are samples of the model.

    #### Example

    >>> import numpy as np
    >>> from tfp_realnvp import latents
    >>> z = latents.sample_latents((4, 4, 3), 100, seed=1, temperature=0.5, truncation=2.)
    >>> z.shape, bool(np.abs(z).max() <= 1)
    ((100, 4, 4, 3), True)

    Args:
      shape: shape of one image, (height, width, channels), or of one vector, (size,).
      num_samples: number of images or vectors, or a shape of several leading dimensions.
      seed: one or two integers. Equal seeds give equal latents.
      temperature: standard deviation, at least 0.
      truncation: bound in standard deviations, more than 0; `None` means no truncation.
      dtype: dtype of the latents, `tf.float32` or `tf.float64`.

    Returns:
      Latents, [num_samples, *shape].

    Raises:
      ValueError: if `temperature` is negative or not finite, or `truncation` is not positive.
    """
    expected = "sample_latents: expected a finite temperature of at least 0"
    validation.real(temperature, lambda x: 0 <= x < np.inf, expected)
    full_shape = [*np.atleast_1d(num_samples).tolist(), *map(int, shape)]
    if truncation is None:
        normal = tf.random.stateless_normal(full_shape, stateless_seed(seed), dtype=dtype)
    else:
        expected = "sample_latents: expected a positive truncation"
        validation.real(truncation, lambda x: x > 0, expected)
        zero, one, bound = (tf.constant(value, dtype) for value in (0.0, 1.0, truncation))
        normal = tf.random.stateless_parameterized_truncated_normal(
            full_shape, stateless_seed(seed), zero, one, -bound, bound
        )
    return temperature * normal.numpy()


def extrapolate(
    flow: codec.Flow,
    image_shape: Sequence[int],
    num_samples: int = 4,
    *,
    seed: int | Sequence[int] = 0,
    temperature: float = 1.0,
    conditional_input: ArrayLike | None = None,
) -> np.ndarray:
    """Decodes normal latents of a different size than the training images (Appendix C).

    The convolutional networks accept any height and width divisible by 2^(num_scales - 1). The
    function ignores the base distribution of `flow`. Arguments, results and errors are as in
    `sample_latents` and `decode`.

    #### Example

    >>> import tfp_realnvp as tfr
    >>> from tfp_realnvp import latents
    >>> flow = tfr.RealNVPImage((4, 4, 1), num_scales=1, num_blocks=0, num_filters=4)
    >>> latents.extrapolate(flow, (8, 16, 1), num_samples=2).shape
    (2, 8, 16, 1)
    """
    options: dict[str, Any] = {"seed": seed, "temperature": temperature}
    options["dtype"] = codec.bijector_of(flow, ImageFlow).dtype
    latents = sample_latents(image_shape, num_samples, **options)
    return codec.decode(flow, latents, conditional_input=conditional_input)


def levels_of_representation(
    flow: codec.Flow,
    images: ArrayLike,
    base: tfd.Distribution | None = None,
    mode: Literal["redraw", "zero"] = "redraw",
    *,
    seed: int | Sequence[int] = 0,
    conditional_input: ArrayLike | None = None,
) -> np.ndarray:
    """Keeps the latents of coarse scales and replaces the latents of finer scales.

    Column k of the result keeps the latents of the k + 1 coarsest scales. The last column keeps all
    latents, and reconstructs the image. All images of a row share the coarsest latents, and thus
    for example the composition but not the texture (Dinh, Sohl-Dickstein, Bengio 2017, Appendix D).

    #### Example

    >>> import numpy as np, tfp_realnvp as tfr
    >>> from tfp_realnvp import latents
    >>> flow = tfr.RealNVPImage((8, 8, 1), num_scales=2, num_blocks=0, num_filters=4)
    >>> images = np.random.default_rng(0).integers(0, 256, [3, 8, 8, 1], dtype=np.uint8)
    >>> latents.levels_of_representation(flow, images).shape
    (3, 2, 8, 8, 1)

    Args:
      flow, images: as in `encode`, but only images [..., H, W, C].
      base: distribution over latents [H, W, C] to draw from. Defaults to the base distribution of
        `flow`, or the standard normal if `flow` is a bijector.
      mode: `'redraw'` replaces latents by samples, the same in all columns; `'zero'` by zeros.
      seed: one or two integers. Equal seeds give equal samples.
      conditional_input: as in `encode`, also for a conditional base.

    Returns:
      Continuous pixel values, [..., num_scales, H, W, C].

    Raises:
      TypeError: as in `encode`.
      ValueError: if `mode` is unknown, or as in `encode`.
    """
    validation.choice(mode, ("redraw", "zero"), "levels_of_representation: expected a mode")
    flow, conditional_input = codec.in_nearest_cluster(flow, images, conditional_input)
    bijector = codec.bijector_of(flow, ImageFlow)
    latents = codec.encode(flow, images, conditional_input=conditional_input)
    if mode == "zero":
        others = tf.zeros_like(latents)
    else:
        if base is None and isinstance(flow, private_api.TransformedDistribution):
            base = flow.distribution
        elif base is None:
            base = tfd.Sample(tfd.Normal(tf.zeros([], bijector.dtype), 1.0), latents.shape[-3:])
        with surround_with(condition=conditional_input):
            others = base.sample(latents.shape[:-3], seed=stateless_seed(seed))
    kept, replaced = (bijector.split_latents(tf.constant(z)) for z in (latents, others))
    columns = [
        bijector.merge_latents([*replaced[:number], *kept[number:]])
        for number in reversed(range(bijector.num_scales))
    ]
    # The columns are the first axis, so that the conditions broadcast.
    decoded = codec.decode(flow, tf.stack(columns), conditional_input=conditional_input)
    return np.moveaxis(decoded, 0, -4)


@dataclasses.dataclass(frozen=True)
class ScaleStatistics:
    """Moments of the latents of one scale, over images, positions and channels.

    The skewness is E[(z - mean)³] / std³, the excess kurtosis E[(z - mean)⁴] / std⁴ - 3; both are 0
    for the standard normal. `largest` is the largest |z|, and `shape` is (height, width, channels).
    """

    shape: tuple[int, int, int]
    mean: float
    std: float
    skewness: float
    excess_kurtosis: float
    largest: float


def latent_statistics(
    flow: codec.Flow,
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
      flow, images, batch_size, conditional_input: as in `encode`; only images [..., H, W, C].

    Returns:
      One `ScaleStatistics` for each scale, in the order of `ImageFlow.split_latents`.

    Raises:
      TypeError, ValueError: as in `encode`.
    """
    flow, conditional_input = codec.in_nearest_cluster(flow, images, conditional_input)
    bijector = codec.bijector_of(flow, ImageFlow)
    latents = codec.encode(flow, images, batch_size=batch_size, conditional_input=conditional_input)
    by_scale = bijector.split_latents(tf.constant(latents))
    return tuple(_statistics(z.numpy().astype(np.float64)) for z in by_scale)


def _statistics(z: np.ndarray) -> ScaleStatistics:
    mean, std = z.mean(), z.std()
    scaled = (z - mean) / std
    return ScaleStatistics(
        shape=z.shape[-3:],
        mean=float(mean),
        std=float(std),
        skewness=float(np.mean(scaled**3)),
        excess_kurtosis=float(np.mean(scaled**4) - 3),
        largest=float(np.abs(z).max()),
    )


def stateless_seed(seed: int | Sequence[int]) -> tf.Tensor:
    """Converts one or two integers to the seed of a stateless operation, a tensor of two."""
    return tf.constant([seed, 0] if np.ndim(seed) == 0 else list(np.asarray(seed)), tf.int32)

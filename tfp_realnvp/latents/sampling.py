"""Samples of latents with a temperature or truncation, and of images of other sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike

from tfp_realnvp.flows import ImageFlow
from tfp_realnvp.internal import validation
from tfp_realnvp.latents.codec import Flow, bijector_of, decode

__all__ = ["extrapolate", "sample_latents", "stateless_seed"]


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

    A temperature below 1, or truncation, makes samples less diverse and more probable.
    `temperature=1` without truncation samples the model itself.

    #### Example

    >>> import numpy as np
    >>> from tfp_realnvp import latents
    >>> z = latents.sample_latents((4, 4, 3), 100, seed=1, temperature=0.5, truncation=2.)
    >>> z.shape, bool(np.abs(z).max() <= 1)
    ((100, 4, 4, 3), True)


    #### References

    Kingma, Dhariwal: Glow (2018), section 5, for the temperature.
    Brock, Donahue, Simonyan: Large scale GAN training (2019), section 3.1, for truncation.

    Args:
      shape: shape of one image, (height, width, channels), or of one vector, (size,).
      num_samples: number of images or vectors, or their leading dimensions.
      seed: one or two integers. Equal seeds give equal latents.
      temperature: standard deviation, at least 0.
      truncation: bound in standard deviations, more than 0; `None` means no truncation.
      dtype: dtype of the latents, `tf.float32` or `tf.float64`.

    Returns:
      Latents, [num_samples, *shape].

    Raises:
      ValueError: if an argument is out of range.
      TypeError: if `shape` is not a sequence of integers.
    """
    try:
        sizes = [int(size) for size in shape]
    except TypeError as error:
        expected = "sample_latents: expected the shape of one image or vector"
        raise TypeError(f"{expected}, got {shape!r}.") from error
    expected = "sample_latents: expected a finite temperature of at least 0"
    validation.real(temperature, lambda x: 0 <= x < math.inf, expected)
    if truncation is not None:
        expected = "sample_latents: expected a positive truncation"
        validation.real(truncation, lambda x: x > 0, expected)
    full_shape = [*np.atleast_1d(num_samples).tolist(), *sizes]
    if any(size < 1 for size in full_shape):
        raise ValueError(f"sample_latents: expected at least one latent, got shape {full_shape}.")
    if truncation is None:
        normal = tf.random.stateless_normal(full_shape, stateless_seed(seed), dtype=dtype)
    else:
        normal = tf.random.stateless_parameterized_truncated_normal(
            full_shape,
            stateless_seed(seed),
            means=tf.zeros([], dtype),
            stddevs=tf.ones([], dtype),
            minvals=tf.constant(-truncation, dtype),
            maxvals=tf.constant(truncation, dtype),
        )
    return temperature * normal.numpy()


def extrapolate(
    flow: Flow,
    image_shape: Sequence[int],
    num_samples: int = 4,
    *,
    seed: int | Sequence[int] = 0,
    temperature: float = 1.0,
    conditional_input: ArrayLike | None = None,
) -> np.ndarray:
    """Decodes normal latents of another size than the training images (Appendix C).

    The convolutional networks apply to any height and width divisible by 2^(num_scales - 1). A base
    distribution of `flow` is not used. See `sample_latents` and `decode` for arguments, results and
    errors.

    #### Example

    >>> import tfp_realnvp as tfr
    >>> from tfp_realnvp import latents
    >>> flow = tfr.RealNVPImage((4, 4, 1), num_scales=1, num_blocks=0, num_filters=4)
    >>> latents.extrapolate(flow, (8, 16, 1), num_samples=2).shape
    (2, 8, 16, 1)
    """
    dtype = bijector_of(flow, ImageFlow).dtype
    latents = sample_latents(
        image_shape, num_samples, seed=seed, temperature=temperature, dtype=dtype
    )
    return decode(flow, latents, conditional_input=conditional_input)


def stateless_seed(seed: int | Sequence[int]) -> tf.Tensor:
    """Returns the seed of a stateless operation, two integers, from one or two integers."""
    return tf.constant([seed, 0] if np.ndim(seed) == 0 else list(np.asarray(seed)), tf.int32)

"""Latents of images and images of latents."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from numpy.typing import ArrayLike

from tfp_realnvp.bijectors import RealNVPImage
from tfp_realnvp.internal import private_api, validation

__all__ = ["Flow", "Reconstruction", "bijector_of", "decode", "encode", "reconstruct"]

tfd = tfp.distributions

Flow = RealNVPImage | tfd.Distribution


class Reconstruction(NamedTuple):
    """The result of `reconstruct`.

    Attributes:
      images: decoded images, continuous pixel values, [..., H, W, C].
      largest_error: largest absolute error of a pixel, in gray levels.
    """

    images: np.ndarray
    largest_error: float


def encode(flow: Flow, images: ArrayLike, batch_size: int = 64) -> np.ndarray:
    """Returns the latents of images, by `flow.bijector.inverse`.

    #### Example

    >>> import numpy as np, tfp_realnvp as tfr
    >>> flow = tfr.RealNVPImage((4, 4, 1), num_scales=1, num_blocks=0, num_filters=4)
    >>> images = np.random.default_rng(0).integers(0, 256, [3, 4, 4, 1], dtype=np.uint8)
    >>> latents = encode(flow, images)
    >>> latents.shape, bool((np.floor(decode(flow, latents) + 1e-3) == images).all())
    ((3, 4, 4, 1), True)

    Args:
      flow: a `RealNVPImage`, or a `tfd.TransformedDistribution` with one.
      images: [..., H, W, C], continuous pixel values or integer gray levels. 0.5 is added to
        integers, which gives the center of the level.
      batch_size: number of images that are encoded at a time.

    Returns:
      Latents, of the same shape.

    Raises:
      TypeError: if `flow` has no `RealNVPImage`.
      ValueError: if images are not finite, or if their shape or range does not match the model.
    """
    bijector = bijector_of(flow)
    images = np.asarray(images)
    if np.issubdtype(images.dtype, np.integer):
        images = images + 0.5
    images = _checked(images, bijector, "images")
    latents = _batched(bijector.inverse, images, bijector, batch_size)
    if not np.isfinite(latents).all():
        raise ValueError(
            "expected images in the range of pixel values of the model, got values in "
            f"[{images.min()}, {images.max()}], whose latents are not finite."
        )
    return latents


def decode(flow: Flow, latents: ArrayLike, batch_size: int = 64) -> np.ndarray:
    """Returns the images of latents, by `flow.bijector.forward`. See `encode` for an example.

    Args:
      flow: a `RealNVPImage`, or a `tfd.TransformedDistribution` with one.
      latents: [..., H, W, C], with H and W divisible by 2^(num_scales - 1). They can differ from
        those of the training images.
      batch_size: number of images that are decoded at a time.

    Returns:
      Continuous pixel values, of the same shape. `to_uint8` converts them to gray levels.

    Raises:
      TypeError: if `flow` has no `RealNVPImage`.
      ValueError: if latents or images are not finite, or if the shape does not match the model.
    """
    bijector = bijector_of(flow)
    latents = _checked(np.asarray(latents), bijector, "latents")
    images = _batched(bijector.forward, latents, bijector, batch_size)
    if not np.isfinite(images).all():
        raise ValueError(
            "expected latents whose images are finite, got latents in "
            f"[{latents.min()}, {latents.max()}] with {np.count_nonzero(~np.isfinite(images))} "
            "pixels that are not finite."
        )
    return images


def reconstruct(flow: Flow, images: ArrayLike, batch_size: int = 64) -> Reconstruction:
    """Encodes and decodes images, which reproduces them up to rounding (section 3.3).

    #### Example

    >>> import numpy as np, tfp_realnvp as tfr
    >>> flow = tfr.RealNVPImage((4, 4, 1), num_scales=1, num_blocks=0, num_filters=4)
    >>> reconstruct(flow, np.full([2, 4, 4, 1], 7, np.uint8)).largest_error < 1e-2
    True

    Args:
      flow: as in `encode`.
      images: as in `encode`.
      batch_size: number of images that are processed at a time.

    Returns:
      A `Reconstruction`. The reference for its error is the continuous pixel value, for integer
      images the center of the level.

    Raises:
      TypeError: see `encode`.
      ValueError: see `encode` and `decode`.
    """
    decoded = decode(flow, encode(flow, images, batch_size), batch_size)
    images = np.asarray(images)
    if np.issubdtype(images.dtype, np.integer):
        images = images + 0.5
    return Reconstruction(decoded, float(np.max(np.abs(decoded - images))))


def bijector_of(flow: Flow) -> RealNVPImage:
    """Returns the `RealNVPImage` of a distribution, or the bijector itself.

    Raises:
      TypeError: if there is no `RealNVPImage`.
    """
    bijector = flow.bijector if isinstance(flow, private_api.TransformedDistribution) else flow
    if not isinstance(bijector, RealNVPImage):
        raise TypeError(
            "expected a RealNVPImage, or a tfd.TransformedDistribution with one, got "
            f"{type(flow).__name__}."
        )
    return bijector


def _checked(values: np.ndarray, bijector: RealNVPImage, what: str) -> np.ndarray:
    shape, divisor = values.shape, 2 ** (bijector.num_scales - 1)
    channels = bijector.image_shape[-1]
    if len(shape) < 3 or shape[-1] != channels or shape[-3] % divisor or shape[-2] % divisor:
        raise ValueError(
            f"expected {what} [..., height, width, {channels}], with height and width divisible "
            f"by {divisor}, got shape {shape}."
        )
    if not values.size:
        raise ValueError(f"expected at least one of {what}, got shape {shape}.")
    values = values.astype(bijector.dtype.as_numpy_dtype)
    if not np.isfinite(values).all():
        raise ValueError(
            f"expected finite {what}, got {np.count_nonzero(~np.isfinite(values))} values that are "
            "not finite."
        )
    return values


def _batched(
    function: Callable[[tf.Tensor], tf.Tensor],
    values: np.ndarray,
    bijector: RealNVPImage,
    batch_size: int,
) -> np.ndarray:
    batch_size = validation.integer(batch_size, 1, "expected a batch_size of at least 1")
    flat = values.reshape(-1, *values.shape[-3:])
    # New tensors, so that TFP's cache does not return the value that they were computed from.
    batches = [
        function(tf.constant(flat[start : start + batch_size], bijector.dtype)).numpy()
        for start in range(0, len(flat), batch_size)
    ]
    return np.concatenate(batches).reshape(values.shape)

"""Preparation of images as in the paper, in TensorFlow operations.

Images are `uint8` with values in [0, 256). They are downsampled by averaging areas: each pixel of
the result is the mean of the rectangle that it covers in the source, rounded to the nearest level.
The authors' code downsamples CelebA by bilinear interpolation, which skips pixels, and LSUN after a
Gaussian blur. Bits/dim depend slightly on the method.
"""

from __future__ import annotations

import tensorflow as tf

__all__ = [
    "decode",
    "prepare_celeb_a",
    "prepare_lsun",
    "prepare_square",
    "resize_area",
    "resize_smallest_side",
]


def decode(content: tf.Tensor, channels: int = 0) -> tf.Tensor:
    """Decodes a JPEG or PNG image.

    JPEG images are decoded with the accurate transform, as in other libraries. TensorFlow's default
    is a faster one that makes images darker by one or two gray levels.

    Args:
      content: scalar string, the bytes of the file.
      channels: 1 for grayscale, 3 for RGB, or 0 for the number of channels in the file.

    Returns:
      `uint8` tensor of shape `[h, w, channels]`.
    """
    # This operation also decodes PNG.
    return tf.io.decode_jpeg(content, channels=channels, dct_method="INTEGER_ACCURATE")


def resize_area(image: tf.Tensor, height: int | tf.Tensor, width: int | tf.Tensor) -> tf.Tensor:
    """Resizes a `uint8` image `[h, w, C]` to `[height, width, C]` by averaging areas."""
    return tf.cast(tf.round(tf.image.resize(image, [height, width], method="area")), tf.uint8)


def resize_smallest_side(image: tf.Tensor, size: int) -> tf.Tensor:
    """Resizes a `uint8` image `[h, w, C]` so that its smaller side is `size`.

    The other side keeps the aspect ratio, rounded to the nearest integer, with halves rounded up.
    """
    height, width = tf.unstack(tf.shape(image)[:2])
    smallest = tf.minimum(height, width)

    def scaled(side: tf.Tensor) -> tf.Tensor:
        return (2 * side * size + smallest) // (2 * smallest)

    return resize_area(image, scaled(height), scaled(width))


def prepare_celeb_a(image: tf.Tensor) -> tf.Tensor:
    """Returns rows 40–187 and columns 15–162 of a CelebA image, downsampled to `[64, 64, 3]`.

    Args:
      image: `uint8`, `[218, 178, 3]`. Other shapes raise an error.
    """
    return resize_area(tf.ensure_shape(image, [218, 178, 3])[40:188, 15:163], 64, 64)


def prepare_lsun(image: tf.Tensor, seed: tf.Tensor | None = None) -> tf.Tensor:
    """Resizes the smaller side of an LSUN image to 96 and returns a `[64, 64, 3]` crop.

    Args:
      image: `uint8`, `[h, w, 3]`.
      seed: two integers that determine the position of the crop; `None` means the center.
    """
    resized = resize_smallest_side(image, 96)
    if seed is None:
        return tf.image.resize_with_crop_or_pad(resized, 64, 64)
    return tf.image.stateless_random_crop(resized, [64, 64, 3], seed)


def prepare_square(image: tf.Tensor, size: int) -> tf.Tensor:
    """Resizes the smaller side of an image to `size` and returns the central square.

    The result has shape `[size, size, C]`. Images of this shape, such as those of downsampled
    ImageNet, are returned unchanged.

    Args:
      image: `uint8`, `[h, w, C]`.
      size: height and width of the result.
    """
    return tf.image.resize_with_crop_or_pad(resize_smallest_side(image, size), size, size)

"""Preparation of images as in the paper, in TensorFlow operations.

Every function takes and returns `uint8` pixels in [0, 256). Images are downsampled by averaging
areas: each pixel of the result is the mean of the rectangle that it covers in the source, in which
pixels count by the area covered, rounded to the nearest gray level. This is well defined and does
not alias. The authors' code downsamples CelebA by bilinear interpolation, which skips pixels, and
LSUN after a Gaussian blur. Bits/dim depend slightly on the method.
"""

from __future__ import annotations

import tensorflow as tf

__all__ = [
    "center_crop",
    "decode",
    "flip_some",
    "luminance",
    "prepare_celeb_a",
    "prepare_lsun",
    "prepare_square",
    "random_crop",
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

    #### Example

    >>> image = tf.constant([[[1], [2]]], tf.uint8)
    >>> decode(tf.io.encode_png(image)).numpy().tolist()
    [[[1], [2]]]

    """
    # In spite of its name this operation also decodes PNG.
    return tf.io.decode_jpeg(content, channels=channels, dct_method="INTEGER_ACCURATE")


def resize_area(image: tf.Tensor, height: int | tf.Tensor, width: int | tf.Tensor) -> tf.Tensor:
    """Resizes a `uint8` image `[h, w, C]` to `[height, width, C]` by averaging areas.

    #### Example

    >>> image = tf.constant([[0, 10], [20, 31]], tf.uint8)[..., tf.newaxis]
    >>> resize_area(image, 1, 1).numpy().tolist()
    [[[15]]]

    """
    resized = tf.image.resize(image, tf.stack([height, width]), method="area")
    resized = tf.cast(tf.round(resized), tf.uint8)
    return tf.ensure_shape(resized, [*_static_size(height, width), image.shape[-1]])


def resize_smallest_side(image: tf.Tensor, size: int) -> tf.Tensor:
    """Resizes a `uint8` image `[h, w, C]` so that its smaller side is `size`.

    The other side keeps the aspect ratio, rounded to the nearest integer, with halves rounded up.

    #### Example

    >>> tuple(resize_smallest_side(tf.zeros([256, 341, 3], tf.uint8), 96).shape)
    (96, 128, 3)

    """
    height, width = tf.unstack(tf.shape(image)[:2])
    smallest = tf.minimum(height, width)

    def scaled(side: tf.Tensor) -> tf.Tensor:
        return (2 * side * size + smallest) // (2 * smallest)

    return resize_area(image, scaled(height), scaled(width))


def center_crop(image: tf.Tensor, size: int) -> tf.Tensor:
    """Returns the central `[size, size, C]` crop of an image `[h, w, C]` with h, w ≥ `size`.

    If a margin is odd, the top or left part is one pixel smaller.

    #### Example

    >>> center_crop(tf.reshape(tf.range(25), [5, 5, 1]), 1).numpy().item()
    12

    """
    return _crop(image, (tf.shape(image)[:2] - size) // 2, size)


def random_crop(image: tf.Tensor, size: int, seed: tf.Tensor) -> tf.Tensor:
    """Returns a random `[size, size, C]` crop of an image `[h, w, C]`, uniform over all positions.

    Args:
      image: `[h, w, C]` with h, w ≥ `size`.
      size: height and width of the result.
      seed: two integers that determine the position.

    #### Example

    >>> tuple(random_crop(tf.zeros([96, 128, 3], tf.uint8), 64, [0, 1]).shape)
    (64, 64, 3)

    """
    seeds = tf.unstack(tf.random.experimental.stateless_split(seed, 2))
    positions = tf.unstack(tf.shape(image)[:2] - size + 1)
    corner = [
        tf.random.stateless_uniform([], side_seed, maxval=num_positions, dtype=tf.int32)
        for side_seed, num_positions in zip(seeds, positions, strict=True)
    ]
    return _crop(image, tf.stack(corner), size)


def prepare_celeb_a(image: tf.Tensor) -> tf.Tensor:
    """Returns rows 40–187 and columns 15–162 of a CelebA image, downsampled to `[64, 64, 3]`.

    Args:
      image: `uint8`, `[218, 178, 3]`. Other shapes raise an error.

    #### Example

    >>> tuple(prepare_celeb_a(tf.zeros([218, 178, 3], tf.uint8)).shape)
    (64, 64, 3)

    """
    return resize_area(tf.ensure_shape(image, [218, 178, 3])[40:188, 15:163], 64, 64)


def prepare_lsun(image: tf.Tensor, seed: tf.Tensor | None = None) -> tf.Tensor:
    """Resizes the smaller side of an LSUN image to 96 and returns a `[64, 64, C]` crop.

    Args:
      image: `uint8`, `[h, w, C]`.
      seed: two integers that determine the position of the crop; `None` means the center.

    #### Example

    >>> tuple(prepare_lsun(tf.zeros([256, 341, 3], tf.uint8)).shape)
    (64, 64, 3)

    """
    resized = resize_smallest_side(image, 96)
    return center_crop(resized, 64) if seed is None else random_crop(resized, 64, seed)


def prepare_square(image: tf.Tensor, size: int) -> tf.Tensor:
    """Resizes the smaller side of an image to `size` and returns the central square.

    The result has shape `[size, size, C]`. Images of this shape, such as those of downsampled
    ImageNet, are returned unchanged.

    Args:
      image: `uint8`, `[h, w, C]`.
      size: height and width of the result.

    #### Example

    >>> tuple(prepare_square(tf.zeros([43, 33, 3], tf.uint8), 32).shape)
    (32, 32, 3)

    """
    return center_crop(resize_smallest_side(image, size), size)


def flip_some(images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Mirrors each image of `[B, H, W, C]` horizontally with probability 1/2, as `seed` determines.

    Applied twice with the same seed, it returns the original images.

    #### Example

    >>> images = tf.reshape(tf.range(32), [8, 1, 4, 1])
    >>> flipped = flip_some(images, [0, 1])
    >>> bool(tf.reduce_all(flipped == images))
    False
    >>> bool(tf.reduce_all(flip_some(flipped, [0, 1]) == images))
    True

    """
    chosen = tf.random.stateless_uniform([tf.shape(images)[0], 1, 1, 1], seed) < 0.5
    return tf.where(chosen, tf.reverse(images, axis=[2]), images)


def luminance(images: tf.Tensor, num_values: int = 256) -> tf.Tensor:
    """Returns the luminance 0.299 R + 0.587 G + 0.114 B of color images, in [0, 1].

    #### Example

    >>> luminance(tf.constant([[[[0, 0, 0], [255, 0, 0]]]], tf.uint8)).numpy().round(3).tolist()
    [[[[0.0], [0.29899999499320984]]]]

    Args:
      images: `uint8`, `[..., H, W, 3]`.
      num_values: number of pixel levels; the level `num_values - 1` becomes 1.

    Returns:
      `float32` tensor of shape `[..., H, W, 1]`.
    """
    weighted = tf.cast(images, tf.float32) * [0.299, 0.587, 0.114]
    gray = tf.reduce_sum(weighted, axis=-1, keepdims=True) / (num_values - 1)
    # The three weights add up to one only up to rounding.
    return tf.minimum(gray, 1.0)


def _crop(image: tf.Tensor, corner: tf.Tensor, size: int) -> tf.Tensor:
    cropped = tf.slice(image, tf.concat([corner, [0]], 0), [size, size, -1])
    return tf.ensure_shape(cropped, [size, size, image.shape[-1]])


def _static_size(*sides: int | tf.Tensor) -> list[int | None]:
    return [side if isinstance(side, int) else None for side in sides]

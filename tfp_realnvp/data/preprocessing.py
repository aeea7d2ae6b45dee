"""From the images of a data set to those that the paper models, in TensorFlow operations.

Every function takes and returns `uint8` pixels in [0, 256). Shrinking averages areas: a pixel of
the result is the mean of the rectangle that it covers in the source, partly covered pixels by
their covered part, rounded to the nearest grey level. No method is as well defined, none aliases.
The authors' own code shrinks CelebA by bilinear interpolation, which leaves out pixels, and LSUN
after a Gaussian blur; bits/dim depend on the choice a little.
"""

from __future__ import annotations

import tensorflow as tf

__all__ = [
    "center_crop",
    "decode",
    "flip_some",
    "prepare_celeb_a",
    "prepare_lsun",
    "prepare_square",
    "random_crop",
    "resize_area",
    "resize_smallest_side",
]


def decode(content: tf.Tensor, channels: int = 0) -> tf.Tensor:
    """Decodes a JPEG or PNG image.

    TensorFlow's default for JPEG is a fast transform that makes images darker by a grey level or
    two; this is the accurate one, as in other libraries.

    Args:
      content: scalar string, the bytes of the file.
      channels: 1 for grey, 3 for colour, or 0 for what the image has.

    Returns:
      `uint8` tensor of shape `[h, w, channels]`.

    #### Example

    >>> image = tf.constant([[[1], [2]]], tf.uint8)
    >>> decode(tf.io.encode_png(image)).numpy().tolist()
    [[[1], [2]]]

    """
    # The operation looks at the content and decodes PNG as well.
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
    """Resizes a `uint8` image `[h, w, C]` so that its smallest side is `size`.

    The other side keeps the proportions, rounded to the nearest integer, halves up.

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
    """Returns the central `[size, size, C]` of an image `[h, w, C]` with h, w ≥ `size`.

    An odd margin is one pixel smaller at the top or left.

    #### Example

    >>> center_crop(tf.reshape(tf.range(25), [5, 5, 1]), 1).numpy().item()
    12

    """
    return _crop(image, (tf.shape(image)[:2] - size) // 2, size)


def random_crop(image: tf.Tensor, size: int, seed: tf.Tensor) -> tf.Tensor:
    """Returns a `[size, size, C]` part of an image `[h, w, C]`, each possible one equally likely.

    Args:
      image: `[h, w, C]` with h, w ≥ `size`.
      size: height and width of the result.
      seed: two integers, which determine the place.

    #### Example

    >>> tuple(random_crop(tf.zeros([96, 128, 3], tf.uint8), 64, [0, 1]).shape)
    (64, 64, 3)

    """
    seeds = tf.unstack(tf.random.experimental.stateless_split(seed, 2))
    places = tf.unstack(tf.shape(image)[:2] - size + 1)
    corner = [
        tf.random.stateless_uniform([], side_seed, maxval=side_places, dtype=tf.int32)
        for side_seed, side_places in zip(seeds, places, strict=True)
    ]
    return _crop(image, tf.stack(corner), size)


def prepare_celeb_a(image: tf.Tensor) -> tf.Tensor:
    """Returns a CelebA image as `[64, 64, 3]`: its rows 40–187 and columns 15–162, shrunk.

    Args:
      image: `uint8`, `[218, 178, 3]`; another shape is an error.

    #### Example

    >>> tuple(prepare_celeb_a(tf.zeros([218, 178, 3], tf.uint8)).shape)
    (64, 64, 3)

    """
    return resize_area(tf.ensure_shape(image, [218, 178, 3])[40:188, 15:163], 64, 64)


def prepare_lsun(image: tf.Tensor, seed: tf.Tensor | None = None) -> tf.Tensor:
    """Returns a `[64, 64, C]` crop of an LSUN image whose smallest side is first made 96.

    Args:
      image: `uint8`, `[h, w, C]`.
      seed: two integers, which determine the crop's place; `None` takes the centre.

    #### Example

    >>> tuple(prepare_lsun(tf.zeros([256, 341, 3], tf.uint8)).shape)
    (64, 64, 3)

    """
    resized = resize_smallest_side(image, 96)
    return center_crop(resized, 64) if seed is None else random_crop(resized, 64, seed)


def prepare_square(image: tf.Tensor, size: int) -> tf.Tensor:
    """Returns the centre of an image at `[size, size, C]`; one that has this size stays as it is.

    Down-sampled ImageNet comes in its final size, so that nothing happens to it here.

    Args:
      image: `uint8`, `[h, w, C]`.
      size: height and width of the result, to which the smallest side is resized.

    #### Example

    >>> tuple(prepare_square(tf.zeros([43, 33, 3], tf.uint8), 32).shape)
    (32, 32, 3)

    """
    return center_crop(resize_smallest_side(image, size), size)


def flip_some(images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Mirrors each image of `[B, H, W, C]` with probability 1/2, decided by `seed`.

    The same seed applied twice gives back the images.

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


def _crop(image: tf.Tensor, corner: tf.Tensor, size: int) -> tf.Tensor:
    cropped = tf.slice(image, tf.concat([corner, [0]], 0), [size, size, -1])
    return tf.ensure_shape(cropped, [size, size, image.shape[-1]])


def _static_size(*sides: int | tf.Tensor) -> list[int | None]:
    return [side if isinstance(side, int) else None for side in sides]

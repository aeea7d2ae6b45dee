"""What `FlowModel` takes as images."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from tfp_realnvp import pixels

__all__ = ["check_images", "images_of_batch"]


def check_images(x: Any, *, grey_levels: bool) -> None:
    """Says what is wrong with data before training on them, as far as one can see without reading.

    #### Example

    >>> import numpy as np
    >>> check_images(np.zeros([2, 4, 4, 1], np.uint8), grey_levels=True)

    Args:
      x: images, or a data set of them.
      grey_levels: whether they are to be integers, of whatever dtype.

    Raises:
      ValueError: if there are no images, or they are not [B, H, W, C] with grey levels.
    """
    if isinstance(x, tf.data.Dataset):
        if x.cardinality() == 0:
            raise ValueError("FlowModel: expected images, got an empty dataset.")
        return
    images = pixels.image_component(x)
    if not hasattr(images, "shape") or not hasattr(images, "dtype"):
        return
    if len(images.shape) != 4 or images.shape[0] == 0:
        raise ValueError(
            f"FlowModel: expected images [number, height, width, channels], at least one, got "
            f"shape {tuple(images.shape)}."
        )
    if grey_levels and not tf.as_dtype(images.dtype).is_integer:
        largest = float(np.max(images))
        if largest <= 1.0 and float(np.max(np.asarray(images) % 1)) > 0:
            raise ValueError(
                "FlowModel: expected grey levels 0, 1, 2, …, got fractions up to "
                f"{largest}: multiply images in [0, 1] by 255 again, or pass dequantize=False."
            )


def images_of_batch(data: Any, event_shape: tf.TensorShape) -> tf.Tensor:
    """Returns the images [B, H, W, C] of a batch, which may also have labels.

    #### Example

    >>> import numpy as np, tensorflow as tf
    >>> batch = (np.zeros([2, 4, 4, 1]), np.zeros([2]))
    >>> images_of_batch(batch, tf.TensorShape([4, 4, 1])).shape
    TensorShape([2, 4, 4, 1])

    Args:
      data: as `pixels.image_component` takes it.
      event_shape: of the distribution.

    Raises:
      ValueError: if the shape does not fit.
    """
    images = tf.convert_to_tensor(pixels.image_component(data))
    expected = event_shape
    if images.shape.rank != 4 or not images.shape[1:].is_compatible_with(expected):
        raise ValueError(
            f"FlowModel: expected images [batch, {', '.join(map(str, expected))}], got shape "
            f"{images.shape}."
        )
    return images

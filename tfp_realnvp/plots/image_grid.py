"""Images side by side in one image."""

import math
import os
import pathlib

import numpy as np

from tfp_realnvp.internal.atomic_files import atomic_replace
from tfp_realnvp.internal.optional_packages import missing_package

__all__ = ["image_grid", "save_image_grid"]

_MIN_TILE_SIZE = 64  # output pixels; smaller images are enlarged to about this size
_BACKGROUND = 255


def image_grid(
    images: np.ndarray,
    columns: int | None = None,
    padding: int = 1,
    num_values: int = 256,
) -> np.ndarray:
    """Arranges images row by row in one image with a white background.

    Args:
      images: `uint8` array of shape `[N, H, W, C]`, with `C` 1 (grayscale) or 3 (RGB) and values in
        `[0, num_values)`.
      columns: number of images in a row. By default the grid is as square as possible.
      padding: width in pixels of the lines between and around the images.
      num_values: number of pixel levels. The level `num_values − 1` becomes 255.

    Returns:
      `uint8` array of shape `[rows·(H + padding) + padding, columns·(W + padding) + padding, C]`.

    Raises:
      ValueError: if `images` is not such an array, `columns` is less than 1, `padding` is negative,
        or `num_values` is not in [2, 256].

    #### Example

    >>> import numpy as np
    >>> from tfp_realnvp import plots
    >>> plots.image_grid(np.zeros([6, 8, 8, 1], np.uint8), columns=3, padding=1).shape
    (19, 28, 1)
    """
    images = np.asarray(images)
    if images.dtype != np.uint8:
        raise ValueError(
            f"Expected images of dtype uint8, got {images.dtype}; `tfr.to_uint8` rounds samples."
        )
    if images.ndim != 4 or images.size == 0 or images.shape[-1] not in (1, 3):
        raise ValueError(
            f"Expected at least one image, [N, H, W, C] with 1 or 3 channels, got shape "
            f"{images.shape}."
        )
    if columns is not None and columns < 1:
        raise ValueError(f"Expected at least one column, got {columns}.")
    if padding < 0:
        raise ValueError(f"Expected a padding of at least 0, got {padding}.")
    if not 2 <= num_values <= 256:
        raise ValueError(f"Expected num_values in [2, 256], got {num_values}.")
    if images.max() >= num_values:
        raise ValueError(f"Expected pixels in [0, {num_values}), got {images.max()}.")

    count, height, width, channels = images.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    pixels = np.rint(images * (255.0 / (num_values - 1))).astype(np.uint8)
    grid = np.full(
        [rows * (height + padding) + padding, columns * (width + padding) + padding, channels],
        _BACKGROUND,
        np.uint8,
    )
    for index, image in enumerate(pixels):
        row, column = divmod(index, columns)
        top = padding + row * (height + padding)
        left = padding + column * (width + padding)
        grid[top : top + height, left : left + width] = image
    return grid


def save_image_grid(
    path: str | os.PathLike[str],
    images: np.ndarray,
    columns: int | None = None,
    padding: int = 1,
    upscale: int | None = None,
    num_values: int = 256,
) -> pathlib.Path:
    """Writes `image_grid` to a PNG file, with small images enlarged, and returns its path.

    Args:
      path: path of the file. Missing folders are created.
      images, columns, padding, num_values: as in `image_grid`; padding before enlarging.
      upscale: integer factor by which pixels are repeated in both directions. By default, images of
        fewer than 64 pixels a side are enlarged to about 64.

    Raises:
      ValueError: if an argument is invalid for `image_grid`, or if `upscale` is less than 1.
      ImportError: if pillow is not installed.

    #### Example

    >>> import numpy as np, tempfile
    >>> from tfp_realnvp import plots
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = plots.save_image_grid(f"{folder}/black.png", np.zeros([4, 8, 8, 1], np.uint8))
    ...     path.name, path.exists()
    ('black.png', True)
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise missing_package("An image file", "pillow") from error

    if upscale is not None and upscale < 1:
        raise ValueError(f"Expected an upscale of at least 1, got {upscale}.")
    grid = image_grid(images, columns, padding, num_values)
    upscale = upscale or max(1, _MIN_TILE_SIZE // max(np.shape(images)[1:3]))
    grid = grid.repeat(upscale, axis=0).repeat(upscale, axis=1)
    if grid.shape[-1] == 1:
        grid = grid[..., 0]
    with atomic_replace(path) as new:
        Image.fromarray(grid).save(new, format="PNG")
    return pathlib.Path(path)

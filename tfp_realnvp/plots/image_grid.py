"""Grids of images, with or without labels, and heat maps of scores on images."""

import math
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from tfp_realnvp.internal import atomic_files, optional_packages, validation
from tfp_realnvp.plots.figures import matplotlib_module, new_figure, save_figure

_MIN_TILE_SIZE = 64  # output pixels; smaller images are enlarged to about this size
_BACKGROUND = 255


def image_grid(
    images: np.ndarray, columns: int | None = None, padding: int = 1, num_values: int = 256
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
      ValueError: if `images` is not such an array.

    #### Example

    >>> import numpy as np
    >>> from tfp_realnvp import plots
    >>> plots.image_grid(np.zeros([6, 8, 8, 1], np.uint8), columns=3, padding=1).shape
    (19, 28, 1)
    """
    images = np.asarray(images)
    expected = "Expected images of dtype uint8, as from `tfr.to_uint8`"
    validation.require(images.dtype == np.uint8, expected, images.dtype)
    is_shape = images.ndim == 4 and images.size > 0 and images.shape[-1] in (1, 3)
    expected = "Expected at least one image, [N, H, W, C] with 1 or 3 channels"
    validation.require(is_shape, expected, images.shape)
    largest = int(images.max())
    validation.require(largest < num_values, f"Expected pixels in [0, {num_values})", largest)
    count, height, width, channels = images.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    pixels = np.rint(images * (255.0 / (num_values - 1))).astype(np.uint8)
    # Lines above and to the left of each image, then below and to the right of the whole grid.
    widths = [(0, rows * columns - count), (padding, 0), (padding, 0), (0, 0)]
    tiles = np.pad(pixels, widths, constant_values=_BACKGROUND)
    tiles = tiles.reshape(rows, columns, height + padding, width + padding, channels)
    grid = np.concatenate(np.concatenate(tiles, axis=1), axis=1)
    return np.pad(grid, [(0, padding), (0, padding), (0, 0)], constant_values=_BACKGROUND)


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
      images, columns, padding, num_values: as in `image_grid`, before enlarging.
      upscale: integer factor by which pixels are repeated in both directions. By default, images
        whose larger side has fewer than 64 pixels are enlarged to about 64.

    Raises:
      ValueError: as in `image_grid`.
      ImportError: if pillow is not installed.

    #### Example

    >>> import numpy as np, tempfile
    >>> from tfp_realnvp import plots
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     plots.save_image_grid(f"{folder}/black.png", np.zeros([4, 8, 8, 1], np.uint8)).name
    'black.png'
    """
    pillow = optional_packages.load("PIL.Image", "An image file", "pillow")
    grid = image_grid(images, columns, padding, num_values)
    upscale = upscale or max(1, _MIN_TILE_SIZE // max(np.shape(images)[1:3]))
    grid = grid.repeat(upscale, axis=0).repeat(upscale, axis=1)
    with atomic_files.atomic_replace(path) as new:
        pillow.fromarray(grid[..., 0] if grid.shape[-1] == 1 else grid).save(new, format="PNG")
    return pathlib.Path(path)


def heat_map(
    images: np.ndarray,
    scores: ArrayLike,
    low: float | None = None,
    high: float | None = None,
    num_values: int = 256,
) -> np.ndarray:
    """Colors gray images by their scores at each position, from red to yellow for high scores.

    Args:
      images: `[N, H, W, C]`, as in `image_grid`.
      scores: finite scores `[N, h, w]`, for example `-tfr.log_prob_map(model, images)`. `h` and `w`
        divide `H` and `W`: each score covers a block of pixels.
      low, high: scores of at most `low` leave the image gray, and scores of at least `high` are
        yellow. Default to the lowest and the highest score.
      num_values: as in `image_grid`.

    Returns:
      `uint8` array of shape `[N, H, W, 3]`, for `image_grid` or an image file.

    Raises:
      ValueError: as in `image_grid`; or if `scores` are not as above, or `low` is not below `high`.

    #### Example

    >>> import numpy as np
    >>> from tfp_realnvp import plots
    >>> pixels = plots.heat_map(np.full([1, 2, 2, 1], 200, np.uint8), [[[0., 1.], [2., 4.]]])
    >>> pixels[0, 0, 0].tolist(), pixels[0, 1, 1].tolist()
    ([200, 200, 200], [241, 241, 50])
    """
    scores = np.asarray(scores, np.float64)
    stacked = image_grid(images, 1, 0, num_values)
    gray = stacked.reshape(np.shape(images)).mean(axis=-1, keepdims=True)
    count, height, width, _ = gray.shape
    is_shape = scores.ndim == 3 and len(scores) == count
    is_shape = is_shape and height % scores.shape[1] == width % scores.shape[2] == 0
    expected = f"Expected scores [{count}, h, w] whose h and w divide {height} and {width}"
    validation.require(is_shape, expected, scores.shape)
    low = float(scores.min() if low is None else low)
    high = float(scores.max() if high is None else high)
    is_valid = bool(np.isfinite(scores).all()) and low < high
    validation.require(is_valid, "Expected finite scores, and low below high", (low, high))
    block = np.ones([1, height // scores.shape[1], width // scores.shape[2]])
    heat = np.kron(np.clip((scores - low) / (high - low), 0, 1), block)
    colors = np.stack([np.ones_like(heat), heat, np.zeros_like(heat)], axis=-1) * 255
    opacity = 0.75 * heat[..., np.newaxis]
    return np.rint((1 - opacity) * gray + opacity * colors).astype(np.uint8)


def draw_grid(
    images: np.ndarray,
    title: str | None = None,
    row_labels: Sequence[str] | None = None,
    column_labels: Sequence[str] | None = None,
    *,
    columns: int | None = None,
    num_values: int = 256,
    ax: Any = None,
) -> Any:
    """Draws a grid of images with a title and labels on Matplotlib axes.

    Args:
      images: `uint8` array of shape `[rows, columns, H, W, C]`, otherwise as in `image_grid`; or
        `[N, H, W, C]`, which fills a grid row by row.
      title, row_labels, column_labels: the title, and a label for each row and each column.
      columns, num_values: as in `image_grid`; `columns` applies to images `[N, H, W, C]`.
      ax: the `Axes` to draw on, which are returned. Defaults to a new pyplot figure.

    Raises:
      ValueError: if `images` is not such an array, or the number of labels differs.
      ImportError: if matplotlib is not installed.

    #### Example

    >>> import matplotlib.pyplot as plt, numpy as np
    >>> from tfp_realnvp import plots
    >>> _, (left, right) = plt.subplots(1, 2)
    >>> images = np.full([6, 8, 8, 1], 99, np.uint8)
    >>> axes = plots.draw_grid(images, "gray", columns=3, ax=left)
    >>> axes is left, axes.images[0].get_size()
    (True, (19, 28))
    """
    images = np.asarray(images)
    if images.ndim == 5:
        columns = images.shape[1]
        images = images.reshape(-1, *images.shape[2:])
    grid = image_grid(images, columns, 1, num_values)
    height, width = images.shape[1:3]
    rows, columns = grid.shape[0] // (height + 1), grid.shape[1] // (width + 1)
    if ax is None:
        size = _figure_size(rows, columns, height, width)
        _, ax = matplotlib_module("pyplot").subplots(figsize=size, layout="constrained")
    ax.imshow(grid, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    ax.set_title(title, fontsize=11)
    ax.xaxis.tick_top()
    ax.tick_params(length=0, labelsize=8)
    ax.spines[:].set_visible(False)
    for what, labels, set_ticks, count, size in (
        ("row", row_labels, ax.set_yticks, rows, height),
        ("column", column_labels, ax.set_xticks, columns, width),
    ):
        if labels is not None:
            validation.require(len(labels) == count, f"Expected {count} {what} labels", len(labels))
        middles = 0.5 + size / 2 + (size + 1) * np.arange(count)
        set_ticks([] if labels is None else middles, labels)
    return ax


def save_labelled_grid(
    path: str | os.PathLike[str],
    images: np.ndarray,
    title: str,
    row_labels: Sequence[str] | None = None,
    column_labels: Sequence[str] | None = None,
    num_values: int = 256,
) -> pathlib.Path:
    """Writes `draw_grid` to a PNG file, and returns its path; Matplotlib's state is unchanged.

    Args:
      path: path of the file. Missing folders are created.
      images: `uint8` array of shape `[rows, columns, H, W, C]`.
      title, row_labels, column_labels, num_values: as in `draw_grid`.

    Raises:
      ValueError, ImportError: as in `draw_grid`.

    #### Example

    >>> import numpy as np, tempfile
    >>> from tfp_realnvp import plots
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     plots.save_labelled_grid(
    ...         f"{folder}/gray.png", np.full([2, 3, 8, 8, 1], 99, np.uint8), "gray",
    ...         row_labels=["first", "second"]).name
    'gray.png'
    """
    images = np.asarray(images)
    validation.require(images.ndim == 5, "Expected images [rows, columns, H, W, C]", images.shape)
    figure = new_figure(_figure_size(*images.shape[:4]), dpi=100)
    options = {"num_values": num_values, "ax": figure.add_subplot()}
    draw_grid(images, title, row_labels, column_labels, **options)
    return save_figure(figure, path, bbox_inches="tight", pad_inches=0.1)


def _figure_size(rows: int, columns: int, height: int, width: int) -> tuple[float, float]:
    scale = min(2.5, 8 / max(rows, columns)) / max(height, width)
    grid_height, grid_width = rows * (height + 1) + 1, columns * (width + 1) + 1
    return max(4.5, grid_width * scale + 1.6), grid_height * scale + 1.0

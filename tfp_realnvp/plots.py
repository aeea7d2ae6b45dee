"""Image grids, heat maps and training curves; PNG files are written atomically."""

import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from tfp_realnvp.internal.atomic_files import atomic_write
from tfp_realnvp.internal.optional_packages import missing_package

__all__ = ["heat_map", "image_grid", "save_curves", "save_image_grid", "save_labelled_grid"]

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


def heat_map(
    images: np.ndarray,
    scores: ArrayLike,
    low: float | None = None,
    high: float | None = None,
    num_values: int = 256,
) -> np.ndarray:
    """Draws scores of positions over images: red to yellow where they are high, gray where low.

    Args:
      images: as in `image_grid`, `[N, H, W, C]`.
      scores: finite scores `[N, h, w]`, for example `-tfr.log_prob_map(model, images)`. `h` and `w`
        divide `H` and `W`: each score covers a block of pixels.
      low: scores up to this one leave the image as it is; by default the lowest score.
      high: scores from this one on are yellow; by default the highest score.
      num_values: as in `image_grid`.

    Returns:
      `uint8` array of shape `[N, H, W, 3]`, for `image_grid` or an image file.

    Raises:
      ValueError: if `images` is invalid for `image_grid`, scores are not finite or not of this
        shape, or `low` is not below `high`.

    #### Example

    >>> import numpy as np
    >>> from tfp_realnvp import plots
    >>> pixels = plots.heat_map(np.full([1, 2, 2, 1], 200, np.uint8), [[[0., 1.], [2., 4.]]])
    >>> pixels[0, 0, 0].tolist(), pixels[0, 1, 1].tolist()
    ([200, 200, 200], [241, 241, 50])

    """
    scores = np.asarray(scores, np.float64)
    gray = np.concatenate([image_grid(image[np.newaxis], 1, 0, num_values) for image in images])
    gray = gray.reshape(np.shape(images)).mean(axis=-1, keepdims=True)
    count, height, width, _ = gray.shape
    if (
        scores.ndim != 3
        or len(scores) != count
        or height % scores.shape[1]
        or width % scores.shape[2]
    ):
        raise ValueError(
            f"Expected scores [{count}, h, w] whose h and w divide {height} and {width}, got shape "
            f"{scores.shape}."
        )
    if not np.isfinite(scores).all():
        raise ValueError(f"Expected finite scores, got {np.sum(~np.isfinite(scores))} others.")
    low = scores.min() if low is None else low
    high = scores.max() if high is None else high
    if not low < high:
        raise ValueError(f"Expected a low score below the high one, got {low} and {high}.")
    heat = np.clip((scores - low) / (high - low), 0, 1)[..., np.newaxis]
    heat = heat.repeat(height // scores.shape[1], axis=1).repeat(width // scores.shape[2], axis=2)
    colors = np.concatenate([np.ones_like(heat), heat, np.zeros_like(heat)], axis=-1) * 255
    opacity = 0.75 * heat
    return np.rint((1 - opacity) * gray + opacity * colors).astype(np.uint8)


def save_image_grid(
    path: str | os.PathLike[str],
    images: np.ndarray,
    columns: int | None = None,
    padding: int = 1,
    upscale: int | None = None,
    num_values: int = 256,
) -> pathlib.Path:
    """Writes `image_grid` to a PNG file, with small images enlarged.

    Args:
      path: path of the file. Missing folders are created.
      images: as in `image_grid`.
      columns: as in `image_grid`.
      padding: as in `image_grid`, before enlarging.
      upscale: integer factor by which pixels are repeated in both directions. By default, images of
        fewer than 64 pixels are enlarged to about 64.
      num_values: as in `image_grid`.

    Returns:
      The path of the file.

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
    with atomic_write(path) as (file, path):
        Image.fromarray(grid).save(file, format="PNG")
    return path


def save_labelled_grid(
    path: str | os.PathLike[str],
    images: np.ndarray,
    title: str,
    row_labels: Sequence[str] | None = None,
    column_labels: Sequence[str] | None = None,
    num_values: int = 256,
) -> pathlib.Path:
    """Draws a grid of images with a title and labels to a PNG file.

    The global state of Matplotlib is unchanged.

    Args:
      path: path of the file. Missing folders are created.
      images: `uint8` array of shape `[rows, columns, H, W, C]`, otherwise as in `image_grid`.
      title: title above the grid.
      row_labels: one label for each row, on the left.
      column_labels: one label for each column, at the top.
      num_values: as in `image_grid`.

    Returns:
      The path of the file.

    Raises:
      ValueError: if `images` is not such an array, or if the number of labels is not the number of
        rows or columns.
      ImportError: if matplotlib is not installed.

    #### Example

    >>> import numpy as np, tempfile
    >>> from tfp_realnvp import plots
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = plots.save_labelled_grid(
    ...         f"{folder}/gray.png", np.full([2, 3, 8, 8, 1], 99, np.uint8), "gray",
    ...         row_labels=["first", "second"])
    ...     path.name, path.exists()
    ('gray.png', True)

    """
    images = np.asarray(images)
    if images.ndim != 5:
        raise ValueError(f"Expected images [rows, columns, H, W, C], got shape {images.shape}.")
    rows, columns, height, width, _ = images.shape
    for what, labels, count in (("row", row_labels, rows), ("column", column_labels, columns)):
        if labels is not None and len(labels) != count:
            raise ValueError(f"Expected {count} {what} labels, got {len(labels)}.")
    grid = image_grid(images.reshape(-1, *images.shape[2:]), columns, 1, num_values)
    tile = min(2.5, 8 / max(rows, columns))  # inches
    scale = tile / max(height, width)
    # Space for labels and title.
    size = (grid.shape[1] * scale + 1.6, grid.shape[0] * scale + 1.0)
    figure = _new_figure((max(4.5, size[0]), size[1]), dpi=100)
    axes = figure.add_subplot()
    axes.imshow(
        grid[..., 0] if grid.shape[-1] == 1 else grid,
        cmap="gray",
        vmin=0,
        vmax=255,
        interpolation="nearest",
    )
    axes.set_title(title, fontsize=11)
    axes.xaxis.tick_top()
    axes.tick_params(length=0, labelsize=8)
    axes.spines[:].set_visible(False)
    axes.set_xticks(
        [] if column_labels is None else 0.5 + width / 2 + (width + 1) * np.arange(columns),
        column_labels,
    )
    axes.set_yticks(
        [] if row_labels is None else 0.5 + height / 2 + (height + 1) * np.arange(rows),
        row_labels,
    )
    with atomic_write(path) as (file, path):
        figure.savefig(file, format="png", bbox_inches="tight", pad_inches=0.1)
    return path


def save_curves(
    path: str | os.PathLike[str],
    curves: Mapping[str, tuple[ArrayLike, ArrayLike]],
    xlabel: str,
    ylabel: str,
) -> pathlib.Path:
    """Plots named curves to a PNG file.

    The global state of Matplotlib, such as its backend and current figure, is unchanged.

    Args:
      path: path of the file. Missing folders are created.
      curves: a dictionary from names in the legend to pairs `(x, y)` of sequences of equal length.
      xlabel: label of the x axis.
      ylabel: label of the y axis, with the unit.

    Returns:
      The path of the file.

    Raises:
      ValueError: if there is no curve, or if the `x` and `y` of a curve are not vectors of equal
        length.
      ImportError: if matplotlib is not installed.

    #### Example

    >>> import tempfile
    >>> from tfp_realnvp import plots
    >>> curves = {"train": ([1, 2, 3], [4.0, 3.5, 3.4]), "test": ([1, 3], [4.1, 3.5])}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = plots.save_curves(f"{folder}/curves.png", curves, "epoch", "bits/dim")
    ...     path.name, path.exists()
    ('curves.png', True)

    """
    if not curves:
        raise ValueError("Expected at least one curve, got none.")
    figure = _new_figure((7, 4.5), dpi=120)
    axes = figure.add_subplot(xlabel=xlabel, ylabel=ylabel)
    axes.grid(alpha=0.3)
    for name, (x, y) in curves.items():
        if np.ndim(x) != 1 or np.shape(x) != np.shape(y):
            raise ValueError(
                f"Expected x and y of curve {name!r} to be vectors of equal length, got shapes "
                f"{np.shape(x)} and {np.shape(y)}."
            )
        # A single point is invisible without a marker.
        axes.plot(x, y, label=name, marker="o" if np.size(x) == 1 else None)
    axes.legend()
    with atomic_write(path) as (file, path):
        figure.savefig(file, format="png")
    return path


def _new_figure(size: tuple[float, float], dpi: int) -> Any:
    """Returns a Matplotlib figure of `size` inches that is not registered with pyplot."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise missing_package("A figure", "matplotlib") from error
    figure = Figure(figsize=size, dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    return figure

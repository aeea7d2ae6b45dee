"""Grids of images with a title and labels."""

import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfp_realnvp.internal import validation
from tfp_realnvp.plots.figures import matplotlib_module, new_figure, save_figure
from tfp_realnvp.plots.image_grid import image_grid

__all__ = ["draw_grid", "save_labelled_grid"]


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
        `[N, H, W, C]`, which fills the rows of a grid of `columns` images.
      title, row_labels, column_labels: the title, and a label for each row and each column.
      columns, num_values: as in `image_grid`; `columns` for images `[N, H, W, C]`.
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
      ValueError, ImportError: as `draw_grid`.

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

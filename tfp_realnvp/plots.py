"""Pictures of images and of training curves, written to PNG files.

A file appears whole or not at all, see `atomic_write`.
"""

import math
import os
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from tfp_realnvp.internal.atomic_files import atomic_write

__all__ = ["image_grid", "save_curves", "save_image_grid", "save_labelled_grid"]

_MIN_TILE_SIZE = 64  # output pixels; smaller images are enlarged to about this size
_BACKGROUND = 255


def image_grid(
    images: np.ndarray,
    columns: int | None = None,
    padding: int = 1,
    num_values: int = 256,
) -> np.ndarray:
    """Lays images out as one picture, row by row, on a white ground.

    Args:
      images: `uint8` array of shape `[N, H, W, C]`, with `C` 1 (grey) or 3 (RGB) and values in
        `[0, num_values)`.
      columns: number of images in a row; as square as possible unless given.
      padding: width, in pixels, of the lines between and around the images.
      num_values: number of levels of a pixel; level `num_values − 1` is shown as 255.

    Returns:
      `uint8` array of shape `[rows·(H + padding) + padding, columns·(W + padding) + padding, C]`.

    Raises:
      ValueError: `images` is not such an array, `columns` is less than one, `padding` is
        negative, or `num_values` is not in [2, 256].

    #### Example

    >>> import numpy as np
    >>> image_grid(np.zeros([6, 8, 8, 1], np.uint8), columns=3, padding=1).shape
    (19, 28, 1)

    """
    images = np.asarray(images)
    if images.dtype != np.uint8:
        raise ValueError(f"Expected images of dtype uint8, got {images.dtype}.")
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
    """Writes `image_grid` to a PNG file, enlarged so that small images can be seen.

    Args:
      path: the file to write; its folder is made if it is missing.
      images: as in `image_grid`.
      columns: as in `image_grid`.
      padding: as in `image_grid`, before enlarging.
      upscale: whole factor by which each pixel is repeated in both directions. Unless given,
        images of fewer than 64 pixels are enlarged to about 64.
      num_values: as in `image_grid`.

    Returns:
      The path of the file.

    Raises:
      ValueError: the arguments are not as `image_grid` needs them, or `upscale` is less than 1.
      ImportError: pillow is not installed.

    #### Example

    >>> import numpy as np, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = save_image_grid(f"{folder}/black.png", np.zeros([4, 8, 8, 1], np.uint8))
    ...     path.name, path.exists()
    ('black.png', True)

    """
    try:
        from PIL import Image
    except ImportError as error:
        raise _missing("pillow") from error

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
    """Draws a table of images with a title and labels, and writes it to a PNG file.

    Matplotlib's global state stays as it is.

    Args:
      path: the file to write; its folder is made if it is missing.
      images: `uint8` array of shape `[rows, columns, H, W, C]`, otherwise as in `image_grid`.
      title: above the table.
      row_labels: left of the rows; as many as there are.
      column_labels: above the columns; as many as there are.
      num_values: as in `image_grid`.

    Returns:
      The path of the file.

    Raises:
      ValueError: `images` is not such an array, or the number of labels is another one.
      ImportError: matplotlib is not installed.

    #### Example

    >>> import numpy as np, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = save_labelled_grid(
    ...         f"{folder}/grey.png", np.full([2, 3, 8, 8, 1], 99, np.uint8), "grey",
    ...         row_labels=["first", "second"])
    ...     path.name, path.exists()
    ('grey.png', True)

    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise _missing("matplotlib") from error

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
    # Room for the labels and the title.
    size = (grid.shape[1] * scale + 1.6, grid.shape[0] * scale + 1.0)
    figure = Figure(figsize=(max(4.5, size[0]), size[1]), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
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
    """Draws named curves in one plot and writes it to a PNG file.

    Matplotlib's global state, such as its backend and current figure, stays as it is.

    Args:
      path: the file to write; its folder is made if it is missing.
      curves: for each name in the legend, its `(x, y)`, two sequences of equal length.
      xlabel: name of the x axis.
      ylabel: name of the y axis, with the unit.

    Returns:
      The path of the file.

    Raises:
      ValueError: there is no curve, or an `x` and its `y` are not vectors of equal length.
      ImportError: matplotlib is not installed.

    #### Example

    >>> import tempfile
    >>> curves = {"train": ([1, 2, 3], [4.0, 3.5, 3.4]), "test": ([1, 3], [4.1, 3.5])}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = save_curves(f"{folder}/curves.png", curves, "epoch", "bits/dim")
    ...     path.name, path.exists()
    ('curves.png', True)

    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise _missing("matplotlib") from error

    if not curves:
        raise ValueError("Expected at least one curve, got none.")
    figure = Figure(figsize=(7, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlabel=xlabel, ylabel=ylabel)
    axes.grid(alpha=0.3)
    for name, (x, y) in curves.items():
        if np.ndim(x) != 1 or np.shape(x) != np.shape(y):
            raise ValueError(
                f"Expected x and y of curve {name!r} to be vectors of equal length, got shapes "
                f"{np.shape(x)} and {np.shape(y)}."
            )
        # A lone point is invisible without a marker.
        axes.plot(x, y, label=name, marker="o" if len(x) == 1 else None)
    axes.legend()
    with atomic_write(path) as (file, path):
        figure.savefig(file, format="png")
    return path


def _missing(package: str) -> ImportError:
    return ImportError(
        f'{package} is not installed. Install it with `pip install "tfp_realnvp[examples]"`.'
    )

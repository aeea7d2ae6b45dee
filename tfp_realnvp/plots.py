"""Image grids, heat maps, training curves and tables; PNG files are written atomically."""

import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from tfp_realnvp.internal import frames, validation
from tfp_realnvp.internal.atomic_files import atomic_write
from tfp_realnvp.internal.optional_packages import missing_package

__all__ = [
    "heat_map",
    "image_grid",
    "pairs",
    "save_curves",
    "save_image_grid",
    "save_labelled_grid",
]

_MIN_TILE_SIZE = 64  # output pixels; smaller images are enlarged to about this size
_BACKGROUND = 255
_MAX_PANELS = 8  # in a row of a figure
_MAX_POINTS = 1_000  # in a panel
_NUM_LOWEST = 5  # rows of the lowest density to mark
_MARGIN = 0.15  # of panels, as a part of the range of rows


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


def pairs(
    density: Any,
    X: Any,
    columns: Sequence[Any] | None = None,
    num_lowest: int | None = None,
) -> Any:
    """Draws columns of a table against each other, beside samples of a density of its rows.

    Panels below the diagonal show rows and samples of two columns, those on the diagonal the
    histograms of one. There are as many samples as rows: where the density is right, both look
    alike. The rows of the lowest density are circled, and the legend names them, the lowest first.

    Panels end a little outside of the rows, and the legend says how many samples are farther away.
    Of more than 1,000 rows, panels show 1,000, evenly spaced, and those of the lowest density.
    Histograms are of all rows: the share of each bin.

    Args:
      density: a `tfr.FlowDensity`, a `GaussianMixture` or `KernelDensity` of scikit-learn, a
        distribution of TFP, or another object with a method `sample(n)` that returns rows [n, D],
        alone or as the first of a tuple.
      X: finite rows [N, D]. Columns and index of a `DataFrame` are names of columns and rows.
      columns: at most 8 columns to draw: names of a `DataFrame`, or positions in an array. By
        default all columns.
      num_lowest: number of rows of the lowest density to circle, which are those of the lowest
        `density.score_samples(X)`. By default 5, or 0 for a density without this method.

    Returns:
      A Matplotlib `Figure` that is not registered with pyplot. Notebooks show it, and
      `figure.savefig('pairs.png')` writes a file.

    Raises:
      ValueError: if there are more than 8 columns to draw, a column does not exist or comes twice,
        rows are not as above, or samples do not have the columns of the rows.
      TypeError: if the density has no method `sample`, or no `score_samples` for `num_lowest`.
      ImportError: if matplotlib is not installed.

    #### Example

    >>> from sklearn.datasets import load_iris
    >>> from sklearn.mixture import GaussianMixture
    >>> from tfp_realnvp import plots
    >>> rows = load_iris(as_frame=True).data
    >>> mixture = GaussianMixture(3, random_state=0).fit(rows)
    >>> figure = plots.pairs(mixture, rows, columns=["petal length (cm)", "petal width (cm)"])
    >>> [axes.get_xlabel() for axes in figure.axes]
    ['', 'petal length (cm)', 'petal width (cm)']

    """
    is_scored = hasattr(density, "score_samples")
    if not hasattr(density, "sample"):
        raise TypeError(
            "pairs: expected a density with a method sample(n), got "
            f"{type(density).__name__}. Of a FlowModel that is model.distribution. Of a Pipeline "
            "it is pipeline[-1], for the rows pipeline[:-1].transform(X)."
        )
    if num_lowest is None:
        num_lowest = _NUM_LOWEST if is_scored else 0
    num_lowest = validation.integer(num_lowest, 0, "pairs: expected num_lowest of at least 0")
    if num_lowest and not is_scored:
        raise TypeError(
            "pairs: expected a density with a method score_samples(X), got "
            f"{type(density).__name__}. Without one call pairs(..., num_lowest=0)."
        )
    rows, names, row_names, positions = _table(X, columns)
    shown = np.unique(np.linspace(0, len(rows) - 1, _MAX_POINTS).astype(int))
    lowest = np.argsort(density.score_samples(X))[:num_lowest] if num_lowest else np.array([], int)
    samples = density.sample(len(shown))
    samples = np.asarray(samples[0] if isinstance(samples, tuple) else samples, np.float64)
    if samples.shape != (len(shown), np.shape(X)[1]):
        raise ValueError(
            f"pairs: expected samples of the shape {(len(shown), np.shape(X)[1])}, as the rows, "
            f"got {samples.shape}."
        )
    samples = samples[:, positions]

    low, high = rows.min(axis=0), rows.max(axis=0)
    margin = np.where(high > low, _MARGIN * (high - low), 0.5)
    limits = np.stack([low - margin, high + margin], axis=1)
    is_inside = ((samples >= limits[:, 0]) & (samples <= limits[:, 1])).all(axis=1)
    num_bins = int(np.clip(np.sqrt(len(shown)), 10, 40))

    rows_label = "rows" if len(shown) == len(rows) else f"{len(shown):,} of {len(rows):,} rows"
    num_outside = np.count_nonzero(~is_inside)
    samples_label = f"samples, {num_outside:,} outside" if num_outside else "samples"
    listed = ", ".join(str(row_names[row]) for row in lowest[:_NUM_LOWEST])
    lowest_label = f"lowest density: {listed}{', …' if num_lowest > _NUM_LOWEST else ''}"

    size = max(4, 1.7 * len(names))  # inches
    figure = _new_figure((size, size + 0.5), dpi=100)
    panels = figure.subplots(len(names), len(names), squeeze=False)
    for i, j in np.ndindex(panels.shape):
        axes = panels[i, j]
        if j > i:
            axes.remove()
            continue
        axes.set_xlim(limits[j])
        axes.tick_params(labelsize=7, labelbottom=i == len(names) - 1, labelleft=j == 0)
        if i == len(names) - 1:
            axes.set_xlabel(names[j], fontsize=8)
        if i == j:
            edges = np.linspace(limits[i, 0], limits[i, 1], num_bins + 1)
            for values, options in (
                (rows[:, i], {"color": "C0", "alpha": 0.4, "label": rows_label}),
                (samples[:, i], {"color": "C1", "histtype": "step", "label": samples_label}),
            ):
                shares = np.full(len(values), 1 / len(values))
                axes.hist(values, edges, weights=shares, **options)
            axes.set_yticks([])
            continue
        axes.set_ylim(limits[i])
        if j == 0:
            axes.set_ylabel(names[i], fontsize=8)
        points = {"linestyle": "", "marker": "o", "markersize": 3, "markeredgewidth": 0}
        axes.plot(*samples.T[[j, i]], color="C1", alpha=0.6, label=samples_label, **points)
        axes.plot(*rows[shown].T[[j, i]], color="C0", alpha=0.6, label=rows_label, **points)
        if num_lowest:
            axes.plot(*rows[lowest].T[[j, i]], "o", mfc="none", mec="C3", label=lowest_label)
    figure.legend(*panels[-1, 0].get_legend_handles_labels(), loc="outside upper left", fontsize=8)
    return figure


def _table(X: Any, columns: Sequence[Any] | None) -> tuple[np.ndarray, list[str], Any, list[int]]:
    """Returns the columns to draw [N, d], their names, names of rows, and columns' positions."""
    is_frame = frames.is_frame(X)
    table: Any = X if is_frame else np.asarray(X)
    if table.ndim != 2:
        raise ValueError(f"pairs: expected rows [N, D], got the shape {table.shape}.")
    known = list(X.columns) if is_frame else list(range(table.shape[1]))
    chosen = known if columns is None else list(columns)
    unknown = [name for name in chosen if name not in known]
    if isinstance(columns, str) or unknown or len(set(chosen)) < len(chosen) or not chosen:
        raise ValueError(
            f"pairs: expected a list of different columns out of {known}, got {columns!r}."
        )
    if len(chosen) > _MAX_PANELS:
        raise ValueError(
            f"pairs: expected at most {_MAX_PANELS} columns, got {len(chosen)}. Choose those to "
            f"draw: pairs(density, X, columns={chosen[:4]})."
        )
    positions = [known.index(name) for name in chosen]
    if is_frame:
        rows = table.iloc[:, positions].to_numpy(np.float64, na_value=np.nan)
    else:
        rows = table[:, positions].astype(np.float64)
    if not len(rows) or not np.isfinite(rows).all():
        raise ValueError(
            f"pairs: expected finite rows, got {len(rows):,} rows of which "
            f"{np.count_nonzero(~np.isfinite(rows).all(axis=1)):,} are not finite."
        )
    names = [str(name) if is_frame else f"column {name}" for name in chosen]
    return rows, names, X.index if is_frame else range(len(rows)), positions


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

"""Scatter plots of table columns in pairs."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tfp_realnvp.internal import validation
from tfp_realnvp.plots.figures import new_figure

_MAX_PANELS = 8  # panels in a row of a figure
_MAX_POINTS = 1_000  # points in a panel
_NUM_LOWEST = 5  # number of rows of lowest density to mark
_MARGIN = 0.15  # margin of a panel, relative to the range of rows
_JITTER = 0.25  # largest noise on the integer codes of categories


def pairs(
    density: Any, X: Any, columns: Sequence[Any] | None = None, num_lowest: int | None = None
) -> Any:
    """Draws scatter plots of pairs of columns, for the rows of a table and samples of a density.

    Panels on the diagonal show histograms of one column. If the density is right, the rows and an
    equal number of samples look alike. Circles mark the rows of lowest density; the legend lists
    them, the lowest first.

    Panels show the rows of lowest density, and at most 1,000 rows at evenly spaced positions in the
    table. The axes extend slightly beyond the range of the rows; the legend counts the samples
    outside of the axes. Histograms show the fraction of all rows in each bin. Non-numeric values
    are treated as categories and jittered. Panels omit rows with missing cells.

    Args:
      density: a `tfr.FlowDensity`, a `GaussianMixture` or `KernelDensity` of scikit-learn, a
        distribution of TFP, or another object whose `sample(n)` returns rows [n, D] or a tuple with
        rows as its first element.
      X: rows [N, D] of finite numbers and categories, with NaN or `None` in missing cells. A
        `DataFrame` gives columns and rows their names.
      columns: at most 8 columns to draw: names in a `DataFrame`, or positions in an array. Defaults
        to all columns.
      num_lowest: number of rows to circle, with the lowest `density.score_samples(X)`. Defaults to
        5, or to 0 for a density without `score_samples`.

    Returns:
      A Matplotlib `Figure` that is not registered with pyplot. Notebooks show the figure, and
      `figure.savefig('pairs.png')` writes a file.

    Raises:
      TypeError, ValueError: if an argument is invalid, or samples have other columns.
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
    if not hasattr(density, "sample"):
        raise TypeError(
            "pairs: expected a density with a method sample(n), got "
            f"{type(density).__name__}. For a FlowModel, pass model.distribution. For a Pipeline, "
            "pass pipeline[-1] and the rows pipeline[:-1].transform(X)."
        )
    if num_lowest is None:
        num_lowest = _NUM_LOWEST if hasattr(density, "score_samples") else 0
    chosen, names = _chosen(X, columns)
    row_names = X.index if hasattr(X, "iloc") else range(len(X))
    shown = np.unique(np.linspace(0, len(X) - 1, _MAX_POINTS).astype(int))
    lowest = np.argsort(density.score_samples(X))[:num_lowest] if num_lowest else np.array([], int)
    samples = density.sample(len(shown))
    samples = samples[0] if isinstance(samples, tuple) else samples
    shape = len(shown), np.shape(X)[1]
    expected = f"pairs: expected samples of shape {shape}, like the rows"
    validation.require(np.shape(samples) == shape, expected, np.shape(samples))
    pairs_of_columns = [_numbers(_column(X, i), _column(samples, i)) for i in chosen]
    rows, samples, categories = zip(*pairs_of_columns, strict=True)
    rows, samples = np.stack(rows, axis=1), np.stack(samples, axis=1)
    expected = "pairs: expected finite rows with a known cell in each column"
    is_valid = np.isfinite(rows).any(axis=0).all() and not np.isinf(rows).any()
    validation.require(bool(is_valid), expected, f"{len(rows):,} rows")

    low, high = np.nanmin(rows, axis=0), np.nanmax(rows, axis=0)
    margin = np.where(high > low, _MARGIN * (high - low), 0.5)
    noise = np.random.default_rng(0).uniform(-_JITTER, _JITTER, [2, max(map(len, (rows, samples)))])
    for i in (i for i, names_of in enumerate(categories) if names_of):
        low[i], high[i], margin[i] = 0, len(categories[i]) - 1, 0.5
        rows[:, i] += noise[0, : len(rows)]
        samples[:, i] += noise[1, : len(samples)]
    limits = np.stack([low - margin, high + margin], axis=1)
    is_inside = ((samples >= limits[:, 0]) & (samples <= limits[:, 1])).all(axis=1)
    num_bins = int(np.clip(np.sqrt(len(shown)), 10, 40))

    rows_label = "rows" if len(shown) == len(rows) else f"{len(shown):,} of {len(rows):,} rows"
    num_outside = np.count_nonzero(~is_inside)
    samples_label = f"samples, {num_outside:,} outside" if num_outside else "samples"
    listed = ", ".join(str(row_names[row]) for row in lowest[:_NUM_LOWEST])
    lowest_label = f"lowest density: {listed}{', …' if num_lowest > _NUM_LOWEST else ''}"

    size = max(4, 1.7 * len(names))  # inches
    figure = new_figure((size, size + 0.5), dpi=100)
    panels = figure.subplots(len(names), len(names), squeeze=False)
    points = {"linestyle": "", "marker": "o", "markersize": 3, "markeredgewidth": 0, "alpha": 0.6}
    for axes in panels[np.triu_indices(len(names), 1)]:
        axes.remove()
    for i, j in zip(*np.tril_indices(len(names)), strict=True):
        axes = panels[i, j]
        is_last = i == len(names) - 1
        axes.set_xlim(limits[j])
        axes.tick_params(labelsize=7, labelbottom=is_last, labelleft=j == 0)
        axes.set_xlabel(names[j] if is_last else "", fontsize=8)
        if categories[j]:
            axes.set_xticks(range(len(categories[j])), categories[j], rotation=90)
        if i == j:
            number = len(categories[i]) or num_bins
            edges = np.linspace(limits[i, 0], limits[i, 1], number + 1)
            for values, options in (
                (rows[:, i], {"color": "C0", "alpha": 0.4, "label": rows_label}),
                (samples[:, i], {"color": "C1", "histtype": "step", "label": samples_label}),
            ):
                values = values[np.isfinite(values)]
                shares = np.full(len(values), 1 / max(len(values), 1))
                axes.hist(values, edges, weights=shares, **options)
            axes.set_yticks([])
            continue
        axes.set_ylim(limits[i])
        if categories[i]:
            axes.set_yticks(range(len(categories[i])), categories[i])
        axes.set_ylabel(names[i] if j == 0 else "", fontsize=8)
        axes.plot(*samples.T[[j, i]], color="C1", label=samples_label, **points)
        axes.plot(*rows[shown].T[[j, i]], color="C0", label=rows_label, **points)
        if num_lowest:
            axes.plot(*rows[lowest].T[[j, i]], "o", mfc="none", mec="C3", label=lowest_label)
    figure.legend(*panels[-1, 0].get_legend_handles_labels(), loc="outside upper left", fontsize=8)
    return figure


def _chosen(X: Any, columns: Sequence[Any] | None) -> tuple[list[int], list[str]]:
    """Returns the positions of the columns to draw, and their names."""
    shape = np.shape(X)
    validation.require(len(shape) == 2 and shape[0] > 0, "pairs: expected rows [N, D]", shape)
    is_frame = hasattr(X, "iloc")
    known = list(X.columns) if is_frame else list(range(shape[1]))
    chosen = known if columns is None else list(columns)
    is_unknown = isinstance(columns, str) or not set(chosen) <= set(known)
    is_list = not is_unknown and len(set(chosen)) == len(chosen) > 0
    expected = f"pairs: expected a list of different columns out of {known}"
    validation.require(is_list, expected, columns)
    expected = f"pairs: expected at most {_MAX_PANELS} columns, for example columns={chosen[:4]}"
    validation.require(len(chosen) <= _MAX_PANELS, expected, len(chosen))
    names = [str(name) if is_frame else f"column {name}" for name in chosen]
    return [known.index(name) for name in chosen], names


def _column(table: Any, i: int) -> np.ndarray:
    """Returns a column of a table; NaN replaces `None` and other missing cells."""
    if hasattr(table, "iloc"):
        return table.iloc[:, i].to_numpy(object, na_value=np.nan)
    cells = np.asarray(table)[:, i]
    if cells.dtype.kind == "O":
        cells = np.array([np.nan if c is None else c for c in cells], object)
    return cells


def _numbers(rows: np.ndarray, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Converts a column of rows, and of samples, to numbers; categories become integer codes."""
    try:
        return rows.astype(np.float64), samples.astype(np.float64), []
    except (TypeError, ValueError):
        known = {cell for cell in (*rows.tolist(), *samples.tolist()) if cell == cell}
        codes = {cell: float(code) for code, cell in enumerate(sorted(known, key=str))}
        rows, samples = (
            np.array([codes.get(cell, np.nan) for cell in column.tolist()])
            for column in (rows, samples)
        )
        return rows, samples, [str(cell) for cell in codes]

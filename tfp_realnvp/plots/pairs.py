"""Columns of a table against each other."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tfp_realnvp.internal import data_frames, validation
from tfp_realnvp.plots.figures import new_figure

__all__ = ["pairs"]

_MAX_PANELS = 8  # in a row of a figure
_MAX_POINTS = 1_000  # in a panel
_NUM_LOWEST = 5  # rows of the lowest density to mark
_MARGIN = 0.15  # of panels, as a part of the range of rows


def pairs(
    density: Any,
    X: Any,
    columns: Sequence[Any] | None = None,
    num_lowest: int | None = None,
) -> Any:
    """Draws columns of a table against each other, with samples of a density of its rows.

    Panels below the diagonal show rows and samples of two columns, panels on the diagonal
    histograms of one column. Rows and as many samples look alike if the density is right. The rows
    of the lowest density are circled and named in the legend, the lowest first.

    Panels show at most 1,000 rows, evenly spaced, and the rows of the lowest density. They end a
    little outside of the rows; the legend says how many samples are farther away. Histograms show
    the share of all rows in each bin.

    Args:
      density: a `tfr.FlowDensity`, a `GaussianMixture` or `KernelDensity` of scikit-learn, a
        distribution of TFP, or another object whose `sample(n)` returns rows [n, D] or a tuple that
        starts with them.
      X: finite rows [N, D]. A `DataFrame` gives columns and rows their names.
      columns: at most 8 columns to draw: names of a `DataFrame`, or positions in an array; all by
        default.
      num_lowest: number of rows to circle, with the lowest `density.score_samples(X)`. Defaults to
        5, or to 0 for a density without this method.

    Returns:
      A Matplotlib `Figure` that is not registered with pyplot. Notebooks show it, and
      `figure.savefig('pairs.png')` writes a file.

    Raises:
      TypeError, ValueError: if an argument is not as above, or samples do not have the columns of
        the rows.
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
    rows, names, row_names, positions = _table(X, columns)
    shown = np.unique(np.linspace(0, len(rows) - 1, _MAX_POINTS).astype(int))
    lowest = np.argsort(density.score_samples(X))[:num_lowest] if num_lowest else np.array([], int)
    samples = density.sample(len(shown))
    samples = np.asarray(samples[0] if isinstance(samples, tuple) else samples, np.float64)
    shape = len(shown), np.shape(X)[1]
    expected = f"pairs: expected samples of the shape {shape}, as the rows"
    validation.require(samples.shape == shape, expected, samples.shape)
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
    figure = new_figure((size, size + 0.5), dpi=100)
    panels = figure.subplots(len(names), len(names), squeeze=False)
    points = {"linestyle": "", "marker": "o", "markersize": 3, "markeredgewidth": 0, "alpha": 0.6}
    for i, j in np.ndindex(panels.shape):
        axes = panels[i, j]
        if j > i:
            axes.remove()
            continue
        is_last = i == len(names) - 1
        axes.set_xlim(limits[j])
        axes.tick_params(labelsize=7, labelbottom=is_last, labelleft=j == 0)
        axes.set_xlabel(names[j] if is_last else "", fontsize=8)
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
        axes.set_ylabel(names[i] if j == 0 else "", fontsize=8)
        axes.plot(*samples.T[[j, i]], color="C1", label=samples_label, **points)
        axes.plot(*rows[shown].T[[j, i]], color="C0", label=rows_label, **points)
        if num_lowest:
            axes.plot(*rows[lowest].T[[j, i]], "o", mfc="none", mec="C3", label=lowest_label)
    figure.legend(*panels[-1, 0].get_legend_handles_labels(), loc="outside upper left", fontsize=8)
    return figure


def _table(X: Any, columns: Sequence[Any] | None) -> tuple[np.ndarray, list[str], Any, list[int]]:
    """Returns the columns to draw [N, d], their names, names of rows, and columns' positions."""
    is_frame = data_frames.is_frame(X)
    rows = X.to_numpy(np.float64, na_value=np.nan) if is_frame else np.asarray(X, np.float64)
    validation.require(rows.ndim == 2, "pairs: expected rows [N, D]", rows.shape)
    known = list(X.columns) if is_frame else list(range(rows.shape[1]))
    chosen = known if columns is None else list(columns)
    is_unknown = isinstance(columns, str) or not set(chosen) <= set(known)
    is_list = not is_unknown and len(set(chosen)) == len(chosen) > 0
    expected = f"pairs: expected a list of different columns out of {known}"
    validation.require(is_list, expected, columns)
    expected = f"pairs: expected at most {_MAX_PANELS} columns, for example columns={chosen[:4]}"
    validation.require(len(chosen) <= _MAX_PANELS, expected, len(chosen))
    positions = [known.index(name) for name in chosen]
    rows = rows[:, positions]
    if not len(rows) or not np.isfinite(rows).all():
        raise ValueError(
            f"pairs: expected finite rows, got {len(rows):,} rows of which "
            f"{np.count_nonzero(~np.isfinite(rows).all(axis=1)):,} are not finite."
        )
    names = [str(name) if is_frame else f"column {name}" for name in chosen]
    return rows, names, X.index if is_frame else range(len(rows)), positions

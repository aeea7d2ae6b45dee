"""Training curves."""

import os
import pathlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from tfp_realnvp.plots.figures import new_figure, save_figure

__all__ = ["save_curves"]


def save_curves(
    path: str | os.PathLike[str],
    curves: Mapping[str, tuple[ArrayLike, ArrayLike]],
    xlabel: str,
    ylabel: str,
) -> pathlib.Path:
    """Plots named curves to a PNG file, and returns its path; Matplotlib's state is unchanged.

    Args:
      path: path of the file. Missing folders are created.
      curves: a dictionary from names in the legend to pairs `(x, y)` of sequences of equal length.
      xlabel, ylabel: labels of the axes, with units.

    Raises:
      ValueError: if there is no curve, or `x` and `y` of a curve are not vectors of equal length.
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
    figure = new_figure((7, 4.5), dpi=120)
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
    return save_figure(figure, path)

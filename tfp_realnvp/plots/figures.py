"""Plots training curves; creates figures that leave Matplotlib's global state unchanged."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from tfp_realnvp.internal import atomic_files, optional_packages, validation


def matplotlib_module(name: str) -> Any:
    """Returns a module of Matplotlib; raises `ImportError` with the command that installs it."""
    return optional_packages.load(f"matplotlib.{name}", "A figure", "matplotlib")


def new_figure(size: tuple[float, float], dpi: int) -> Any:
    """Returns a Matplotlib figure of `size` inches that is not registered with pyplot."""
    return matplotlib_module("figure").Figure(figsize=size, dpi=dpi, layout="constrained")


def save_figure(figure: Any, path: str | os.PathLike[str], **options: Any) -> pathlib.Path:
    """Writes a figure to a PNG file, with options of `savefig`, and returns its path."""
    with atomic_files.atomic_replace(path) as new:
        figure.savefig(new, format="png", **options)
    return pathlib.Path(path)


def save_curves(
    path: str | os.PathLike[str],
    curves: Mapping[str, tuple[ArrayLike, ArrayLike]],
    xlabel: str = "",
    ylabel: str = "",
) -> pathlib.Path:
    """Plots named curves to a PNG file, and returns its path; Matplotlib's state is unchanged.

    Args:
      path: path of the file. Missing folders are created.
      curves: maps names in the legend to pairs `(x, y)` of sequences of equal length.
      xlabel, ylabel: labels of the axes, with units.

    Raises:
      TypeError: if `curves` is not such a mapping.
      ImportError: if matplotlib is not installed.

    #### Example

    >>> import tempfile
    >>> from tfp_realnvp import plots
    >>> curves = {"train": ([1, 2, 3], [4.0, 3.5, 3.4]), "test": ([1, 3], [4.1, 3.5])}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     plots.save_curves(f"{folder}/curves.png", curves, "epoch", "bits/dim").name
    'curves.png'
    """
    expected = "save_curves: expected a dictionary of curves (save_history plots a Keras History)"
    validation.require(isinstance(curves, Mapping), expected, curves, TypeError)
    figure = new_figure((7, 4.5), dpi=120)
    axes = figure.add_subplot(xlabel=xlabel, ylabel=ylabel)
    axes.grid(alpha=0.3)
    for name, (x, y) in curves.items():
        # A single point is invisible without a marker.
        axes.plot(x, y, label=name, marker="o" if np.size(x) == 1 else None)
    axes.legend()
    return save_figure(figure, path)


def save_history(
    path: str | os.PathLike[str], history: Any, metric: str | None = None
) -> pathlib.Path:
    """Plots a metric of a Keras `History` over epochs, for training and validation data.

    Args:
      path: path of the PNG file, which is returned. Missing folders are created.
      history: what `fit` returns, or its dictionary `history.history`. The dictionary lacks epochs:
        the first epoch is then 1, and `validation_freq` the largest that fits.
      metric: name of the metric; by default `'bits_per_dim'` if there is one, else `'loss'`.

    Raises:
      ValueError: if the history has no such metric.
      ImportError: if matplotlib is not installed.

    #### Example

    >>> import tempfile
    >>> from tfp_realnvp import plots
    >>> history = {"loss": [9.0, 8.5, 8.3, 8.2], "val_loss": [8.8, 8.4]}   # validation_freq=2
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     plots.save_history(f"{folder}/history.png", history).name
    'history.png'
    """
    logs = getattr(history, "history", history)
    metric = metric or ("bits_per_dim" if "bits_per_dim" in logs else "loss")
    validation.choice(metric, (*logs,), "save_history: expected a metric")
    epochs = np.asarray(getattr(history, "epoch", range(len(logs[metric])))) + 1
    curves = {"training": (epochs, logs[metric])}
    if validations := logs.get(f"val_{metric}"):
        frequency = len(epochs) // len(validations)
        frequency = getattr(history, "params", {}).get("validation_freq", frequency)
        is_int = isinstance(frequency, int)
        is_validated = epochs % frequency == 0 if is_int else np.isin(epochs, list(frequency))
        curves["validation"] = epochs[is_validated], validations
    units = {"bits_per_dim": "bits/dim", "loss": "nats"}
    return save_curves(path, curves, "epoch", units.get(metric, metric))

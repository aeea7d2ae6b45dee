"""Figures that leave the global state of Matplotlib as it is."""

import os
import pathlib
from typing import Any

from tfp_realnvp.internal.atomic_files import atomic_replace
from tfp_realnvp.internal.optional_packages import missing_package

__all__ = ["new_figure", "save_figure"]


def new_figure(size: tuple[float, float], dpi: int) -> Any:
    """Returns a Matplotlib figure of `size` inches that is not registered with pyplot."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise missing_package("A figure", "matplotlib") from error
    figure = Figure(figsize=size, dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Any, path: str | os.PathLike[str], **options: Any) -> pathlib.Path:
    """Writes a figure to a PNG file, with options of `savefig`, and returns its path."""
    with atomic_replace(path) as new:
        figure.savefig(new, format="png", **options)
    return pathlib.Path(path)

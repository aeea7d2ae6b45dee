"""Image grids, heat maps, training curves and tables; PNG files are written atomically."""

from tfp_realnvp.plots.figures import save_curves, save_history
from tfp_realnvp.plots.image_grid import (
    draw_grid,
    heat_map,
    image_grid,
    save_image_grid,
    save_labelled_grid,
)
from tfp_realnvp.plots.pairs import pairs

__all__ = [
    "draw_grid",
    "heat_map",
    "image_grid",
    "pairs",
    "save_curves",
    "save_history",
    "save_image_grid",
    "save_labelled_grid",
]

"""Scores of positions, drawn over images."""

import numpy as np
from numpy.typing import ArrayLike

from tfp_realnvp.plots.image_grid import image_grid

__all__ = ["heat_map"]


def heat_map(
    images: np.ndarray,
    scores: ArrayLike,
    low: float | None = None,
    high: float | None = None,
    num_values: int = 256,
) -> np.ndarray:
    """Draws scores of positions over images: red to yellow for high scores, gray for low scores.

    Args:
      images: `[N, H, W, C]`, as in `image_grid`.
      scores: finite scores `[N, h, w]`, for example `-tfr.log_prob_map(model, images)`. `h` and `w`
        divide `H` and `W`: each score covers a block of pixels.
      low: scores up to `low` leave the image as it is; by default the lowest score.
      high: scores from `high` on are yellow; by default the highest score.
      num_values: as in `image_grid`.

    Returns:
      `uint8` array of shape `[N, H, W, 3]`, for `image_grid` or an image file.

    Raises:
      ValueError: if `images` is invalid for `image_grid`, `scores` have another shape or are not
        finite, or `low` is not below `high`.

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

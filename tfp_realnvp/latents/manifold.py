"""The manifold spanned by four images or vectors."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from tfp_realnvp.internal import validation
from tfp_realnvp.latents.codec import Flow, bijector_of, condition_of, decode, encode
from tfp_realnvp.latents.conditions import as_vectors

__all__ = ["manifold"]


def manifold(
    flow: Flow,
    four_images: ArrayLike,
    num_angles: int = 8,
    *,
    conditional_input: ArrayLike | None = None,
) -> np.ndarray:
    r"""Decodes a torus of latents that contains the latents of four images (equation 19).

    With the latents z₁ … z₄ of the images, and equally spaced angles φ (rows) and φ′ (columns) in
    [0, 2π),

    ```
    z = cos φ (cos φ′ z₁ + sin φ′ z₂) + sin φ (cos φ′ z₃ + sin φ′ z₄)
    ```

    If `num_angles` n is a multiple of 4, the images themselves are at (0, 0), (0, n/4), (n/4, 0)
    and (n/4, n/4). For each pair of angles, the combination of four independent standard normal
    latents is standard normal: the squares of its weights add up to one. The conditions of the four
    images are averaged with these squares as weights, labels as one-hot vectors.

    #### Example

    >>> import numpy as np, tfp_realnvp as tfr
    >>> from tfp_realnvp import latents
    >>> flow = tfr.RealNVPImage((4, 4, 1), num_scales=1, num_blocks=0, num_filters=4)
    >>> images = np.random.default_rng(0).integers(0, 256, [4, 4, 4, 1], dtype=np.uint8)
    >>> latents.manifold(flow, images, num_angles=4).shape
    (4, 4, 4, 4, 1)

    #### References

    Dinh, Sohl-Dickstein, Bengio: Density estimation using Real NVP, section 4.2, equation 19.

    Args:
      flow: as in `encode`.
      four_images: images [4, H, W, C] or vectors [4, D], as in `encode`.
      num_angles: number of values of each angle.
      conditional_input: the conditions of the images, or one for all, as in `encode`.

    Returns:
      Continuous pixel values, [num_angles, num_angles, H, W, C]; or vectors.

    Raises:
      TypeError: see `encode`.
      ValueError: if the number of images or conditions is not four, if there are no angles, or if a
        condition is missing; see also `encode`.
    """
    shape, event_ndims = np.shape(four_images), bijector_of(flow).event_ndims
    if len(shape) != 1 + event_ndims or shape[0] != 4:
        axes = {3: "images [4, height, width, channels]", 1: "vectors [4, size]"}
        raise ValueError(f"manifold: expected four {axes[event_ndims]}, got shape {shape}.")
    num_angles = validation.integer(num_angles, 1, "manifold: expected num_angles of at least 1")
    latents = encode(flow, four_images, conditional_input=conditional_input)
    if latents.shape != shape:
        raise ValueError(
            f"manifold: expected four conditions, or one, got {latents.shape[:-event_ndims]} "
            "latents."
        )
    angles = 2 * np.pi * np.arange(num_angles) / num_angles
    circle = np.stack([np.cos(angles), np.sin(angles)])
    conditions = None
    if condition_of(flow, conditional_input) is not None:
        conditions = as_vectors(flow, conditional_input)
        four = np.broadcast_to(conditions.values, (4, *conditions.event_shape))
        conditions = _combined(four, circle**2)
    return decode(flow, _combined(latents, circle), conditional_input=conditions)


def _combined(corners: np.ndarray, circle: np.ndarray) -> np.ndarray:
    """Returns combinations [R, R, ...] of [4, ...], by products of weights [2, R]."""
    corners = corners.reshape(2, 2, *corners.shape[1:])
    return np.einsum("ir,jc,ij...->rc...", circle, circle, corners)

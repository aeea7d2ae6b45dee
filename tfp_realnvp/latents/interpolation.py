"""Interpolation between images or vectors."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from tfp_realnvp.internal import validation
from tfp_realnvp.latents.codec import Flow, bijector_of, decode, encode, with_axis
from tfp_realnvp.latents.conditions import linear_steps

__all__ = ["interpolate"]


def interpolate(
    flow: Flow,
    first: ArrayLike,
    second: ArrayLike,
    num_steps: int = 8,
    *,
    spherical: bool = True,
    conditional_input: ArrayLike | None = None,
    second_conditional_input: ArrayLike | None = None,
) -> np.ndarray:
    r"""Decodes latents on a path between the latents of two images or vectors.

    With the latents z₁ and z₂, the angle ω between them, and t from 0 to 1 in equal steps,

    ```
    spherical:  z = (sin((1 - t) ω) z₁ + sin(t ω) z₂) / sin ω
    linear:     z = (1 - t) z₁ + t z₂
    ```

    Standard normal vectors of many dimensions are close to a sphere. Spherical interpolation stays
    near it. Linear interpolation passes through its interior, where samples do not lie.

    With a `second_conditional_input`, conditions are interpolated linearly with the same t, as in
    `interpolate_conditions`.

    #### Example

    >>> import numpy as np, tfp_realnvp as tfr
    >>> from tfp_realnvp import latents
    >>> flow = tfr.RealNVPImage((4, 4, 1), num_scales=1, num_blocks=0, num_filters=4)
    >>> first, second = np.random.default_rng(0).integers(0, 256, [2, 4, 4, 1], dtype=np.uint8)
    >>> latents.interpolate(flow, first, second, num_steps=5).shape
    (5, 4, 4, 1)

    #### References

    Shoemake: Animating rotation with quaternion curves (SIGGRAPH 1985), section 3.3.
    White: Sampling generative networks (2016), section 2.1.

    Args:
      flow: as in `encode`.
      first: images [..., H, W, C] or vectors [..., D], as in `encode`.
      second: images or vectors of the same shape.
      num_steps: number of interpolated images or vectors, including both ends.
      spherical: whether to interpolate latents spherically or linearly.
      conditional_input: the condition of `first`, as in `encode`; by default also of `second`.
      second_conditional_input: the condition of `second`.

    Returns:
      Continuous pixel values, [..., num_steps, H, W, C]; or vectors [..., num_steps, D].

    Raises:
      TypeError: see `encode`.
      ValueError: if the shapes differ, if there are fewer than two steps, or if one of two
        conditions is missing; see also `encode`.
    """
    if np.shape(first) != np.shape(second):
        raise ValueError(
            f"interpolate: expected two events of the same shape, got {np.shape(first)} and "
            f"{np.shape(second)}."
        )
    num_steps = validation.integer(num_steps, 2, "interpolate: expected num_steps of at least 2")
    steps = last = conditional_input
    if second_conditional_input is None:
        steps = with_axis(flow, conditional_input)
    else:
        last = second_conditional_input
        steps = linear_steps(flow, conditional_input, last, num_steps)
    event_ndims = bijector_of(flow).event_ndims
    z1, z2 = (
        np.expand_dims(encode(flow, event, conditional_input=condition), -1 - event_ndims)
        for event, condition in ((first, conditional_input), (second, last))
    )
    t = np.linspace(0, 1, num_steps).reshape(num_steps, *[1] * event_ndims)
    latents = _spherical(z1, z2, t, event_ndims) if spherical else (1 - t) * z1 + t * z2
    return decode(flow, latents, conditional_input=steps)


def _spherical(z1: np.ndarray, z2: np.ndarray, t: np.ndarray, event_ndims: int) -> np.ndarray:
    event = tuple(range(-event_ndims, 0))
    z1, z2 = z1.astype(np.float64), z2.astype(np.float64)
    norms = np.sqrt(np.sum(z1**2, event, keepdims=True) * np.sum(z2**2, event, keepdims=True))
    cosine = np.sum(z1 * z2, event, keepdims=True) / np.maximum(norms, np.finfo(norms.dtype).tiny)
    angle = np.arccos(np.clip(cosine, -1, 1))
    # Parallel latents, or latents at zero, have no unique arc between them.
    has_arc = np.sin(angle) > 1e-6
    angle = np.where(has_arc, angle, np.pi / 2)
    on_arc = (np.sin((1 - t) * angle) * z1 + np.sin(t * angle) * z2) / np.sin(angle)
    return np.where(has_arc, on_arc, (1 - t) * z1 + t * z2)

"""Decodes latents between and beyond the latents of events, or changes their conditions."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike

from tfp_realnvp.bijectors import ConditionalBijector, FlowChain
from tfp_realnvp.internal import validation
from tfp_realnvp.latents.codec import (
    ConditionArray,
    Flow,
    bijector_of,
    condition_of,
    decode,
    decoded,
    encode,
    with_axis,
)

__all__ = ["interpolate", "interpolate_conditions", "manifold", "swap_condition"]


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
    near it; linear interpolation passes through its interior, where samples do not lie. A
    `second_conditional_input` makes embedded conditions change linearly with t, as in
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
      first, second: images [..., H, W, C] or vectors [..., D] of one shape, as in `encode`.
      num_steps: number of images or vectors, including both ends.
      spherical: whether to interpolate latents spherically or linearly.
      conditional_input, second_conditional_input: the conditions of `first` and `second`, as in
        `encode`. `second` has the condition of `first` by default.

    Returns:
      Continuous pixel values, [..., num_steps, H, W, C]; or vectors [..., num_steps, D].

    Raises:
      TypeError: see `encode`.
      ValueError: if the shapes differ, or `num_steps` is below 2; see also `encode`.
    """
    if np.shape(first) != np.shape(second):
        raise ValueError(
            f"interpolate: expected two events of the same shape, got {np.shape(first)} and "
            f"{np.shape(second)}."
        )
    num_steps = validation.count(num_steps, "num_steps", 2, "interpolate")
    last = conditional_input if second_conditional_input is None else second_conditional_input
    event_ndims = bijector_of(flow).event_ndims
    z1, z2 = (
        np.expand_dims(encode(flow, event, conditional_input=condition), -1 - event_ndims)
        for event, condition in ((first, conditional_input), (second, last))
    )
    t = np.linspace(0, 1, num_steps).reshape(num_steps, *[1] * event_ndims)
    latents = _spherical(z1, z2, t, event_ndims) if spherical else (1 - t) * z1 + t * z2
    if second_conditional_input is None:
        return decode(flow, latents, conditional_input=with_axis(flow, conditional_input))
    return _decode_embedded(flow, latents, _linear_steps(flow, conditional_input, last, num_steps))


def manifold(
    flow: Flow,
    four_images: ArrayLike,
    num_angles: int = 8,
    *,
    conditional_input: ArrayLike | None = None,
) -> np.ndarray:
    r"""Decodes a torus of latents that contains the latents of four images (equation 19).

    With the latents z₁ … z₄ of the images, and equidistant angles φ (rows) and φ′ (columns) in [0,
    2π),

    ```
    z = cos φ (cos φ′ z₁ + sin φ′ z₂) + sin φ (cos φ′ z₃ + sin φ′ z₄)
    ```

    If `num_angles` n is a multiple of 4, the images themselves are at (0, 0), (0, n/4), (n/4, 0)
    and (n/4, n/4). The squares of the four weights add up to one, so that combinations of
    independent standard normal latents are standard normal. Embedded conditions are averaged with
    these squares as weights.

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
      ValueError: if there are not four images, conditions are not four or one, or `num_angles` is
        below 1; see also `encode`.
    """
    shape, event_ndims = np.shape(four_images), bijector_of(flow).event_ndims
    if len(shape) != 1 + event_ndims or shape[0] != 4:
        axes = {3: "images [4, height, width, channels]", 1: "vectors [4, size]"}
        raise ValueError(f"manifold: expected four {axes[event_ndims]}, got shape {shape}.")
    num_angles = validation.count(num_angles, "num_angles", 1, "manifold")
    latents = encode(flow, four_images, conditional_input=conditional_input)
    if latents.shape != shape:
        raise ValueError(
            f"manifold: expected four conditions, or one, got {latents.shape[:-event_ndims]} "
            "latents."
        )
    angles = 2 * np.pi * np.arange(num_angles) / num_angles
    circle = np.stack([np.cos(angles), np.sin(angles)])
    combined = _combined(latents, circle)
    if condition_of(flow, conditional_input) is None:
        return decode(flow, combined)
    embedded = _embedded(flow, conditional_input)
    four = np.broadcast_to(embedded.values, (4, *embedded.event_shape))
    weights = (circle**2).astype(four.dtype)
    condition = ConditionArray(_combined(four, weights), embedded.event_ndims)
    return _decode_embedded(flow, combined, condition)


def swap_condition(
    flow: Flow, images: ArrayLike, source: ArrayLike, target: ArrayLike, *, batch_size: int = 64
) -> np.ndarray:
    """Encodes images under the condition `source` and decodes them under `target` (Appendix F).

    See `encode` and `decode` for arguments, results and errors. Vectors are taken as well.

    #### Example

    Three images with the labels 5, 0 and 4, decoded as each of ten classes:

    >>> import numpy as np, tfp_realnvp as tfr
    >>> from tfp_realnvp import latents
    >>> flow = tfr.RealNVPImage(
    ...     (4, 4, 1), num_scales=1, num_blocks=0, num_filters=4, num_classes=10)
    >>> images = np.random.default_rng(0).integers(0, 256, [3, 4, 4, 1], dtype=np.uint8)
    >>> latents.swap_condition(flow, images, [5, 0, 4], np.arange(10)[:, np.newaxis]).shape
    (10, 3, 4, 4, 1)
    """
    latents = encode(flow, images, batch_size=batch_size, conditional_input=source)
    return decode(flow, latents, batch_size=batch_size, conditional_input=target)


def interpolate_conditions(
    flow: Flow,
    images: ArrayLike,
    start: ArrayLike,
    end: ArrayLike,
    num_steps: int = 8,
    *,
    batch_size: int = 64,
) -> np.ndarray:
    r"""Decodes images under conditions that change in steps from `start` to `end`.

    ```
    x_t = forward(inverse(x | start) | (1 - t) e(start) + t e(end))
    ```

    with t from 0 to 1 in equal steps, and the learned embedding e of conditions; images as
    conditions are their own embedding. The first image is the reconstruction, the last the result
    of `swap_condition`.

    #### Example

    >>> import numpy as np, tfp_realnvp as tfr
    >>> from tfp_realnvp import latents
    >>> flow = tfr.RealNVPImage(
    ...     (4, 4, 1), num_scales=1, num_blocks=0, num_filters=4, num_classes=10)
    >>> images = np.random.default_rng(0).integers(0, 256, [3, 4, 4, 1], dtype=np.uint8)
    >>> latents.interpolate_conditions(flow, images, [5, 0, 4], 8, num_steps=6).shape
    (3, 6, 4, 4, 1)

    #### References

    Lample et al.: Fader networks: manipulating images by sliding attributes (2017).

    Args:
      flow, images, batch_size: as in `encode`; `flow` has a condition.
      start, end: the first and last conditions, as in `encode`, whose leading shapes broadcast with
        `images`.
      num_steps: number of conditions, including both ends.

    Returns:
      Continuous pixel values, [..., num_steps, H, W, C]; or vectors [..., num_steps, D].

    Raises:
      TypeError: see `encode`.
      ValueError: if `num_steps` is below 2; see also `encode` and `decode`.
    """
    num_steps = validation.count(num_steps, "num_steps", 2, "interpolate_conditions")
    steps = _linear_steps(flow, start, end, num_steps)
    latents = encode(flow, images, batch_size=batch_size, conditional_input=start)
    latents = np.expand_dims(latents, -1 - bijector_of(flow).event_ndims)
    return _decode_embedded(flow, latents, steps, batch_size)


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


def _combined(corners: np.ndarray, circle: np.ndarray) -> np.ndarray:
    """Returns combinations [R, R, ...] of [4, ...], by products of weights [2, R]."""
    corners = corners.reshape(2, 2, *corners.shape[1:])
    return np.einsum("ir,jc,ij...->rc...", circle, circle, corners)


def _linear_steps(flow: Flow, start: Any, end: Any, num_steps: int) -> ConditionArray:
    """Returns embeddings [..., num_steps, *event] from `start` to `end`, in equal steps."""
    first, last = (_embedded(flow, condition) for condition in (start, end))
    ndims = first.event_ndims
    t = np.linspace(0, 1, num_steps, dtype=first.values.dtype).reshape(num_steps, *[1] * ndims)
    first, last = (np.expand_dims(condition.values, -1 - ndims) for condition in (first, last))
    return ConditionArray((1 - t) * first + t * last, ndims)


def _embedded(flow: Flow, conditional_input: Any) -> ConditionArray:
    """Returns the embedding of conditions, which the networks of a flow get."""
    bijector, condition = bijector_of(flow), condition_of(flow, conditional_input)
    embedding = bijector.condition_embedding
    if embedding is None:
        raise ValueError(f"{bijector.name}: expected a flow that declares a condition.")
    if condition is None:
        values = embedding.spec.as_tensor(None, bijector.name, bijector.dtype)
    else:
        values = tf.constant(condition.values)
    return ConditionArray(embedding(values).numpy(), len(embedding.embedded_shape))


def _decode_embedded(
    flow: Flow, latents: np.ndarray, condition: ConditionArray, batch_size: int = 64
) -> np.ndarray:
    """Returns what `decode` returns, given embedded conditions."""
    bijector = bijector_of(flow)
    layers = [b.bijector if isinstance(b, ConditionalBijector) else b for b in bijector.bijectors]
    chain = FlowChain(layers, dtype=bijector.dtype)
    return decoded(chain.forward, bijector, latents, condition, batch_size)

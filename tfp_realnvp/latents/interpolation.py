"""Decodes combinations of the latents of several events, or latents under another condition."""

from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike

from tfp_realnvp.internal import validation
from tfp_realnvp.latents import codec
from tfp_realnvp.latents.codec import Flow


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

    For latents z₁ and z₂, the angle ω between them, and t from 0 to 1 in equal steps, the path is

    ```
    spherical:  z = (sin((1 - t) ω) z₁ + sin(t ω) z₂) / sin ω
    linear:     z = (1 - t) z₁ + t z₂
    ```

    Standard normal vectors of many dimensions are close to a sphere. Spherical interpolation
    (Shoemake 1985, section 3.3; White 2016, section 2.1) stays near the sphere; linear
    interpolation does not. The embeddings of conditions change linearly: the networks get
    (1 - t) e(c₁) + t e(c₂) with the learned embedding e, which is the identity for conditions that
    are images (Lample et al.: Fader networks, 2017).

    #### Example

    >>> import numpy as np, tfp_realnvp as tfr
    >>> from tfp_realnvp import latents
    >>> flow = tfr.RealNVPImage((4, 4, 1), num_scales=1, num_blocks=0, num_filters=4)
    >>> first, second = np.random.default_rng(0).integers(0, 256, [2, 4, 4, 1], dtype=np.uint8)
    >>> latents.interpolate(flow, first, second, num_steps=5).shape
    (5, 4, 4, 1)

    Args:
      flow: as in `encode`.
      first, second: images [..., H, W, C] or vectors [..., D], which broadcast.
      num_steps: number of images or vectors, including both ends.
      spherical: whether to interpolate latents spherically or linearly.
      conditional_input, second_conditional_input: the conditions of `first` and `second`, as in
        `encode`. By default, the condition of `second` is the condition of `first`.

    Returns:
      Continuous pixel values, [..., num_steps, H, W, C]; or vectors [..., num_steps, D].

    Raises:
      TypeError, ValueError: as in `encode`.
    """
    last = conditional_input if second_conditional_input is None else second_conditional_input
    _, conditional_input = codec.in_nearest_cluster(flow, first, conditional_input)
    flow, last = codec.in_nearest_cluster(flow, second, last)
    z1 = codec.encode(flow, first, conditional_input=conditional_input)
    z2 = codec.encode(flow, second, conditional_input=last)
    bijector = codec.bijector_of(flow)
    latents = _path(z1, z2, bijector.event_ndims, num_steps, spherical)
    condition, end = _embedded(flow, conditional_input), _embedded(flow, last)
    if condition is not None:
        values = _path(condition.values, end.values, condition.event_ndims, num_steps)
        condition = condition._replace(values=values)
    return codec.transformed(bijector, "forward", latents, condition)


def manifold(
    flow: Flow,
    four_images: ArrayLike,
    num_angles: int = 8,
    *,
    conditional_input: ArrayLike | None = None,
) -> np.ndarray:
    r"""Decodes a torus of latents that contains the latents of four images.

    For the latents z₁ … z₄ of the images, and equidistant angles φ (rows) and φ′ (columns) in [0,
    2π), the torus is equation 19 of Dinh, Sohl-Dickstein, Bengio (2017):

    ```
    z = cos φ (cos φ′ z₁ + sin φ′ z₂) + sin φ (cos φ′ z₃ + sin φ′ z₄)
    ```

    If `num_angles` n is a multiple of 4, the four images are at (0, 0), (0, n/4), (n/4, 0) and
    (n/4, n/4) of the result. The squares of the four weights add up to one, so combinations of
    independent standard normal latents are standard normal. Embedded conditions are averaged with
    the squared weights.

    #### Example

    >>> import numpy as np, tfp_realnvp as tfr
    >>> from tfp_realnvp import latents
    >>> flow = tfr.RealNVPImage((4, 4, 1), num_scales=1, num_blocks=0, num_filters=4)
    >>> images = np.random.default_rng(0).integers(0, 256, [4, 4, 4, 1], dtype=np.uint8)
    >>> latents.manifold(flow, images, num_angles=4).shape
    (4, 4, 4, 4, 1)

    Args:
      flow: as in `encode`.
      four_images: images [4, H, W, C] or vectors [4, D], as in `encode`.
      num_angles: number of values of each angle.
      conditional_input: the conditions of the images, or one for all, as in `encode`.

    Returns:
      Continuous pixel values, [num_angles, num_angles, H, W, C]; or vectors.

    Raises:
      TypeError: as in `encode`.
      ValueError: if there are not four images, or as in `encode`.
    """
    flow, conditional_input = codec.in_nearest_cluster(flow, four_images, conditional_input)
    shape, bijector = np.shape(four_images), codec.bijector_of(flow)
    axes = "images [4, H, W, C]" if bijector.event_ndims == 3 else "vectors [4, D]"
    is_four = len(shape) == 1 + bijector.event_ndims and shape[0] == 4
    validation.require(is_four, f"manifold: expected {axes}", shape)
    latents = codec.encode(flow, four_images, conditional_input=conditional_input)
    angles = 2 * np.pi * np.arange(num_angles) / num_angles
    circle = np.stack([np.cos(angles), np.sin(angles)])
    condition = _embedded(flow, conditional_input)
    if condition is not None:
        values, ndims = condition.values, condition.event_ndims
        four = np.broadcast_to(values, (4, *values.shape[values.ndim - ndims :]))
        condition = condition._replace(values=_combined(four, circle**2).astype(four.dtype))
    latents = _combined(latents, circle)
    return codec.transformed(bijector, "forward", latents, condition)


def swap_condition(
    flow: Flow, images: ArrayLike, source: ArrayLike, target: ArrayLike, *, batch_size: int = 64
) -> np.ndarray:
    """Encodes images under the condition `source` and decodes them under `target` (Appendix F).

    Also accepts vectors. See `encode` and `decode` for arguments, results and errors.

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
    _, source = codec.in_nearest_cluster(flow, images, source)
    flow, target = codec.in_nearest_cluster(flow, images, target)
    latents = codec.encode(flow, images, batch_size=batch_size, conditional_input=source)
    return codec.decode(flow, latents, batch_size=batch_size, conditional_input=target)


def _path(
    first: np.ndarray, last: np.ndarray, event_ndims: int, num_steps: int, spherical: bool = False
) -> np.ndarray:
    """Returns values [..., num_steps, *event] from `first` to `last`, [..., *event]."""
    first, last = (np.expand_dims(end, -1 - event_ndims) for end in (first, last))
    dtype = np.float64 if spherical else first.dtype
    t = np.linspace(0, 1, num_steps, dtype=dtype).reshape(num_steps, *[1] * event_ndims)
    if not spherical:
        return (1 - t) * first + t * last
    first, event = first.astype(dtype), tuple(range(-event_ndims, 0))
    norms = np.sqrt(np.sum(first**2, event, keepdims=True) * np.sum(last**2, event, keepdims=True))
    cosine = np.sum(first * last, event, keepdims=True) / np.maximum(norms, np.finfo(float).tiny)
    # Opposite latents have no unique arc between them. A cosine just above -1 avoids 0 / 0.
    half_turns = np.arccos(np.clip(cosine, 1e-12 - 1, 1)) / np.pi
    # sinc(ω / π) = sin(ω) / ω is 1 at ω = 0, where the arc is a straight line.
    weights = (share * np.sinc(share * half_turns) for share in (1 - t, t))
    return sum(w * z for w, z in zip(weights, (first, last), strict=True)) / np.sinc(half_turns)


def _combined(corners: np.ndarray, circle: np.ndarray) -> np.ndarray:
    """Returns weighted sums of four corners, [R, R, ...]; weights are products from `circle`."""
    corners = corners.reshape(2, 2, *corners.shape[1:])
    return np.einsum("ir,jc,ij...->rc...", circle, circle, corners)


def _embedded(flow: Flow, conditional_input: Any) -> codec.ConditionArray | None:
    """Returns the embedded conditions that a flow's networks get; `None` without conditions."""
    bijector, condition = codec.bijector_of(flow), codec.condition_of(flow, conditional_input)
    if condition is None:
        return None
    embedding = bijector.condition_embedding
    values = embedding(tf.constant(condition.values)).numpy()
    return codec.ConditionArray(values, len(embedding.embedded_shape), True)

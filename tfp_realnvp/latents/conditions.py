"""Decodes images or vectors under other conditions, and under conditions between two."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from tfp_realnvp.internal import validation
from tfp_realnvp.latents.codec import (
    ConditionArray,
    Flow,
    bijector_of,
    condition_of,
    decode,
    encode,
)

__all__ = ["as_vectors", "interpolate_conditions", "linear_steps", "swap_condition"]


def swap_condition(
    flow: Flow, images: ArrayLike, source: ArrayLike, target: ArrayLike, batch_size: int = 64
) -> np.ndarray:
    """Encodes images under the condition `source` and decodes them under `target` (Appendix F).

    The arguments, results and errors are those of `encode` and `decode`; vectors are taken as well.

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
    latents = encode(flow, images, batch_size, conditional_input=source)
    return decode(flow, latents, batch_size, conditional_input=target)


def interpolate_conditions(
    flow: Flow,
    images: ArrayLike,
    start: ArrayLike,
    end: ArrayLike,
    num_steps: int = 8,
    batch_size: int = 64,
) -> np.ndarray:
    r"""Decodes images under conditions that change in steps from `start` to `end`.

    ```
    x_t = forward(inverse(x | start) | (1 - t) start + t end)
    ```

    with t from 0 to 1 in equal steps. The first image is the reconstruction, the last the result of
    `swap_condition`. Labels are interpolated as weights of the classes, from one-hot vectors.

    #### Example

    >>> import numpy as np, tfp_realnvp as tfr
    >>> from tfp_realnvp import latents
    >>> flow = tfr.RealNVPImage(
    ...     (4, 4, 1), num_scales=1, num_blocks=0, num_filters=4, num_classes=10)
    >>> images = np.random.default_rng(0).integers(0, 256, [3, 4, 4, 1], dtype=np.uint8)
    >>> latents.interpolate_conditions(flow, images, [5, 0, 4], 8, num_steps=6).shape
    (3, 6, 4, 4, 1)

    #### References

    Lample et al.: Fader networks: manipulating images by sliding attributes (2017), which varies
    the attributes of encoded images continuously.

    Args:
      flow: as in `encode`, with a condition.
      images: images [..., H, W, C] or vectors [..., D], as in `encode`.
      start: conditions of the images, as in `encode`.
      end: conditions of the last step. The leading shapes of `start` and `end` broadcast with that
        of the images.
      num_steps: number of conditions, including both ends.
      batch_size: number of images that are processed at a time.

    Returns:
      Continuous pixel values, [..., num_steps, H, W, C]; or vectors [..., num_steps, D].

    Raises:
      TypeError: see `encode`.
      ValueError: if a condition is missing, or if there are fewer than two steps; see also `encode`
        and `decode`.
    """
    steps = linear_steps(flow, start, end, num_steps)
    latents = encode(flow, images, batch_size, conditional_input=start)
    latents = np.expand_dims(latents, -1 - bijector_of(flow).event_ndims)
    return decode(flow, latents, batch_size, conditional_input=steps)


def linear_steps(flow: Flow, start: ArrayLike, end: ArrayLike, num_steps: int) -> np.ndarray:
    """Returns conditions [..., num_steps, *event] from `start` to `end`, in equal steps.

    Args:
      flow: see `interpolate_conditions`.
      start: the first conditions.
      end: the last conditions. The leading shapes of both broadcast.
      num_steps: number of conditions.

    Raises:
      TypeError: see `interpolate_conditions`.
      ValueError: see `interpolate_conditions`.
    """
    num_steps = validation.integer(
        num_steps, 2, "interpolate_conditions: expected num_steps of at least 2"
    )
    first, last = (as_vectors(flow, condition) for condition in (start, end))
    axis = -1 - first.event_ndims
    first, last = (np.expand_dims(condition.values, axis) for condition in (first, last))
    t = np.linspace(0, 1, num_steps).reshape(num_steps, *[1] * (-1 - axis))
    return (1 - t) * first + t * last


def as_vectors(flow: Flow, conditional_input: ArrayLike) -> ConditionArray:
    """Returns conditions that can be combined linearly: labels as one-hot weights of the classes.

    Args:
      flow: as in `encode`.
      conditional_input: labels, weights of classes, vectors or images.

    Raises:
      TypeError: see `encode`.
      ValueError: if a condition is missing; see also `encode`.
    """
    bijector, condition = bijector_of(flow), condition_of(flow, conditional_input)
    if condition is not None and condition.event_ndims == 0:
        labels, one_hot = condition.values, np.eye(bijector.condition_embedding.spec.num_classes)
        condition = ConditionArray(
            np.where(labels[..., np.newaxis] < 0, np.nan, one_hot[labels]), 1
        )
    if condition is None or np.isnan(condition.values).any():
        raise ValueError(
            f"{bijector.name}: expected conditions to interpolate between, got a missing one: "
            "None, a label of -1, or a NaN."
        )
    return condition

"""Encodes images or vectors to latents, and decodes latents."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from numpy.typing import ArrayLike

from tfp_realnvp.distributions import distribution_of, takes_condition
from tfp_realnvp.flows import ImageFlow, VectorFlow
from tfp_realnvp.internal import private_api, validation
from tfp_realnvp.internal.batch_dims import slices

__all__ = [
    "ConditionArray",
    "Flow",
    "Reconstruction",
    "bijector_of",
    "condition_of",
    "decode",
    "decoded",
    "encode",
    "reconstruct",
    "with_axis",
    "without_model",
]

tfd = tfp.distributions

# Names of events, by their rank.
_KINDS = {3: "images", 1: "vectors"}

Flow: TypeAlias = ImageFlow | VectorFlow | tfd.Distribution | keras.Model


class Reconstruction(NamedTuple):
    """The result of `reconstruct`.

    Attributes:
      images: decoded images, continuous pixel values, [..., H, W, C]; or vectors [..., D].
      largest_error: largest absolute error of a pixel, in gray levels, or of an element.
    """

    images: np.ndarray
    largest_error: float


class ConditionArray(NamedTuple):
    """Conditions of a flow, as an array.

    Attributes:
      values: conditions [..., *event].
      event_ndims: rank of one condition: 0 for labels, 1 for vectors, 3 for images.
    """

    values: np.ndarray
    event_ndims: int

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """The leading dimensions."""
        return self.values.shape[: self.values.ndim - self.event_ndims]

    @property
    def event_shape(self) -> tuple[int, ...]:
        """The shape of one condition."""
        return self.values.shape[self.values.ndim - self.event_ndims :]


def encode(
    flow: Flow,
    images: ArrayLike,
    *,
    batch_size: int = 64,
    conditional_input: ArrayLike | None = None,
) -> np.ndarray:
    """Returns the latents of images or vectors, by `flow.bijector.inverse`.

    #### Example

    >>> import numpy as np, tfp_realnvp as tfr
    >>> from tfp_realnvp import latents
    >>> flow = tfr.RealNVPImage((4, 4, 1), num_scales=1, num_blocks=0, num_filters=4)
    >>> images = np.random.default_rng(0).integers(0, 256, [3, 4, 4, 1], dtype=np.uint8)
    >>> z = latents.encode(flow, images)
    >>> z.shape, bool((np.floor(latents.decode(flow, z) + 1e-3) == images).all())
    ((3, 4, 4, 1), True)

    The latents of each image under each of ten labels:

    >>> flow = tfr.RealNVPImage(
    ...     (4, 4, 1), num_scales=1, num_blocks=0, num_filters=4, num_classes=10)
    >>> latents.encode(flow, images, conditional_input=np.arange(10)[:, np.newaxis]).shape
    (10, 3, 4, 4, 1)

    Vectors:

    >>> flow = tfr.RealNVPVector(5, num_couplings=2, num_filters=8)
    >>> vectors = np.random.default_rng(0).normal(size=[3, 5])
    >>> z = latents.encode(flow, vectors)
    >>> z.shape, bool(np.allclose(latents.decode(flow, z), vectors, atol=1e-4))
    ((3, 5), True)

    Args:
      flow: a flow of images or vectors, a `tfd.TransformedDistribution` with one, or the
        `FlowModel` of one.
      images: [..., H, W, C], continuous pixel values or integer gray levels; or vectors [..., D].
        0.5 is added to gray levels, which gives the center of the level.
      batch_size: number of images or vectors that are encoded at a time.
      conditional_input: the condition of the images or vectors, as the flow declares it: labels
        [...], vectors [..., K] or images [..., H, W, K]. Its leading shape broadcasts with theirs.

    Returns:
      Latents of the shape of the images or vectors, broadcast with the conditions.

    Raises:
      TypeError: if `flow` has no flow of images or vectors.
      ValueError: if values are not finite, if their shape or range does not match the model, or if
        the condition is missing, unexpected, or not as declared.
    """
    bijector = bijector_of(flow)
    kind = _KINDS[bijector.event_ndims]
    images = _checked(_centers(images, bijector), bijector, kind)
    condition = condition_of(flow, conditional_input)
    latents = _batched(bijector.inverse, bijector.event_ndims, images, condition, batch_size)
    if not np.isfinite(latents).all():
        raise ValueError(
            f"expected {kind} in the range of {'pixel ' * (kind == 'images')}values of the model, "
            f"got values in [{images.min()}, {images.max()}], whose latents are not finite."
        )
    return latents


def decode(
    flow: Flow,
    latents: ArrayLike,
    *,
    batch_size: int = 64,
    conditional_input: ArrayLike | None = None,
) -> np.ndarray:
    """Returns the images or vectors of latents, by `flow.bijector.forward`; see `encode`.

    Args:
      flow: as in `encode`.
      latents: [..., D] of vectors; or [..., H, W, C], with H and W divisible by
        2^(num_scales - 1), which can differ from the size of the training images.
      batch_size: number of latents that are decoded at a time.
      conditional_input: see `encode`; broadcasts with the latents.

    Returns:
      Vectors or continuous pixel values, of the shape of the latents broadcast with the conditions.
      `to_uint8` converts pixel values to gray levels.

    Raises:
      TypeError: if `flow` has no flow of images or vectors.
      ValueError: if latents or results are not finite, if the shape does not match the model, or if
        the condition is missing, unexpected, or not as declared.
    """
    bijector, condition = bijector_of(flow), condition_of(flow, conditional_input)
    return decoded(bijector.forward, bijector, latents, condition, batch_size)


def decoded(
    forward: Callable[..., tf.Tensor],
    bijector: Any,
    latents: ArrayLike,
    condition: ConditionArray | None,
    batch_size: int,
) -> np.ndarray:
    """Returns `forward` of latents, checked; see `decode`."""
    latents = _checked(np.asarray(latents), bijector, "latents")
    images = _batched(forward, bijector.event_ndims, latents, condition, batch_size)
    if not np.isfinite(images).all():
        raise ValueError(
            f"expected latents whose {_KINDS[bijector.event_ndims]} are finite, got latents in "
            f"[{latents.min()}, {latents.max()}] with {np.count_nonzero(~np.isfinite(images))} "
            "values that are not finite."
        )
    return images


def reconstruct(
    flow: Flow,
    images: ArrayLike,
    *,
    batch_size: int = 64,
    conditional_input: ArrayLike | None = None,
) -> Reconstruction:
    """Encodes and decodes images or vectors, which reproduces them up to rounding (section 3.3).

    #### Example

    >>> import numpy as np, tfp_realnvp as tfr
    >>> from tfp_realnvp import latents
    >>> flow = tfr.RealNVPImage((4, 4, 1), num_scales=1, num_blocks=0, num_filters=4)
    >>> latents.reconstruct(flow, np.full([2, 4, 4, 1], 7, np.uint8)).largest_error < 1e-2
    True

    Args:
      flow: as in `encode`.
      images: as in `encode`.
      batch_size: number of images or vectors that are processed at a time.
      conditional_input: see `encode`.

    Returns:
      A `Reconstruction`. The reference for its error is the continuous value, for gray levels the
      center of the level.

    Raises:
      TypeError: see `encode`.
      ValueError: see `encode` and `decode`.
    """
    latents = encode(flow, images, batch_size=batch_size, conditional_input=conditional_input)
    decoded = decode(flow, latents, batch_size=batch_size, conditional_input=conditional_input)
    error = np.max(np.abs(decoded - _centers(images, bijector_of(flow))))
    return Reconstruction(decoded, float(error))


def bijector_of(flow: Flow, *kinds: type) -> Any:
    """Returns the bijector of a flow, a flow of images or vectors, or one of `kinds`.

    Raises:
      TypeError: if there is none.
    """
    flow, kinds = without_model(flow), kinds or (ImageFlow, VectorFlow)
    bijector = flow.bijector if isinstance(flow, private_api.TransformedDistribution) else flow
    if not isinstance(bijector, kinds):
        names = " or ".join(kind.__name__ for kind in kinds)
        raise TypeError(
            f"expected an {names}, or a FlowModel or tfd.TransformedDistribution with one, got "
            f"{type(flow).__name__}."
        )
    return bijector


def without_model(flow: Flow) -> ImageFlow | VectorFlow | tfd.Distribution:
    """Returns the distribution of a `FlowModel`, and other flows as they are."""
    return distribution_of(flow, "latents") if isinstance(flow, keras.Model) else flow


def condition_of(flow: Flow, conditional_input: ArrayLike | None) -> ConditionArray | None:
    """Returns the condition of a flow's bijector; `None` if only the base distribution takes it.

    Raises:
      ValueError: if the flow declares no condition, or another one.
    """
    flow = without_model(flow)
    bijector = bijector_of(flow)
    if conditional_input is None:
        return None
    embedding = bijector.condition_embedding
    if embedding is None:
        if flow is not bijector and takes_condition(flow.distribution):
            return None
        raise ValueError(
            f"{bijector.name}: expected a flow with num_classes or a "
            "conditional_event_shape for a conditional_input, got one that declares no condition."
        )
    values = embedding.spec.as_tensor(conditional_input, bijector.name, embedding.compute_dtype)
    return ConditionArray(values.numpy(), embedding.spec.event_ndims)


def with_axis(flow: Flow, conditional_input: ArrayLike | None) -> np.ndarray | None:
    """Returns conditions [..., 1, *event], to broadcast over several events; `None` without one."""
    condition = condition_of(flow, conditional_input)
    if condition is None:
        return None
    return np.expand_dims(condition.values, -1 - condition.event_ndims)


def _centers(values: ArrayLike, bijector: ImageFlow | VectorFlow) -> np.ndarray:
    """Returns an array of the values, for gray levels the centers of the levels."""
    values = np.asarray(values)
    is_gray = bijector.event_ndims == 3 and np.issubdtype(values.dtype, np.integer)
    return values + 0.5 if is_gray else values


def _checked(values: np.ndarray, bijector: ImageFlow | VectorFlow, what: str) -> np.ndarray:
    shape = values.shape
    if bijector.event_ndims == 1:
        is_event, expected = shape[-1:] == (bijector.event_size,), f"[..., {bijector.event_size}]"
    else:
        divisor, channels = 2 ** (bijector.num_scales - 1), bijector.image_shape[-1]
        is_event = len(shape) >= 3 and shape[-1] == channels
        is_event = is_event and not (shape[-3] % divisor or shape[-2] % divisor)
        expected = f"[..., height, width, {channels}], with height and width divisible by {divisor}"
    if not is_event:
        raise ValueError(f"expected {what} {expected}, got shape {shape}.")
    if not values.size:
        raise ValueError(f"expected {what} that are not empty, got shape {shape}.")
    values = values.astype(bijector.dtype.as_numpy_dtype)
    if not np.isfinite(values).all():
        raise ValueError(
            f"expected finite {what}, got {np.count_nonzero(~np.isfinite(values))} values that are "
            "not finite."
        )
    return values


def _batched(
    function: Callable[..., tf.Tensor],
    event_ndims: int,
    values: np.ndarray,
    condition: ConditionArray | None,
    batch_size: int,
) -> np.ndarray:
    batch_size = validation.integer(batch_size, 1, "expected a batch_size of at least 1")
    batch_shape, event_shape = values.shape[:-event_ndims], values.shape[-event_ndims:]
    conditions = []
    if condition is not None:
        try:
            batch_shape = np.broadcast_shapes(batch_shape, condition.batch_shape)
        except ValueError as error:
            raise ValueError(
                "expected leading shapes of events and conditional_input that broadcast, got "
                f"{batch_shape} and {condition.batch_shape}."
            ) from error
        conditions = [_flat(condition.values, batch_shape, condition.event_shape)]
    results = []
    for batch in slices(batch_size, _flat(values, batch_shape, event_shape), *conditions):
        # With new tensors, TFP's cache does not return the values that they were computed from.
        x, *condition_of_batch = map(tf.constant, batch)
        options = dict(zip(["conditional_input"], condition_of_batch, strict=False))
        results.append(function(x, **options).numpy())
    return np.concatenate(results).reshape(*batch_shape, *event_shape)


def _flat(
    values: np.ndarray, batch_shape: tuple[int, ...], event_shape: tuple[int, ...]
) -> np.ndarray:
    """Returns [..., *event_shape], broadcast to leading dimensions `batch_shape`, as one batch."""
    return np.broadcast_to(values, (*batch_shape, *event_shape)).reshape(-1, *event_shape)

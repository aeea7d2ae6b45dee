"""Encodes images or vectors to latents, and decodes latents."""

from typing import Any, NamedTuple, TypeAlias

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike
from tensorflow_probability import distributions as tfd

from tfp_realnvp import pixels
from tfp_realnvp.bijectors import ConditionalBijector, FlowChain
from tfp_realnvp.distributions import ConditionedDistribution, clusters, routing
from tfp_realnvp.flows import ImageFlow, VectorFlow
from tfp_realnvp.internal import batch_dims, memoize, private_api, runtime, validation

Flow: TypeAlias = ImageFlow | VectorFlow | tfd.Distribution | keras.Model


class Reconstruction(NamedTuple):
    """The result of `reconstruct`: images or vectors, and the largest absolute error of an element.

    For images, the unit of the error is a gray level.
    """

    images: np.ndarray
    largest_error: float


class ConditionArray(NamedTuple):
    """Conditions of a flow, or their embeddings, [..., *event], and the rank of an event."""

    values: np.ndarray
    event_ndims: int
    are_embedded: bool = False


def encode(
    flow: Flow,
    images: ArrayLike,
    *,
    batch_size: int = 64,
    conditional_input: ArrayLike | None = None,
) -> np.ndarray:
    """Maps images or vectors to latents with `flow.bijector.inverse`.

    #### Example

    >>> import numpy as np, tfp_realnvp as tfr
    >>> from tfp_realnvp import latents
    >>> flow = tfr.RealNVPImage((4, 4, 1), num_scales=1, num_blocks=0, num_filters=4)
    >>> images = np.random.default_rng(0).integers(0, 256, [3, 4, 4, 1], dtype=np.uint8)
    >>> z = latents.encode(flow, images)
    >>> z.shape, bool((np.floor(latents.decode(flow, z) + 1e-3) == images).all())
    ((3, 4, 4, 1), True)

    Each image under each of ten labels:

    >>> flow = tfr.RealNVPImage(
    ...     (4, 4, 1), num_scales=1, num_blocks=0, num_filters=4, num_classes=10)
    >>> latents.encode(flow, images, conditional_input=np.arange(10)[:, np.newaxis]).shape
    (10, 3, 4, 4, 1)

    Args:
      flow: a flow over images or vectors, a `tfd.TransformedDistribution` with one, its
        `FlowModel`, or the result of `tfr.condition`, which fixes the condition.
      images: [..., H, W, C], continuous pixel values or gray levels of an integer dtype; or vectors
        [..., D]. Floats that are gray levels are an error, because they lie on the lower edge of
        the interval.
        `encode` adds 0.5 to gray levels: level n becomes the center of the interval [n, n + 1).
      batch_size: number of images or vectors per batch.
      conditional_input: labels [...], vectors [..., K] or images [..., H, W, K], as the flow
        declares its condition. Leading shapes of conditions and events broadcast. For a
        `ClusterMixture`, the condition is the cluster with the nearest center or, with labels, the
        nearest cluster of the class.

    Returns:
      Latents of the shape of the images or vectors, broadcast with the conditions.

    Raises:
      TypeError: if `flow` contains no flow over images or vectors.
      ValueError: if values are not finite, if their shape or range does not match the model, or if
        the condition is missing, unexpected, or not as declared.
    """
    images = continuous(flow, images)
    flow, conditional_input = in_nearest_cluster(flow, images, conditional_input)
    bijector, condition = bijector_of(flow), condition_of(flow, conditional_input)
    return transformed(bijector, "inverse", images, condition, batch_size)


def decode(
    flow: Flow,
    latents: ArrayLike,
    *,
    batch_size: int = 64,
    conditional_input: ArrayLike | None = None,
) -> np.ndarray:
    """Maps latents to images or vectors with `flow.bijector.forward`; see `encode`.

    Args:
      flow, batch_size: as in `encode`.
      latents: [..., D] of vectors; or [..., H, W, C] of images of any height and width divisible by
        2^(num_scales - 1).
      conditional_input: as in `encode`; broadcasts with the latents.

    Returns:
      Vectors or continuous pixel values, of the shape of the latents broadcast with the conditions.
      `to_uint8` converts pixel values to gray levels.

    Raises:
      TypeError, ValueError: as in `encode`.
    """
    bijector, condition = bijector_of(flow), condition_of(flow, conditional_input)
    return transformed(bijector, "forward", latents, condition, batch_size)


def transformed(
    bijector: ImageFlow | VectorFlow,
    direction: str,
    events: ArrayLike,
    condition: ConditionArray | None,
    batch_size: int = 64,
) -> np.ndarray:
    """Maps events [..., *event] given their conditions, in batches, with one graph.

    `direction` is `forward` or `inverse`. Embedded conditions go directly to the layers of
    `bijector`. Leading shapes of events and conditions broadcast.
    """
    events = np.asarray(events).astype(bijector.dtype.as_numpy_dtype)
    bijector._check_shape(tf.TensorShape(events.shape), inverse=direction == "inverse")
    arrays = [(events, bijector.event_ndims), *([] if condition is None else [condition[:2]])]
    batch_shape = np.broadcast_shapes(*(a.shape[: a.ndim - ndims] for a, ndims in arrays))
    flat: list[Any] = []
    for array, ndims in arrays:
        event_shape = array.shape[array.ndim - ndims :]
        flat.append(np.broadcast_to(array, (*batch_shape, *event_shape)).reshape(-1, *event_shape))
    options = direction, condition is not None and condition.are_embedded
    results = [flat[0][:0]]  # an empty result if there are no events
    with runtime.few_graph_rewrites():
        for batch in batch_dims.slices(batch_size, *flat):
            tensors = map(tf.convert_to_tensor, batch)
            results.append(memoize.call_traced(_mapped, bijector, options, *tensors).numpy())
    result = np.concatenate(results).reshape(*batch_shape, *flat[0].shape[1:])
    if not (np.isfinite(events).all() and np.isfinite(result).all()):
        names = {1: "vectors", 3: "images"}
        what = names[bijector.event_ndims] if direction == "inverse" else "latents"
        raise ValueError(
            f"expected finite {what} in the range of the model, got values in [{events.min()}, "
            f"{events.max()}], which give {np.count_nonzero(~np.isfinite(result))} non-finite "
            "results."
        )
    return result


def _mapped(
    bijector: ImageFlow | VectorFlow,
    direction: str,
    is_embedded: bool,
    events: tf.Tensor,
    condition: tf.Tensor | None = None,
) -> tf.Tensor:
    if is_embedded:
        parts = bijector.bijectors
        parts = [b.bijector if isinstance(b, ConditionalBijector) else b for b in parts]
        bijector = FlowChain(parts, dtype=bijector.dtype)
    return getattr(bijector, direction)(events, conditional_input=condition)


def reconstruct(
    flow: Flow,
    images: ArrayLike,
    *,
    batch_size: int = 64,
    conditional_input: ArrayLike | None = None,
) -> Reconstruction:
    """Encodes and then decodes images or vectors, recovering them up to rounding (section 3.3).

    #### Example

    >>> import numpy as np, tfp_realnvp as tfr
    >>> from tfp_realnvp import latents
    >>> flow = tfr.RealNVPImage((4, 4, 1), num_scales=1, num_blocks=0, num_filters=4)
    >>> latents.reconstruct(flow, np.full([2, 4, 4, 1], 7, np.uint8)).largest_error < 1e-2
    True

    Args:
      flow, images, batch_size, conditional_input: as in `encode`.

    Returns:
      A `Reconstruction`. For gray levels, the error is the distance from n + 0.5, as in `encode`.
    """
    images = continuous(flow, images)
    flow, conditional_input = in_nearest_cluster(flow, images, conditional_input)
    options: dict[str, Any] = {"batch_size": batch_size, "conditional_input": conditional_input}
    decoded = decode(flow, encode(flow, images, **options), **options)
    error = np.max(np.abs(decoded - images))
    return Reconstruction(decoded, float(error))


def bijector_of(flow: Flow, *kinds: type) -> Any:
    """Returns the bijector of a flow; raises `TypeError` if its type is not in `kinds`."""
    (flow, _), kinds = unwrapped(flow), kinds or (ImageFlow, VectorFlow)
    bijector = flow.bijector if isinstance(flow, private_api.TransformedDistribution) else flow
    if clusters.flow_of(flow) is not flow:
        raise TypeError(
            "expected a flow, got a ClusterMixture; pass its `components_distribution`, and "
            "`conditional_input=clusters.nearest(images)`."
        )
    if not isinstance(bijector, kinds):
        names = " or ".join(kind.__name__ for kind in kinds)
        expected = f"expected an {names}, or a FlowModel or tfd.TransformedDistribution with one"
        raise TypeError(f"{expected}, got {type(flow).__name__}.")
    return bijector


def unwrapped(flow: Flow, condition: ArrayLike | None = None) -> tuple[Flow, ArrayLike | None]:
    """Returns a flow without `FlowModel` and `tfr.condition`, and the condition that these fix."""
    flow = routing.distribution_of(flow, "latents") if isinstance(flow, keras.Model) else flow
    if not isinstance(flow, ConditionedDistribution):
        return flow, condition
    when = "if `tfr.condition` has not fixed it"
    validation.only(condition, "conditional_input", False, when, "latents")
    return flow.distribution, flow.conditional_input


def condition_of(flow: Flow, conditional_input: ArrayLike | None) -> ConditionArray | None:
    """Checks the condition of a flow's bijector; returns `None` if only the base takes one."""
    flow, conditional_input = unwrapped(flow, conditional_input)
    bijector = bijector_of(flow)
    routing.check_context(bijector.accepts_conditional_input, "latents", conditional_input)
    embedding = bijector.condition_embedding
    if embedding is not None:
        spec, dtype = embedding.spec, embedding.compute_dtype
        if conditional_input is None and None in spec.event_shape:
            return None  # The bijector makes a missing image of the size of the events.
        values = spec.as_tensor(conditional_input, bijector.name, dtype).numpy()
        return ConditionArray(values, spec.event_ndims)
    applies = flow is not bijector and routing.takes_condition(flow.distribution)
    when = "for a flow with num_classes or a conditional_event_shape"
    validation.only(conditional_input, "conditional_input", applies, when, bijector.name)
    return None


def in_nearest_cluster(
    flow: Flow, images: ArrayLike, conditional_input: ArrayLike | None
) -> tuple[Flow, ArrayLike | None]:
    """Replaces a `ClusterMixture` by its flow, and the condition by the clusters of `images`."""
    mixture, conditional_input = unwrapped(flow, conditional_input)
    flow = clusters.flow_of(mixture)
    if flow is mixture:
        return mixture, conditional_input
    spec = mixture.condition_spec
    expected = "encode: expected no conditional_input for a ClusterMixture without classes"
    validation.require(spec is not None or conditional_input is None, expected, conditional_input)
    values = continuous(flow, images)
    labels = None if spec is None else spec.as_tensor(conditional_input, "encode").numpy()
    batch = values.shape[: max(values.ndim - flow.event_shape.rank, 0)]
    expected = f"encode: expected events of shape {tuple(flow.event_shape)}"
    validation.require(values.shape[len(batch) :] == flow.event_shape, expected, values.shape)
    if labels is not None:
        batch = np.broadcast_shapes(batch, labels.shape)
        labels = np.broadcast_to(labels, batch).reshape(-1)
    values = np.broadcast_to(values, (*batch, *flow.event_shape))
    return flow, np.reshape(clusters.condition_of_events(mixture, values, labels), batch)


def continuous(flow: Flow, values: ArrayLike) -> np.ndarray:
    """Returns an array of continuous values; gray levels become the centers of their intervals.

    Raises `ValueError` for floats that are gray levels, or gray levels divided by 255.
    """
    expected = "latents: expected values without masked elements"
    validation.require(not np.ma.is_masked(values), expected, "a masked array")
    values = np.asarray(values)
    expected = "latents: expected an array of real numbers"
    validation.require(values.dtype.kind in "biuf", expected, values.dtype)
    bijector = bijector_of(clusters.flow_of(unwrapped(flow)[0]))
    num_values = routing.find_num_values(bijector)
    if bijector.event_ndims == 3 and values.dtype.kind in "iu":
        pixels.check_gray_levels(values, "latents", num_values)
        return values + 0.5
    if num_values is not None and getattr(flow, "dequantize", True) and values.size:
        pixels.check_continuous(values, "latents", num_values)
    return values

"""Decomposes the log density of an image by position."""

import functools
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow_probability import distributions as tfd

from tfp_realnvp import pixels
from tfp_realnvp.bijectors import FlowChain
from tfp_realnvp.bijectors.flow_bijector import surround_with
from tfp_realnvp.distributions import ConditionalBase
from tfp_realnvp.distributions.clusters import condition_of_events, flow_of
from tfp_realnvp.evaluation.scores import map_batches, spec_of
from tfp_realnvp.internal import memoize, private_api, validation


def log_prob_map(
    model: keras.Model | tfd.Distribution,
    data: Any,
    conditional_input: Any = None,
    *,
    log_dets: bool = True,
    **kwargs: Any,
) -> np.ndarray:
    """Returns the contribution of each position of an image to its log density, in nats.

    The log density of a flow is a sum of log densities of latents and of log dets, and each term
    has a position in the image. The sum of a map [H, W] is `tfr.log_prob` with the same arguments,
    including the term `-log q(u | x)` of a `VariationalDequantization` q.

    Normalizations and 1×1 convolutions contribute equally at all positions. A term of a coarser
    scale is spread evenly over its block of pixels. A contribution is not the log density of a
    pixel given the others: a single pixel changes the map in the whole receptive field of the
    networks. For a `ClusterMixture`, the map decomposes log p(x | k) for the nearest cluster k.

    The log dets depend on the content of an image: they are higher in smooth areas than at edges.
    The latents of typical images have the same distribution at all positions. Therefore
    `log_dets=False` often detects defects better.

    #### Example

    >>> import numpy as np, tensorflow_probability as tfp, tfp_realnvp as tfr
    >>> tfd = tfp.distributions
    >>> flow = tfd.TransformedDistribution(
    ...     tfd.Sample(tfd.Normal(0., 1.), [8, 8, 1]),
    ...     tfr.RealNVPImage((8, 8, 1), num_scales=1, num_blocks=1, num_filters=4))
    >>> images = np.random.default_rng(0).integers(0, 256, [3, 8, 8, 1], dtype=np.uint8)
    >>> maps = tfr.log_prob_map(flow, images)
    >>> maps.shape, np.allclose(maps.sum(axis=(1, 2)), tfr.log_prob(flow, images))
    ((3, 8, 8), True)

    For continuous feature maps, pass a `FlowModel(flow, dequantize=False)`.

    #### References

    Yu et al.: FastFlow: unsupervised anomaly detection and localization via 2D normalizing flows,
    2021 (arXiv 2111.07677), which uses `log_dets=False`.

    Args:
      model: a `FlowModel` of images, or its distribution. Its base must be a `tfd.Sample` or
        `tfd.Independent` of distributions of elements or channels, or a `ConditionalBase` that
        returns one. Valid bijectors are all bijectors of this package, TFP's bijectors of elements
        or channels, and `FlowChain` and `tfb.Invert` of valid bijectors.
      data, conditional_input: images [N, H, W, C] and their conditions, as in `log_prob`.
      log_dets: whether maps include the log dets; with `False`, maps are log densities of latents.
      **kwargs: `batch_size`, `steps` and `verbose`, as in `log_prob`. Maps use one noise sample.

    Raises:
      TypeError, ValueError: as in `log_prob`, or if events are vectors, a log det has no positions,
        or the base distribution or a bijector has an invalid type.
    """
    caller = "log_prob_map"
    spec = spec_of(model, caller)
    expected = "log_prob_map: expected a model of images"
    validation.require(spec.event_ndims == 3, expected, spec.distribution.event_shape)
    if conditional_input is not None:
        data = (data, conditional_input)
    arguments = _map, spec.distribution, (spec.noise, bool(log_dets)), tf.constant(spec.seed)
    jit_compile = getattr(model, "jit_compile", False)
    map_of = functools.partial(memoize.call_traced, *arguments, jit_compile=jit_compile)
    return map_batches(map_of, spec, caller, data, **kwargs)


def _map(
    distribution: tfd.Distribution,
    noise: Any,
    log_dets: bool,
    seed: tf.Tensor,
    images: tf.Tensor,
    condition: tf.Tensor | None = None,
) -> tf.Tensor:
    terms: list[tf.Tensor] = []
    height, width = tf.shape(images)[1], tf.shape(images)[2]
    with surround_with(terms=terms):
        values, _ = noise.add_noise(images, functools.partial(pixels.event_noise, seed=seed))
        split_latents = log_probs = None
        condition = condition_of_events(distribution, values, condition)
        distribution = flow_of(distribution)
        while isinstance(distribution, (ConditionalBase, private_api.TransformedDistribution)):
            if isinstance(distribution, ConditionalBase):
                distribution = distribution.given(condition)
                continue
            bijector = distribution.bijector
            options = {"conditional_input": condition, "has_events": True}
            chain = FlowChain([bijector], dtype=values.dtype)
            values, _ = chain._outermost_pass(values, inverse=True, **options)
            split_latents = getattr(bijector, "split_latents", split_latents)
            distribution = distribution.distribution
    if isinstance(distribution, (private_api.Sample, private_api.Independent)):
        log_probs = distribution.distribution.log_prob(values)
    if log_probs is None or log_probs.shape.rank < values.shape.rank - 1:
        raise TypeError(
            "log_prob_map: expected a distribution of independent elements or positions as base, "
            f"such as `tfd.Sample(tfd.Normal(0., 1.), [H, W, C])`, got {distribution}."
        )
    has_channels = log_probs.shape.rank == values.shape.rank
    log_probs = log_probs if has_channels else log_probs[..., tf.newaxis]
    of_latents = split_latents(log_probs) if has_channels and split_latents else [log_probs]
    terms = [*(terms if log_dets else ()), *(tf.reduce_sum(part, axis=-1) for part in of_latents)]
    return tf.add_n([_spread_evenly(term, height, width) for term in terms])


def _spread_evenly(term: tf.Tensor, height: tf.Tensor, width: tf.Tensor) -> tf.Tensor:
    """Divides each value of a term [..., h, w] among its block of pixels, [..., height, width]."""
    rows, columns = height // tf.shape(term)[-2], width // tf.shape(term)[-1]
    share = term / tf.cast(rows * columns, term.dtype)
    return tf.repeat(tf.repeat(share, rows, axis=-2), columns, axis=-1)

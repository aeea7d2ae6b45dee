"""The log density of images by position."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_realnvp import pixels
from tfp_realnvp.bijectors import FlowChain
from tfp_realnvp.bijectors.passes import Pass, surround_with, surrounding_pass
from tfp_realnvp.distributions import ConditionalBase
from tfp_realnvp.evaluation.batched_scores import map_batches, model_of
from tfp_realnvp.flows import ImageFlow
from tfp_realnvp.internal import private_api, validation
from tfp_realnvp.internal.kept import call_traced
from tfp_realnvp.training.flow_model import FlowModel

__all__ = ["log_prob_map"]

tfd = tfp.distributions


def log_prob_map(
    model: FlowModel | tfd.Distribution,
    data: Any,
    conditional_input: Any = None,
    *,
    log_dets: bool = True,
    **kwargs: Any,
) -> np.ndarray:
    """Returns the share of each position of an image in its log density, in nats.

    The log density of a flow is a sum of log densities of latents and of log dets, each of which
    has a place in the image. The sum of a map over all positions is `tfr.log_prob` with the same
    arguments. Low values show where in the image the density is low, for example a defect.

    *   The log det of a coupling or of `PixelLogit` is a sum over elements; that of a normalization
        or a 1×1 convolution is the same number at each position.
    *   Where the image is squeezed, one position covers a block of pixels. Its share is spread over
        them evenly. The same holds for latents, which `ImageFlow.split_latents` gives by scale.

    A share is not the log density of the pixel given the others: a latent depends on an area of the
    image that is as large as the receptive field of the networks, and a change of one pixel changes
    the map around it.

    Log dets depend on what is in the image: smooth areas have a higher density than edges. Latents
    of data like those of training have the same distribution everywhere. To find a defect anywhere
    in an image, `log_dets=False` is therefore often the better map.

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

    Feature maps are continuous, without noise:

    >>> flow = tfd.TransformedDistribution(
    ...     tfd.Sample(tfd.Normal(0., 1.), [7, 7, 6]),
    ...     tfr.RealNVPImage.compact((7, 7, 6), alpha=None, num_filters=4))
    >>> model = tfr.FlowModel(flow, dequantize=False)
    >>> tfr.log_prob_map(model, np.random.default_rng(0).normal(size=[3, 7, 7, 6])).shape
    (3, 7, 7)

    #### References

    Yu et al.: FastFlow: unsupervised anomaly detection and localization via 2D normalizing flows,
    2021 (arXiv 2111.07677). Its maps are those of `log_dets=False`.

    Args:
      model: as in `log_prob`, of images. The distribution is a `tfd.TransformedDistribution`, with
        bijectors of this package, of TFP on elements or on channels, and of `FlowChain`. Its base
        is a `tfd.Sample` or `tfd.Independent` of distributions of elements or of channels, or a
        `ConditionalBase` of them. Its distribution is traced at the first call.
      data: as in `log_prob`, images [N, H, W, C].
      conditional_input: as in `log_prob`.
      log_dets: `False` gives the log density of the latents alone.
      **kwargs: `batch_size`, `steps` and `verbose`, as in `log_prob`. Maps have one noise sample.

    Returns:
      Maps [N, H, W]. With a `VariationalDequantization` q, `-log q(u | x)` is part of them.

    Raises:
      TypeError: if `model` is neither a `FlowModel` nor a distribution, or the distribution or its
        base is not of a kind named above.
      ValueError: if events are vectors, a log det has no positions, or as in `log_prob`.
    """
    caller = "log_prob_map"
    model = model_of(model, caller)
    if model.event_ndims != 3:
        shape = model.distribution.event_shape
        raise ValueError(f"log_prob_map: expected a model of images, got event_shape {shape}.")
    log_dets = validation.flag(log_dets, "log_prob_map: expected a bool as log_dets")
    if conditional_input is not None:
        data = (data, conditional_input)
    seed, options = tf.constant(model.seed), (model.noise, log_dets)

    def map_of(*batch: tf.Tensor) -> tf.Tensor:
        jit_compile = model.jit_compile
        return call_traced(_map, model.distribution, options, seed, *batch, jit_compile=jit_compile)

    return map_batches(map_of, model, caller, data, **kwargs)


def _map(
    distribution: tfd.Distribution,
    noise: Any,
    log_dets: bool,
    seed: tf.Tensor,
    images: tf.Tensor,
    condition: tf.Tensor | None = None,
) -> tf.Tensor:
    """Returns maps of images, [B, H, W], with the first noise sample."""
    terms: list[tf.Tensor] = []
    height, width = tf.shape(images)[1], tf.shape(images)[2]
    noise_fn = functools.partial(pixels.event_noise, seed=pixels.evaluation_seed(seed))
    with surround_with(terms=terms):
        values, _ = noise.add_noise(images, noise_fn)
        p = surrounding_pass().but(condition=condition)
        _record_log_prob(distribution, values, p, log_dets)
    return tf.add_n([_spread_evenly(term, height, width) for term in terms])


def _record_log_prob(
    distribution: tfd.Distribution,
    values: tf.Tensor,
    p: Pass,
    log_dets: bool,
    split_latents: Callable[[tf.Tensor], list[tf.Tensor]] = lambda latents: [latents],
) -> None:
    """Records the terms of the log density of images."""
    if isinstance(distribution, ConditionalBase):
        given = distribution.given(p.condition)
        return _record_log_prob(given, values, p, log_dets, split_latents)
    if isinstance(distribution, private_api.TransformedDistribution):
        bijector = distribution.bijector
        if isinstance(bijector, ImageFlow):
            split_latents = bijector.split_latents
        options = {"conditional_input": p.condition, "has_events": True}
        chain = FlowChain([bijector], dtype=values.dtype)
        latents, _ = chain._outermost_pass(values, inverse=True, **options)
        return _record_log_prob(distribution.distribution, latents, p, log_dets, split_latents)
    terms = None
    if isinstance(distribution, (private_api.Sample, private_api.Independent)):
        terms = distribution.distribution.log_prob(values)
    if terms is None or terms.shape.rank < values.shape.rank - 1:
        raise TypeError(
            "log_prob_map: expected a distribution of independent elements or positions as base, "
            f"such as `tfd.Sample(tfd.Normal(0., 1.), [H, W, C])`, got {distribution}."
        )
    if not log_dets:
        p.terms.clear()
    if terms.shape.rank < values.shape.rank:
        p.record(terms[..., tf.newaxis])
    else:
        for term in split_latents(terms):
            p.record(term)


def _spread_evenly(term: tf.Tensor, height: tf.Tensor, width: tf.Tensor) -> tf.Tensor:
    """Returns a term [..., h, w] as [..., height, width]: each value over its block of pixels."""
    rows, columns = height // tf.shape(term)[-2], width // tf.shape(term)[-1]
    share = term / tf.cast(rows * columns, term.dtype)
    return tf.repeat(tf.repeat(share, rows, axis=-2), columns, axis=-1)

"""A distribution as a SavedModel, for serving with TensorFlow alone."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_realnvp import files, pixels, tfp_types
from tfp_realnvp.bijectors import FlowBijector, PixelLogit, RealNVPImage, parts
from tfp_realnvp.networks.weight_norm_conv import WeightNormConv2D, fixed_kernels

__all__ = ["export_saved_model"]

tfd = tfp.distributions

Outputs = dict[str, tf.Tensor]


def export_saved_model(
    distribution: tfd.Distribution | keras.Model,
    path: str | os.PathLike[str],
    *,
    image_shape: Sequence[int | None] | None = None,
) -> None:
    r"""Writes a SavedModel that TensorFlow or TensorFlow Serving runs without any other package.

    Each name below is a signature, `loaded.signatures[name]`, and a method, `loaded.name`; both
    give a dictionary. With the flow x = forward(z), B images of shape [H, W, C] and D = H W C:

    | name | inputs | outputs |
    | --- | --- | --- |
    | `log_prob` | `images` [B, H, W, C] | `log_prob` [B], nats |
    | `bits_per_dim` | `images` | `bits_per_dim` [B]: -log_prob / (D ln 2) |
    | `encode` | `images` | `latents`: inverse(images) |
    | `decode` | `latents` | `images`: forward(latents) |
    | `sample` | `num_samples`, `seed`, `temperature`: scalars | `images`, of the base's shape |
    | `reconstruct` | `images` | `images`: forward(inverse(images)) |

    Images are continuous pixel values, of the distribution's dtype: with `PixelLogit` in the flow
    those of uint8 images lie in [0, 256). Such a flow of at most 256 grey levels also has a twin of
    each name, `log_prob_uint8` and so on, whose images are uint8 grey levels. Those that go in get
    uniform noise in [0, 1), by one more input, the int32 scalar `seed`; those that come out are
    rounded down and clipped. So `reconstruct_uint8` gives back its input.

    `num_samples` and `seed` are int32; the same seed gives the same images, those that
    `distribution.sample(num_samples, seed=tf.constant([seed, 0]))` gives. `temperature` multiplies
    standard normal latents, of which fewer than 1 give more probable images. A base distribution
    that is not a standard normal one has no such scale: there any temperature but 1 is an error.

    Batches are of any size from 1. Height and width are free too, where the base is a standard
    normal one and the flow is this package's: `decode` samples other sizes from latents of that
    shape. Sizes that the scales cannot halve, and pixels out of range, are an
    `InvalidArgumentError`.

    Weight normalisation is done now, once; statistics are the moving ones. The weights are those of
    this moment. The folder is written beside `path` and then takes its place, so that an export
    that is killed leaves the old one.

    #### Example

    >>> import tempfile, tensorflow as tf, tensorflow_probability as tfp, tfp_realnvp as tfr
    >>> tfd = tfp.distributions
    >>> flow = tfd.TransformedDistribution(
    ...     tfd.Sample(tfd.Normal(0., 1.), [4, 4, 1]),
    ...     tfr.RealNVPImage((4, 4, 1), num_blocks=0, num_filters=4))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     export_saved_model(flow, f'{folder}/1')
    ...     served = tf.saved_model.load(f'{folder}/1')
    >>> images = served.sample(num_samples=2, seed=0, temperature=0.7)['images']
    >>> images.shape, served.log_prob(images)['log_prob'].shape
    (TensorShape([2, 4, 4, 1]), TensorShape([2]))
    >>> served.log_prob_uint8(tf.zeros([3, 8, 8, 1], tf.uint8), seed=1)['log_prob'].shape
    TensorShape([3])

    Args:
      distribution: a `tfd.TransformedDistribution` over images, or a `FlowModel` of one.
      path: the folder; TensorFlow Serving wants its name to be a version number.
      image_shape: (height, width, channels) of the images that it is to take; `None` in it is any
        size. `None` is as said above.

    Raises:
      TypeError: if it is no `tfd.TransformedDistribution`.
      ValueError: if its events are not images of known shape, or `image_shape` does not fit.
    """
    if isinstance(distribution, keras.Model):
        distribution = distribution.distribution
    if not isinstance(distribution, tfp_types.TransformedDistribution):
        raise TypeError(
            "export_saved_model: expected a tfd.TransformedDistribution, or a FlowModel of one, "
            f"got {distribution!r}."
        )
    event_shape = distribution.event_shape
    if not event_shape.is_fully_defined() or event_shape.rank != 3:
        raise ValueError(
            "export_saved_model: expected a distribution over images [height, width, channels] of "
            f"known shape, got event_shape {event_shape}."
        )
    flow = _ServedFlow(distribution, image_shape)
    layers = _weight_norm_layers(distribution)
    kernels = {
        layer: tf.Variable(layer.normalized_kernel(), trainable=False, name="kernel")
        for layer in layers
    }
    module = tf.Module()
    with fixed_kernels(kernels):
        signatures = {}
        for name, function in flow.functions().items():
            setattr(module, name, function)
            signatures[name] = function.get_concrete_function()
        # What is saved is what some graph reads: normalised kernels, not what they came from.
        captured = {id(t) for f in signatures.values() for t in f.captured_inputs}
        candidates = [*distribution.variables, *kernels.values()]
        module.served_variables = [v for v in candidates if id(v.handle) in captured]
        with files.replaced_whole(path) as whole:
            tf.saved_model.save(module, os.fspath(whole), signatures=signatures)


class _ServedFlow:
    """The functions that a SavedModel of a distribution has."""

    def __init__(
        self, distribution: tfd.Distribution, image_shape: Sequence[int | None] | None
    ) -> None:
        self._base = distribution.distribution
        self._bijector = distribution.bijector
        self._dtype = tf.as_dtype(distribution.dtype)
        self._is_standard = _is_standard_normal(self._base)
        event_shape = distribution.event_shape
        is_any_size = self._is_standard and isinstance(self._bijector, FlowBijector)
        if image_shape is None:
            image_shape = (None, None, event_shape[-1]) if is_any_size else event_shape
        image_shape = tf.TensorShape(image_shape)
        if not is_any_size and image_shape != event_shape:
            raise ValueError(
                f"export_saved_model: expected image_shape {event_shape}, the only one of this "
                f"base distribution and bijector, got {image_shape}."
            )
        latent_shape = self._bijector.inverse_event_shape(image_shape)
        self._images = tf.TensorSpec([None, *image_shape], self._dtype, "images")
        self._latents = tf.TensorSpec([None, *latent_shape], self._dtype, "latents")
        parts_inside = [self._bijector, *self._bijector.submodules]
        halvings = [p.num_scales - 1 for p in parts_inside if isinstance(p, RealNVPImage)]
        self._divisor = 2 ** max(halvings, default=0)
        self._logit = next((p for p in parts_inside if isinstance(p, PixelLogit)), None)
        # Each graph of the whole flow once: the signatures call these two.
        self._inverse = tf.function(
            self._inverse_pass, input_signature=[self._images], autograph=False
        )
        self._forward = tf.function(
            self._bijector.forward, input_signature=[self._latents], autograph=False
        )

    def functions(self) -> dict[str, tf.types.experimental.PolymorphicFunction]:
        """Returns the functions by name, without free arguments."""
        seed = tf.TensorSpec([], tf.int32, "seed")
        num_samples = tf.TensorSpec([], tf.int32, "num_samples")
        temperature = tf.TensorSpec([], self._dtype, "temperature")
        inputs = {
            self.log_prob: [self._images],
            self.bits_per_dim: [self._images],
            self.encode: [self._images],
            self.decode: [self._latents],
            self.sample: [num_samples, seed, temperature],
            self.reconstruct: [self._images],
        }
        functions = {
            function.__name__: tf.function(function, input_signature=specs, autograph=False)
            for function, specs in inputs.items()
        }
        if self._logit is not None and self._num_values <= 256:
            grey_levels = tf.TensorSpec(self._images.shape, tf.uint8, "images")
            for function, specs in inputs.items():
                takes_images = specs[0] is self._images
                functions[f"{function.__name__}_uint8"] = tf.function(
                    self._of_grey_levels(function, takes_images),
                    input_signature=[grey_levels, seed] if takes_images else specs,
                    autograph=False,
                )
        return functions

    def log_prob(self, images: tf.Tensor) -> Outputs:
        return {"log_prob": self._encoded(images)[1]}

    def bits_per_dim(self, images: tf.Tensor) -> Outputs:
        num_dims = tf.reduce_prod(tf.shape(images)[1:])
        return {"bits_per_dim": pixels.bits_per_dim(self._encoded(images)[1], num_dims)}

    def encode(self, images: tf.Tensor) -> Outputs:
        return {"latents": self._encoded(images)[0]}

    def decode(self, latents: tf.Tensor) -> Outputs:
        with tf.control_dependencies(self._size_assertions(latents)):
            return {"images": self._forward(latents)}

    def sample(self, num_samples: tf.Tensor, seed: tf.Tensor, temperature: tf.Tensor) -> Outputs:
        message = "expected at least 1 as num_samples"
        assertions = [tf.debugging.assert_positive(num_samples, message)]
        if not self._is_standard:
            message = "expected temperature 1: the base distribution is not a standard normal one"
            one = tf.ones_like(temperature)
            assertions.append(tf.debugging.assert_equal(temperature, one, message))
        with tf.control_dependencies(assertions):
            latents = self._base.sample(num_samples, seed=tf.stack([seed, 0]))
            if self._is_standard:
                latents *= temperature
            return {"images": self._forward(latents)}

    def reconstruct(self, images: tf.Tensor) -> Outputs:
        return {"images": self._forward(self._encoded(images)[0])}

    @property
    def _num_values(self) -> int:
        return self._logit.parameters["num_values"]

    def _inverse_pass(self, images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        latents, ildj = parts.inverse_and_log_det(self._bijector, images)
        if not self._is_standard:
            return latents, self._base.log_prob(latents) + ildj
        # The base has one shape, a standard normal distribution any.
        log_probs = -0.5 * (tf.square(latents) + np.log(2 * np.pi))
        return latents, tf.reduce_sum(log_probs, axis=[-3, -2, -1]) + ildj

    def _encoded(self, images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns latents and log densities."""
        assertions = self._size_assertions(images)
        if self._logit is not None:
            low, high = (tf.constant(v, self._dtype) for v in (self._logit.low, self._logit.high))
            message = f"expected pixel values above {self._logit.low} and below {self._logit.high}"
            assertions.append(tf.debugging.assert_greater(images, low, message))
            assertions.append(tf.debugging.assert_less(images, high, message))
        with tf.control_dependencies(assertions):
            return self._inverse(images)

    def _size_assertions(self, images: tf.Tensor) -> list[tf.Operation]:
        # TensorFlow's convolutions fail in odd ways on a batch of none.
        batch_size = tf.shape(images)[0]
        assertions = [tf.debugging.assert_positive(batch_size, "expected at least one image")]
        if not images.shape[1:].is_fully_defined():
            message = f"expected a height and width divisible by {self._divisor}"
            remainder = tf.shape(images)[1:3] % self._divisor
            assertions.append(tf.debugging.assert_equal(remainder, 0, message))
        return assertions

    def _of_grey_levels(
        self, function: Callable[..., Outputs], takes_images: bool
    ) -> Callable[..., Outputs]:
        def to_grey_levels(outputs: Outputs) -> Outputs:
            if "images" in outputs:
                levels = tf.clip_by_value(tf.floor(outputs["images"]), 0, self._num_values - 1)
                outputs["images"] = tf.cast(levels, tf.uint8)
            return outputs

        def of_images(images: tf.Tensor, seed: tf.Tensor) -> Outputs:
            values = pixels.dequantize(images, tf.stack([seed, 0]), self._dtype)
            return to_grey_levels(function(values))

        @functools.wraps(function)
        def of_others(*args: Any, **kwargs: Any) -> Outputs:
            return to_grey_levels(function(*args, **kwargs))

        return of_images if takes_images else of_others


def _weight_norm_layers(distribution: tfd.Distribution) -> list[WeightNormConv2D]:
    bijectors = [part for part in distribution.submodules if isinstance(part, FlowBijector)]
    networks = dict.fromkeys(layer for part in bijectors for layer in part.layers)
    layers = [layer for network in networks for layer in network._flatten_layers()]
    return [layer for layer in layers if isinstance(layer, WeightNormConv2D) and layer.built]


def _is_standard_normal(base: tfd.Distribution) -> bool:
    # What can be trained is no longer standard afterwards.
    if base.variables or not isinstance(base, (tfd.Sample, tfp_types.Independent)):
        return False
    normal = base.distribution
    if not isinstance(normal, tfd.Normal):
        return False
    return bool(np.all(np.equal(normal.loc, 0)) and np.all(np.equal(normal.scale, 1)))

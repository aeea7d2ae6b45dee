"""Exports a distribution as a SavedModel that TensorFlow alone can serve."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_realnvp import pixels
from tfp_realnvp.bijectors import FlowBijector, PixelLogit, parts
from tfp_realnvp.distributions import (
    class_log_prior,
    distribution_of,
    find_condition_spec,
    route,
    takes_condition,
)
from tfp_realnvp.flows import ImageFlow
from tfp_realnvp.internal import atomic_files, private_api

__all__ = ["export_saved_model"]

tfd = tfp.distributions

Outputs = dict[str, tf.Tensor]
Condition: TypeAlias = tf.Tensor | None


def export_saved_model(
    distribution: tfd.Distribution | keras.Model,
    path: str | os.PathLike[str],
    *,
    image_shape: Sequence[int | None] | None = None,
) -> None:
    r"""Writes a SavedModel that runs in TensorFlow or TensorFlow Serving without other packages.

    Each name below is a signature, `loaded.signatures[name]`, and a method, `loaded.name`. Both
    return a dictionary. With the flow x = forward(z), B images of shape [H, W, C] and D = H W C:

    | name | inputs | outputs |
    | --- | --- | --- |
    | `log_prob` | `images` [B, H, W, C] | `log_prob` [B], nats |
    | `bits_per_dim` | `images` | `bits_per_dim` [B]: -log_prob / (D ln 2) |
    | `encode` | `images` | `latents`: inverse(images) |
    | `decode` | `latents` | `images`: forward(latents) |
    | `sample` | `num_samples`, `seed`, `temperature`: scalars | `images`, of the base's shape |
    | `reconstruct` | `images` | `images`: forward(inverse(images)) |
    | `classify` | `images` | `log_probs` [B, K]: log p(y \| images), `labels` [B]: the argmax |

    A flow that declares a condition has one more input, the last one, of all functions but
    `classify`: `conditional_input`, int32 labels [B], vectors [B, K] or images [B, H, W, K]. For
    `sample` B is `num_samples` or 1. Only a flow with `num_classes`, or with a `ClassMixture`, has
    `classify`; it uses the class probabilities of the `ClassMixture`, else equal ones.

    Images are continuous pixel values of the distribution's dtype; with `PixelLogit`, pixel values
    of uint8 images are in [0, 256). If a `PixelLogit` has at most 256 gray levels, each name has a
    variant for uint8 images, `log_prob_uint8` and so on. Input images are then dequantized with
    uniform noise in [0, 1), drawn with one more input, the int32 scalar `seed`; output images are
    rounded down and clipped. `reconstruct_uint8` therefore returns its input.

    `num_samples` and `seed` are int32. The same seed gives the same images, equal to
    `distribution.sample(num_samples, seed=tf.constant([seed, 0]))`. `temperature` multiplies the
    latents if the base distribution is standard normal; values below 1 give more probable images.
    For any other base distribution a temperature other than 1 is an error.

    A flow of vectors [B, D] has the same functions without `bits_per_dim`, with `x` in the place of
    `images`, and no variants for uint8.

    The batch size is at least 1 and otherwise free. Height and width are free as well if the base
    is standard normal and the bijector is one of this package, without `masks`: `decode` samples
    other sizes from latents of their shape. Sizes that the scales cannot halve, and pixel values
    out of range, raise an `InvalidArgumentError`.

    The weights are copied at the time of the call. Normalizations use their moving statistics. The
    folder is written beside `path` and then replaces it, so an interrupted export leaves the old
    folder intact.

    #### Example

    >>> import tempfile, tensorflow as tf, tensorflow_probability as tfp, tfp_realnvp as tfr
    >>> tfd = tfp.distributions
    >>> flow = tfd.TransformedDistribution(
    ...     tfd.Sample(tfd.Normal(0., 1.), [4, 4, 1]),
    ...     tfr.RealNVPImage((4, 4, 1), num_scales=1, num_blocks=0, num_filters=4))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     tfr.export_saved_model(flow, f'{folder}/1')
    ...     served = tf.saved_model.load(f'{folder}/1')
    >>> images = served.sample(num_samples=2, seed=0, temperature=0.7)['images']
    >>> images.shape, served.log_prob(images)['log_prob'].shape
    (TensorShape([2, 4, 4, 1]), TensorShape([2]))
    >>> served.log_prob_uint8(tf.zeros([3, 8, 8, 1], tf.uint8), seed=1)['log_prob'].shape
    TensorShape([3])

    Args:
      distribution: a `tfd.TransformedDistribution` over images or vectors, or a `FlowModel` of one.
      path: the folder to write. TensorFlow Serving requires its name to be a version number.
      image_shape: (height, width, channels) of the images that the signatures accept, with `None`
        for any size. `None` leaves height and width free where that is possible, as above, and is
        the only value for vectors.

    Raises:
      TypeError: if `distribution` is not a `tfd.TransformedDistribution`.
      ValueError: if its events are neither images nor vectors of known shape, `image_shape` does
        not fit, or it takes a condition that it does not declare.
    """
    flow = ServedFlow(distribution, image_shape, caller="export_saved_model")
    functions = flow.functions()
    module = tf.Module()
    for name, function in functions.items():
        setattr(module, name, function)
    # A SavedModel stores the variables that the module refers to.
    module.served_variables = list(flow.distribution.variables)
    signatures = {name: function.get_concrete_function() for name, function in functions.items()}
    with atomic_files.atomic_replace(path) as temporary:
        tf.saved_model.save(module, os.fspath(temporary), signatures=signatures)


class ServedFlow:
    """The exported functions of a distribution.

    Attributes:
      distribution: the `tfd.TransformedDistribution`.
    """

    def __init__(
        self,
        distribution: tfd.Distribution | keras.Model,
        image_shape: Sequence[int | None] | None,
        caller: str,
        any_size: bool = True,
    ) -> None:
        """Checks the arguments.

        Args:
          distribution: as in `export_saved_model`.
          image_shape: as in `export_saved_model`.
          caller: name that begins the error messages.
          any_size: whether `image_shape=None` leaves height and width free where possible.
        """
        if isinstance(distribution, keras.Model):
            distribution = distribution_of(distribution, caller)
        if not isinstance(distribution, private_api.TransformedDistribution):
            raise TypeError(
                f"{caller}: expected a tfd.TransformedDistribution, or a FlowModel of one, got "
                f"{distribution!r}."
            )
        event_shape = distribution.event_shape
        if not event_shape.is_fully_defined() or event_shape.rank not in (1, 3):
            raise ValueError(
                f"{caller}: expected a distribution over images [height, width, channels] or "
                f"vectors [size] of known shape, got event_shape {event_shape}."
            )
        self.distribution = distribution
        self._base = distribution.distribution
        self._bijector = distribution.bijector
        self._spec = find_condition_spec(distribution)
        if self._spec is None and takes_condition(distribution):
            raise ValueError(
                f"{caller}: expected a declared condition, by num_classes or "
                f"conditional_event_shape, got {distribution}."
            )
        self._dtype = tf.as_dtype(distribution.dtype)
        self._is_standard_normal = _is_standard_normal(self._base)
        self._event_ndims = event_shape.rank
        is_ours = self._event_ndims == 3 and isinstance(self._bijector, FlowBijector)
        parts = [self._bijector, *self._bijector.submodules]
        flows = [part for part in parts if isinstance(part, ImageFlow)]
        any_size = any_size and not any(flow.has_fixed_size for flow in flows)
        has_any_size = any_size and self._is_standard_normal and is_ours
        if image_shape is None:
            image_shape = (None, None, event_shape[-1]) if has_any_size else event_shape
        image_shape = tf.TensorShape(image_shape)
        if not has_any_size and image_shape != event_shape:
            raise ValueError(
                f"{caller}: expected image_shape {event_shape}, the only one of this "
                f"base distribution and bijector, got {image_shape}."
            )
        latent_shape = self._bijector.inverse_event_shape(image_shape)
        name = "images" if self._event_ndims == 3 else "x"
        self._images = tf.TensorSpec([None, *image_shape], self._dtype, name)
        self._latents = tf.TensorSpec([None, *latent_shape], self._dtype, "latents")
        self._divisor = 2 ** max((flow.num_scales - 1 for flow in flows), default=0)
        self._logit = next((part for part in parts if isinstance(part, PixelLogit)), None)
        self._condition = [] if self._spec is None else [self._spec.tensor_spec(self._dtype)]
        # The base alone may depend on the condition.
        takes_condition_itself = "bijector_kwargs" in route(distribution, conditional_input=0)
        self._bijector_condition = self._condition if takes_condition_itself else []
        # All signatures call these two functions, so that the SavedModel has each graph once.
        self._inverse = tf.function(
            self._inverse_pass,
            input_signature=[self._images, *self._bijector_condition],
            autograph=False,
        )
        self._forward = tf.function(
            self._forward_pass,
            input_signature=[self._latents, *self._bijector_condition],
            autograph=False,
        )

    def functions(self) -> dict[str, tf.types.experimental.PolymorphicFunction]:
        """Returns the functions by name, each with its input signature."""
        seed = tf.TensorSpec([], tf.int32, "seed")
        num_samples = tf.TensorSpec([], tf.int32, "num_samples")
        temperature = tf.TensorSpec([], self._dtype, "temperature")
        inputs: dict[Callable[..., Outputs], list[tf.TensorSpec]] = {
            self.log_prob: [self._images],
            self.bits_per_dim: [self._images],
            self.encode: [self._images],
            self.decode: [self._latents],
            self.sample: [num_samples, seed, temperature],
            self.reconstruct: [self._images],
        }
        inputs = {function: [*specs, *self._condition] for function, specs in inputs.items()}
        if self._spec is not None and self._spec.num_classes is not None:
            inputs[self.classify] = [self._images]
        if self._event_ndims == 1:
            del inputs[self.bits_per_dim]
            inputs = {
                _of_vectors(function, takes_x=specs[0] is self._images): specs
                for function, specs in inputs.items()
            }
        signatures = {function.__name__: (function, specs) for function, specs in inputs.items()}
        if self._logit is not None and self._num_values <= 256:
            uint8_images = tf.TensorSpec(self._images.shape, tf.uint8, "images")
            for function, specs in inputs.items():
                outputs_uint8 = self._with_uint8_outputs(function)
                signatures[f"{function.__name__}_uint8"] = (
                    (self._with_uint8_inputs(outputs_uint8), [uint8_images, seed, *specs[1:]])
                    if specs[0] is self._images
                    else (outputs_uint8, specs)
                )
        return {
            name: tf.function(function, input_signature=specs, autograph=False)
            for name, (function, specs) in signatures.items()
        }

    # Without a declared condition, `conditional_input` is not part of the signatures.

    def log_prob(self, images: tf.Tensor, conditional_input: Condition = None) -> Outputs:
        latents, ildj = self._encoded(images, conditional_input)
        return {"log_prob": self._base_log_prob(latents, conditional_input) + ildj}

    def bits_per_dim(self, images: tf.Tensor, conditional_input: Condition = None) -> Outputs:
        num_dims = tf.reduce_prod(tf.shape(images)[1:])
        log_prob = self.log_prob(images, conditional_input)["log_prob"]
        return {"bits_per_dim": pixels.bits_per_dim(log_prob, num_dims)}

    def encode(self, images: tf.Tensor, conditional_input: Condition = None) -> Outputs:
        return {"latents": self._encoded(images, conditional_input)[0]}

    def decode(self, latents: tf.Tensor, conditional_input: Condition = None) -> Outputs:
        assertions = self._size_assertions(latents) + self._label_assertions(conditional_input)
        with tf.control_dependencies(assertions):
            return {"images": self._decoded(latents, conditional_input)}

    def sample(
        self,
        num_samples: tf.Tensor,
        seed: tf.Tensor,
        temperature: tf.Tensor,
        conditional_input: Condition = None,
    ) -> Outputs:
        if conditional_input is not None:
            conditional_input = _repeated(conditional_input, num_samples)
        message = "expected num_samples of at least 1"
        assertions = [tf.debugging.assert_positive(num_samples, message)]
        assertions += self._label_assertions(conditional_input)
        if not self._is_standard_normal:
            message = "expected temperature 1: the base distribution is not standard normal"
            one = tf.ones_like(temperature)
            assertions.append(tf.debugging.assert_equal(temperature, one, message))
        with tf.control_dependencies(assertions):
            options = route(self._base, conditional_input=conditional_input)
            latents = self._base.sample(num_samples, seed=tf.stack([seed, 0]), **options)
            if self._is_standard_normal:
                latents *= temperature
            return {"images": self._decoded(latents, conditional_input)}

    def reconstruct(self, images: tf.Tensor, conditional_input: Condition = None) -> Outputs:
        latents = self._encoded(images, conditional_input)[0]
        return {"images": self._decoded(latents, conditional_input)}

    def classify(self, images: tf.Tensor) -> Outputs:
        batch_size, num_classes = tf.shape(images)[0], self._spec.num_classes
        labels = tf.tile(tf.range(num_classes), [batch_size])
        # The bijector gets each image with each class, or once if it maps all classes alike.
        num_passes = num_classes if self._bijector_condition else 1
        encoded = self._encoded(tf.repeat(images, num_passes, axis=0), labels)
        latents, ildj = (tf.repeat(part, num_classes // num_passes, axis=0) for part in encoded)
        log_prob = self._base_log_prob(latents, labels) + ildj
        log_joint = tf.reshape(log_prob, [batch_size, num_classes])
        log_joint += class_log_prior(self.distribution)
        log_probs = tf.nn.log_softmax(log_joint)
        return {
            "log_probs": log_probs,
            "labels": tf.argmax(log_probs, axis=-1, output_type=tf.int32),
        }

    @property
    def _num_values(self) -> int:
        return self._logit.num_values

    def _forward_pass(self, latents: tf.Tensor, conditional_input: Condition = None) -> tf.Tensor:
        options = parts.call_options(self._bijector, conditional_input=conditional_input)
        return self._bijector.forward(latents, **options)

    def _decoded(self, latents: tf.Tensor, conditional_input: Condition) -> tf.Tensor:
        return self._forward(latents, *self._of_bijector(conditional_input))

    def _of_bijector(self, conditional_input: Condition) -> list[tf.Tensor]:
        has_condition = conditional_input is not None and self._bijector_condition
        return [conditional_input] if has_condition else []

    def _inverse_pass(
        self, images: tf.Tensor, conditional_input: Condition = None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns latents and log dets."""
        part = parts.as_part(self._bijector, self._event_ndims)
        options = {"conditional_input": conditional_input, "has_events": True}
        return part._outermost_pass(images, inverse=True, **options)

    def _base_log_prob(self, latents: tf.Tensor, conditional_input: Condition) -> tf.Tensor:
        if not self._is_standard_normal:
            options = route(self._base, conditional_input=conditional_input)
            return self._base.log_prob(latents, **options)
        # The base distribution has one event shape; images can have any size.
        log_probs = -0.5 * (tf.square(latents) + np.log(2 * np.pi))
        return tf.reduce_sum(log_probs, axis=list(range(-self._event_ndims, 0)))

    def _encoded(
        self, images: tf.Tensor, conditional_input: Condition
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Checks images, and returns their latents and log dets."""
        assertions = self._size_assertions(images) + self._label_assertions(conditional_input)
        if self._logit is not None:
            low, high = (tf.constant(v, self._dtype) for v in (self._logit.low, self._logit.high))
            message = f"expected pixel values above {self._logit.low} and below {self._logit.high}"
            assertions.append(tf.debugging.assert_greater(images, low, message))
            assertions.append(tf.debugging.assert_less(images, high, message))
        with tf.control_dependencies(assertions):
            return self._inverse(images, *self._of_bijector(conditional_input))

    def _label_assertions(self, condition: Condition) -> list[tf.Operation]:
        if condition is None or self._spec.num_classes is None:
            return []
        message = f"expected a conditional_input of {self._spec.description}"
        return [tf.debugging.Assert(tf.reduce_all(self._spec.in_range(condition)), [message])]

    def _size_assertions(self, images: tf.Tensor) -> list[tf.Operation]:
        # TensorFlow's convolutions fail, or give a wrong shape, for an empty batch.
        batch_size = tf.shape(images)[0]
        message = f"expected at least one {'image' if self._event_ndims == 3 else 'vector'}"
        assertions = [tf.debugging.assert_positive(batch_size, message)]
        if not images.shape[1:].is_fully_defined():
            message = f"expected a height and width divisible by {self._divisor}"
            remainder = tf.shape(images)[1:3] % self._divisor
            assertions.append(tf.debugging.assert_equal(remainder, 0, message))
        return assertions

    def _with_uint8_outputs(self, function: Callable[..., Outputs]) -> Callable[..., Outputs]:
        @functools.wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Outputs:
            outputs = function(*args, **kwargs)
            if "images" in outputs:
                levels = tf.clip_by_value(tf.floor(outputs["images"]), 0, self._num_values - 1)
                outputs["images"] = tf.cast(levels, tf.uint8)
            return outputs

        return wrapped

    def _with_uint8_inputs(self, function: Callable[..., Outputs]) -> Callable[..., Outputs]:
        def wrapped(
            images: tf.Tensor, seed: tf.Tensor, conditional_input: Condition = None
        ) -> Outputs:
            # The noise of `tfr.log_prob` with a model of this seed.
            noise_fn = functools.partial(pixels.event_noise, seed=pixels.evaluation_seed(seed))
            values, _ = pixels.UniformNoise(self._dtype).add_noise(images, noise_fn)
            conditions = [] if conditional_input is None else [conditional_input]
            return function(values, *conditions)

        return wrapped


def _of_vectors(function: Callable[..., Outputs], takes_x: bool) -> Callable[..., Outputs]:
    """Returns the function with the names for vectors: `x` instead of `images`."""

    def renamed(*args: Any, **kwargs: Any) -> Outputs:
        outputs = function(*args, **kwargs)
        return {"x" if name == "images" else name: value for name, value in outputs.items()}

    if not takes_x:
        return functools.wraps(function)(renamed)

    def of_x(x: tf.Tensor, conditional_input: Condition = None) -> Outputs:
        return renamed(x, *([] if conditional_input is None else [conditional_input]))

    of_x.__name__ = function.__name__
    return of_x


def _repeated(condition: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
    """Returns `number` conditions, repeating a single one."""
    message = "expected as many conditions as num_samples, or one"
    is_one_of = tf.reduce_any(tf.shape(condition)[0] == [1, number])
    with tf.control_dependencies([tf.debugging.assert_equal(is_one_of, True, message)]):
        shape = tf.concat([[number], tf.shape(condition)[1:]], axis=0)
        return tf.ensure_shape(tf.broadcast_to(condition, shape), condition.shape)


def _is_standard_normal(base: tfd.Distribution) -> bool:
    # A base with variables may become another distribution in training.
    if base.variables or not isinstance(base, (tfd.Sample, private_api.Independent)):
        return False
    normal = base.distribution
    if not isinstance(normal, tfd.Normal):
        return False
    return bool(np.all(np.equal(normal.loc, 0)) and np.all(np.equal(normal.scale, 1)))

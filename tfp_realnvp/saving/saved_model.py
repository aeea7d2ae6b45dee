"""Exports a distribution as a SavedModel that TensorFlow alone can serve."""

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import keras
import tensorflow as tf
from tensorflow_probability import distributions as tfd

from tfp_realnvp import pixels
from tfp_realnvp.bijectors import FlowBijector, FlowChain, PixelLogit
from tfp_realnvp.bijectors.flow_bijector import surround_with
from tfp_realnvp.distributions import VariationalDequantization, classification, routing, sampler
from tfp_realnvp.distributions.clusters import condition_of_events, condition_of_samples, flow_of
from tfp_realnvp.flows.image_flow import ImageFlow, checked_image_shape
from tfp_realnvp.internal import atomic_files, memoize, private_api, validation
from tfp_realnvp.internal.progress import Progress
from tfp_realnvp.saving.folded_graph import folded

Outputs = dict[str, tf.Tensor]
Condition: TypeAlias = tf.Tensor | None

# A graph with its weights as constants must be smaller than 2 GB.
_MAX_FOLDED_BYTES = 2**30


def export_saved_model(
    distribution: tfd.Distribution | keras.Model,
    path: str | os.PathLike[str],
    *,
    image_shape: Sequence[int | None] | None = None,
    verbose: bool | None = None,
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
    | `sample` | `num_samples`, `seed`, `temperature`: scalars | `images` |
    | `reconstruct` | `images` | `images`: forward(inverse(images)) |
    | `classify` | `images` | `log_probs` [B, K]: log p(y \| images), `labels` [B]: the argmax |

    If the flow declares a condition, `conditional_input` is the last input of all functions except
    `classify`: int32 labels [B], vectors [B, K] or images [B, H, W, K]. In `sample`, B is
    `num_samples` or 1. Only flows with `num_classes` or a `ClassMixture` have `classify`.
    `classify` uses the class probabilities of the `ClassMixture`, or else equal probabilities.

    Images are continuous pixel values of the distribution's dtype. If the flow has a `PixelLogit`
    of at most 256 gray levels, each function has a variant for uint8 images, `log_prob_uint8` and
    so on. The variant adds noise to input images, and rounds output images down and clips them, so
    `reconstruct_uint8` returns its input. The noise of an image depends on its gray levels and on
    an additional input, the int32 scalar `seed`. In methods `loaded.name` of flows without a
    condition, `seed` defaults to the seed of the model.

    The variants of a `FlowModel` add the model's noise and return the same densities as
    `tfr.log_prob`. With a `VariationalDequantization` q, the densities are log p(x + u) - log q(u |
    x), and the variants accept only the image size of q. If `dequantize=False`, there are no
    variants. If you pass a distribution, the noise is uniform in [0, 1), so pass the model, not
    `model.distribution`.

    `num_samples` and `seed` are int32; `temperature` and `guidance` are finite and at least 0, or
    raise an `InvalidArgumentError`. The samples equal
    `distribution.sample(num_samples, seed=tf.constant([seed, 0]))`. If the base distribution is
    standard normal, `temperature` multiplies the latents, and values below 1 give more probable
    images. With any other base distribution, `temperature` must be 1.

    For a flow with `condition_dropout`, `sample` has one more scalar input after `temperature`:
    `guidance`, as in `FlowModel.sample`; 0 turns guidance off. With a `ClusterMixture`, `log_prob`
    sums over clusters, `sample` draws clusters, and `encode` also returns the nearest `clusters`
    [B], int32, which `decode` takes instead of a condition.

    A flow of vectors [B, D] has the same functions except `bits_per_dim`. Inputs and outputs are
    named `x` instead of `images`, and there are no uint8 variants.

    The functions accept any batch size of at least 1, and any height and width if the base is
    standard normal and the bijector is one of this package that accepts any size. Images of a size
    that the scales cannot halve, or with values out of range, raise an `InvalidArgumentError`. If
    there are uint8 variants, `log_prob`, `bits_per_dim` and `classify` also raise this error for
    gray levels without noise, a batch of whole numbers only, and for gray levels divided by 255.

    The export copies the weights, uses the moving statistics of normalizations, and precomputes all
    values that depend only on weights. Gradients of the functions ignore `tf.custom_gradient`. An
    interrupted export leaves the old folder unchanged.

    #### Example

    >>> import tempfile, tensorflow as tf, tensorflow_probability as tfp, tfp_realnvp as tfr
    >>> tfd = tfp.distributions
    >>> flow = tfd.TransformedDistribution(
    ...     tfd.Sample(tfd.Normal(0., 1.), [4, 4, 1]),
    ...     tfr.RealNVPImage((4, 4, 1), num_scales=1, num_blocks=0, num_filters=4))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     tfr.export_saved_model(flow, f'{folder}/1', verbose=False)
    ...     served = tf.saved_model.load(f'{folder}/1')
    >>> images = served.sample(num_samples=2, seed=0, temperature=0.7)['images']
    >>> images.shape, served.log_prob(images)['log_prob'].shape
    (TensorShape([2, 4, 4, 1]), TensorShape([2]))
    >>> served.log_prob_uint8(tf.zeros([3, 8, 8, 1], tf.uint8), seed=1)['log_prob'].shape
    TensorShape([3])

    Args:
      distribution: a `tfd.TransformedDistribution` over images or vectors, a `ClusterMixture`, or a
        `FlowModel` of one.
      path: the folder to write. TensorFlow Serving requires its name to be a version number.
      image_shape: (height, width, channels) of input images and of samples, with `None` for any
        size. By default the functions accept any height and width if possible (see above), and
        samples have the event shape of the base.
      verbose: whether to print progress and, at the end, the path. By default, prints only if the
        export takes more than 5 seconds.

    Raises:
      TypeError: if `distribution` is not a `tfd.TransformedDistribution`.
      ValueError: if `distribution` has events other than images or vectors of known shape, or takes
        a condition that it does not declare; or if `image_shape` does not fit, or `path` is
        `*.onnx`.
      RuntimeError: if `export_saved_model` is called in a `tf.function`.
    """
    check_folder(path, "export_saved_model")
    progress = Progress("export_saved_model", verbose)
    functions = ServedFlow(distribution, image_shape, progress).functions()
    module, signatures = tf.Module(), {}
    for number, (name, function) in enumerate(functions.items(), 1):
        progress(f"tracing {name}, function {number} of {len(functions)}")
        setattr(module, name, function)
        signatures[name] = function.get_concrete_function()
    # A SavedModel stores only variables that the module refers to.
    module.served_variables = [v for function in signatures.values() for v in function.variables]
    progress("writing the SavedModel")
    with atomic_files.atomic_replace(path) as temporary:
        tf.saved_model.save(module, os.fspath(temporary), signatures=signatures)
    progress.end(os.fspath(path))


def check_folder(path: str | os.PathLike[str], caller: str) -> None:
    """Raises `ValueError` for the name of an ONNX file: an export is a folder of functions."""
    stem, ending = os.path.splitext(os.fspath(path))
    expected = f"{caller}: expected a folder, such as {stem!r}, in which format='onnx' writes "
    expected += "log_prob.onnx, encode.onnx and decode.onnx"
    validation.require(ending != ".onnx", expected, os.fspath(path))


class ServedFlow:
    """The exported functions of a distribution. A subclass can restrict what functions contain."""

    # Whether functions may take images of any size, and contain loops.
    allows_any_size = allows_loops = True

    def __init__(
        self,
        distribution: tfd.Distribution | keras.Model,
        image_shape: Sequence[int | None] | None,
        progress: Progress,
    ) -> None:
        """Checks the arguments of `export_saved_model`, and traces the flow's two directions."""
        model, caller = distribution, progress.caller
        if not tf.executing_eagerly():
            raise RuntimeError(
                f"{caller}: expected a call in eager mode, got one in a `tf.function` or graph; "
                "call it after the function that trains."
            )
        self.distribution = distribution = routing.distribution_of(model, caller)
        spec = getattr(model, "data_spec", None)
        self._noise = spec.noise if spec else pixels.UniformNoise(distribution.dtype)
        self._seed = spec.seed if spec else 0
        flow = flow_of(distribution)
        self._is_mixture = flow is not distribution
        expected = f"{caller}: expected a tfd.TransformedDistribution, or a FlowModel of one"
        is_flow = isinstance(flow, private_api.TransformedDistribution)
        validation.require(is_flow, expected, distribution, TypeError)
        event_shape = distribution.event_shape
        expected = f"{caller}: expected events that are images [height, width, channels] or "
        expected += "vectors [size], of known shape"
        is_known = event_shape.is_fully_defined() and event_shape.rank in (1, 3)
        validation.require(is_known, expected, event_shape)
        self._base, self._bijector = flow.distribution, flow.bijector
        # The conditions of the served functions and of the flow. In a `ClusterMixture`, the flow's
        # condition is the cluster.
        self._spec = routing.find_condition_spec(distribution)
        self._given_spec = routing.find_condition_spec(flow)
        expected = f"{caller}: expected a condition that num_classes or conditional_event_shape "
        expected += "declares"
        is_declared = self._spec is not None or not routing.takes_condition(distribution)
        validation.require(is_declared, expected, distribution)
        self._dtype = tf.as_dtype(distribution.dtype)
        self._is_standard_normal = sampler.is_standard_normal(self._base)
        self._event_ndims = event_shape.rank
        bijectors = [self._bijector, *self._bijector.submodules]
        flows = [part for part in bijectors if isinstance(part, ImageFlow)]
        self._has_any_size = (
            self.allows_any_size
            and not self._is_mixture
            and self._is_standard_normal
            and self._event_ndims == 3
            and isinstance(self._bijector, FlowBijector)
            and not any(flow.has_fixed_size for flow in flows)
        )
        is_image = self._event_ndims == 3
        validation.only(image_shape, "an image_shape", is_image, "for images", caller)
        sizes = [None, None] if self._has_any_size else event_shape[:-1]
        shape = [*sizes, event_shape[-1]]
        shape = shape if image_shape is None else checked_image_shape(image_shape, caller)
        image_shape = tf.TensorShape(shape)
        expected = f"{caller}: expected image_shape {event_shape}, because the base distribution "
        expected += "or the bijector has a fixed size"
        validation.require(self._has_any_size or image_shape == event_shape, expected, image_shape)
        latent_shape = self._bijector.inverse_event_shape(image_shape)
        # The name of events among the inputs and outputs.
        self._name = "images" if is_image else "x"
        self._events = tf.TensorSpec([None, *image_shape], self._dtype, self._name)
        self._latents = tf.TensorSpec([None, *latent_shape], self._dtype, "latents")
        self._divisor = 2 ** max((flow.num_scales - 1 for flow in flows), default=0)
        self._logit = next((part for part in bijectors if isinstance(part, PixelLogit)), None)
        noise_shape = image_shape
        if isinstance(self._noise, VariationalDequantization):
            noise_shape = tf.TensorShape(self._noise.bijector.image_shape)
            expected = f"{caller}: expected image_shape {noise_shape}, as in the dequantizer"
            validation.require(noise_shape.is_compatible_with(image_shape), expected, image_shape)
            noise_shape = noise_shape.merge_with(image_shape)
        self._levels = tf.TensorSpec([None, *noise_shape], tf.uint8, self._name)
        self._condition = [] if self._spec is None else [self._spec.tensor_spec(self._dtype)]
        given = [] if self._given_spec is None else [self._given_spec.tensor_spec(self._dtype)]
        if self._is_mixture:
            given = [tf.TensorSpec([None], tf.int32, "clusters")]
        # If only the base depends on the condition, the bijector gets none.
        self._bijector_condition = given if routing.bijector_takes_condition(flow) else []
        # All signatures call the same traced functions, so the SavedModel contains each graph once.
        self._folded: dict[Any, tf.Variable] = {}
        conditions = self._bijector_condition
        progress("tracing the inverse pass")
        self._inverse = self._as_folded(self._inverse_pass, self._events, *conditions)
        progress("tracing the forward pass")
        self._forward = self._as_folded(self._forward_pass, self._latents, *conditions)
        self._guidance = []
        if sampler.has_dropout(flow):
            self._guidance = [tf.TensorSpec([], self._dtype, "guidance")]
            inputs = self._latents, *conditions, *self._guidance
            self._guided = self._as_folded(self._forward_pass, *inputs)

    def functions(self) -> dict[str, tf.types.experimental.PolymorphicFunction]:
        """Returns the functions by name, each with its input signature."""
        num_samples, seed = (tf.TensorSpec([], tf.int32, name) for name in ("num_samples", "seed"))
        temperature = tf.TensorSpec([], self._dtype, "temperature")
        given = self._bijector_condition if self._is_mixture else self._condition
        others = [*self._guidance, *self._condition]
        table: dict[str, tuple[Callable[..., Outputs], list[tf.TensorSpec]]] = {
            "log_prob": (self._log_prob, [self._events, *self._condition]),
            "bits_per_dim": (self._bits_per_dim, [self._events, *self._condition]),
            "encode": (self._encode, [self._events, *self._condition]),
            "decode": (self._decode, [self._latents, *given]),
            "sample": (self._sample, [num_samples, seed, temperature, *others]),
            "reconstruct": (self._reconstruct, [self._events, *self._condition]),
        }
        if self._spec is not None and self._spec.num_classes is not None:
            table["classify"] = self._classify, [self._events]
        if self._event_ndims == 1:
            del table["bits_per_dim"]
        has_levels = self._logit is not None and self._logit.num_values <= 256
        if has_levels and not isinstance(self._noise, pixels.NoNoise):
            noise = tf.TensorSpec(self._levels.shape, self._dtype, "noise")
            self._add_noise = self._as_folded(self._noise_pass, self._levels, noise)
            source = self.noise_source(noise)
            for name, (function, inputs) in list(table.items()):
                variant = functools.partial(self._of_levels, function, inputs[0] is self._events)
                if inputs[0] is self._events:
                    inputs = [self._levels, source, *inputs[1:]]
                table[f"{name}_uint8"] = variant, inputs
            for name in {"log_prob", "bits_per_dim", "classify"} & {*table}:
                function, inputs = table[name]
                num_values = self._logit.num_values
                table[name] = functools.partial(_of_continuous, name, num_values, function), inputs
        return {name: memoize.traced(*row, seed=self._seed) for name, row in table.items()}

    def noise_source(self, noise: tf.TensorSpec) -> tf.TensorSpec:
        """Returns the input of functions of gray levels that `noise_from` makes noise from."""
        return tf.TensorSpec([], tf.int32, "seed")

    def noise_from(self, source: tf.Tensor, images: tf.Tensor) -> tf.Tensor:
        """Returns the noise that `tfr.log_prob` with a model of this seed adds."""
        return pixels.event_noise(images, source)

    def _as_folded(self, function: Callable[..., Any], *inputs: tf.TensorSpec) -> Any:
        graph = memoize.traced(function, inputs).get_concrete_function()
        if sum(v.dtype.size * v.shape.num_elements() for v in graph.variables) > _MAX_FOLDED_BYTES:
            return graph
        return memoize.traced(folded(graph, self._folded), inputs).get_concrete_function()

    # If the flow declares no condition, the signatures have no input `condition`.

    def _log_prob(self, events: tf.Tensor, condition: Condition = None) -> Outputs:
        if not self._is_mixture:
            return {"log_prob": self._given_log_prob(events, condition)}
        with tf.control_dependencies(self._label_assertions(self._spec, condition)):
            inputs = events, condition, self.allows_loops
            return {"log_prob": self.distribution.sum_over_clusters(self._given_log_prob, *inputs)}

    def _given_log_prob(self, events: tf.Tensor, condition: Condition) -> tf.Tensor:
        latents, ildj = self._encoded(events, condition)
        return self._base_log_prob(latents, condition) + ildj

    def _nearest(self, events: tf.Tensor, condition: Condition) -> Condition:
        """Returns each event's nearest cluster for a `ClusterMixture`, otherwise `condition`."""
        if not self._is_mixture:
            return condition
        with tf.control_dependencies(self._label_assertions(self._spec, condition)):
            return condition_of_events(self.distribution, tf.identity(events), condition)

    def _bits_per_dim(self, events: tf.Tensor, condition: Condition = None) -> Outputs:
        num_dims = tf.reduce_prod(tf.shape(events)[1:])
        log_prob = self._log_prob(events, condition)["log_prob"]
        return {"bits_per_dim": pixels.bits_per_dim(log_prob, num_dims)}

    def _encode(self, events: tf.Tensor, condition: Condition = None) -> Outputs:
        condition = self._nearest(events, condition)
        clusters = {"clusters": condition} if self._is_mixture else {}
        return {"latents": self._encoded(events, condition)[0], **clusters}

    def _decode(self, latents: tf.Tensor, condition: Condition = None) -> Outputs:
        with tf.control_dependencies(self._assertions(latents, condition)):
            return {self._name: self._decoded(latents, condition)}

    def _sample(
        self, num_samples: tf.Tensor, seed: tf.Tensor, temperature: tf.Tensor, *others: tf.Tensor
    ) -> Outputs:
        guidance, condition = others[0] if self._guidance else None, None
        if self._condition:
            condition = _repeated(others[-1], num_samples)
        message = "expected num_samples of at least 1"
        assertions = [tf.debugging.assert_positive(num_samples, message)]
        assertions += self._label_assertions(self._spec, condition)
        scales = {"temperature": temperature} | ({"guidance": guidance} if self._guidance else {})
        for name, value in scales.items():
            is_valid = (value >= 0) & (value < float("inf"))  # false for NaN
            message = f"expected a finite {name} of at least 0"
            assertions.append(tf.debugging.Assert(is_valid, [message]))
        if not self._is_standard_normal:
            message = "expected temperature 1: the base distribution is not standard normal"
            one = tf.ones_like(temperature)
            assertions.append(tf.debugging.assert_equal(temperature, one, message))
        with tf.control_dependencies(assertions):
            base = self._base
            pairs = zip(self._latents.shape[1:], base.event_shape, strict=True)
            shape = tf.TensorShape(size or of_base for size, of_base in pairs)
            if shape != base.event_shape:
                base = self._standard_normal(shape)
            seeds = tf.stack([seed, 0])
            arguments = self.distribution, [num_samples], seeds, condition
            seeds, condition = condition_of_samples(*arguments)
            with surround_with(condition=condition):
                latents = base.sample(num_samples, seed=seeds)
            if self._is_standard_normal:
                latents *= temperature
            if guidance is None:
                return {self._name: self._decoded(latents, condition)}
            inputs = latents, *self._of_bijector(condition)
            guided = functools.partial(self._guided, *inputs, guidance)
            plain = functools.partial(self._forward, *inputs)
            return {self._name: tf.cond(guidance > 0, guided, plain)}

    def _reconstruct(self, events: tf.Tensor, condition: Condition = None) -> Outputs:
        condition = self._nearest(events, condition)
        latents = self._encoded(events, condition)[0]
        return {self._name: self._decoded(latents, condition)}

    def _classify(self, events: tf.Tensor) -> Outputs:
        batch_size, num_classes = tf.shape(events)[0], self._spec.num_classes
        labels = tf.tile(tf.range(num_classes), [batch_size])
        if self._is_mixture:
            log_prob = self._log_prob(tf.repeat(events, num_classes, axis=0), labels)["log_prob"]
        else:
            # The bijector gets each event once per class, or only once if it ignores the class.
            num_passes = num_classes if self._bijector_condition else 1
            encoded = self._encoded(tf.repeat(events, num_passes, axis=0), labels)
            latents, ildj = (tf.repeat(part, num_classes // num_passes, axis=0) for part in encoded)
            log_prob = self._base_log_prob(latents, labels) + ildj
        log_prob = tf.reshape(log_prob, [batch_size, num_classes])
        log_probs = tf.nn.log_softmax(log_prob + classification.class_log_prior(self.distribution))
        labels = tf.argmax(log_probs, axis=-1, output_type=tf.int32)
        return {"log_probs": log_probs, "labels": labels}

    def _of_levels(
        self, function: Callable[..., Outputs], takes_images: bool, *inputs: tf.Tensor
    ) -> Outputs:
        """Wraps a function of continuous images to take and return gray levels."""
        log_noise = tf.zeros([], self._dtype)
        if takes_images:
            images, source, *conditions = inputs
            with tf.control_dependencies(self._assertions(images, None)):
                noise = self.noise_from(source, tf.cast(images, self._dtype))
                values, log_noise = self._add_noise(images, noise)
            inputs = values, *conditions
        outputs = function(*inputs)
        if "log_prob" in outputs:
            outputs["log_prob"] -= log_noise
        if "bits_per_dim" in outputs:
            num_dims = tf.reduce_prod(tf.shape(values)[1:])
            outputs["bits_per_dim"] += pixels.bits_per_dim(-log_noise, num_dims)
        if self._name in outputs:
            levels = tf.floor(outputs[self._name])
            levels = tf.clip_by_value(levels, 0, self._logit.num_values - 1)
            outputs[self._name] = tf.cast(levels, tf.uint8)
        return outputs

    def _noise_pass(self, images: tf.Tensor, noise: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns noisy values, and the noise's log density; see `UniformNoise.add_noise`."""
        values, log_noise = self._noise.add_noise(images, lambda _: noise)
        return values, tf.convert_to_tensor(log_noise, self._dtype)

    def _forward_pass(
        self, latents: tf.Tensor, condition: Condition = None, guidance: Condition = None
    ) -> tf.Tensor:
        with surround_with(condition=condition, guidance=guidance):
            return self._bijector.forward(latents)

    def _inverse_pass(self, events: tf.Tensor, condition: Condition = None) -> Any:
        chain = FlowChain([self._bijector], event_ndims=self._event_ndims, dtype=events.dtype)
        options = {"conditional_input": condition, "has_events": True}
        latents, attributes = chain._outermost_pass(events, inverse=True, **options)
        return latents, attributes["ildj"]

    def _decoded(self, latents: tf.Tensor, condition: Condition) -> tf.Tensor:
        return self._forward(latents, *self._of_bijector(condition))

    def _encoded(self, events: tf.Tensor, condition: Condition) -> tuple[tf.Tensor, tf.Tensor]:
        """Checks events, and returns their latents and log dets."""
        assertions = self._assertions(events, condition)
        if self._logit is not None:
            low, high = (tf.constant(v, self._dtype) for v in (self._logit.low, self._logit.high))
            message = f"expected pixel values above {self._logit.low} and below {self._logit.high}"
            assertions.append(tf.debugging.assert_greater(events, low, message))
            assertions.append(tf.debugging.assert_less(events, high, message))
        with tf.control_dependencies(assertions):
            return self._inverse(events, *self._of_bijector(condition))

    def _of_bijector(self, condition: Condition) -> list[tf.Tensor]:
        return [condition] if condition is not None and self._bijector_condition else []

    def _base_log_prob(self, latents: tf.Tensor, condition: Condition) -> tf.Tensor:
        base = self._base
        if self._has_any_size:
            # `self._base` has a fixed event shape, but images can have any size.
            base = self._standard_normal(tf.shape(latents)[1:])
        with surround_with(condition=condition):
            return base.log_prob(latents)

    def _standard_normal(self, shape: Any) -> tfd.Distribution:
        return tfd.Sample(tfd.Normal(tf.zeros([], self._dtype), 1), shape)

    def _assertions(self, values: tf.Tensor, condition: Condition) -> list[tf.Operation]:
        """Returns assertions about the sizes of events or latents, and about labels."""
        # TensorFlow's convolutions fail, or give a wrong shape, for an empty batch.
        message = f"expected at least one {'image' if self._event_ndims == 3 else 'vector'}"
        assertions = [tf.debugging.assert_positive(tf.shape(values)[0], message)]
        if not values.shape[1:].is_fully_defined():
            message = f"expected a height and width divisible by {self._divisor}"
            remainder = tf.shape(values)[1:3] % self._divisor
            assertions.append(tf.debugging.assert_equal(remainder, 0, message))
        return assertions + self._label_assertions(self._given_spec, condition)

    def _label_assertions(self, spec: Any, condition: Condition) -> list[tf.Operation]:
        if spec is None or condition is None or spec.num_classes is None:
            return []
        message = f"expected a conditional_input of {spec.description}"
        return [tf.debugging.Assert(tf.reduce_all(spec.in_range(condition)), [message])]


def _of_continuous(
    name: str,
    num_values: int,
    function: Callable[..., Outputs],
    images: tf.Tensor,
    *conditions: tf.Tensor,
) -> Outputs:
    """Calls a function of continuous images, and asserts that they are no gray levels."""
    outputs = function(images, *conditions)
    with tf.control_dependencies(outputs.values()):  # other assertions come first
        assertions = [
            tf.debugging.Assert(is_valid, [f"{expected}: use {name}_uint8"])
            for is_valid, expected, _ in pixels.continuous_conditions(images, num_values)
        ]
    with tf.control_dependencies(assertions):
        return {key: tf.identity(value) for key, value in outputs.items()}


def _repeated(condition: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
    message = "expected as many conditions as num_samples, or one"
    is_one_of = tf.reduce_any(tf.shape(condition)[0] == [1, number])
    with tf.control_dependencies([tf.debugging.assert_equal(is_one_of, True, message)]):
        shape = tf.concat([[number], tf.shape(condition)[1:]], axis=0)
        return tf.ensure_shape(tf.broadcast_to(condition, shape), condition.shape)

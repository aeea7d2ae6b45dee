"""What several test files need: random weights, autodiff Jacobians, tiny networks and images."""

import contextlib
import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_probability import distributions as tfd

import tfp_realnvp as tfr
from tfp_realnvp.networks.functional import convolve, weight_norm


def full(*cases):
    """Returns cases of `pytest.mark.parametrize` that run in `make test-all` alone."""
    return [
        pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.full)
        for case in cases
    ]


def randomize(module, seed=0):
    """Moves all variables of a `tf.Module` or Keras layer away from where they start.

    With the initial values a flow can be close to the identity, and then nearly every mistake in
    a log det is invisible.
    """
    rng = np.random.default_rng(seed)
    for variable in module.variables:
        if not tf.as_dtype(variable.dtype).is_floating:
            continue
        name, shape = variable.name, variable.shape
        if "variance" in name:
            value = rng.uniform(0.5, 2.0, shape)
        elif "moving_mean" in name:
            value = 0.3 * rng.normal(size=shape)
        elif "num_updates" in name:
            value = 3.0
        elif "is_set" in name:
            value = 1.0
        elif "scale" in name.split("/")[-1] and "log_scale" not in name:
            # Larger ones send random images so far out that a sigmoid rounds them to its ends.
            value = rng.uniform(0.2, 0.6, shape)
        elif "off_diagonal" in name:
            # The condition of random triangular matrices grows exponentially with their size.
            value = np.asarray(variable) + 0.2 / np.sqrt(shape[0]) * rng.normal(size=shape)
        else:
            value = np.asarray(variable) + 0.2 * rng.normal(size=shape)
        variable.assign(tf.cast(value, variable.dtype))
    return module


def network(channels_in, channels_out, dtype="float32", **kwargs):
    """Returns a small conditioner, built."""
    kwargs = {"num_blocks": 1, "num_filters": 4, **kwargs}
    layer = tfr.ConvResNet(channels_out, dtype=dtype, **kwargs)
    layer.build((None, None, None, channels_in))
    return layer


@keras.saving.register_keras_serializable(package="tests")
class WeightNormConv(keras.layers.Layer):
    """A user's weight-normalized convolution, 3×3."""

    def __init__(self, filters, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters

    def build(self, input_shape):
        shapes = {"kernel": (3, 3, input_shape[-1], self.filters), "bias": (self.filters,)}
        options = {"initializer": "random_normal", "autocast": False}
        self.kernel, self.bias = (
            self.add_weight(name=name, shape=shape, **options) for name, shape in shapes.items()
        )
        self.scale = self.add_weight(
            name="scale", shape=(self.filters,), initializer="ones", autocast=False
        )

    @property
    def weight_norm_scales(self):
        return [self.scale]

    def call(self, inputs):
        kernel, scale, bias = (
            tf.convert_to_tensor(v.value) for v in (self.kernel, self.scale, self.bias)
        )
        return convolve(inputs, weight_norm(kernel, scale), bias)

    def get_config(self):
        return {**super().get_config(), "filters": self.filters}


def convolution(*, input_channels, output_channels, dtype="float32", name=None, **_):
    """A `network_fn` of one convolution.

    Tests of what does not depend on the network use it: tracing and compiling networks is most of
    their cost.
    """
    layer = WeightNormConv(output_channels, dtype=dtype, name=name)
    layer.build((None, None, None, input_channels))
    return layer


def coupling(mask, channels, dtype=tf.float32, **kwargs):
    """Returns an `AffineCoupling` of images with `channels`, with a small network."""
    changed = mask.changed_channels(channels)
    board = isinstance(mask, tfr.CheckerboardMask)
    sizes = channels if board else channels - changed, changed * (1 + kwargs.get("use_scale", True))
    parity = mask.parity if board else None
    layer = network(*sizes, tf.as_dtype(dtype).name, checkerboard_parity=parity)
    return tfr.AffineCoupling(mask, layer, dtype=dtype, **kwargs)


def image_flow(image_shape=(4, 4, 3), **kwargs):
    """Returns a small `RealNVPImage` with random weights."""
    seed = kwargs.pop("weights_seed", 0)
    # Only the default network has blocks.
    blocks = {} if kwargs.get("network_fn") else {"num_blocks": 1}
    kwargs = {"num_scales": 2, "num_couplings": 1, "num_filters": 4, **blocks, **kwargs}
    return randomize(tfr.RealNVPImage(image_shape, **kwargs), seed)


def jet(image_shape, masks, num_values=2, network_dtype=None, **kwargs):
    """Returns a flow of patches 2×2 like `RealNVPImage.jet`, with other masks."""
    network_fn = tfr.network_of(tfr.VisionTransformer, num_blocks=1, num_heads=2)
    layer = tfr.coupling_layer(
        network_fn, 4, transformer="sigmoid_affine", network_dtype=network_dtype
    )
    pixels = tfr.PixelLogit(None, num_values, dtype=kwargs.get("dtype", tf.float32))
    return tfr.patch_flow(image_shape, 2, masks, layer, pixels=pixels, **kwargs)


def construct_small_flows(setattr=setattr):
    """Makes `RealNVPImage.compact` and `RealNVPVector` construct flows of few couplings.

    Tracing couplings takes most of the time of examples that hardly train.
    """
    compact, construct = tfr.RealNVPImage.compact, tfr.RealNVPVector.__init__

    @functools.wraps(compact)
    def small_compact(*args, **options):
        return compact(*args, **{**options, "num_couplings": 1})

    @functools.wraps(construct)
    def construct_small(self, event_size, num_couplings=2, *args, **options):
        construct(self, event_size, min(2, num_couplings), *args, **options)

    setattr(tfr.RealNVPImage, "compact", small_compact)
    setattr(tfr.RealNVPVector, "__init__", construct_small)


def standard_normal(event_shape, dtype=tf.float32):
    """Returns the base distribution of a flow."""
    zero, one = tf.zeros([], dtype), tf.ones([], dtype)
    return tfd.Sample(tfd.Normal(zero, one), event_shape)


def flow_distribution(image_shape=(4, 4, 3), **kwargs):
    """Returns a small `RealNVPImage` as a distribution."""
    dtype = kwargs.get("dtype", tf.float32)
    return tfd.TransformedDistribution(
        standard_normal(image_shape, dtype), image_flow(image_shape, **kwargs)
    )


def vector_flow(size, **kwargs):
    """Returns a small `RealNVPVector` with random weights."""
    seed = kwargs.pop("weights_seed", 0)
    kwargs = {"num_couplings": 2, "num_filters": 8, **kwargs}
    return randomize(tfr.RealNVPVector(size, **kwargs), seed)


def vector_distribution(size, **kwargs):
    """Returns a `vector_flow` as a distribution."""
    base = standard_normal([size], kwargs.get("dtype", tf.float32))
    return tfd.TransformedDistribution(base, vector_flow(size, **kwargs))


def compiled(distribution, optimizer=None, **kwargs):
    """Returns a compiled `FlowModel`, with options of the constructor and of `compile`."""
    names = ("dequantize", "dequantizer", "seed")
    options = {name: kwargs.pop(name) for name in names if name in kwargs}
    model = tfr.FlowModel(distribution, **options)
    model.compile(optimizer, **kwargs)
    return model


def reloaded(how, model, folder, new=None):
    """Saves a model in one of the ways, and returns a model that loads the file.

    Args:
      how: method that loads a model, or sets the weights of a model.
      model: what is saved.
      folder: where.
      new: function that returns the model whose weights are set.
    """
    if how == "load_model":
        model.save(folder / "model.keras")
        return keras.models.load_model(folder / "model.keras")
    if how == "from_preset":
        model.save_to_preset(folder / "preset")
        return tfr.FlowModel.from_preset(folder / "preset")
    other = new()
    if how == "load_weights":
        model.save_weights(folder / "model.weights.h5")
        other.load_weights(folder / "model.weights.h5")
    else:
        tfr.TrainingCheckpoint(folder, model).save()
        assert tfr.TrainingCheckpoint(folder, other).restore()
    return other


def dataset(values, batch_size=4):
    """Returns batches of slices of values."""
    return tf.data.Dataset.from_tensor_slices(values).batch(batch_size)


class Interrupt(keras.callbacks.Callback):
    """Interrupts `fit` at a hook of Keras: the first time, or after a number of steps."""

    def __init__(self, hook, num_steps=None):
        super().__init__()
        self.num_steps = num_steps
        setattr(self, hook, self.interrupt)

    def interrupt(self, *_, **__):
        if self.num_steps in (None, int(self.model.optimizer.iterations)):
            raise KeyboardInterrupt


def unset(module):
    """Makes the next batch in training set the `ActNorm`s of a module."""
    for variable in module.variables:
        if "is_set" in variable.name:
            variable.assign(0.0)


def normal(shape, dtype=tf.float32, seed=0):
    """Returns standard normal values."""
    return tf.constant(np.random.default_rng(seed).normal(size=shape), dtype)


def pixels(shape, dtype=tf.float32, seed=0):
    """Returns continuous pixel values in [0, 256)."""
    return tf.constant(np.random.default_rng(seed).uniform(0, 255.9, size=shape), dtype)


def grey_levels(number, image_shape=(4, 4, 1), seed=0):
    """Returns uint8 images."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, [number, *image_shape], dtype=np.uint8)


def by_rows(images):
    """Returns the images in the order of their pixels."""
    flat = images.reshape(len(images), -1)
    return flat[np.lexsort(flat.T)]


def jacobian(function, event, num_outputs=None):
    """Returns the Jacobian of `function`, which treats the events of a batch independently.

    The gradient of the i-th output of the i-th copy of the event is the i-th row, so that one pass
    is enough. The number of outputs is by default that of the inputs.
    """
    size = int(tf.size(event)) if num_outputs is None else num_outputs
    copies = tf.repeat(event[tf.newaxis], size, axis=0)
    with tf.GradientTape() as tape:
        tape.watch(copies)
        outputs = tf.reshape(function(copies), [size, size])
        diagonal = tf.reduce_sum(tf.linalg.diag_part(outputs))
    return tf.reshape(tape.gradient(diagonal, copies), [size, -1]).numpy()


def jacobian_log_det(function, event):
    """Returns log |det| of the Jacobian of `function`, of batches of events to the same."""
    return np.linalg.slogdet(jacobian(function, event).astype(np.float64))[1]


def assert_vectorizes(function, events):
    """Asserts that `tf.vectorized_map` and `batch_jacobian` agree with plain calls.

    Args:
      function: from a batch of events, or from one event, to values and log dets.
      events: a float64 batch.
    """
    values, log_dets = function(events)
    for actual, expected in zip(
        tf.vectorized_map(function, events), (values, log_dets), strict=True
    ):
        np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-9)
    # The identity keeps TFP's cache from returning values that the tape has not seen.
    events = tf.identity(events)
    with tf.GradientTape() as tape:
        tape.watch(events)
        values, _ = function(events)
    num_outputs = int(tf.size(values[0]))
    expected = [jacobian(lambda x: function(x)[0], event, num_outputs) for event in events]
    actual = tf.reshape(tape.batch_jacobian(values, events), np.shape(expected))
    assert np.abs(expected).max() > 0
    np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-9)


MODES = {
    "eager": lambda function: function,
    "function": functools.partial(tf.function, autograph=False),
    "xla": functools.partial(tf.function, autograph=False, jit_compile=True),
}


def optimized(optimizer, variables, gradients, mode="function"):
    """Returns the values of variables after a step with each of the gradients."""
    optimizer.build(variables)
    step = MODES[mode](lambda gradients: optimizer.apply(gradients, variables))
    for each in gradients:
        step([tf.convert_to_tensor(gradient) for gradient in each])
    return values(variables)


def assert_close(actual, expected, *, check=np.testing.assert_allclose, **tolerances):
    """Asserts that two arrays, or the members of two sequences in any nesting, are close."""
    if hasattr(expected, "shape") or not hasattr(expected, "__iter__"):
        check(actual, expected, **tolerances)
    else:
        for one, other in zip(actual, expected, strict=True):
            assert_close(one, other, check=check, **tolerances)


def assert_equal(actual, expected):
    """Asserts that two arrays, or the members of two sequences in any nesting, are equal."""
    assert_close(actual, expected, check=np.testing.assert_array_equal)


def values(variables):
    """Returns the values of variables as arrays."""
    return [variable.numpy().copy() for variable in variables]


def assign(variables, values):
    """Assigns one of the values to each variable."""
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


@contextlib.contextmanager
def unchanged(owner):
    """Asserts that the variables of a module or layer end as they begin."""
    before = values(owner.variables)
    yield
    assert_equal(owner.variables, before)


class CountingLayer(keras.layers.Layer):
    """A conditioner that counts how often it is evaluated, or traced."""

    def __init__(self, layer, **kwargs):
        super().__init__(**kwargs)
        self.layer = layer
        self.count = 0
        self.built = True

    @property
    def conditional_event_shape(self):
        return getattr(self.layer, "conditional_event_shape", None)

    def call(self, inputs, training=False, conditional_input=None):
        self.count += 1
        options = {} if conditional_input is None else {"conditional_input": conditional_input}
        return self.layer(inputs, training=training, **options)


def counting(network_fn):
    """Returns a `network_fn` whose networks count their calls, and the list of these networks."""
    layers = []

    def counted(**kwargs):
        layers.append(CountingLayer(network_fn(**kwargs)))
        return layers[-1]

    return counted, layers


def counts(layers, call, *arguments):
    """Returns the numbers of evaluations of counting layers in a call, as a set."""
    for layer in layers:
        layer.count = 0
    call(*arguments)
    return {layer.count for layer in layers}


def resnet(*, input_channels, output_channels, conditional_event_shape=None, **_):
    """A `network_fn` of a small residual network that takes a condition."""
    options = {"num_blocks": 0, "conditional_event_shape": conditional_event_shape}
    return network(input_channels, output_channels, **options)


# Conditions.


@keras.saving.register_keras_serializable(package="tests")
class ConditionedNetwork(keras.layers.Layer):
    """A user's conditioner, whose `conditional_input`, [B, k] or [B, H, W, k], is added."""

    def __init__(self, channels_out, condition_size=2, **kwargs):
        super().__init__(**kwargs)
        self.channels_out, self.condition_size = channels_out, condition_size
        dtype = self.dtype_policy
        self.image_layer = keras.layers.Conv2D(channels_out, 3, padding="same", dtype=dtype)
        self.condition_layer = keras.layers.Dense(channels_out, dtype=dtype)

    def build(self, input_shape):
        self.image_layer.build(input_shape)
        self.condition_layer.build((None, self.condition_size))

    def call(self, inputs, conditional_input=None):
        outputs = self.image_layer(inputs)
        if conditional_input is not None:
            added = self.condition_layer(conditional_input)
            outputs += added if added.shape.rank == 4 else added[:, None, None, :]
        return outputs

    def get_config(self):
        sizes = {"channels_out": self.channels_out, "condition_size": self.condition_size}
        return {**super().get_config(), **sizes}


@keras.saving.register_keras_serializable(package="tests")
def conditioned_network(*, output_channels, conditional_event_shape, name, dtype, **_):
    """A user's `network_fn`."""
    return ConditionedNetwork(output_channels, conditional_event_shape[-1], name=name, dtype=dtype)


# Arguments of a `RealNVPImage` of images 4×4.
CONDITIONS = {
    "labels": {"num_classes": 5, "embedding_size": 6},
    "vectors": {"conditional_event_shape": (3,), "embedding_size": 6},
    "images": {"conditional_event_shape": (4, 4, 2)},
}
shallow_conv = tfr.network_of(tfr.ShallowConv)
NETWORKS = {
    "resnet": {},
    "shallow": {"network_fn": shallow_conv},
    "user": {"network_fn": conditioned_network},
}


def condition(kind, batch=(), dtype=tf.float32, seed=0):
    """Returns random conditions of a kind of `CONDITIONS`."""
    if kind == "labels":
        labels = np.random.default_rng(seed).permutation(max(5, int(np.prod(batch)))) % 5
        return tf.constant(labels[: int(np.prod(batch))].reshape(batch), tf.int32)
    return normal([*batch, *CONDITIONS[kind]["conditional_event_shape"]], dtype, seed + 7)


def conditional_flow(kind, network="resnet", image_shape=(4, 4, 1), **kwargs):
    """Returns a small `RealNVPImage` under a condition, with random weights."""
    options = {"num_scales": 1, "num_couplings": 1, **CONDITIONS[kind], **NETWORKS[network]}
    return image_flow(image_shape, **{**options, **kwargs})


def conditional_distribution(kind, network="resnet", image_shape=(4, 4, 1), **kwargs):
    """Returns a `conditional_flow` as a distribution."""
    dtype = kwargs.get("dtype", tf.float32)
    flow = conditional_flow(kind, network, image_shape, **kwargs)
    return tfd.TransformedDistribution(standard_normal(image_shape, dtype), flow)


@keras.saving.register_keras_serializable(package="tests")
def normal_of_class(label, means, stddev=0.5):
    normal = tfd.Normal(tf.gather(means, label), tf.constant(stddev, means.dtype))
    return tfd.Independent(normal, len(means.shape) - 1)


def class_base(means, **options):
    """Returns a normal distribution for each class, with means [K, *event_shape]."""
    make = functools.partial(normal_of_class, **options) if options else normal_of_class
    return tfr.ConditionalBase(make, [means], event_shape=means.shape[1:], dtype=means.dtype)


def with_event_noise(images, seed=0, draw=0, dtype=np.float32):
    """Returns gray levels with the noise of an evaluation, by SplitMix64 in NumPy."""
    images = np.asarray(images)
    step = np.uint64(0x9E3779B97F4A7C15)

    def mix(z):
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))

    levels = np.floor(images).astype(np.int64).astype(np.uint64).reshape(len(images), -1)
    steps = step * np.arange(1, levels.shape[1] + 1, dtype=np.uint64)
    state = mix(levels + steps).sum(axis=1, keepdims=True, dtype=np.uint64)
    for number in (seed ^ 0x5EED, draw):
        state = mix(state + step + np.int64(number).astype(np.uint64))
    bits = mix(state + steps)
    precision, largest = (24, 1 - 2.0**-11) if dtype == np.float32 else (53, 1 - 2.0**-40)
    noise = (bits >> np.uint64(64 - precision)).astype(dtype) * dtype(2.0**-precision)
    return np.floor(images).astype(dtype) + np.minimum(noise, dtype(largest)).reshape(images.shape)

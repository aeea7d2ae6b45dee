"""Small models with random weights, one for each combination of features, and their data."""

import collections
import functools
import math

import flow_testing as ft
import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from hardening.covering_array import covering_array

import tfp_realnvp as tfr

tfd, tfb = tfp.distributions, tfp.bijectors

# The first value of a feature is the plain one.
FEATURES = {
    "constructor": ("vector", "image", "compact", "multi_scale", "patch_flow"),
    "base": ("normal", "trainable", "of_condition", "classes", "classes_prior")
    + ("clusters", "clusters_of_classes"),
    "condition": ("none", "labels", "vectors", "images"),
    "dropout": (0.0, 0.3),
    "noise": ("none", "uniform", "variational"),
    "normalization": (None, "actnorm", "batch", "batch_statistics"),
    "mixing": (None, "lu", "permutation"),
    "split_prior": (False, True),
    "data": ("near", "far"),
    "transformer": ("affine", "additive", "sigmoid_affine", "rational_quadratic_spline")
    + ("logistic_mixture",),
    "dtype": ("float32", "float64"),
    "network_dtype": (None, "mixed_bfloat16"),
    "recompute": (False, True),
    "weights": (None, "ones", "fractions", "zeros"),
    "optimizer": ("default", "adam", "averages", "accumulation"),
    "steps_per_execution": (1, 3),
    "run_eagerly": (False, True),
    "replicas": (1, 2),
    "form": ("arrays", "dataset", "dictionary"),
    "remainder": (0, 2),
    "frozen": ("nothing", "network"),
}
Configuration = collections.namedtuple("Configuration", FEATURES)
NUM_CLASSES, BATCH_SIZE, SHIFT, SCALE = 5, 4, 8192, 2


# Constraints: which values may meet.


def vectors_have_no_pixels(constructor, noise, split_prior, condition):
    """Noise, split priors and conditions that are images belong to images."""
    are_of_images = noise != "none" or split_prior or condition == "images"
    return constructor != "vector" or not are_of_images


def only_vectors_lie_far(constructor, data):
    """Gray levels lie between 0 and 256."""
    return constructor == "vector" or data == "near"


def compact_is_complete(constructor, normalization, mixing, split_prior):
    """`compact` chooses these parts itself."""
    return constructor != "compact" or (normalization, mixing, split_prior) == (
        "actnorm",
        "lu",
        True,
    )


def patches_have_one_scale(constructor, split_prior):
    """Nothing is factored out of a flow of patches."""
    return constructor != "patch_flow" or not split_prior


def options_of_real_nvp_image(constructor, normalization, mixing):
    """`RealNVPImage` has an option for neither; `coupling_layer` and `multi_scale` do."""
    return constructor not in ("image", "vector") or (
        normalization != "batch_statistics" and (constructor == "vector" or mixing != "permutation")
    )


def mixtures_choose_the_condition(base, condition):
    """The condition of a mixture's flow is none, or its clusters."""
    return condition == "none" or not base.startswith("cl")


def a_base_needs_its_condition(base, condition):
    """A `ConditionalBase` gets the condition of the flow."""
    return base != "of_condition" or condition != "none"


def dropout_needs_a_condition(base, condition, dropout):
    """Nothing can be left out. The labels of a `ClassMixture` may always be missing."""
    return not dropout or condition != "none" or base.startswith("clusters")


def a_base_cannot_miss_its_condition(base, dropout):
    """A `ConditionalBase` is a function of a condition."""
    return base != "of_condition" or not dropout


def keras_accumulates_on_one_device(optimizer, replicas):
    """Keras' `gradient_accumulation_steps` fails under a `MirroredStrategy`, with any model."""
    return optimizer != "accumulation" or replicas == 1


CONSTRAINTS = [
    vectors_have_no_pixels,
    only_vectors_lie_far,
    compact_is_complete,
    patches_have_one_scale,
    options_of_real_nvp_image,
    mixtures_choose_the_condition,
    a_base_needs_its_condition,
    dropout_needs_a_condition,
    a_base_cannot_miss_its_condition,
    keras_accumulates_on_one_device,
]


@functools.cache
def configurations():
    """Returns a covering array of the features."""
    return [Configuration(**row) for row in covering_array(FEATURES, CONSTRAINTS)]


# Models.


def event_shape(c):
    return (4,) if c.constructor == "vector" else (4, 4, 1)


def num_clusters(c):
    return NUM_CLASSES * (2 if c.base == "clusters_of_classes" else 1)


def _options_of_condition(c):
    if c.base.startswith("clusters"):
        options = {"num_classes": num_clusters(c)}
    else:
        shapes = {"vectors": (3,), "images": (4, 4, 2)}
        options = {"conditional_event_shape": shapes.get(c.condition)}
        options = {"num_classes": NUM_CLASSES} if c.condition == "labels" else options
        options = {} if c.condition == "none" else options
    embedding = {} if not options or c.condition == "images" else {"embedding_size": 6}
    return options | embedding | ({"condition_dropout": c.dropout} if c.dropout else {})


def _layer(c, network_fn):
    """Returns a function that makes layers with the features of a configuration."""
    has_batch_statistics = c.normalization == "batch_statistics"
    normalization = None if has_batch_statistics else c.normalization
    kinds = {"transformer": c.transformer, "mixing": c.mixing, "network_dtype": c.network_dtype}
    made = tfr.coupling_layer(network_fn, 4, normalization=normalization, **kinds)

    def layer(mask, shape, name, *, dtype, **options):
        bijectors = made(mask, shape, name, dtype=dtype, **options)
        if has_batch_statistics:
            of_norm = {"num_channels": shape[-1], "event_ndims": len(shape), "dtype": dtype}
            bijectors.append(tfr.BatchNormalization(statistics="batch", **of_norm))
        return bijectors

    return layer


def new_bijector(c, shape=None):
    shape = shape or event_shape(c)
    options = {"dtype": c.dtype, "recompute": c.recompute, **_options_of_condition(c)}
    kinds = {"transformer": c.transformer, "network_dtype": c.network_dtype}
    if c.constructor == "vector":
        moments = np.full([2, *shape], [[SHIFT], [SCALE]] if c.data == "far" else [[0], [1]])
        standardization = tfr.Standardization(*moments.astype(float), dtype=c.dtype)
        kinds |= {"mixing": c.mixing, "normalization": c.normalization}
        sizes = {"num_couplings": 4, "num_filters": 4, "standardization": standardization}
        return tfr.RealNVPVector(*shape, **sizes, **kinds, **options)
    if c.constructor == "compact":
        sizes = {"num_scales": 2, "num_couplings": 1, "num_filters": 4}
        return tfr.RealNVPImage.compact(shape, **sizes, **kinds, **options)
    if c.constructor == "image":
        sizes = {"num_scales": 2, "num_couplings": 1, "num_filters": 4, "num_blocks": 0}
        kinds |= {"normalization": c.normalization, "invertible_conv": c.mixing == "lu"}
        return tfr.RealNVPImage(shape, split_prior=c.split_prior, **sizes, **kinds, **options)
    options["pixels"] = tfr.PixelLogit(dtype=c.dtype)
    if c.constructor == "multi_scale":
        layer = _layer(c, tfr.network_of(tfr.ShallowConv))
        prior = tfr.coupling_layer(tfr.network_of(tfr.ShallowConv), 4) if c.split_prior else None
        return tfr.multi_scale(shape, 2, layer, num_couplings=1, prior=prior, **options)
    layer = _layer(c, tfr.network_of(tfr.VisionTransformer, num_blocks=1, num_heads=2))
    masks = [tfr.ChannelMask(i % 2) for i in range(6)]
    return tfr.patch_flow(shape, 2, masks, layer, **options)


@keras.saving.register_keras_serializable(package="tests")
def normal_of_condition(condition, means):
    """Returns a normal distribution of events, given labels, vectors or images."""
    ndims = means.shape.rank - 1
    if condition.dtype.is_integer:
        loc = tf.gather(means, condition)
    elif ndims == 3 and condition.shape.rank > 3:
        loc = means[0] + tf.reduce_mean(condition, axis=-1, keepdims=True)
    else:
        loc = tf.tensordot(condition, means[:3], 1)
    return tfd.Independent(tfd.Normal(loc, tf.ones([], means.dtype)), ndims)


def new_distribution(c, shape=None):
    shape, dtype = shape or event_shape(c), tf.as_dtype(c.dtype)
    rng = np.random.default_rng(3)
    bijector = ft.randomize(new_bijector(c, shape))
    means = tf.constant(rng.normal(size=[NUM_CLASSES, *shape]), dtype)
    if c.base == "trainable":
        scale = tfp.util.TransformedVariable(tf.exp(0.2 * means[1]), tfb.Softplus())
        base = tfd.Independent(tfd.Normal(tf.Variable(means[0]), scale), len(shape))
    elif c.base == "of_condition":
        options = {"event_shape": shape, "dtype": dtype}
        base = tfr.ConditionalBase(normal_of_condition, [tf.Variable(means)], **options)
    elif c.base.startswith("classes"):
        logits = tf.constant(rng.normal(size=[NUM_CLASSES]), dtype)
        logits = tf.Variable(logits, trainable=c.base == "classes_prior")
        components = tfd.Normal(tf.Variable(means), tf.ones([], dtype))
        components = tfd.Independent(components, len(shape))
        base = tfr.ClassMixture(tfd.Categorical(logits=logits), components)
    else:
        base = ft.standard_normal(shape, dtype)
    flow = tfd.TransformedDistribution(base, bijector)
    if not c.base.startswith("clusters"):
        return flow
    number, classes = num_clusters(c), None if c.base == "clusters" else NUM_CLASSES
    clusters = tfr.Clusters(shape, number, classes)
    centers = _events(c, number, shape, seed=4)
    clusters.centers.assign(centers)
    shares = rng.uniform(0.2, 1, [classes or 1, number // (classes or 1)])
    clusters.frequencies.assign((shares / shares.sum(axis=1, keepdims=True)).ravel())
    return tfr.ClusterMixture(flow, clusters)


@functools.cache
def _strategy(num_replicas):
    two = tf.distribute.MirroredStrategy
    return two(["CPU:0", "CPU:1"]) if num_replicas == 2 else tf.distribute.get_strategy()


def scope(c):
    return _strategy(c.replicas).scope()


def new_model(c, shape=None, optimizer=None, distribution=None):
    """Returns a compiled model; the same weights for the same configuration."""
    kinds = {"adam": {}, "averages": {"use_ema": True, "ema_momentum": 0.5}}
    kinds["accumulation"] = {"gradient_accumulation_steps": 2}
    keras.utils.set_random_seed(0)
    with scope(c):
        distribution = distribution or new_distribution(c, shape)
        options = {"dequantize": c.noise != "none"}
        if c.noise == "variational":
            sizes = {"num_filters": 4, "num_couplings": 1, "network_dtype": c.network_dtype}
            options["dequantizer"] = tfr.VariationalDequantization(
                event_shape(c), dtype=c.dtype, **sizes
            )
            ft.randomize(options["dequantizer"].bijector, 1)
        model = tfr.FlowModel(distribution, **options)
        if c.frozen == "network":
            for network in model.networks[::2]:
                network.trainable = False
        # The gradient of a bias before a batch normalization is rounding alone, of which Adam
        # with its usual epsilon makes whole steps.
        if optimizer is None and c.optimizer != "default":
            optimizer = keras.optimizers.Adam(1e-3, epsilon=1e-2, **kinds[c.optimizer])
        execution = {"run_eagerly": c.run_eagerly, "steps_per_execution": c.steps_per_execution}
        model.compile(optimizer, jit_compile=False, **execution)
        if optimizer is None:
            model.optimizer.epsilon = 1e-2
    return model


# Data.


def _events(c, number, shape, seed):
    rng = np.random.default_rng(seed)
    if len(shape) == 3:
        levels = rng.integers(0, 256, [number, *shape])
        return levels + 0.5 if c.noise == "none" else levels.astype(np.uint8)
    # Exact in float32, also far from zero.
    x = np.round(rng.normal(size=[number, *shape]) * 64) / 64
    return x * SCALE + SHIFT if c.data == "far" else x


def data_of(c, number=None, seed=0):
    """Returns events, conditions and weights; `None` for what there is not."""
    number = number or 3 * BATCH_SIZE + c.remainder
    rng = np.random.default_rng(seed + 1)
    x, y, weights = _events(c, number, event_shape(c), seed), None, None
    if has_labels(c):
        y = rng.integers(0, NUM_CLASSES, number)
        if labels_may_be_missing(c):
            y[1::4] = -1
    elif c.condition == "vectors":
        y = rng.normal(size=[number, 3])
    elif c.condition == "images":
        y = rng.normal(size=[number, 4, 4, 2])
    if c.weights == "ones":
        weights = np.ones(number)
    elif c.weights is not None:
        weights = rng.uniform(1, 9, number) * (1e-2 if c.weights == "fractions" else 1)
        weights[[0, 6]] = 0 if c.weights == "zeros" else weights[[0, 6]]
    return x.astype(x.dtype if x.dtype == np.uint8 else c.dtype), y, weights


def has_labels(c):
    return c.condition == "labels" or c.base in ("classes", "classes_prior", "clusters_of_classes")


def labels_may_be_missing(c):
    return c.base.startswith("classes") or (c.condition == "labels" and c.dropout > 0)


def dataset_of(data, batch_size=BATCH_SIZE):
    """Returns a dataset of tuples. They are as short as possible, since a strategy takes no `None`."""
    x, y, weights = data
    parts = {"x": x, "y": y, "weights": weights}
    dataset = tf.data.Dataset.from_tensor_slices({k: v for k, v in parts.items() if v is not None})
    names = [*parts][: 3 if weights is not None else 2 if y is not None else 1]
    return dataset.map(lambda row: tuple(map(row.get, names))).batch(batch_size)


def fit(model, c, data, batch_size=BATCH_SIZE, **options):
    """Trains for an epoch with data in the form of the configuration."""
    (x, y, weights), size = data, {"batch_size": batch_size}
    if c.form != "arrays":
        data = {"image": x, "label": y, "sample_weight": weights}
        x = {name: value for name, value in data.items() if value is not None}
        if c.form == "dataset" and (y is not None or weights is None):
            x, size = dataset_of((*data.values(),), batch_size), {}
        y = weights = None
    options = {"epochs": 1, "shuffle": False, "verbose": 0, **size, **options}
    return model.fit(x, y, sample_weight=weights, **options)


def scored(data):
    """Returns the data of `predict`."""
    x, y, _ = data
    return x if y is None else (x, y)


def log_size(c):
    """Returns log |det| of the map from near to far data."""
    return math.prod(event_shape(c)) * math.log(SCALE)

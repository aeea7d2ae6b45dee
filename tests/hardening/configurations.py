"""Small models with random weights, one for each combination of features, and their data."""

import collections
import functools

import flow_testing as ft
import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from hardening.covering_array import covering_array

import tfp_realnvp as tfr

tfd, tfb = tfp.distributions, tfp.bijectors

CLASSES, BATCH_SIZE, SHIFT, SCALE = 5, 4, 8192, 2
_MIXTURES = "classes", "classes_prior", "clusters", "clusters_of_classes"
_KINDS = "affine", "additive", "sigmoid_affine", "rational_quadratic_spline", "logistic_mixture"
FEATURES = {
    "constructor": ("vector", "image", "compact", "multi_scale", "patch_flow"),
    "base": ("normal", "trainable", "of_condition", *_MIXTURES),
    "condition": ("none", "labels", "vectors", "images"),
    "dropout": (0.0, 0.3),
    "noise": ("none", "uniform", "variational"),
    "normalization": (None, "actnorm", "batch", "batch_statistics"),
    "mixing": (None, "lu", "permutation"),
    "split_prior": (False, True),
    "data": ("near", "far"),
    "transformer": _KINDS,
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
    "frozen": ("nothing", "networks"),
}
Configuration = collections.namedtuple("Configuration", FEATURES)

# Which values may meet, and why others may not.
CONSTRAINTS = {
    "Vectors have no pixels.": lambda constructor, noise: (
        constructor != "vector" or noise == "none"
    ),
    "Images as conditions are of images.": lambda constructor, condition: (
        constructor != "vector" or condition != "images"
    ),
    "Gray levels do not lie far out.": lambda constructor, data: (
        constructor == "vector" or data == "near"
    ),
    "Vectors and patches have one scale.": lambda constructor, split_prior: (
        constructor not in ("vector", "patch_flow") or not split_prior
    ),
    "`compact` chooses its parts.": lambda constructor, normalization, mixing, split_prior: (
        constructor != "compact" or (normalization, mixing, split_prior) == ("actnorm", "lu", True)
    ),
    "`RealNVPImage` has no option for permutations.": lambda constructor, mixing: (
        constructor != "image" or mixing != "permutation"
    ),
    "Only `coupling_layer` leaves room for other statistics.": lambda constructor, normalization: (
        constructor not in ("image", "vector") or normalization != "batch_statistics"
    ),
    "The condition of a mixture's flow is none, or its clusters.": lambda base, condition: (
        condition == "none" or base not in _MIXTURES
    ),
    "A `ConditionalBase` needs a condition.": lambda base, condition, dropout: (
        base != "of_condition" or (condition != "none" and not dropout)
    ),
    "Without a condition, nothing can be left out.": lambda base, condition, dropout: (
        not dropout or condition != "none" or base in ("clusters", "clusters_of_classes")
    ),
    "Under a strategy, Keras accumulates no gradients.": lambda optimizer, replicas: (
        optimizer != "accumulation" or replicas == 1
    ),
    "Under a strategy, Keras' graphs of several steps fail.": (
        lambda steps_per_execution, replicas, run_eagerly: (
            steps_per_execution == 1 or replicas == 1 or run_eagerly
        )
    ),
}


@functools.cache
def configurations():
    """Returns a covering array of the features."""
    return [Configuration(**row) for row in covering_array(FEATURES, CONSTRAINTS.values())]


# Models.


def event_shape(c):
    return (4,) if c.constructor == "vector" else (4, 4, 1)


def num_clusters(c):
    return CLASSES * (2 if c.base == "clusters_of_classes" else 1)


def _options_of_condition(c):
    shapes = {"vectors": (3,), "images": (4, 4, 2)}
    options = {"condition_dropout": c.dropout} if c.dropout else {}
    if c.condition in shapes:
        options["conditional_event_shape"] = shapes[c.condition]
    elif c.condition == "labels" or c.base.startswith("clusters"):
        options["num_classes"] = CLASSES if c.condition == "labels" else num_clusters(c)
    return options


def _layer(c, network_class, **sizes):
    """Returns a function that makes layers, also with batch statistics in training."""
    of_batch = c.normalization == "batch_statistics"
    kinds = {"transformer": c.transformer, "mixing": c.mixing, "network_dtype": c.network_dtype}
    kinds["normalization"] = None if of_batch else c.normalization
    made = tfr.coupling_layer(tfr.network_of(network_class, **sizes), 4, **kinds)

    def layer(mask, shape, name, *, dtype, **options):
        of_norm = {"num_channels": shape[-1], "event_ndims": len(shape), "dtype": dtype}
        norm = [tfr.BatchNormalization(statistics="batch", **of_norm)] if of_batch else []
        return [*made(mask, shape, name, dtype=dtype, **options), *norm]

    return layer


def new_bijector(c, shape):
    options = {"dtype": c.dtype, "recompute": c.recompute, **_options_of_condition(c)}
    kinds = {"transformer": c.transformer, "network_dtype": c.network_dtype, "num_filters": 4}
    sizes = {"num_couplings": 1, "num_scales": 2}
    if c.constructor == "vector":
        shift, scale = (SHIFT, SCALE) if c.data == "far" else (0, 1)
        moments = [float(shift)] * shape[0], [float(scale)] * shape[0]
        kinds["standardization"] = tfr.Standardization(*moments, dtype=c.dtype)
        kinds |= {"mixing": c.mixing, "normalization": c.normalization, "num_couplings": 4}
        return tfr.RealNVPVector(*shape, **kinds, **options)
    if c.constructor == "compact":
        return tfr.RealNVPImage.compact(shape, **sizes, **kinds, **options)
    if c.constructor == "image":
        kinds |= {"normalization": c.normalization, "invertible_conv": c.mixing == "lu"}
        kinds |= {"split_prior": c.split_prior, "num_blocks": 0}
        return tfr.RealNVPImage(shape, **sizes, **kinds, **options)
    options["pixels"] = tfr.PixelLogit(dtype=c.dtype)
    if c.constructor == "multi_scale":
        prior = tfr.coupling_layer(tfr.network_of(tfr.ShallowConv), 4) if c.split_prior else None
        return tfr.multi_scale(
            shape, layer=_layer(c, tfr.ShallowConv), prior=prior, **sizes, **options
        )
    layer = _layer(c, tfr.VisionTransformer, num_blocks=1, num_heads=2)
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
    """Returns a distribution with random weights; the same for the same configuration."""
    keras.utils.set_random_seed(0)
    shape, dtype = shape or event_shape(c), tf.as_dtype(c.dtype)
    rng = np.random.default_rng(3)
    bijector = ft.randomize(new_bijector(c, shape))
    means = tf.constant(rng.normal(size=[CLASSES, *shape]), dtype)
    if c.base == "trainable":
        scale = tfp.util.TransformedVariable(tf.exp(0.2 * means[1]), tfb.Softplus())
        base = tfd.Independent(tfd.Normal(tf.Variable(means[0]), scale), len(shape))
    elif c.base == "of_condition":
        options = {"event_shape": shape, "dtype": dtype}
        base = tfr.ConditionalBase(normal_of_condition, [tf.Variable(means)], **options)
    elif c.base.startswith("classes"):
        logits = tf.constant(rng.normal(size=[CLASSES]), dtype)
        logits = tf.Variable(logits, trainable=c.base == "classes_prior")
        components = tfd.Normal(tf.Variable(means), tf.ones([], dtype))
        components = tfd.Independent(components, len(shape))
        base = tfr.ClassMixture(tfd.Categorical(logits=logits), components)
    else:
        base = ft.standard_normal(shape, dtype)
    flow = tfd.TransformedDistribution(base, bijector)
    if not c.base.startswith("clusters"):
        return flow
    number, classes = num_clusters(c), None if c.base == "clusters" else CLASSES
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


def new_model(c, optimizer=None):
    """Returns a compiled model with random weights; the same for the same configuration."""
    kinds = {"adam": {}, "averages": {"use_ema": True, "ema_momentum": 0.5}}
    kinds["accumulation"] = {"gradient_accumulation_steps": 2}
    with scope(c):
        distribution, options = new_distribution(c), {"dequantize": c.noise != "none"}
        if c.noise == "variational":
            sizes = {"num_filters": 4, "num_couplings": 1, "network_dtype": c.network_dtype}
            noise = tfr.VariationalDequantization(event_shape(c), dtype=c.dtype, **sizes)
            ft.randomize(noise.bijector, 1)
            options["dequantizer"] = noise
        model = tfr.FlowModel(distribution, **options)
        for network in model.networks[::2] if c.frozen == "networks" else ():
            network.trainable = False
        if optimizer is None and c.optimizer != "default":
            optimizer = keras.optimizers.Adam(1e-3, **kinds[c.optimizer])
        execution = {"run_eagerly": c.run_eagerly, "steps_per_execution": c.steps_per_execution}
        model.compile(optimizer, jit_compile=False, **execution)
        # The gradient of a bias before a batch normalization is rounding alone, of which Adam
        # with its usual epsilon makes whole steps.
        model.optimizer.epsilon = 1e-2
    return model


# Data.


def _events(c, number, shape, seed):
    rng = np.random.default_rng(seed)
    if len(shape) == 3:
        levels = rng.integers(0, 256, [number, *shape], dtype=np.uint8)
        return (levels + 0.5).astype(c.dtype) if c.noise == "none" else levels
    # Exact in float32, also far from zero.
    x = np.round(rng.normal(size=[number, *shape]) * 64) / 64
    return (x * SCALE + SHIFT if c.data == "far" else x).astype(c.dtype)


def data_of(c):
    """Returns events, conditions and weights; `None` for what there is not."""
    number, rng = 3 * BATCH_SIZE + c.remainder, np.random.default_rng(1)
    y, weights = None, rng.uniform(1, 9, number)
    if has_labels(c):
        y = rng.integers(0, CLASSES, number)
        y[1::4] = -1 if labels_may_be_missing(c) else y[1::4]
    elif c.condition != "none":
        y = rng.normal(size=[number, 3] if c.condition == "vectors" else [number, 4, 4, 2])
        y = y.astype(c.dtype)
    weights[[0, 6]] = 0
    kinds = {None: None, "ones": np.ones(number), "fractions": 0.01 + 0.01 * weights}
    return _events(c, number, event_shape(c), 0), y, {"zeros": weights, **kinds}[c.weights]


def has_labels(c):
    return c.condition == "labels" or c.base in ("classes", "classes_prior", "clusters_of_classes")


def labels_may_be_missing(c):
    return c.base.startswith("classes") or (c.condition == "labels" and c.dropout > 0)


def dataset_of(data, batch_size=BATCH_SIZE, check=tf.identity):
    """Returns a dataset of tuples, without `None` at the end: a strategy takes none."""
    parts = dict(zip("xyw", data, strict=True))
    dataset = tf.data.Dataset.from_tensor_slices({k: v for k, v in parts.items() if v is not None})
    names = "xyw" if data[2] is not None else "xy" if data[1] is not None else "x"
    dataset = dataset.map(lambda row: {**row, "x": check(row["x"])})
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

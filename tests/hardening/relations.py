"""Relations between results, which hold for each configuration to which they apply.

A relation is a function of a configuration. `relation` states to which configurations it applies,
and in how many of them the quick draw tests it.
"""

import contextlib
import functools
import re
import tempfile
import warnings
from unittest import mock

import flow_testing as ft
import keras
import numpy as np
import pytest
import tensorflow as tf
from hardening import configurations as cf

import tfp_realnvp as tfr
from tfp_realnvp.saving import saved_model

RELATIONS = {}


@contextlib.contextmanager
def eagerly():
    """Runs TensorFlow functions eagerly, which saves tracing."""
    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(False)


def relation(applies=lambda c: True, quick=3):
    def register(function):
        RELATIONS[function.__name__] = function, applies, quick
        return function

    return register


def assert_close(actual, expected, c, factor=1.0):
    """Asserts that arrays are equal but for rounding, relative to the largest value of each."""
    tolerance = 2e-2 if c.network_dtype else {"float32": 1e-3, "float64": 1e-6}[c.dtype]
    for name, value in expected.items():
        atol = factor * tolerance * max(1.0, np.abs(value).max(initial=0))
        np.testing.assert_allclose(actual[name], value, rtol=0, atol=atol, err_msg=name)


def variables_of(model):
    """Returns the variables of a model by name."""
    parts = [model.distribution, *([model.dequantizer] if model.dequantizer else [])]
    variables = [variable for part in parts for variable in part.variables]
    # Layers have numbers in a process.
    names = [re.sub(r"_\d+/", "/", variable.name) for variable in variables]
    values = (variable.numpy().copy() for variable in variables)
    return {f"{i} {name}": value for i, (name, value) in enumerate(zip(names, values))}


def results(model, data):
    """Returns the variables, and scores of the data."""
    options = {"batch_size": cf.BATCH_SIZE, "verbose": 0}
    loss = model.evaluate(data[0], data[1], sample_weight=data[2], **options)
    scores = model.predict(cf.scored(data), **options)
    return {**variables_of(model), "loss": np.ravel(loss)[0], "scores": scores}


def trained(c, data=None, change=lambda model: None, **options):
    """Returns results of a new model after an epoch."""
    data, model = data or cf.data_of(c), cf.new_model(c)
    change(model)
    cf.fit(model, c, data, **options)
    return results(model, data)


expected_of = functools.lru_cache(trained)  # without arguments but the configuration


def has_noise_by_position(c):
    """Returns whether training draws something for each position in the batch."""
    return c.noise != "none" or c.dropout > 0


def has_classes(c):
    return cf.has_labels(c) or c.base == "clusters"


# Training.


@relation(quick=4)
def a_factor_on_all_weights_changes_nothing(c):
    x, y, weights = cf.data_of(c)
    weights = np.ones(len(x)) if weights is None else weights
    assert_close(trained(c, (x, y, 2.0**-13 * weights)), expected_of(c), c)


@relation(lambda c: not has_noise_by_position(c))
def weight_two_is_two_rows_and_zero_is_none(c):
    x, y, _ = cf.data_of(c)
    weights = np.arange(len(x)) % 3
    order = np.repeat(np.random.default_rng(0).permutation(len(x)), 1)
    rows = np.repeat(order, weights[order])
    expected = trained(c, (x[rows], None if y is None else y[rows], None), batch_size=len(rows))
    actual = trained(c, (x, y, weights), batch_size=len(x))
    del actual["scores"], expected["scores"]
    assert_close(actual, expected, c)


@relation(lambda c: not has_noise_by_position(c), quick=2)
def the_order_of_a_full_batch_changes_nothing(c):
    data = cf.data_of(c)
    order = np.random.default_rng(0).permutation(len(data[0]))
    shuffled = [None if part is None else part[order] for part in data]
    actual, expected = (trained(c, d, batch_size=len(order)) for d in (shuffled, data))
    expected["scores"] = expected["scores"][order]
    assert_close(actual, expected, c)


_PLAIN = {"replicas": 1, "steps_per_execution": 1, "form": "arrays"}
_PLAIN |= {"recompute": False, "run_eagerly": False}


@relation(quick=4)
def how_it_is_computed_changes_nothing(c):
    """Devices, steps an execution, eager mode, recomputation, form of the data."""
    actual = trained(c)
    with eagerly():
        expected = trained(c._replace(**_PLAIN))
    assert_close(actual, expected, c)


@relation(
    lambda c: (c.dtype, c.network_dtype) == ("float64", None) and not has_noise_by_position(c), quick=1
)
def float32_is_near_float64(c):
    expected = expected_of(c)
    actual = trained(c._replace(dtype="float32"), cf.data_of(c))
    assert_close(actual, expected, c._replace(dtype="float32"))


@relation(lambda c: c.replicas == 1 and not c.run_eagerly, quick=1)
def eager_is_graph_is_xla(c):
    """Log densities in training and their gradients, after which statistics have changed."""
    distribution, (x, y, _) = cf.new_distribution(c), cf.data_of(c)
    x = tf.cast(x, c.dtype)
    states = []

    def step():
        options = tfr.distributions.routing.route(distribution, **options_of(c, y), training=True)
        with tf.GradientTape() as tape:
            log_prob = distribution.log_prob(tf.identity(x), **options)
        return log_prob, tape.gradient(log_prob, distribution.trainable_variables)

    before = ft.values(distribution.variables)
    for mode in ft.MODES.values():
        for variable, value in zip(distribution.variables, before, strict=True):
            variable.assign(value)
        log_prob, gradients = mode(step)()
        values = [log_prob, *filter(lambda g: g is not None, gradients), *distribution.variables]
        states.append(dict(enumerate(tf.convert_to_tensor(v).numpy() for v in values)))
    assert_close(states[1], states[0], c)
    assert_close(states[2], states[0], c)


def options_of(c, y):
    return {} if y is None else {"conditional_input": tf.constant(y)}


@relation(lambda c: c.constructor == "vector")
def moved_and_scaled_data_with_their_standardization_change_log_p_by_a_constant(c):
    near, far = (expected_of(c._replace(data=place)) for place in ("near", "far"))
    shift = {"loss": cf.log_size(c), "scores": -cf.log_size(c)}
    centers = {name: value * cf.SCALE + cf.SHIFT for name, value in near.items() if "cent" in name}
    expected = {name: value + shift.get(name, 0) for name, value in near.items()}
    assert_close(far, expected | centers, c)


@relation(lambda c: has_classes(c), quick=4)
def renamed_classes_are_permuted(c):
    order = np.random.default_rng(0).permutation(cf.NUM_CLASSES)
    per_class = cf.num_clusters(c) // cf.NUM_CLASSES
    of_clusters = (order[:, None] * per_class + np.arange(per_class)).ravel()
    orders = {len(order): order, len(of_clusters): of_clusters}

    def permuted(value):
        return value[orders[len(value)]] if np.ndim(value) and len(value) in orders else value

    def rename(model):
        with cf.scope(c):
            for variable in model.distribution.variables:
                variable.assign(permuted(variable.numpy()))

    x, y, weights = cf.data_of(c)
    names = None if y is None else np.where(y < 0, -1, np.argsort(order)[y])
    expected, actual = expected_of(c), trained(c, (x, names, weights), rename)
    assert_close(actual, {name: permuted(value) for name, value in expected.items()}, c)


@relation(cf.labels_may_be_missing, quick=2)
def no_label_is_minus_one(c):
    x, y, weights = cf.data_of(c)
    actual, expected = (trained(c, (x, z, weights)) for z in (None, np.full_like(y, -1)))
    assert_close(actual, expected, c)


@relation(lambda c: c.base == "classes_prior", quick=1)
def more_rows_of_a_class_make_it_more_probable(c):
    x, y, _ = cf.data_of(c)
    y = np.arange(len(x)) % cf.NUM_CLASSES
    shares = []
    for factor in (1, 10):
        model = cf.new_model(c, optimizer=keras.optimizers.SGD(0.1))
        for layer in model.layers_of_bijectors:
            layer.trainable = False
        cf.fit(model, c, (x, y, np.where(y == 0, factor, 1)))
        base = model.distribution.distribution
        shares.append(base.mixture_distribution.probs_parameter()[0].numpy())
    assert shares[1] > shares[0] + 1e-3, shares


@relation(lambda c: c.steps_per_execution == 1 and not c.run_eagerly, quick=3)
def a_call_that_fails_changes_nothing(c):
    model, (x, y, weights) = cf.new_model(c), cf.data_of(c)
    x = x.astype(c.dtype)
    x[cf.BATCH_SIZE + 1] = np.nan  # within the second batch
    rate, states = float(model.optimizer.learning_rate.numpy()), []

    def state():
        return [v.numpy() for v in (*model.variables, *model.optimizer.variables)]

    note = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: states.append(state()))
    for stops in (tf.identity, functools.partial(tf.debugging.check_numerics, message="")):
        dataset = cf.dataset_of((x, y, weights)).map(lambda x, *others: (stops(x), *others))
        callbacks = [tfr.LearningRateBudget(0.1, steps=9), note]
        with pytest.raises((tfr.NonFiniteLossError, ValueError, tf.errors.InvalidArgumentError)):
            model.fit(dataset, verbose=0, callbacks=callbacks)
        assert float(model.optimizer.learning_rate.numpy()) == rate
        ft.assert_equal(state(), states[-1])


# Saving.


@relation(quick=4)
def a_loaded_model_has_the_same_scores_samples_and_next_step(c):
    model, data = cf.new_model(c), cf.data_of(c)
    cf.fit(model, c, data)
    with tempfile.TemporaryDirectory() as folder, cf.scope(c):
        model.save(f"{folder}/model.keras")
        loaded = keras.models.load_model(f"{folder}/model.keras")
        loaded.optimizer.epsilon = model.optimizer.epsilon
    # Layers of a name get numbers in a process.
    assert len(loaded.trainable_variables) == len(model.trainable_variables)
    samples = [tfr_sample(m, c, data) for m in (loaded, model)]
    assert_close({"samples": samples[0]}, {"samples": samples[1]}, c)
    expected = [*results(model, data).values()]
    assert_close(dict(enumerate(results(loaded, data).values())), dict(enumerate(expected)), c)
    for m in (loaded, model):
        cf.fit(m, c, data)
    expected = [*results(model, data).values()]
    assert_close(dict(enumerate(results(loaded, data).values())), dict(enumerate(expected)), c)


def tfr_sample(model, c, data):
    distribution = model.distribution
    if data[1] is not None:
        distribution = tfr.condition(distribution, data[1][0])
    return distribution.sample(4, seed=(1, 2)).numpy()


@relation(quick=3)
def weights_load_into_the_same_construction(c):
    model, same = cf.new_model(c), cf.new_model(c)
    with cf.scope(c):
        for variable in same.distribution.trainable_variables:
            variable.assign(tf.zeros_like(variable))
        with tempfile.TemporaryDirectory() as folder:
            model.save_weights(f"{folder}/model.weights.h5")
            same.load_weights(f"{folder}/model.weights.h5")
    ft.assert_equal([*variables_of(same).values()], [*variables_of(model).values()])


@relation(quick=1)
def an_export_is_the_local_model(c):
    distribution, (x, y, _) = cf.new_distribution(c), cf.data_of(c)
    functions = saved_model.ServedFlow.functions
    few = lambda flow: {"log_prob": functions(flow)["log_prob"]}  # noqa: E731
    with tempfile.TemporaryDirectory() as folder:
        with mock.patch.object(saved_model.ServedFlow, "functions", few):
            tfr.export_saved_model(distribution, f"{folder}/1")
        served = tf.saved_model.load(f"{folder}/1")
        actual = served.log_prob(tf.cast(x, c.dtype), **options_of(c, y))["log_prob"]
    expected = tfr.log_prob(distribution, cf.scored((x, y, None)))
    assert_close({"log_prob": actual}, {"log_prob": expected}, c)


@relation(lambda c: c.replicas == 1, quick=2)
def a_copy_follows_its_original(c):
    model, data = cf.new_model(c), cf.data_of(c)
    copied = model.distribution.copy()
    cf.fit(model, c, data)
    x, y, _ = data
    options = tfr.distributions.routing.route(copied, **options_of(c, y))
    actual, expected = (
        d.log_prob(tf.cast(x, c.dtype), **options) for d in (copied, model.distribution)
    )
    np.testing.assert_array_equal(actual, expected)


# Densities.


def _inverse(c):
    """Returns a function from copies of an event to latents and log dets, and the event."""
    bijector, (x, y, _) = cf.new_distribution(c), cf.data_of(c)
    bijector = getattr(bijector, "components_distribution", bijector).bijector
    y = 0 if c.base.startswith("clusters") else None if y is None or "class" in c.base else y[0]

    def inverse(copies):
        options = {} if y is None else {"conditional_input": tf.repeat([y], len(copies), axis=0)}
        return bijector.inverse_and_log_det(copies, **options)

    return inverse, tf.cast(x[0], c.dtype) + 0.5 * (c.noise != "none")


@relation(quick=3)
def log_dets_are_those_of_the_jacobian(c):
    inverse, event = _inverse(c)
    log_det = inverse(event[tf.newaxis])[1][0]
    expected = ft.jacobian_log_det(lambda copies: inverse(copies)[0], event)
    assert_close({"log_det": log_det}, {"log_det": expected}, c)


@relation(lambda c: c.constructor == "patch_flow", quick=3)
def each_latent_depends_on_several_elements(c):
    inverse, event = _inverse(c)
    jacobian = ft.jacobian(lambda copies: inverse(copies)[0], event)
    assert np.all(np.count_nonzero(jacobian, axis=1) > 1), jacobian


def _one_condition(c, shape):
    c = c._replace(data="near")
    distribution, data = cf.new_distribution(c, shape), cf.data_of(c)
    return distribution if data[1] is None else tfr.condition(distribution, data[1][0])


def _grid(c):
    """Returns a distribution of vectors of two elements, points, and their probabilities."""
    distribution = _one_condition(c, (2,))
    axis = np.linspace(-40, 40, 801)
    points = tf.constant(np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2), c.dtype)
    log_prob = tf.function(distribution.log_prob)(points).numpy().astype(np.float64)
    return distribution, points.numpy(), np.exp(log_prob) * (axis[1] - axis[0]) ** 2


@relation(lambda c: c.constructor == "vector" and not c.network_dtype, quick=2)
def densities_integrate_to_one_and_samples_have_their_moments(c):
    distribution, points, probabilities = _grid(c)
    assert np.sum(probabilities) == pytest.approx(1, abs=1e-3)
    samples = tf.function(lambda: distribution.sample(20_000, seed=(1, 2)))().numpy()
    for function in (np.asarray, np.abs, np.tanh, lambda x: np.tanh(x - x[:, ::-1])):
        of_grid, values = function(points), function(samples)
        mean = np.average(of_grid, axis=0, weights=probabilities)
        error = values.std(axis=0) / np.sqrt(len(values))
        np.testing.assert_allclose(values.mean(axis=0), mean, rtol=0, atol=5 * error.max())


# Relations of graphs. How results are computed changes nothing, so that all others run eagerly.
_OF_GRAPHS = (
    how_it_is_computed_changes_nothing,
    eager_is_graph_is_xla,
    a_call_that_fails_changes_nothing,
    an_export_is_the_local_model,
)


def check(name, c):
    """Checks a relation for a configuration."""
    function, *_ = RELATIONS[name]
    is_graph = function in _OF_GRAPHS or c.replicas == 2
    with warnings.catch_warnings(), contextlib.nullcontext() if is_graph else eagerly():
        # Few steps classify nothing.
        warnings.filterwarnings("ignore", ".*labeled events")
        function(c)

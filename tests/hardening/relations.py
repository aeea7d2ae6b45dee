"""Relations between results, each a function of a configuration to which it applies."""

import contextlib
import pathlib
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


def relation(applies=lambda c: True, *, eagerly=True, quick=({},)):
    """Registers a relation.

    Args:
      applies: function that returns whether the relation applies to a configuration.
      eagerly: whether to run TensorFlow functions eagerly, which saves tracing. Another relation
        is that this changes nothing.
      quick: for each configuration of the quick draw, the values of features with which the
        relation tells most, the most important first.
    """

    def register(function):
        RELATIONS[function.__name__] = function, applies, quick, eagerly
        return function

    return register


@contextlib.contextmanager
def _eagerly(is_eager=True):
    tf.config.run_functions_eagerly(is_eager)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(False)


def check(name, c):
    """Checks a relation for a configuration."""
    function, *_, eagerly = RELATIONS[name]
    with warnings.catch_warnings(), _eagerly(eagerly and c.replicas == 1):
        # So few steps classify nothing.
        warnings.filterwarnings("ignore", ".*labeled events")
        function(c)


def assert_close(actual, expected, c):
    """Asserts that the values of dictionaries differ by rounding alone."""
    tolerance = 2e-2 if c.network_dtype else {"float32": 1e-3, "float64": 1e-6}[c.dtype]
    assert [*actual] == [*expected]
    for name, value in expected.items():
        atol = tolerance * max(1.0, np.abs(value).max(initial=0))
        np.testing.assert_allclose(actual[name], value, rtol=0, atol=atol, err_msg=name)


def variables_of(model):
    """Returns the values of variables by name, without numbers of the process and scopes."""
    parts = [model.distribution, *([model.dequantizer] if model.dequantizer else [])]
    variables = [v for part in parts for v in part.variables]
    names = [re.sub("_[0-9]+/", "/", "/".join(v.name.split("/")[-2:])) for v in variables]
    return {f"{i} {name}": variables[i].numpy().copy() for i, name in enumerate(names)}


def results(model, data):
    """Returns the variables, the loss, and the scores of the events."""
    x, y, weights = data
    options = {"batch_size": cf.BATCH_SIZE, "verbose": 0}
    loss = np.ravel(model.evaluate(x, y, sample_weight=weights, **options))[0]
    scores = model.predict(x if y is None else (x, y), **options)
    return {**variables_of(model), "loss": loss, "scores": scores}


def trained(c, data=None, change=lambda model: None, **options):
    """Returns results of a new model after an epoch."""
    data, model = data or cf.data_of(c), cf.new_model(c)
    change(model)
    cf.fit(model, c, data, **options)
    return results(model, data)


def _given_first(distribution, c):
    y = cf.data_of(c)[1]
    return distribution if y is None else tfr.condition(distribution, y[0])


def _is_by_event(c):
    """Returns whether training draws nothing that depends on the position in the batch."""
    return c.noise == "none" and not c.dropout


# Training.


@relation(
    quick=[
        {"constructor": "image", "normalization": "batch", "network_dtype": None},
        {"weights": "fractions", "constructor": "vector"},
    ]
)
def a_factor_on_all_weights_changes_nothing(c):
    x, y, weights = cf.data_of(c)
    weights = np.ones(len(x)) if weights is None else weights
    assert_close(trained(c, (x, y, 2.0**-13 * weights)), trained(c), c)


@relation(_is_by_event, quick=[{"normalization": "batch"}, {"normalization": "actnorm"}])
def weight_two_is_two_rows_and_zero_is_none_in_any_order(c):
    x, y, _ = cf.data_of(c)
    weights = np.arange(len(x)) % 3
    rows = np.random.default_rng(0).permutation(np.repeat(np.arange(len(x)), weights))
    expected = trained(c, (x[rows], None if y is None else y[rows], None), batch_size=len(rows))
    actual = trained(c, (x, y, weights), batch_size=len(x))
    expected["scores"] = actual["scores"][rows]
    actual["scores"] = actual["scores"][rows]
    assert_close(actual, expected, c)


_PLAIN = {"replicas": 1, "steps_per_execution": 1, "form": "arrays"}
_PLAIN |= {"recompute": False, "run_eagerly": False}


@relation(
    eagerly=False,
    quick=[
        {"replicas": 2, "constructor": "vector"},
        {"steps_per_execution": 3, "run_eagerly": False},
    ],
)
def how_it_is_computed_changes_nothing(c):
    """Replicas, steps an execution, graphs, recomputation and the form of the data."""
    actual = trained(c)
    with _eagerly():
        expected = trained(c._replace(**_PLAIN))
    assert_close(actual, expected, c)


@relation(lambda c: c.replicas == 1, eagerly=False)
def eager_is_graph_is_xla(c):
    """Log densities in training, their gradients, and variables."""
    distribution, (x, y, _) = cf.new_distribution(c), cf.data_of(c)
    before, states = ft.values(distribution.variables), []

    def step(x):
        with tf.GradientTape() as tape, tfr.call_options(training=True, conditional_input=y):
            log_prob = distribution.log_prob(x)
        return log_prob, tape.gradient(log_prob, distribution.trainable_variables)

    for mode in ft.MODES.values():
        ft.assign(distribution.variables, before)
        log_prob, gradients = mode(step)(tf.cast(x, c.dtype))
        gradients = [tf.convert_to_tensor(g) for g in gradients if g is not None]
        states.append(dict(enumerate(ft.values([log_prob, *gradients, *distribution.variables]))))
    assert_close(states[1], states[0], c)
    assert_close(states[2], states[0], c)


@relation(lambda c: c.dtype == "float64" and not c.network_dtype and _is_by_event(c))
def float32_is_near_float64(c):
    narrow, weights = c._replace(dtype="float32"), cf.new_distribution(c).variables

    def assign_weights(model):
        # Each dtype has other random numbers.
        for variable, value in zip(model.distribution.variables, weights, strict=True):
            variable.assign(tf.cast(value, variable.dtype))

    with cf.scope(c):
        assert_close(trained(narrow, change=assign_weights), trained(c), narrow)


@relation(
    lambda c: c.constructor == "vector", quick=[{"base": "clusters"}, {"normalization": "batch"}]
)
def moved_and_scaled_data_with_their_standardization_change_log_p_by_a_constant(c):
    near, far = (trained(c._replace(data=place)) for place in ("near", "far"))
    size = np.log(cf.SCALE) * np.prod(cf.event_shape(c))
    changes = {"loss": lambda loss: loss + size, "scores": lambda scores: scores - size}
    centers = {name: lambda x: x * cf.SCALE + cf.SHIFT for name in near if "centers" in name}
    changed = {name: change(near[name]) for name, change in (changes | centers).items()}
    assert_close(far, {**near, **changed}, c)


@relation(
    # Muon, the default, turns differences of rounding into differences of its steps.
    lambda c: (cf.has_labels(c) or c.base == "clusters") and c.optimizer != "default",
    quick=[{"condition": "labels"}, {"base": "classes"}, {"base": "clusters_of_classes"}],
)
def renamed_classes_are_permuted(c):
    order = np.random.default_rng(0).permutation(cf.CLASSES)
    number = cf.num_clusters(c) // cf.CLASSES
    of_clusters = (order[:, np.newaxis] * number + np.arange(number)).ravel()
    orders = {len(order): order, len(of_clusters): of_clusters}

    def permuted(value):
        return value[orders[len(value)]] if np.ndim(value) and len(value) in orders else value

    def rename(model):
        with cf.scope(c):
            for variable in model.distribution.variables:
                variable.assign(permuted(variable.numpy()))

    x, y, weights = cf.data_of(c)
    names = None if y is None else np.where(y < 0, -1, np.argsort(order)[y])
    expected = {name: permuted(value) for name, value in trained(c).items()}
    assert_close(trained(c, (x, names, weights), rename), expected, c)


@relation(cf.labels_may_be_missing)
def no_label_is_minus_one(c):
    x, y, weights = cf.data_of(c)
    actual, expected = (trained(c, (x, z, weights)) for z in (None, np.full_like(y, -1)))
    assert_close(actual, expected, c)


@relation(lambda c: c.base == "classes_prior")
def more_rows_of_a_class_make_it_more_probable(c):
    x, shares = cf.data_of(c)[0], []
    y = np.arange(len(x)) % cf.CLASSES
    for factor in (1, 10):
        model = cf.new_model(c, keras.optimizers.SGD(0.1))
        for layer in model.layers_of_bijectors:
            layer.trainable = False
        cf.fit(model, c, (x, y, np.where(y == 0, factor, 1)))
        prior = model.distribution.distribution.mixture_distribution
        shares.append(prior.probs_parameter()[0].numpy())
    assert shares[1] > shares[0] + 1e-3, shares


@relation(eagerly=False, quick=[{"optimizer": "adam"}, {"normalization": "batch"}])
def a_call_that_fails_changes_nothing(c):
    c = c._replace(steps_per_execution=1, run_eagerly=False)
    model, (x, y, weights) = cf.new_model(c), cf.data_of(c)
    x = x.astype(c.dtype)
    x[cf.BATCH_SIZE + 1] = np.nan  # in the second batch
    rate, states = float(model.optimizer.learning_rate.numpy()), []

    def note(*_):
        states.append(ft.values([*model.variables, *model.optimizer.variables]))

    # The model finds the NaN, or the data raise an error.
    for check_data in (tf.identity, lambda x: tf.debugging.check_numerics(x, "NaN")):
        dataset = cf.dataset_of((x, y, weights), check=check_data)
        noting = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: note())
        callbacks = [tfr.LearningRateBudget(0.1, steps=9), noting]
        note()  # A mixture of classes looks for labels in all batches before the first step.
        with pytest.raises((tfr.NonFiniteLossError, ValueError, tf.errors.InvalidArgumentError)):
            model.fit(dataset, verbose=0, callbacks=callbacks)
        assert float(model.optimizer.learning_rate.numpy()) == rate
        note()
        ft.assert_equal(states[-1], states[-2])


# Saving and copies.


@relation(quick=[{"frozen": "networks", "constructor": name} for name in ("compact", "vector")])
def a_loaded_model_has_the_same_scores_samples_and_next_step(c):
    model, data, answers = cf.new_model(c), cf.data_of(c), []
    cf.fit(model, c, data)
    with tempfile.TemporaryDirectory() as folder, cf.scope(c):
        loaded = ft.reloaded("load_model", model, pathlib.Path(folder))
    loaded.optimizer.epsilon = model.optimizer.epsilon
    for each in (loaded, model):
        sample = _given_first(each.distribution, c).sample(4, seed=(1, 2))
        before = results(each, data)
        cf.fit(each, c, data)
        after = {f"next {name}": value for name, value in results(each, data).items()}
        answers.append({"sample": sample, **before, **after})
    assert_close(*answers, c)
    assert len(loaded.trainable_variables) == len(model.trainable_variables)


@relation(quick=[{"base": "clusters"}, {"noise": "variational"}])
def weights_load_into_the_same_construction(c):
    model, same = cf.new_model(c), cf.new_model(c)
    with cf.scope(c), tempfile.TemporaryDirectory() as folder:
        for variable in same.trainable_variables:
            variable.assign(tf.zeros_like(variable))
        model.save_weights(f"{folder}/model.weights.h5")
        same.load_weights(f"{folder}/model.weights.h5")
    ft.assert_equal([*variables_of(same).values()], [*variables_of(model).values()])


@relation(lambda c: c.replicas == 1, eagerly=False)
def an_export_is_the_local_model(c):
    distribution, (x, y, _) = cf.new_distribution(c), cf.data_of(c)
    functions, x = saved_model.ServedFlow.functions, tf.cast(x, c.dtype)
    few = lambda flow: {"log_prob": functions(flow)["log_prob"]}  # noqa: E731
    with mock.patch.object(saved_model.ServedFlow, "functions", few):
        with tempfile.TemporaryDirectory() as folder:
            tfr.export_saved_model(distribution, f"{folder}/1")
            served = tf.saved_model.load(f"{folder}/1")
    condition = {} if y is None else {"conditional_input": tf.constant(y)}
    with tfr.call_options(conditional_input=y):
        expected = distribution.log_prob(x)
    assert_close(served.log_prob(x, **condition), {"log_prob": expected}, c)


@relation(lambda c: c.replicas == 1)
def a_copy_follows_its_original(c):
    model, (x, y, weights) = cf.new_model(c), cf.data_of(c)
    flows = model.distribution.copy(), model.distribution
    cf.fit(model, c, (x, y, weights))
    with tfr.call_options(conditional_input=y):
        ft.assert_equal(*(flow.log_prob(tf.cast(x, c.dtype)) for flow in flows))


# Densities.


def _inverse(c):
    """Returns a function from copies of an event to latents and log dets, and the event."""
    flow, (x, y, _) = cf.new_distribution(c), cf.data_of(c)
    bijector = getattr(flow, "components_distribution", flow).bijector
    y = None if c.condition == "none" else y[0]
    y = 0 if c.base.startswith("clusters") else y

    def inverse(copies):
        options = {} if y is None else {"conditional_input": tf.repeat([y], len(copies), axis=0)}
        return bijector.inverse_and_log_det(copies, **options)

    return inverse, tf.cast(x[0], c.dtype) + 0.5 * (c.noise != "none")


@relation(quick=[{"transformer": name} for name in cf.FEATURES["transformer"]])
def log_dets_are_those_of_the_jacobian(c):
    inverse, event = _inverse(c)
    expected = ft.jacobian_log_det(lambda copies: inverse(copies)[0], event)
    assert_close({"log_det": inverse(event[tf.newaxis])[1][0]}, {"log_det": expected}, c)


@relation(lambda c: c.constructor == "patch_flow", quick=[{"mixing": "permutation"}])
def each_latent_depends_on_several_elements(c):
    inverse, event = _inverse(c)
    jacobian = ft.jacobian(lambda copies: inverse(copies)[0], event)
    assert np.all(np.count_nonzero(jacobian, axis=1) > 1), jacobian


@relation(lambda c: c.constructor == "vector" and not c.network_dtype, eagerly=False)
def densities_integrate_to_one_and_samples_have_their_moments(c):
    c, axis = c._replace(data="near"), np.linspace(-40, 40, 801)
    distribution = _given_first(cf.new_distribution(c, (2,)), c)
    points = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2).astype(c.dtype)
    log_prob = tf.function(distribution.log_prob)(points).numpy().astype(np.float64)
    probabilities = np.exp(log_prob) * (axis[1] - axis[0]) ** 2
    assert np.sum(probabilities) == pytest.approx(1, abs=1e-3)
    samples = tf.function(lambda: distribution.sample(20_000, seed=(1, 2)))().numpy()
    for function in (np.array, np.abs, np.tanh, lambda x: np.tanh(x - x[:, ::-1])):
        values, expected = function(samples), np.dot(probabilities, function(points))
        atol = 5 * values.std(axis=0).max() / np.sqrt(len(values))
        np.testing.assert_allclose(values.mean(axis=0), expected, rtol=0, atol=atol)

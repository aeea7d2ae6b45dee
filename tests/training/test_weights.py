"""An event of weight two counts like two equal events, and one of weight zero like none."""

import flow_testing as ft
import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

pytestmark = pytest.mark.eager

_X = ft.normal([6, 2]).numpy()
_WEIGHTS = np.array([2, 1, 0, 1, 3, 0])
# Rows as often as their weights say.
_REPEATED = np.repeat(_X, _WEIGHTS, axis=0)
_LABELS = np.arange(6) % 3


def _vector_model(optimizer=None, **options):
    keras.utils.set_random_seed(0)
    flow = ft.vector_distribution(2, num_filters=4, weights_seed=1, **options)
    return ft.compiled(flow, optimizer or keras.optimizers.SGD(0.05), seed=0)


def _image_model(**options):
    keras.utils.set_random_seed(0)
    options = {"num_scales": 1, "num_couplings": 1, "num_blocks": 0, "num_filters": 4, **options}
    flow = ft.flow_distribution((4, 4, 1), **options)
    return ft.compiled(flow, keras.optimizers.SGD(0.01), dequantize=False)


def _trained(model, data, **options):
    """Returns the variables after two steps with the whole data, and the losses."""
    options = {"epochs": 2, "shuffle": False, "verbose": 0, **options}
    losses = model.fit(data, **options).history["loss"]
    return [v.numpy() for v in model.distribution.variables], losses


def _assert_same(actual, expected, atol=1e-6):
    ft.assert_close(actual[0], expected[0], rtol=1e-5, atol=atol)
    np.testing.assert_allclose(actual[1], expected[1], rtol=1e-5)


def _dataset(*parts):
    return tf.data.Dataset.from_tensor_slices(parts).batch(6)


def _weighted(x, weight):
    return x, None, weight


_DICT = {"image": _X, "sample_weight": _WEIGHTS}


# Data, and options of `fit`.
_FORMS = {
    "array": lambda: (_X, {"sample_weight": _WEIGHTS}),
    "column": lambda: (_X, {"sample_weight": _WEIGHTS[:, np.newaxis]}),
    "list": lambda: (_X, {"sample_weight": _WEIGHTS.tolist()}),
    "pandas": lambda: (pd.DataFrame(_X), {"sample_weight": pd.Series(_WEIGHTS)}),
    "tuple": lambda: ((_X, None, _WEIGHTS), {}),
    "dictionary": lambda: (_DICT, {}),
    "dataset": lambda: (_dataset(_X, _WEIGHTS).map(_weighted), {}),
    "dataset of dictionaries": lambda: (tf.data.Dataset.from_tensors(_DICT), {}),
    "generator": lambda: (((_DICT,) for _ in range(2)), {"steps_per_epoch": 1}),
}


@pytest.fixture(scope="module")
def repeated():
    repeated = _trained(_vector_model(), _REPEATED, batch_size=len(_REPEATED))
    unweighted = _trained(_vector_model(), _X)
    assert max(np.abs(a - b).max() for a, b in zip(unweighted[0], repeated[0], strict=True)) > 1e-4
    return repeated


_ALIKE = ("column", "list", "tuple", "dataset of dictionaries")


@pytest.mark.parametrize(
    "form", [*(form for form in _FORMS if form not in _ALIKE), *ft.full(*_ALIKE)]
)
def test_weights_in_each_form_of_data(form, repeated):
    data, options = _FORMS[form]()
    _assert_same(_trained(_vector_model(), data, **options), repeated)


@pytest.mark.graph
@pytest.mark.parametrize(
    ("normalization", "recompute"),
    [("batch", False), *ft.full(("batch", True), ("actnorm", False))],
)
def test_batch_statistics_are_weighted(normalization, recompute):
    # Those of the networks, too.
    images = ft.pixels([6, 4, 4, 1]).numpy()
    options = {"normalization": normalization, "recompute": recompute}
    if normalization == "batch":
        options["network_fn"] = None
    states = []
    for data, weights in ((images, _WEIGHTS), (np.repeat(images, _WEIGHTS, axis=0), None)):
        model = _image_model(**options)
        for variable in model.distribution.variables:
            if "is_set" in variable.name:
                variable.assign(0.0)
        states.append(_trained(model, data, sample_weight=weights, batch_size=8))
    _assert_same(*states, atol=2e-5)


@pytest.mark.parametrize("factor", [1e-4, 1 / 6, 50.0])
def test_a_factor_on_all_weights_changes_nothing(factor):
    images = ft.pixels([6, 4, 4, 1]).numpy()
    options = {"normalization": "batch", "network_fn": None}
    states = []
    for weights in (_WEIGHTS, factor * _WEIGHTS):
        model = _image_model(**options)
        states.append(_trained(model, images, sample_weight=weights))
        states[-1][1].append(model.evaluate(images, sample_weight=weights, verbose=0)[0])
    _assert_same(*states, atol=2e-5)
    # Weights of 1 are no weights.
    for weights in (np.full(6, factor), None):
        states.append(_trained(_image_model(**options), images, sample_weight=weights))
    _assert_same(*states[2:], atol=2e-5)


@pytest.mark.graph
def test_weights_of_several_shapes_in_one_model():
    model = _vector_model()
    forms = (_WEIGHTS, _WEIGHTS[:, np.newaxis], pd.Series(_WEIGHTS))
    results = [
        model.evaluate(_X[:n], sample_weight=w[:n], verbose=0) for n in (6, 5, 1) for w in forms
    ]
    np.testing.assert_allclose(results, np.repeat(results[::3], 3), rtol=1e-6)


def test_metrics_are_weighted_means():
    model = _vector_model()
    log_prob = model.predict(_X, verbose=0)
    expected = -np.average(log_prob, weights=_WEIGHTS)
    for batch_size in (2, 4, 6):
        options = {"batch_size": batch_size, "verbose": 0}
        loss = model.evaluate(_X, sample_weight=_WEIGHTS, **options)
        assert loss == pytest.approx(expected, rel=1e-5)
    dataset = _dataset(_X, _WEIGHTS).map(_weighted).unbatch().batch(4)
    assert model.evaluate(dataset, verbose=0) == pytest.approx(expected, rel=1e-5)
    # Images, with noise.
    images = ft.grey_levels(6, (4, 4, 1))
    model = ft.compiled(ft.flow_distribution((4, 4, 1), num_scales=1, num_couplings=1))
    expected = model.evaluate(np.repeat(images, _WEIGHTS, axis=0), batch_size=3, verbose=0)
    actual = model.evaluate(images, sample_weight=_WEIGHTS, batch_size=4, verbose=0)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_validation_is_weighted():
    def validation_loss(**options):
        history = _vector_model().fit(_X, epochs=1, shuffle=False, verbose=0, **options).history
        return history["val_loss"][0]

    expected = validation_loss(validation_data=_REPEATED)
    assert validation_loss(validation_data=(_X, None, _WEIGHTS)) == pytest.approx(expected)
    assert validation_loss(validation_data=_X) != pytest.approx(expected, rel=1e-3)
    # A split takes weights with it: of the last three rows the last one has weight zero.
    x, weights = np.concatenate([_X, _X]), np.concatenate([np.ones(6), _WEIGHTS])
    keras.utils.set_random_seed(0)
    history = _vector_model().fit(
        x, sample_weight=weights, validation_split=0.5, shuffle=False, epochs=1, verbose=0
    )
    assert history.history["val_loss"][0] == pytest.approx(expected)


def test_class_weights():
    class_weight = {0: 2.0, 1: 0.0, 2: 1.0}
    weights = np.array([class_weight[label] for label in _LABELS])
    options = {"num_classes": 3}
    expected = _trained(_vector_model(**options), _X, y=_LABELS, sample_weight=weights)
    actual = _trained(_vector_model(**options), _X, y=_LABELS, class_weight=class_weight)
    _assert_same(actual, expected)
    dataset = _trained(_vector_model(**options), _dataset(_X, _LABELS), class_weight=class_weight)
    _assert_same(dataset, expected)
    model = _vector_model(**options)
    losses = []
    for _ in range(2):
        model.reset_metrics()  # earlier releases of Keras do not
        losses.append(model.train_on_batch(_X, _LABELS, class_weight=class_weight))
    variables = [v.numpy() for v in model.distribution.variables]
    _assert_same((variables, np.ravel(losses)), expected)
    with pytest.raises(ValueError, match="class_weight only for a distribution that takes labels"):
        _vector_model().fit(_X, class_weight=class_weight, verbose=0)


def test_single_batches():
    model = _vector_model()
    expected = -np.average(model.predict(_X, verbose=0), weights=_WEIGHTS)
    assert np.ravel(model.test_on_batch(_X, sample_weight=_WEIGHTS)) == pytest.approx(expected)
    logs = model.train_on_batch(_X, sample_weight=_WEIGHTS, return_dict=True)
    repeated = _vector_model().train_on_batch(_REPEATED, return_dict=True)
    assert logs["loss"] == pytest.approx(repeated["loss"])
    unweighted = _vector_model().train_on_batch(_X, return_dict=True)
    assert unweighted["loss"] != pytest.approx(logs["loss"], rel=1e-3)


def test_a_batch_of_weight_zero_makes_no_step():
    model, expected = (_vector_model(keras.optimizers.Adam(0.1)) for _ in range(2))
    weights, options = np.array([1, 1, 0, 0, 1, 1]), {"batch_size": 2, "epochs": 1}
    actual = _trained(model, _X, sample_weight=weights, **options)
    _assert_same(actual, _trained(expected, _X[weights > 0], **options))
    assert int(model.optimizer.iterations) == 2


@pytest.mark.parametrize("method", ["fit", "evaluate"])
@pytest.mark.parametrize(
    "weights",
    [-_WEIGHTS, _WEIGHTS * np.nan, np.zeros(6), _WEIGHTS[:5], ["a"] * 6, np.ones([6, 2])],
    ids=["negative", "nan", "zero", "number", "strings", "shape"],
)
def test_bad_weights(method, weights):
    match = "finite sample weights of at least 0.*, got"
    with pytest.raises(ValueError, match=match):
        getattr(_vector_model(), method)(_X, sample_weight=np.array(weights), verbose=0)


@pytest.mark.parametrize("method", ["fit", "evaluate"])
@pytest.mark.parametrize("weights", [-_WEIGHTS, np.ones([6, 2])], ids=["negative", "shape"])
def test_bad_weights_in_a_dataset(weights, method):
    dataset = _dataset(_X, weights).map(_weighted)
    with pytest.raises(ValueError, match="expected finite sample weights of at least 0"):
        getattr(_vector_model(), method)(dataset, verbose=0)

"""Equal data in any form give equal answers, or an error of this package."""

import functools
import inspect
import threading
import warnings

import flow_testing as ft
import keras
import numpy as np
import pytest
import tensorflow as tf

import tfp_realnvp as tfr
from tfp_realnvp import evaluation, latents

NUM_CLASSES = 3
IMAGES = ft.grey_levels(4)
VECTORS = ft.normal([4, 2]).numpy()
LABELS = np.array([0, 2, 1, 2])
WEIGHTS = np.array([1.0, 2.0, 0.0, 3.0])

_NETWORK = {"num_scales": 1, "num_couplings": 2, "num_blocks": 0, "num_filters": 4}


def _model(is_image, **options):
    make = ft.flow_distribution if is_image else ft.vector_distribution
    network = _NETWORK if is_image else {"num_filters": 4}
    flow = make((4, 4, 1) if is_image else 2, **network, **options)
    ft.randomize(flow.bijector)
    model = ft.compiled(flow, keras.optimizers.SGD(0.0))
    labels = (LABELS,) if options else ()
    model.fit(IMAGES if is_image else VECTORS, *labels, verbose=0)  # initializes normalizations
    return model


@pytest.fixture(scope="module")
def models():
    options = {"num_classes": NUM_CLASSES, "condition_dropout": 0.1}
    return {
        (is_image, takes_labels): _model(is_image, **(options if takes_labels else {}))
        for is_image in (True, False)
        for takes_labels in (True, False)
    }


def _loss_of_fit(model, events):
    """Returns the loss of one step, whose changes of statistics are undone."""
    before = ft.values(model.variables)
    model.compile(keras.optimizers.SGD(0.0), first_step=0)
    try:
        return model.fit(events, shuffle=False, verbose=0).history["loss"]
    finally:
        ft.assign(model.variables, before)


def _completed(model, events):
    is_known = None
    if hasattr(events, "shape"):
        is_known = np.ones(events.shape, bool)
        is_known[:, :1] = False
    return latents.complete(model, events, is_known, num_samples=4, num_burnin_steps=1).samples


# Functions of a model and events, for a distribution without a condition.
FUNCTIONS = {
    "call": lambda model, x: model(x),
    "evaluate": lambda model, x: model.evaluate(x, verbose=0, return_dict=True)["loss"],
    "test_on_batch": lambda model, x: model.test_on_batch(x, return_dict=True)["loss"],
    "predict": lambda model, x: model.predict(x, verbose=0),
    "predict_on_batch": lambda model, x: model.predict_on_batch(x),
    "fit": lambda model, x: _loss_of_fit(model, x),
    "log_prob": tfr.log_prob,
    "log_likelihood": lambda model, x: evaluation.log_likelihood(model, x).mean,
    "encode": latents.encode,
    "reconstruct": lambda model, x: latents.reconstruct(model, x).images,
    "complete": _completed,
}
FUNCTIONS_OF_IMAGES = {
    "log_prob_map": tfr.log_prob_map,
    "bits_per_dim": lambda model, x: evaluation.bits_per_dim(model, x).mean,
    "latent_statistics": lambda model, x: latents.latent_statistics(model, x)[0].std,
}
CLASSIFIERS = {"class_log_joint": tfr.class_log_joint, "class_log_probs": tfr.class_log_probs}

# Forms of the same events, and whether only images have them.
SAME = {
    "int64": lambda x: x.astype(np.int64),
    "float32": lambda x: x.astype(np.float32),
    "float64": lambda x: x.astype(np.float64),
    "tensor": tf.constant,
    "tensor of floats": lambda x: tf.constant(x, tf.float32),
    "not masked": lambda x: np.ma.array(x, mask=False),
    "dictionary": lambda x: {"image" if x.ndim == 4 else "x": x},
    "tuple": lambda x: (x,),
    "dataset": lambda x: tf.data.Dataset.from_tensor_slices(x).batch(4),
    "dataset of floats": lambda x: tf.data.Dataset.from_tensor_slices(x * 1.0).batch(4),
}
# Other events, which are wrong.
WRONG = {
    "masked": lambda x: np.ma.array(x, mask=np.arange(x.size).reshape(x.shape) == x.size - 1),
    "NaN": lambda x: np.where(np.arange(x.size).reshape(x.shape) == x.size - 1, np.nan, x),
    "objects": lambda x: x.astype(str).astype(object),
    "dataset of NaN": lambda x: tf.data.Dataset.from_tensors(x * np.nan),
    "sparse dataset": lambda x: tf.data.Dataset.from_tensors(tf.sparse.from_dense(x)),
}
WRONG_IMAGES = {
    "divided by 255": lambda x: x / np.float32(255),
    "16 bits": lambda x: x.astype(np.uint16) + 1000,
    "below zero": lambda x: x.astype(int) - 300,
}


def _answer(function, *arguments):
    """Returns the result of a function, or the error of this package that it raises."""
    try:
        return np.asarray(function(*arguments), np.float64)
    except (ValueError, TypeError, tfr.NonFiniteLossError) as error:
        assert not isinstance(error, tf.errors.OpError)
        assert "expected" in str(error) or "not finite" in str(error), error
        return error


def _cases(forms, forms_of_images=()):
    return [
        pytest.param(
            name, form, is_image, id=f"{name}-{form}-{'images' if is_image else 'vectors'}"
        )
        for is_image in (True, False)
        for name in (*FUNCTIONS, *(FUNCTIONS_OF_IMAGES if is_image else ()))
        for form in (*forms, *(forms_of_images if is_image else ()))
        # TFP and Keras convert the data of `call`.
        if name != "call" or not ("dataset" in form or form in ("masked", "objects"))
    ]


@pytest.fixture(scope="module")
def expected(models):
    """The answer of each function for events of the plain form, an array of uint8 or float32."""
    both = FUNCTIONS | FUNCTIONS_OF_IMAGES
    return {
        (name, is_image): _answer(both[name], models[is_image, False], x)
        for is_image, x in ((True, IMAGES), (False, VECTORS))
        for name in (*FUNCTIONS, *(FUNCTIONS_OF_IMAGES if is_image else ()))
    }


@pytest.mark.parametrize(("name", "form", "is_image"), _cases(SAME))
def test_equal_events_in_another_form(name, form, is_image, models, expected):
    function, events = (FUNCTIONS | FUNCTIONS_OF_IMAGES)[name], IMAGES if is_image else VECTORS
    if form == "int64" and not is_image:
        pytest.skip("vectors are no whole numbers")
    answer = _answer(function, models[is_image, False], SAME[form](events))
    if not isinstance(answer, Exception):
        answer = np.squeeze(answer) if form == "tuple" else answer  # one more leading axis
        actual = answer.reshape(np.shape(expected[name, is_image]))
        np.testing.assert_allclose(actual, expected[name, is_image], rtol=1e-5, atol=1e-5)


def test_which_functions_take_gray_levels(models, expected):
    refused = [name for (name, _), answer in expected.items() if isinstance(answer, Exception)]
    assert refused == ["call"]


@pytest.mark.parametrize(("name", "form", "is_image"), _cases(WRONG, WRONG_IMAGES))
def test_wrong_events(name, form, is_image, models):
    function, events = (FUNCTIONS | FUNCTIONS_OF_IMAGES)[name], IMAGES if is_image else VECTORS
    if name == "complete" and form == "masked":
        pytest.skip("masked values are unknown")
    events = (WRONG | WRONG_IMAGES)[form](events)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*finite log densities", RuntimeWarning)
        answer = _answer(function, models[is_image, False], events)
    assert isinstance(answer, Exception) or np.isnan(answer).any(), answer


def test_masked_values_are_unknown(models):
    events = np.ma.array(IMAGES, mask=False)
    events[0, 0, 0, 0] = np.ma.masked
    events.data[0, 0, 0, 0] = 99
    options = {"num_samples": 8, "num_burnin_steps": 2}
    samples = latents.complete(models[True, False], events, **options).samples
    assert len(np.unique(samples[:, 0, 0, 0, 0])) > 1
    np.testing.assert_array_equal(samples[:, 1:], np.broadcast_to(IMAGES[1:], samples[:, 1:].shape))


def test_dark_continuous_images(models):
    """Noise alone, below 1, is no image in [0, 1]."""
    noise = np.random.default_rng(0).uniform(size=IMAGES.shape).astype(np.float32)
    model = models[True, False]
    encoded = latents.encode(model, noise)
    np.testing.assert_allclose(encoded, model.distribution.bijector.inverse(noise), rtol=1e-4)
    assert np.isfinite(_completed(model, noise)).all()
    assert np.isfinite(model(noise)).all()


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers(name, models):
    function, model = CLASSIFIERS[name], models[True, True]
    expected = _answer(function, model, IMAGES)
    assert expected.shape == (4, NUM_CLASSES)
    for form in ("int64", "float32", "float64", "tensor", "tensor of floats"):
        np.testing.assert_allclose(function(model, SAME[form](IMAGES)), expected, rtol=1e-5)
    for form, wrong in WRONG_IMAGES.items():
        assert isinstance(_answer(function, model, wrong(IMAGES)), Exception), form
    assert np.isnan(_answer(function, model, WRONG["NaN"](IMAGES))).any()
    continuous = tfr.dequantize(IMAGES, (0, 1))
    by_hand = [model((continuous, np.full(4, k))) for k in range(NUM_CLASSES)]
    log_joint = tfr.class_log_joint(model, continuous) + np.log(NUM_CLASSES)
    np.testing.assert_allclose(log_joint, np.transpose(by_hand), rtol=1e-5)


@pytest.mark.parametrize(("name", "is_image"), [
    (name, is_image)
    for is_image in (True, False)
    for name in (*FUNCTIONS, *(FUNCTIONS_OF_IMAGES if is_image else ()), "sample")
])  # fmt: skip
def test_conditions_of_the_context(name, is_image, models):
    """A condition of `call_options` counts as if it were an argument, or is refused."""
    functions = {"sample": lambda model, x: model.sample(4, seed=0)}
    function = (functions | FUNCTIONS | FUNCTIONS_OF_IMAGES)[name]
    model, events = models[is_image, True], IMAGES if is_image else VECTORS
    if name == "call":
        events = tfr.dequantize(IMAGES, (0, 1)) if is_image else tf.constant(VECTORS)
    with tfr.call_options(conditional_input=LABELS):
        answer = _answer(function, model, events)
    if name != "call":
        assert "call_options" in str(answer)
        return
    np.testing.assert_allclose(answer, model((events, LABELS)), rtol=1e-5)
    assert np.abs(answer - model((events, LABELS[::-1].copy()))).max() > 1e-4


@pytest.mark.parametrize("is_keras", [True, False])
def test_bad_labels_of_another_thread(is_keras, models):
    """Each of two threads gets its own answer: the log densities, or the error of its labels."""
    model = models[False, True]
    data = [(VECTORS, LABELS), (VECTORS, LABELS + NUM_CLASSES)]
    datasets = [tf.data.Dataset.from_tensor_slices(d).batch(2).repeat(20) for d in data]
    call = model.predict if is_keras else functools.partial(tfr.log_prob, model)
    call(datasets[0], verbose=0)  # traces the graph
    start, outcomes = threading.Barrier(2), ([], [])

    def work(number):
        start.wait()
        for _ in range(5):
            try:
                outcomes[number].append(np.asarray(call(datasets[number], verbose=0)))
            except ValueError as error:
                outcomes[number].append(str(error))

    threads = [threading.Thread(target=work, args=[number]) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [isinstance(outcome, np.ndarray) for outcome in outcomes[0]] == [True] * 5
    assert all("integer labels in [0, 3) or -1" in outcome for outcome in outcomes[1])


def _generator(*parts):
    yield parts


def _unknown_dataset(x, weights):
    parts = {"x": x, "sample_weight": weights}
    weights_spec = tf.TensorSpec([None] * weights.ndim)
    signature = {"x": tf.TensorSpec([None, 2]), "sample_weight": weights_spec}
    return tf.data.Dataset.from_generator(lambda: iter([parts]), output_signature=signature)


_UNKNOWN = {
    "dataset": _unknown_dataset,
    "generator": lambda x, w: _generator({"x": x, "sample_weight": w}),
}


@pytest.mark.graph
@pytest.mark.parametrize("form", _UNKNOWN)
@pytest.mark.parametrize("method", ["fit", "evaluate"])
@pytest.mark.parametrize("shape", [[1], [2, 2], [3], [5], [4, 2]], ids=str)
def test_weights_of_a_wrong_shape_beside_events_of_unknown_number(form, method, shape, models):
    data = _UNKNOWN[form](VECTORS, np.ones(shape, np.float32))
    with pytest.raises(ValueError, match=r"sample weights of at least 0, one for each of .* event"):
        getattr(models[False, False], method)(data, verbose=0)


@pytest.mark.graph
@pytest.mark.parametrize("shape", [[4], [4, 1]], ids=str)
def test_weights_beside_events_of_unknown_number(shape, models):
    model = models[False, False]
    expected = model.evaluate(VECTORS, sample_weight=WEIGHTS, verbose=0)
    data = _UNKNOWN["dataset"](VECTORS, WEIGHTS.reshape(shape).astype(np.float32))
    assert model.evaluate(data, verbose=0) == pytest.approx(expected, rel=1e-5)


@pytest.mark.graph
@pytest.mark.parametrize("number", [1, 3, 5])
def test_another_number_of_conditions(number, models):
    vectors = tf.data.Dataset.from_tensors(VECTORS)
    data = tf.data.Dataset.zip(vectors, tf.data.Dataset.from_tensors(np.zeros(number, np.int32)))
    data = data.map(lambda x, y: (tf.ensure_shape(x, [4, 2]), y))
    signature = tf.TensorSpec([None, 2]), tf.TensorSpec([None], tf.int32)
    unknown = tf.data.Dataset.from_generator(lambda: iter(data), output_signature=signature)
    for method in ("fit", "evaluate", "predict"):
        with pytest.raises(ValueError, match=r"one condition for each of .* events"):
            getattr(models[False, True], method)(unknown, verbose=0)


@pytest.mark.parametrize("method", ["train_on_batch", "test_on_batch"])
def test_weights_behind_none(method, models):
    """The third element of a tuple is weights, whatever the second one is."""
    call = getattr(models[False, True], method)
    weights = WEIGHTS.astype(int)
    expected = call(VECTORS, None, weights, return_dict=True)["loss"]
    models[False, True].reset_metrics()
    assert call((VECTORS, None, weights), return_dict=True)["loss"] == pytest.approx(expected)


def test_predictions_ignore_weights(models):
    model = models[False, True]
    expected = model.predict(VECTORS, verbose=0)
    dictionary = {"x": VECTORS, "sample_weight": -WEIGHTS}
    for data in ((VECTORS, None, -WEIGHTS), dictionary, tf.data.Dataset.from_tensors(dictionary)):
        np.testing.assert_array_equal(model.predict(data, verbose=0), expected)
    np.testing.assert_array_equal(model.predict_on_batch((VECTORS, None, -WEIGHTS)), expected)
    np.testing.assert_allclose(tfr.log_prob(model, dictionary), expected, rtol=1e-6)


def _public_attributes(model):
    """Returns the names of the model's own attributes, without methods."""
    keras_names = {*dir(keras.Model), *vars(keras.Model()), "history", "optimizer"}
    keras_names |= {f"stop_{kind}" for kind in ("training", "evaluating", "predicting")}
    names = {name for name in dir(model) if not name.startswith("_")} - keras_names
    return sorted(name for name in names if not inspect.ismethod(getattr(model, name)))


_OTHER_VALUES = {
    "seed": 7,
    "dequantize": False,
    "dequantizer": tfr.VariationalDequantization((4, 4, 1)),
    "distribution": ft.flow_distribution((4, 4, 1), **_NETWORK),
    "data_spec": None,
    "compile_options": None,
    "networks": [],
    "step_rates": None,
    "has_own_train_step": True,
}
# Parts that Keras tracks, and what `fit` tells its callbacks.
_PARTS = {"layers_of_bijectors", "other_variables", "validation_freq"}


def test_attributes_that_are_set_after_their_use(tmp_path):
    """An attribute has one value, which all functions use, or it cannot be set."""
    model = _model(is_image=True)

    def answers():
        path = tmp_path / "model.keras"
        model.save(path)
        saved = keras.models.load_model(path)
        functions = [tfr.log_prob(model, IMAGES), tfr.log_prob(saved, IMAGES)]
        predictions = [m.predict(IMAGES, verbose=0) for m in (model, saved)]
        return np.stack([*functions, *predictions])

    expected = answers()
    np.testing.assert_allclose(expected, np.broadcast_to(expected[0], expected.shape), rtol=1e-5)
    assert {*_public_attributes(model)} <= {*_OTHER_VALUES, *_PARTS}
    for name, value in _OTHER_VALUES.items():
        with pytest.raises(AttributeError):
            setattr(model, name, value)
    for name in ("seed", "dequantize", "noise"):
        with pytest.raises(AttributeError, match=f"no assignment to '{name}'"):
            setattr(model.data_spec, name, 7)
    np.testing.assert_array_equal(answers(), expected)

"""Arrays and datasets become the batches that Keras makes of them, and `fit` returns at once."""

import time

import flow_testing as ft
import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_realnvp as tfr
from tfp_realnvp.training.input_data import as_dataset

tfd = tfp.distributions

_SHAPE = (4, 4, 1)
_NUMBER = 10
_IMAGES = ft.grey_levels(_NUMBER, _SHAPE)
_LABELS = np.arange(_NUMBER)


def _model(**kwargs):
    """Returns a model whose losses differ between batches, and in which nothing is random."""
    keras.utils.set_random_seed(0)
    network = keras.layers.Conv2D(2, 3, padding="same")
    network.build((None, None, None, 1))
    coupling = tfr.AffineCoupling(tfr.CheckerboardMask(0), network)
    flow = ft.randomize(tfr.FlowChain([tfr.PixelLogit(), coupling]))
    distribution = tfd.TransformedDistribution(ft.standard_normal(_SHAPE), flow)
    model = tfr.FlowModel(distribution, dequantize=False)
    model.compile(keras.optimizers.SGD(1e-3), **kwargs)
    return model


class _Batches(keras.callbacks.Callback):
    """Counts batches of training, by epoch, and of evaluation."""

    def __init__(self):
        super().__init__()
        self.training, self.testing = [], 0

    def on_epoch_begin(self, epoch, logs=None):
        self.training.append(0)

    def on_train_batch_end(self, batch, logs=None):
        self.training[-1] += 1

    def on_test_batch_end(self, batch, logs=None):
        self.testing += 1


# `as_dataset`.

_FORMS = {
    "array": lambda: _IMAGES,
    "tensor": lambda: tf.constant(_IMAGES),
    "tuple": lambda: (_IMAGES, _LABELS),
    "dict": lambda: {"image": _IMAGES, "label": _LABELS},
    "nested": lambda: ({"image": _IMAGES}, (_LABELS, _LABELS)),
}


@pytest.mark.parametrize("form", _FORMS)
@pytest.mark.parametrize("batch_size", [None, 4, 10, 50])
def test_batches_of_arrays(form, batch_size):
    data = _FORMS[form]()
    batches = list(as_dataset(data, batch_size))
    expected = list(tf.data.Dataset.from_tensor_slices(data).batch(batch_size or 32))
    assert len(batches) == len(expected)
    for batch, other in zip(batches, expected, strict=True):
        tf.nest.assert_same_structure(batch, other)
        for one, two in zip(tf.nest.flatten(batch), tf.nest.flatten(other), strict=True):
            assert one.dtype == two.dtype
            np.testing.assert_array_equal(one, two)


def _epoch(dataset):
    return np.concatenate([np.ravel(labels) for _, labels in dataset])


def test_shuffled_arrays():
    dataset = as_dataset((_IMAGES, _LABELS), 4, shuffle=True)
    epochs = [_epoch(dataset) for _ in range(4)]
    for epoch in epochs:
        # Each image once.
        np.testing.assert_array_equal(np.sort(epoch), _LABELS)
    # In an order of its own in each epoch.
    assert len({tuple(epoch) for epoch in [_LABELS, *epochs]}) == 5
    for images, labels in dataset:
        np.testing.assert_array_equal(images, _IMAGES[labels.numpy()])


def test_arrays_in_their_order():
    dataset = as_dataset((_IMAGES, _LABELS), 4)
    for _ in range(2):
        np.testing.assert_array_equal(_epoch(dataset), _LABELS)


def test_arrays_of_unequal_length():
    with pytest.raises(ValueError, match=r"expected arrays of equal length, got lengths \[9, 10\]"):
        as_dataset((_IMAGES, _LABELS[:9]))


def test_a_dataset_keeps_its_elements_and_options():
    options = tf.data.Options()
    options.deterministic = True
    options.threading.private_threadpool_size = 3
    dataset = tf.data.Dataset.from_tensor_slices(_IMAGES).batch(4).with_options(options)
    result = as_dataset(dataset)
    for batch, expected in zip(result, dataset, strict=True):
        np.testing.assert_array_equal(batch, expected)
    assert result.options().deterministic is True
    assert result.options().threading.private_threadpool_size == 3
    assert result.cardinality() == 3


def test_other_data_is_left_to_keras():
    class Sequence(keras.utils.PyDataset):
        def __len__(self):
            return 2

        def __getitem__(self, index):
            return (_IMAGES[4 * index : 4 * index + 4],)

    data = Sequence()
    assert as_dataset(data) is data
    expected = _model().predict(_IMAGES[:8], verbose=0)
    np.testing.assert_allclose(_model().predict(data, verbose=0), expected, rtol=1e-5)


# `fit`, `evaluate` and `predict`, compared with those of `keras.Model`.


def _weights(model):
    return [variable.numpy() for variable in model.distribution.trainable_variables]


def _assert_trained_alike(model, history, expected, expected_history):
    assert sorted(history.history) == sorted(expected_history.history)
    for name, values in history.history.items():
        np.testing.assert_allclose(values, expected_history.history[name], rtol=1e-6)
    for one, other in zip(_weights(model), _weights(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def _batched(data, batch_size=4):
    return tf.data.Dataset.from_tensor_slices(data).batch(batch_size)


_FIT_FORMS = {**_FORMS, "labels_as_y": lambda: (_IMAGES, _LABELS)}


@pytest.mark.parametrize("form", ["array", "tuple", "dict", "labels_as_y"])
def test_fit_equals_that_of_keras_with_a_dataset(form):
    data = _FIT_FORMS[form]()
    model, expected = _model(), _model()
    args = data if form == "labels_as_y" else [data]
    history = model.fit(*args, batch_size=4, epochs=2, shuffle=False, verbose=0)
    expected_history = keras.Model.fit(expected, _batched(data), epochs=2, verbose=0)
    _assert_trained_alike(model, history, expected, expected_history)
    results = model.evaluate(*args, batch_size=4, verbose=0)
    np.testing.assert_allclose(
        results, keras.Model.evaluate(expected, _batched(data), verbose=0), rtol=1e-6
    )
    if form != "labels_as_y":
        np.testing.assert_allclose(
            model.predict(data, batch_size=4, verbose=0),
            keras.Model.predict(expected, _batched(data), verbose=0),
            rtol=1e-6,
        )


def test_the_default_batch_size_is_that_of_keras():
    batches = _Batches()
    images = ft.grey_levels(70, _SHAPE)
    _model().fit(images, verbose=0, callbacks=[batches])
    assert batches.training == [3]


@pytest.mark.parametrize("form", ["array", "tuple", "dict"])
def test_validation_split_takes_the_last_images(form):
    data = _FORMS[form]()
    model, expected = _model(), _model()
    history = model.fit(
        data, batch_size=4, epochs=2, shuffle=False, validation_split=0.25, verbose=0
    )
    first, last = (
        tf.nest.map_structure(lambda array, part=part: array[part], data)
        for part in (slice(7), slice(7, None))
    )
    expected_history = keras.Model.fit(
        expected, _batched(first), epochs=2, validation_data=_batched(last), verbose=0
    )
    _assert_trained_alike(model, history, expected, expected_history)


@pytest.mark.parametrize("fraction", [1.0, 1.5, -0.2])
def test_a_validation_split_out_of_range(fraction):
    with pytest.raises(ValueError, match=r"expected a validation_split in \(0, 1\), got"):
        _model().fit(_IMAGES, validation_split=fraction, verbose=0)


_VALIDATION = ft.grey_levels(6, _SHAPE, seed=1)
_VALIDATION_FORMS = {
    "array": lambda: _VALIDATION,
    "tuple": lambda: (_VALIDATION, np.arange(6)),
    "tuple_with_none": lambda: (_VALIDATION, None),
    "dict": lambda: {"image": _VALIDATION},
    "dataset": lambda: _batched(_VALIDATION),
    "dataset_of_tuples": lambda: _batched((_VALIDATION, np.arange(6))),
}


@pytest.mark.parametrize("form", _VALIDATION_FORMS)
def test_validation_data(form):
    model, expected, batches = _model(), _model(), _Batches()
    history = model.fit(
        _IMAGES,
        batch_size=4,
        epochs=2,
        shuffle=False,
        validation_data=_VALIDATION_FORMS[form](),
        verbose=0,
        callbacks=[batches],
    )
    expected_history = keras.Model.fit(
        expected, _batched(_IMAGES), epochs=2, validation_data=_batched(_VALIDATION), verbose=0
    )
    _assert_trained_alike(model, history, expected, expected_history)
    assert batches.testing == 4


def test_the_batch_size_of_validation():
    batches = _Batches()
    _model().fit(
        _IMAGES,
        batch_size=4,
        validation_data=_VALIDATION,
        validation_batch_size=1,
        validation_freq=2,
        epochs=2,
        verbose=0,
        callbacks=[batches],
    )
    assert batches.testing == 6


@pytest.mark.parametrize("as_array", [True, False])
def test_steps_per_epoch(as_array):
    batches = _Batches()
    data = {"x": _IMAGES, "batch_size": 2} if as_array else {"x": _batched(_IMAGES, 2).repeat()}
    history = (
        _model().fit(**data, steps_per_epoch=2, epochs=2, verbose=0, callbacks=[batches]).history
    )
    assert batches.training == [2, 2] and len(history["loss"]) == 2


class _Order(keras.callbacks.Callback):
    """Keeps the sum of all images that the model has seen since the start of each epoch."""

    def __init__(self):
        super().__init__()
        self.losses = []

    def on_epoch_begin(self, epoch, logs=None):
        self.losses.append([])

    def on_train_batch_end(self, batch, logs=None):
        self.losses[-1].append(logs["loss"])


def _running_losses(**kwargs):
    model, order = _model(), _Order()
    model.compile(keras.optimizers.SGD(0.0))
    model.fit(_IMAGES, batch_size=1, epochs=2, verbose=0, callbacks=[order], **kwargs)
    # Of the means of the losses so far, the losses.
    return [np.diff(np.arange(_NUMBER + 1) * [0, *losses]) for losses in order.losses]


def test_fit_shuffles():
    expected = -_model().predict(_IMAGES, verbose=0)
    first, second = _running_losses()
    for epoch in (first, second):
        np.testing.assert_allclose(np.sort(epoch), np.sort(expected), rtol=1e-4)
    assert np.abs(first - expected).max() > 1e-2 and np.abs(first - second).max() > 1e-2


def test_fit_without_shuffle_keeps_the_order():
    expected = -_model().predict(_IMAGES, verbose=0)
    for epoch in _running_losses(shuffle=False):
        np.testing.assert_allclose(epoch, expected, rtol=1e-4)


@pytest.mark.parametrize("method", ["fit", "evaluate"])
def test_weights_of_images_are_refused(method):
    with pytest.raises(ValueError, match="expected no sample_weight, each image counts once"):
        getattr(_model(), method)(_IMAGES, sample_weight=np.ones(_NUMBER), verbose=0)


def test_weights_of_classes_are_refused():
    with pytest.raises(ValueError, match="expected no class_weight, each image counts once"):
        _model().fit(_IMAGES, class_weight={0: 1.0}, verbose=0)


def test_weights_of_images_in_validation_data_are_refused():
    with pytest.raises(ValueError, match="expected no sample_weight, each image counts once"):
        _model().fit(
            _IMAGES, validation_data=(_IMAGES, _LABELS, np.ones(_NUMBER)), epochs=1, verbose=0
        )


@pytest.mark.parametrize("method", ["fit", "evaluate"])
def test_images_and_labels_of_unequal_length(method):
    with pytest.raises(ValueError, match=r"arrays of equal length, got lengths \[9, 10\]"):
        getattr(_model(), method)(_IMAGES, _LABELS[:9], verbose=0)


# Nothing waits for a thread of `tf.data`.


class _Slow(keras.callbacks.Callback):
    """Makes batches slow, and notes when the last one ended."""

    def _sleep(self, batch, logs=None):
        time.sleep(0.4)
        self.end = time.monotonic()

    on_train_batch_end = on_test_batch_end = on_predict_batch_end = _sleep


def _user_dataset(enabled=None):
    dataset = tf.data.Dataset.from_tensor_slices(_IMAGES[:6]).map(lambda x: x).batch(1).prefetch(2)
    options = tf.data.Options()
    if enabled is not None:
        options.autotune.enabled = enabled
    return dataset.with_options(options)


_SLOW_DATA = {
    "array": lambda: {"x": _IMAGES[:6], "batch_size": 1},
    "dataset": lambda: {"x": _user_dataset()},
}
each_method = pytest.mark.parametrize("method", ["fit", "evaluate", "predict"])
each_slow_data = pytest.mark.parametrize("data", _SLOW_DATA)


@each_slow_data
@each_method
def test_slow_batches_are_not_waited_for(method, data):
    slow, model = _Slow(), _model()
    getattr(model, method)(**_SLOW_DATA[data](), verbose=0, callbacks=[slow])
    assert time.monotonic() - slow.end < 1


def test_iterators_over_slow_batches_end_at_once():
    # The destructor of an iterator with autotuning waits only now and then, for up to seconds.
    for dataset in (as_dataset(_IMAGES[:6], 1, shuffle=True), as_dataset(_user_dataset())):
        iterators = [iter(dataset) for _ in range(40)]
        for _ in range(5):
            for iterator in iterators:
                next(iterator)
            time.sleep(0.35)
        del iterator
        while iterators:
            start = time.monotonic()
            iterators.pop()
            assert time.monotonic() - start < 0.3


@each_slow_data
@each_method
def test_keras_gets_datasets_without_autotuning(method, data, monkeypatch):
    given = {}

    def record(self, x=None, validation_data=None, **kwargs):
        given.update(x=x, validation_data=validation_data)
        raise StopIteration

    monkeypatch.setattr(keras.Model, method, record)
    options = {"validation_data": _SLOW_DATA[data]()["x"]} if method == "fit" else {}
    with pytest.raises(StopIteration):
        getattr(_model(), method)(**_SLOW_DATA[data](), **options)
    for name in ("x", "validation_data") if method == "fit" else ("x",):
        assert given[name].options().autotune.enabled is False, name


@pytest.mark.parametrize("enabled", [True, False])
def test_options_of_a_user_are_respected(enabled):
    assert as_dataset(_user_dataset(enabled)).options().autotune.enabled is enabled

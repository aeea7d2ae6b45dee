"""`fit`, `evaluate` and `predict` see the batches of a plain Keras model, and return at once.

Each row of the table is a call. A `FlowModel` and a plain `keras.Model` make it, and both record
their batches: of what kind, how many, of what shape and dtype, and which rows of the data are in
them.
"""

import functools
import importlib.util
import re
import types
from typing import NamedTuple

import flow_testing as ft
import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from tensorflow_probability import distributions as tfd

import tfp_realnvp as tfr
from tfp_realnvp.training.input_data import arguments_for_keras

pytestmark = pytest.mark.eager

_NUMBER = 10
_LABELS = np.arange(_NUMBER) % 4
_WEIGHTS = np.arange(_NUMBER) / 4


def _rows(number=_NUMBER, first=0):
    """Returns vectors whose first element is their number."""
    index = np.arange(first, first + number, dtype=np.float32)
    return np.stack([index, np.cos(index)], axis=-1)


_X = _rows()
_VALIDATION = _rows(6, first=100)
_VALIDATION_LABELS = np.arange(6) % 4


# Models that record their batches.


def _description(data):
    """Returns the kind of a batch, the shapes and dtypes of its parts, and its rows."""
    leaves = [np.asarray(leaf) for leaf in tf.nest.flatten(data) if leaf is not None]
    signature = tuple((leaf.shape, leaf.dtype.name) for leaf in leaves)
    rows = tuple(int(row) for row in next(leaf for leaf in leaves if leaf.ndim == 2)[:, 0])
    return type(data).__name__, signature, rows


class _Recording:
    """Records the batches of the steps of a model."""

    def start(self):
        if not self.compiled:
            self.compile(keras.optimizers.SGD(0.0), run_eagerly=True)
            self.built = True
        self.records = []

    def train_step(self, data):
        self.records.append(("train", *_description(data)))
        return super().train_step(data)

    def test_step(self, data):
        self.records.append(("test", *_description(data)))
        return super().test_step(data)

    def predict_step(self, data):
        self.records.append(("predict", *_description(data)))
        return super().predict_step(data)


class _NoSteps(keras.Model):
    """A Keras model that computes nothing."""

    def train_step(self, data):
        return {"loss": tf.zeros([])}

    def predict_step(self, data):
        return tf.zeros(len(tf.nest.flatten(data)[0]))

    test_step = train_step


class _PlainModel(_Recording, _NoSteps):
    pass


class _RecordingFlowModel(_Recording, tfr.FlowModel):
    pass


class _Epochs(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        self.model.records.append(("epoch",))


def _normal():
    return tfd.Independent(tfd.Normal(tf.Variable([1.0, 1.0]), [50.0, 1.0]), 1)


def _vector_flow(**kwargs):
    return ft.vector_distribution(2, num_couplings=1, num_filters=4, num_blocks=1, **kwargs)


_DISTRIBUTIONS = {
    None: _normal,
    "labels": lambda: _vector_flow(num_classes=4, standardization=tfr.Standardization.of(_X)),
    "vectors": lambda: _vector_flow(conditional_event_shape=[2]),
    "numbers": lambda: _vector_flow(conditional_event_shape=[1]),
}


@functools.cache
def _flow_model(condition=None):
    return _RecordingFlowModel(_DISTRIBUTIONS[condition]())


def _records(model, method, **kwargs):
    """Returns the batches of a call of a model, and its result."""
    keras.utils.set_random_seed(0)
    model.start()
    callbacks = [_Epochs()] if method == "fit" else []
    result = getattr(model, method)(verbose=0, callbacks=callbacks, **kwargs)
    return model.records, result


# The table.


class _Sequence(keras.utils.PyDataset):
    """Batches of four, with labels if there are any."""

    def __init__(self, *arrays):
        super().__init__()
        self.arrays = arrays

    def __len__(self):
        return -(-len(self.arrays[0]) // 4)

    def __getitem__(self, index):
        return tuple(array[4 * index : 4 * index + 4] for array in self.arrays)


def _generator(*arrays):
    yield from (_Sequence(*arrays)[index] for index in range(len(_Sequence(*arrays))))


def _frame(number=_NUMBER, first=0):
    return pd.DataFrame(_rows(number, first).astype(np.float64), columns=["row", "cosine"])


def _torch_loader():
    import torch

    rows = torch.utils.data.TensorDataset(torch.tensor(_X), torch.tensor(_LABELS))
    return torch.utils.data.DataLoader(rows, batch_size=4)


_BATCHES = {"batch_size": 4, "shuffle": False}
_LABELED = {"y": _LABELS, **_BATCHES}
_HELD_OUT = {"validation_data": (_VALIDATION, _VALIDATION_LABELS)}
_SPLIT = {"validation_split": 0.25}


def _row(x, condition=None, **arguments):
    """Returns the condition of a model, and arguments of a call or functions that make them."""
    return condition, {"x": x, **arguments}


def _made(arguments):
    return {
        name: value() if isinstance(value, types.FunctionType) else value
        for name, value in arguments.items()
    }


_CLASSES = {0: 2.0, 3: 0.5}
_FITS = {
    # Forms.
    "array": _row(_X, **_BATCHES),
    "list of arrays": _row([_X, _LABELS], "labels", **_BATCHES),
    "tuple": _row((_X, _LABELS), "labels", **_BATCHES),
    "dict": _row({"image": _X, "label": _LABELS}, "labels", **_BATCHES),
    "sample_weight": _row(_X, "labels", sample_weight=_WEIGHTS, **_LABELED),
    "class_weight": _row(_X, "labels", class_weight=_CLASSES, **_LABELED),
    "dataset": _row(lambda: ft.dataset(_X)),
    "dataset of tuples with weights": _row(lambda: ft.dataset((_X, _LABELS, _WEIGHTS)), "labels"),
    "dataset of dicts": _row(lambda: ft.dataset({"image": _X, "label": _LABELS}), "labels"),
    "PyDataset, shuffled": _row(lambda: _Sequence(_rows(32), np.arange(32) % 4), "labels"),
    "generator of tuples": _row(lambda: _generator(_X, _LABELS), "labels", epochs=1, shuffle=False),
    # Batches.
    "batch_size of the default": _row(_rows(40), shuffle=False),
    "shuffle=True": _row(_X, "labels", y=_LABELS, batch_size=4, shuffle=True),
    "shuffle='batch'": _row(_X, batch_size=5, shuffle="batch"),
    "steps_per_epoch of a dataset": _row(lambda: ft.dataset(_X).repeat(), steps_per_epoch=2),
    # Validation.
    "validation_data, a dict": _row(_X, validation_data={"image": _VALIDATION}, **_BATCHES),
    "validation_data, a dataset": _row(
        _X, validation_data=lambda: ft.dataset(_VALIDATION, 2), **_BATCHES
    ),
    "validation_data beside validation_split": _row(
        _X, "labels", **_HELD_OUT, **_SPLIT, **_LABELED
    ),
    "validation_batch_size": _row(
        _X, validation_data=_VALIDATION, validation_batch_size=1, validation_freq=2, **_BATCHES
    ),
    # Of pandas.
    "DataFrame, validation_split": _row(_frame(), **_SPLIT, **_BATCHES),
    "labels in a Series": _row(_frame(), "labels", y=pd.Series(_LABELS), **_BATCHES),
    "conditions in a DataFrame": _row(_X, "vectors", y=_frame(), **_BATCHES),
    "numbers [N]": _row(_X, "numbers", y=_X[:, 1], **_BATCHES),
}
if importlib.util.find_spec("torch"):
    _FITS["torch DataLoader"] = _row(lambda: _torch_loader(), "labels", shuffle=False)


@pytest.mark.filterwarnings("ignore:.*(steps_per_epoch|shuffle=True).*:UserWarning")
@pytest.mark.parametrize("row", _FITS)
def test_fit_sees_the_batches_of_a_plain_keras_model(row):
    condition, arguments = _FITS[row]
    arguments = {"epochs": 2, **arguments}
    actual, history = _records(_flow_model(condition), "fit", **_made(arguments))
    arguments = _made(arguments)
    expected, expected_history = _records(_PlainModel(), "fit", **arguments)
    assert np.isfinite(history.history["loss"]).all()
    assert history.epoch == expected_history.epoch
    assert history.params["steps"] == expected_history.params["steps"]
    x, shuffle = arguments["x"], bool(arguments.get("shuffle", True))
    if shuffle and not isinstance(x, (tf.data.Dataset, keras.utils.PyDataset)):
        # The order within an epoch is our own.
        assert _in_order(actual) == _in_order(expected)
    else:
        assert actual == expected
    epoch = _rows_of_epochs(actual)[0]
    assert (epoch != sorted(epoch)) == (shuffle and not isinstance(x, tf.data.Dataset))


def _rows_of_epochs(records):
    """Returns the rows of the training batches of each epoch."""
    epochs = []
    for kind, *description in records:
        if kind == "epoch":
            epochs.append([])
        elif kind == "train":
            epochs[-1] += description[-1]
    return epochs


def _in_order(records):
    """Returns the batches without the rows of training batches, and the sorted rows of epochs."""
    batches = [record[:-1] if record[0] == "train" else record for record in records]
    return batches, list(map(sorted, _rows_of_epochs(records)))


def test_each_epoch_of_arrays_has_another_order_and_a_seed_repeats_all():
    arguments = {"x": _rows(40), "batch_size": 16, "epochs": 3}
    epochs = _rows_of_epochs(_records(_flow_model(), "fit", **arguments)[0])
    assert all(sorted(rows) == list(range(40)) for rows in epochs)
    assert len(set(map(tuple, epochs))) == 3
    assert epochs == _rows_of_epochs(_records(_flow_model(), "fit", **arguments)[0])


_EVALUATIONS = {
    "array": _row(_X, batch_size=4),
    "array, no batch_size": _row(_rows(40)),
    "tuple": _row((_X, _LABELS), "labels", batch_size=4),
    "tuple with None": _row((_X, None)),
    "dict": _row({"image": _X, "label": _LABELS}, "labels", batch_size=4),
    "dataset of tuples": _row(lambda: ft.dataset((_X, _LABELS)), "labels"),
    "PyDataset": _row(lambda: _Sequence(_X, _LABELS), "labels"),
    "generator": _row(lambda: _generator(_X)),
    "steps, batch_size": _row(_X, batch_size=2, steps=2),
    "DataFrame": _row(_frame(), batch_size=4),
    "labels in a Series": _row((_frame(), pd.Series(_LABELS)), "labels"),
}


@pytest.mark.parametrize("method", ["evaluate", "predict"])
@pytest.mark.parametrize("row", _EVALUATIONS)
def test_evaluation_sees_the_batches_of_a_plain_keras_model(row, method):
    condition, arguments = _EVALUATIONS[row]
    actual, result = _records(_flow_model(condition), method, **_made(arguments))
    arguments = _made(arguments)
    if row == "tuple with None":
        # Keras 3.10 fails for it.
        arguments["x"] = (_X,)
    expected, expected_result = _records(_PlainModel(), method, **arguments)
    assert np.isfinite(result).all()
    assert actual == expected
    if method == "predict":
        assert result.shape == expected_result.shape


@functools.cache
def _trained_model():
    model = ft.compiled(_DISTRIBUTIONS["labels"](), keras.optimizers.SGD(0.0))
    ft.randomize(model.distribution.bijector)
    return model


@pytest.mark.parametrize(
    "form", [pd.Series, pd.DataFrame, np.ndarray.tolist, lambda labels: labels[:, np.newaxis]]
)
def test_conditions_in_any_form_are_the_same_conditions(form):
    model, data = _trained_model(), (_X, form(_LABELS))
    expected, others = (model.predict((_X, y), verbose=0) for y in (_LABELS, _LABELS[::-1]))
    np.testing.assert_array_equal(model.predict(data, verbose=0), expected)
    assert np.abs(others - expected).max() > 1e-2
    loss = pytest.approx(-expected.mean(), rel=1e-5)
    assert model.evaluate(*data, verbose=0, return_dict=True)["loss"] == loss
    for arguments in ({"x": data}, {"x": data[0], "y": data[1]}):
        history = model.fit(**arguments, validation_data=data, verbose=0).history
        assert (history["loss"], history["val_loss"]) == ([loss], [loss])


@pytest.mark.parametrize("convert", [pd.DataFrame.copy, pd.DataFrame.convert_dtypes])
def test_frames_of_numbers_and_bools_are_vectors_of_numbers(convert):
    frame = pd.DataFrame({"a": np.arange(4.0), "b": [True, False, False, True]})
    model = ft.compiled(ft.vector_distribution(2, conditional_event_shape=[2]))
    expected = model.predict([frame.to_numpy(np.float32)] * 2, verbose=0)
    frame = convert(frame)
    assert frame.to_numpy().dtype == object
    np.testing.assert_array_equal(model.predict([frame, frame], verbose=0), expected)
    actual = model.predict([frame, frame.assign(a=frame.b)], verbose=0)
    bools = frame[["b", "b"]].to_numpy(bool)
    np.testing.assert_array_equal(actual, model.predict([frame, bools], verbose=0))
    assert np.abs(actual - expected).max() > 1e-3


def test_a_series_of_numbers_is_a_column_of_vectors():
    values = pd.Series(np.arange(4.0))
    model = ft.compiled(tfd.Independent(tfd.Normal([0.0], 1.0), 1))
    expected = tfd.Normal(0.0, 1.0).log_prob(values.to_numpy(np.float32))
    np.testing.assert_allclose(model.predict(values, verbose=0), expected, rtol=1e-5)


# Data that is refused.


@pytest.mark.parametrize("fraction", [1.0, 1.5, -0.2])
def test_a_validation_split_out_of_range(fraction):
    with pytest.raises(ValueError, match=r"expected a validation_split in \(0, 1\), got"):
        _flow_model().fit(_X, validation_split=fraction, verbose=0)


@pytest.mark.parametrize(
    "call",
    [
        lambda model: model.fit(_X, _LABELS, verbose=0),
        lambda model: model.fit((_X, _LABELS), verbose=0),
        lambda model: model.fit(_X, validation_data=(_X, _LABELS), verbose=0),
        lambda model: model.evaluate(_X, _LABELS, verbose=0),
        lambda model: model.predict((_X, _LABELS), verbose=0),
        lambda model: model.train_on_batch(_X, _LABELS),
        lambda model: model.test_on_batch(_X, _LABELS),
        lambda model: model.predict_on_batch((_X, _LABELS)),
        lambda model: model((_X, _LABELS)),
        lambda model: tfr.log_prob(model, _X, _LABELS),
        lambda model: tfr.evaluation.log_likelihood(model, (_X, _LABELS)),
    ],
)
def test_labels_for_a_distribution_that_takes_none(call):
    model = _flow_model()
    model.start()
    with pytest.raises(ValueError, match=r"events without labels .* `num_classes=K`"):
        call(model)


@pytest.mark.parametrize("method", ["fit", "evaluate", "predict"])
def test_labels_of_a_dataset_are_ignored_with_a_warning(method):
    model = ft.compiled(_normal(), keras.optimizers.SGD(0.0))
    with pytest.warns(UserWarning, match="labels of the dataset are not used"):
        getattr(model, method)(ft.dataset((_X, _LABELS)), verbose=0)


@pytest.mark.parametrize("dtype", [object, str])
def test_numbers_that_are_no_numbers_to_pandas(dtype):
    model = ft.compiled(_normal())
    frame = pd.DataFrame(_X).astype(dtype)
    with pytest.raises(ValueError, match=r"got dtype object\. For a DataFrame, ") as error:
        model.predict(frame, verbose=0)
    (call,) = re.findall(r"pass (.*)\.$", str(error.value))
    expected = model.predict(_X, verbose=0)
    actual = model.predict(eval(call, {"frame": frame, "pd": pd}), verbose=0)
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


class _Row(NamedTuple):
    x: np.ndarray
    y: np.ndarray


def test_rows_in_lists_and_named_tuples():
    model = tfr.FlowModel(_vector_flow(num_classes=4))
    expected = tfr.log_prob(model, _X, _LABELS)
    np.testing.assert_array_equal(model.predict(_Row(_X, _LABELS), verbose=0), expected)
    np.testing.assert_allclose(tfr.log_prob(model, _X.tolist(), _LABELS.tolist()), expected)
    for data in (_Row(_X, _LABELS), (_X.tolist(), pd.Series(_LABELS)), _generator(_X, _LABELS)):
        result = tfr.evaluation.log_likelihood(model, data)
        assert result.mean == pytest.approx(expected.mean(), rel=1e-5)


_INFINITE = np.array([[0.0, 1.0], [np.nan, 2.0], [3.0, np.inf]])
_MASKED = np.ma.masked_greater(_X, np.sort(_X.ravel())[-3])


@pytest.mark.parametrize("method", ["fit", "evaluate", "predict"])
@pytest.mark.parametrize(
    ("data", "options", "match"),
    [
        (None, {}, "expected vectors.*got None"),
        (_frame(0), {}, r"expected vectors.*at least one, got shape \(0, 2\)"),
        (np.zeros([5, 2, 1]), {}, r"expected vectors \[batch, 2\], got shape \(5, 2, 1\)"),
        (np.zeros([5, 4]), {}, r"expected vectors \[batch, 2\], got shape \(5, 4\)"),
        (_MASKED, {}, "expected vectors without masked elements"),
        (_INFINITE, {}, r"expected finite vectors, got 2 of 3 .* first in row 1"),
        *((_X.astype(dtype), {}, "real numbers, got dtype") for dtype in (complex, str)),
        *(
            (ft.dataset(_X.astype(dtype)), {}, "real numbers, got dtype")
            for dtype in (complex, str)
        ),
        (_X, {"batch_size": 0}, "batch_size of at least 1, got 0"),
    ],
)
def test_data_that_are_refused(data, options, match, method):
    with pytest.raises(ValueError, match=match):
        getattr(ft.compiled(_normal()), method)(data, verbose=0, **options)


# Nothing waits for a thread of `tf.data`.


def _user_dataset(enabled=None):
    dataset = tf.data.Dataset.from_tensor_slices(_X[:6]).map(lambda x: x).batch(1).prefetch(2)
    options = tf.data.Options()
    options.deterministic = True
    options.threading.private_threadpool_size = 3
    if enabled is not None:
        options.autotune.enabled = enabled
    return dataset.with_options(options)


def _given_to_keras(method, data):
    """Returns the datasets that Keras gets, with their options."""
    held_out = {"validation_data": data} if method == "fit" else {}
    arguments = arguments_for_keras(_flow_model(), method, x=data, **held_out)
    data = [arguments[name] for name in ("x", *held_out)]
    datasets = [x if isinstance(x, tf.data.Dataset) else x.get_tf_dataset() for x in data]
    return [(dataset, dataset.options()) for dataset in datasets]


@pytest.mark.parametrize("method", ["fit", "evaluate", "predict"])
@pytest.mark.parametrize("enabled", [True, False, None])
def test_a_dataset_keeps_its_elements_and_options(enabled, method):
    for dataset, options in _given_to_keras(method, _user_dataset(enabled)):
        assert options.autotune.enabled is bool(enabled)
        assert options.deterministic is True and options.threading.private_threadpool_size == 3
        assert dataset.cardinality() == 6
        np.testing.assert_array_equal(np.concatenate(list(dataset)), _X[:6])

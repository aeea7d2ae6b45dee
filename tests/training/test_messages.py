"""What `FlowModel` and `log_prob` say about data and options that they do not take."""

import warnings

import flow_testing as ft
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_probability import distributions as tfd

import tfp_realnvp as tfr
from tfp_realnvp.training.input_data import arguments_for_keras

pytestmark = pytest.mark.quick


_SHAPE = (4, 4, 1)
_IMAGES = ft.grey_levels(6)
_FRACTIONS = (_IMAGES / 255).astype(np.float32)
_SCALED = r"got values from .*Leave out `Rescaling\(1 / 255\)`, `/ 255` or `/ 127.5 - 1`"


def _flow(**kwargs):
    options = {"num_scales": 1, "num_couplings": 1, "network_fn": ft.convolution}
    return ft.flow_distribution(_SHAPE, **{**options, **kwargs})


@pytest.fixture(scope="module")
def model():
    return ft.compiled(_flow())


def _with_nan(row):
    images = _IMAGES.astype(np.float32)
    images[row, 1, 2, 0] = np.nan
    return images


@pytest.mark.parametrize("method", ["fit", "evaluate", "predict"])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (_IMAGES * 1.0 + 255, "expected gray levels 0 to 255, .* got values from .* to .*to_uint8"),
        (_IMAGES - 300.0, "expected gray levels 0 to 255"),
        (_with_nan(3), "expected finite images, got 1 of 6 with a NaN .* first in row 3"),
        (_IMAGES[..., 0], r"got shape \(6, 4, 4\)\. .* `images\[\.\.\., None\]`"),
        (list(_IMAGES), r"got shape \(4, 4, 1\)\. `np\.stack\(images\)`"),
        (_FRACTIONS, _SCALED),
        (_IMAGES / 127.5 - 1, _SCALED),
    ],
    ids=["above", "below", "nan", "no channels", "list", "fractions", "signed"],
)
def test_images(model, method, data, message):
    with pytest.raises(ValueError, match=message):
        getattr(model, method)(data)


@pytest.mark.parametrize("dequantize", [True, False])
@pytest.mark.parametrize("high", [1, 15, 200])
def test_few_levels(dequantize, high, recwarn):
    model = tfr.FlowModel(_flow(), dequantize=dequantize)
    images = np.random.default_rng(0).integers(0, high + 1, [6, *_SHAPE]).astype(np.float32)
    images[0, 0, 0, 0] = high
    arguments_for_keras(model, "fit", images)
    messages = [str(warning.message) for warning in recwarn.list]
    if high == 200:
        assert not messages
    else:
        [message] = messages
        assert f"value is {high}" in message and "256 gray levels" in message


def test_the_warning_points_to_the_call_of_fit(model):
    with pytest.warns(UserWarning, match="gray levels") as warned:
        model.fit(np.minimum(_IMAGES, 1), verbose=0)
    assert warned[0].filename == __file__


_CALLS = {
    "arrays": lambda model, *data: model.fit(*data, verbose=0),
    "dataset": lambda model, *data: model.fit(ft.dataset(data, 32), verbose=0),
    "batch": lambda model, *data: [model.train_on_batch(*data) for _ in range(2)],
}


@pytest.mark.parametrize("call", _CALLS)
@pytest.mark.parametrize(
    ("column", "warned"),
    [(1e4, "mean of 10000 "), (1e-4, "mean of 0.0001 "), (20.0, None), (0.0, None)],
)
def test_conditions_from_which_networks_hardly_learn(column, warned, call, recwarn):
    rows = ft.normal([64, 2]).numpy()
    conditions = np.stack([np.full(64, column), rows[:, 0]], axis=1)
    flow = tfr.RealNVPVector(2, num_couplings=2, num_filters=4, conditional_event_shape=[2])
    model = ft.compiled(tfd.TransformedDistribution(ft.standard_normal([2]), flow))
    _CALLS[call](model, rows, conditions)
    messages = [w for w in recwarn if "hardly learn" in str(w.message)]
    if warned is None:
        assert not messages
    else:
        [message] = messages
        assert f"column 0 of the conditions has a {warned}" in str(message.message)
        assert message.filename == __file__


@pytest.mark.parametrize("scale", [1e-4, 1e-2])
@pytest.mark.parametrize("call", ["arrays", "dataset", "batch"])
def test_small_values_without_a_standardization(call, scale, recwarn):
    rows = scale * ft.normal([64, 2]).numpy()
    for standardization in (tfr.Standardization.of(rows), None):
        flow = tfr.RealNVPVector(2, num_couplings=2, num_filters=4, standardization=standardization)
        model = ft.compiled(tfd.TransformedDistribution(ft.standard_normal([2]), flow))
        _CALLS[call](model, rows)
    messages = [w for w in recwarn if "standard deviation of 0.001 or less" in str(w.message)]
    assert [m.filename for m in messages] == [__file__] * (scale < 1e-3)


@pytest.mark.parametrize(
    ("step", "part", "advice"),
    [
        (0, "the bijector layer0_norm", "a larger batch may help"),
        (1, "the bijector layer0_norm", "smaller learning rate"),
        (0, "the data", None),
    ],
)
def test_advice_for_a_loss_that_is_not_finite(step, part, advice):
    message = str(tfr.NonFiniteLossError(step, part)).lower()
    assert f"not finite at step {step}, first in {part};" in message
    assert ("may help" in message) == (advice is not None)
    assert advice is None or advice in message


def test_a_dataset_without_batches():
    model = ft.compiled(_flow())
    images = tf.data.Dataset.from_tensor_slices(_IMAGES)
    with pytest.raises(ValueError, match=r"got shape .*\. .*`dataset\.batch\(32\)`"):
        model.fit(images, verbose=0)


@pytest.mark.parametrize("method", ["fit", "train_on_batch"])
def test_nothing_to_train(method):
    model = tfr.FlowModel(_flow())
    model.trainable = False
    model.compile()
    with pytest.raises(ValueError, match=r"to train, got none; set `model\.trainable = True`"):
        getattr(model, method)(_IMAGES)


def test_predict_with_y(model):
    with pytest.raises(TypeError, match=r"`predict\(\(events, conditions\)\)`"):
        model.predict(_IMAGES, np.arange(6))


@pytest.mark.parametrize("call", ["log_prob", "sample"])
def test_a_condition_beside_the_values_of_a_distribution(call):
    flow = _flow(num_classes=3, network_fn=None, num_blocks=0, num_filters=2)
    value = {"log_prob": tf.zeros([2, *_SHAPE]), "sample": 2}[call]
    with pytest.raises(ValueError, match=r"`bijector_kwargs=.*tfr\.condition"):
        getattr(flow, call)(value, conditional_input=[0, 1])


def test_standardization_names_the_columns_of_nans():
    with pytest.raises(ValueError, match=r"got 2 values that are NaN or .*in columns \[1, 3\]"):
        tfr.Standardization.of(np.array([[0, 1, 2, np.nan], [0, np.inf, 3, 4.0]]))


# Options.


@pytest.mark.parametrize("name", ["m.h5", "m.hdf5", "m"])
def test_formats_of_earlier_versions_of_keras(model, tmp_path, name):
    match = r"expected a file \*\.keras.*save_weights.*export\('folder'\) for a Saved"
    with pytest.raises(ValueError, match=match):
        model.save(tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("option", ["loss", "metrics", "weighted_metrics"])
def test_metrics_are_refused(model, option):
    match = f"expected no loss and no metrics.*'{option}': 'mae'"
    with pytest.raises(ValueError, match=match):
        model.compile(**{option: "mae"})
    if option == "loss":
        with pytest.raises(ValueError, match=match):
            model.compile("adam", "mae")


def test_a_refused_compile_keeps_the_schedule_of_the_optimizer():
    model = ft.compiled(_flow(), "adam")
    before = model.get_compile_config()
    with pytest.raises(TypeError, match="unexpected keyword argument 'momentum'"):
        model.compile(momentum=0.9)
    assert model.get_compile_config() == before and before["optimizer"] is not None


def test_float16_is_refused():
    flow = _flow(network_fn=None, num_blocks=0, num_filters=2, network_dtype="mixed_float16")
    with pytest.raises(ValueError, match=r"mixed_bfloat16 .* got float16"):
        tfr.FlowModel(flow).compile()


# Data whose values are seen in the step alone.


_DATA_OF_STEPS = {
    "dataset": lambda: ft.dataset(_FRACTIONS, 3),
    "dictionaries": lambda: ft.dataset({"image": _FRACTIONS}, 3),
    "generator": lambda: ((_FRACTIONS[i : i + 3],) for i in (0, 3)),
}


@pytest.mark.eager
@pytest.mark.parametrize("method", ["fit", "evaluate", "predict"])
@pytest.mark.parametrize("form", _DATA_OF_STEPS)
def test_fractions_in_each_form_of_data(form, method):
    match = "gray levels 0, 1, 2, … and no fractions.*Leave out `Rescaling.*by 255"
    model = ft.compiled(_flow())
    with ft.unchanged(model.distribution), pytest.raises(ValueError, match=match):
        getattr(model, method)(_DATA_OF_STEPS[form](), verbose=0)
    # Continuous values are taken.
    model = ft.compiled(_flow(), dequantize=False)
    getattr(model, method)(_DATA_OF_STEPS[form](), verbose=0)


@pytest.mark.parametrize("method", ["train_on_batch", "test_on_batch", "predict_on_batch"])
def test_single_batches_are_checked(model, method):
    call = getattr(model, method)
    for images, message in (
        (np.where(_IMAGES > 9, np.nan, 1.0), "expected finite images"),
        (_FRACTIONS, "and no fractions"),
        (_IMAGES[:, :2], r"expected images \[batch, 4, 4, 1\], got shape \(6, 2, 4, 1\)"),
        (_IMAGES.astype(complex), "real numbers, got dtype complex128"),
    ):
        with pytest.raises(ValueError, match=message):
            call(images)


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 28, 28)])
def test_channels_first(shape):
    images = tfd.Sample(tfd.Normal(0.0, 1.0), shape)
    with pytest.raises(ValueError, match=r"channels first; `np\.moveaxis\(images, 1, -1\)`"):
        tfr.FlowModel(images)
    tfr.FlowModel(images, dequantize=False)  # feature maps
    tfr.FlowModel(tfd.Sample(tfd.Normal(0.0, 1.0), shape[::-1]))


# What the batches of a dataset show before a graph is made, in the sentences for arrays.


_ONE_HOT = np.eye(3, dtype=np.float32)[np.arange(6) % 3]


@pytest.mark.parametrize("method", ["fit", "evaluate", "predict"])
@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ((_IMAGES[:, :3, :3], _ONE_HOT[:, 0].astype(int)), r"\[batch, 4, 4, 1\], got .*3, 3, 1\)"),
        ((_IMAGES.astype(str), _ONE_HOT[:, 0].astype(int)), "expected images of real numbers"),
        ((_IMAGES, _ONE_HOT), r"integer labels in \[0, 3\), got float32 .*`labels.argmax\(-1\)`"),
        ((_IMAGES, _ONE_HOT[:, 0]), r"integer labels in \[0, 3\), got float32.*astype\(int\)"),
        ((_IMAGES,), "expected events and conditions, integer labels"),
    ],
    ids=["shape", "strings", "one-hot", "floats", "no labels"],
)
def test_elements_of_a_dataset_are_checked_before_a_graph_is_made(parts, message, method):
    model = ft.compiled(_flow(num_classes=3, network_fn=None, num_blocks=0, num_filters=4))
    with pytest.raises(ValueError, match=message):
        getattr(model, method)(ft.dataset(parts, 3), verbose=0)
    assert (model.train_function, model.test_function, model.predict_function) == (None,) * 3
    if method == "fit":
        with pytest.raises(ValueError, match=message):
            model.fit(_IMAGES, np.arange(6) % 3, validation_data=ft.dataset(parts, 3), verbose=0)
        assert model.train_function is None


@pytest.mark.parametrize(
    "batch",
    [
        (_IMAGES, np.arange(6) % 3),  # The distribution takes no labels.
        {"image": _IMAGES, "sample_weight": np.zeros(6)},
        tf.cast(tf.constant(_IMAGES), tf.bfloat16),
    ],
    ids=["labels", "weights of 0", "bfloat16"],
)
@pytest.mark.filterwarnings("ignore:FlowModel. the labels")
def test_a_first_batch_of_other_forms(batch):
    model = ft.compiled(_flow())
    batches = tf.data.Dataset.from_tensors(batch)
    assert np.isfinite(model.fit(batches, verbose=0).history["loss"]).all()


@pytest.mark.eager
def test_word_of_fractions_after_augmentation():
    images = np.clip(_IMAGES + np.where(np.arange(16).reshape(_SHAPE) < 4, 0.3, 0), 0, 255)
    for data in (images, ft.dataset(images, 3)):
        model = ft.compiled(_flow())
        match = "25% of the pixel values are not whole, and are rounded down.*`tf.round`"
        with pytest.warns(UserWarning, match=match):
            model.fit(data, verbose=0)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*not whole")
        model.fit(np.round(images), verbose=0)


_PARTS = {"a": tfd.Normal(0.0, 1.0), "b": tfd.Normal(0.0, 1.0)}
_ADVICE = r"`tfd\.TransformedDistribution\(.*Normal\(0\., 1\.\), shape\), flow\)`, got <tfp\.bij"
_ONE_TENSOR = "events are one tensor, not several parts, got"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: _flow().bijector, _ADVICE),
        (lambda: tfd.JointDistributionSequential([*_PARTS.values()]), _ONE_TENSOR),
        (lambda: tfd.JointDistributionNamed(_PARTS), _ONE_TENSOR),
    ],
    ids=["bijector", "sequential", "named"],
)
def test_what_is_no_distribution_of_tensors(make, message):
    for call in (tfr.FlowModel, lambda made: tfr.log_prob(made, _IMAGES)):
        with pytest.raises(TypeError, match=message):
            call(make())

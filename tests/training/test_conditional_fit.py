"""`FlowModel` with labels, vectors and images as conditions."""

import functools
import itertools

import flow_testing as ft
import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.framework import constant_op
from tensorflow_probability import distributions as tfd

import tfp_realnvp as tfr

pytestmark = pytest.mark.eager

_SHAPE = (4, 4, 1)
_IMAGES = ft.grey_levels(8)
_LABELS = np.array([0, 1, 2, 3, 4, 0, 1, 2])


def _model(kind="labels", network="user", *, dequantize=False, seed=0, flow=None, **compiled):
    """Returns a compiled model in which nothing is random but dropped conditions."""
    keras.utils.set_random_seed(0)
    options = {"network_dtype": "float32", **(flow or {})}
    distribution = ft.conditional_distribution(kind, network, **options)
    model = tfr.FlowModel(distribution, dequantize=dequantize, seed=seed)
    model.compile(**{"optimizer": keras.optimizers.SGD(1e-3), **compiled})
    return model


def _conditions(kind="labels", number=8):
    return _LABELS if kind == "labels" else ft.condition(kind, [number]).numpy()


# Kinds of data.


@pytest.mark.parametrize("kind", ["labels", "images"])
def test_one_condition_for_a_batch_is_refused(kind):
    model, one = _model(kind), _conditions(kind)[:1]
    before = ft.values(model.distribution.variables)
    for call in (
        lambda: model.train_on_batch(_IMAGES, one),
        lambda: model.test_on_batch(_IMAGES, one),
        lambda: model.predict_on_batch((_IMAGES, one)),
        lambda: model.fit(tf.data.Dataset.from_tensors((_IMAGES, one)), verbose=0),
        lambda: model.evaluate(tf.data.Dataset.from_tensors((_IMAGES, one)), verbose=0),
        lambda: model.predict(tf.data.Dataset.from_tensors((_IMAGES, one)), verbose=0),
        lambda: model.predict((_IMAGES, one), verbose=0),
    ):
        with pytest.raises(ValueError, match="FlowModel: expected one condition for each"):
            call()
    ft.assert_equal(ft.values(model.distribution.variables), before)


@pytest.mark.parametrize("kind", ["labels", "images"])
def test_each_image_has_its_condition(kind):
    model, conditions = _model(kind), _conditions(kind)
    history = model.fit(_IMAGES, conditions, batch_size=4, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    log_prob = model.predict((_IMAGES, conditions), batch_size=4, verbose=0)
    assert log_prob.shape == (8,)
    images = tf.cast(_IMAGES, tf.float32)
    for index in range(8):
        expected = tfr.condition(model.distribution, conditions[index]).log_prob(images[index])
        np.testing.assert_allclose(log_prob[index], expected, rtol=1e-4)
    np.testing.assert_allclose(model((images, conditions)), log_prob, rtol=1e-4)
    loss = model.evaluate(_IMAGES, conditions, batch_size=4, verbose=0, return_dict=True)["loss"]
    assert loss == pytest.approx(-log_prob.mean(), rel=1e-5)
    assert np.abs(model.predict((_IMAGES, conditions[::-1]), verbose=0) - log_prob).max() > 1e-2


# Training.


@pytest.mark.graph
def test_one_step_by_hand():
    # With clipping, for which a label that occurs twice in a batch has one gradient.
    execution = {"optimizer": keras.optimizers.SGD(0.1, global_clipnorm=0.5), "scale_l2": 0.1}
    model = _model("labels", "resnet", flow={"num_blocks": 0}, dequantize=True, **execution)
    distribution = model.distribution
    variables = list(distribution.trainable_variables)
    scales = [v for v in variables if "scale" in v.name.split("/")[-1]]
    assert len(scales) == 8  # three of each network, one of each coupling
    statistics = ft.values(distribution.non_trainable_variables)
    options = {"training": True, "conditional_input": _LABELS}
    with tf.GradientTape() as tape:
        images = tfr.dequantize(_IMAGES, seed=(0, 0))
        log_prob = tf.reduce_mean(distribution.log_prob(images, bijector_kwargs=options))
        loss = 0.1 * tf.add_n([tf.reduce_sum(scale**2) for scale in scales]) - log_prob
    gradients = [tf.convert_to_tensor(each) for each in tape.gradient(loss, variables)]
    norm = tf.linalg.global_norm(gradients)
    assert norm > 1
    expected = [v - 0.05 / norm * g for v, g in zip(variables, gradients, strict=True)]
    ft.assign(distribution.non_trainable_variables, statistics)
    history = model.fit(_IMAGES, _LABELS, batch_size=8, shuffle=False, verbose=0).history
    ft.assert_close(variables, expected, rtol=1e-4, atol=1e-6)
    # The metric has no penalty.
    np.testing.assert_allclose(history["loss"], [-log_prob], rtol=1e-5)


@pytest.mark.parametrize("is_flow_conditional", [False, True])
def test_a_base_for_each_class(is_flow_conditional):
    means = tf.Variable(ft.normal([5, *_SHAPE]), name="means")
    flow = ft.conditional_flow("labels", "user") if is_flow_conditional else None
    flow = flow or ft.image_flow(_SHAPE, num_scales=1, num_couplings=1, num_blocks=0)
    distribution = tfd.TransformedDistribution(ft.class_base(means), flow)
    model = ft.compiled(distribution, dequantize=False)
    before = means.numpy()
    # Nobody is in the last class.
    labels = _LABELS % 4
    model.fit(_IMAGES, labels, batch_size=4, epochs=2, verbose=0)
    assert np.abs(means - before).max(axis=(1, 2, 3)).min(initial=1, where=np.arange(5) < 4) > 0
    log_prob = model.predict((_IMAGES, labels), verbose=0)
    images = tf.cast(_IMAGES, tf.float32)
    given = tfr.condition(distribution, labels)
    np.testing.assert_allclose(log_prob, given.log_prob(images), rtol=1e-4)
    with pytest.raises(ValueError, match=r"expected a conditional_input.*got None|events only"):
        model.predict(_IMAGES, verbose=0)


# Conditions that are left out.


class _RecordingNetwork(ft.ConditionedNetwork):
    """Keeps the conditions of all calls."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.seen = []

    def call(self, inputs, conditional_input=None):
        self.seen.append(conditional_input.numpy())
        return super().call(inputs, conditional_input)


def _recording(rate, seed=0):
    """Returns a model, and a function to the images whose condition was left out in each call."""
    networks = []

    def network_fn(*, output_channels, conditional_event_shape, name, dtype, **_):
        networks.append(
            _RecordingNetwork(output_channels, conditional_event_shape[-1], name=name, dtype=dtype)
        )
        return networks[-1]

    options = {"condition_dropout": rate, "network_fn": network_fn, "normalization": None}
    model = _model(seed=seed, flow=options, optimizer=keras.optimizers.SGD(0.0), run_eagerly=True)
    nothing = model.distribution.bijector.condition_embedding.no_condition.numpy()
    networks[0].seen.clear()

    def left_out():
        seen, networks[0].seen = networks[0].seen, []
        return np.array([(condition == nothing).all(axis=-1) for condition in seen])

    return model, left_out


def test_the_share_of_conditions_that_are_left_out():
    images, labels = np.repeat(_IMAGES, 50, 0), np.repeat(_LABELS, 50)
    data = {"batch_size": 200, "verbose": 0}

    def dropped(rate, seed=0):
        model, left_out = _recording(rate, seed)
        model.fit(images, labels, epochs=2, shuffle=False, **data)
        return left_out()

    steps = dropped(0.3)
    assert steps.shape == (4, 200)
    # Five standard deviations.
    assert abs(steps.mean() - 0.3) < 5 * np.sqrt(0.3 * 0.7 / steps.size)
    # Each step has its own, which the seed determines.
    assert all((one != other).any() for one, other in itertools.pairwise(steps))
    np.testing.assert_array_equal(dropped(0.3), steps)
    assert (dropped(0.3, seed=1) != steps).any()
    assert not dropped(0.0).any()
    # Nothing is left out of an evaluation.
    model, left_out = _recording(0.5)
    model.evaluate(images, labels, **data)
    model.predict((images, labels), **data)
    seen = left_out()
    assert seen.shape == (4, 200) and not seen.any()


@pytest.mark.parametrize(
    "kind", [pytest.param("labels", marks=pytest.mark.graph), *ft.full("vectors")]
)
def test_densities_without_a_condition(kind):
    model = _model(kind, flow={"condition_dropout": 0.5})
    conditions = _conditions(kind)
    model.fit(_IMAGES, conditions, batch_size=4, epochs=2, verbose=0)
    nothing = np.full_like(conditions, -1 if kind == "labels" else np.nan)
    expected = model.predict(_IMAGES, verbose=0)
    assert np.isfinite(expected).all()
    np.testing.assert_allclose(model.predict((_IMAGES, nothing), verbose=0), expected, rtol=1e-5)
    results = model.evaluate(_IMAGES, verbose=0, return_dict=True)
    assert results["loss"] == pytest.approx(-expected.mean(), rel=1e-5)
    log_prob = model.predict((_IMAGES, conditions), verbose=0)
    assert np.abs(log_prob - expected).max() > 1e-3
    # Training without any condition, too.
    history = model.fit(_IMAGES, batch_size=4, verbose=0).history
    assert np.isfinite(history["loss"]).all()


# Steps that are not finite.


def test_a_nan_in_the_conditions():
    model = _model("vectors")
    conditions = ft.condition("vectors", [len(_IMAGES)]).numpy()
    conditions[5, 1] = np.nan
    with pytest.raises(tfr.NonFiniteLossError, match="at step 1, first in the condition"):
        model.fit(_IMAGES, conditions, batch_size=4, shuffle=False, verbose=0)


# Data that cannot be trained on.

each_method = pytest.mark.parametrize("method", ["fit", "evaluate", "predict"])


def _call(model, method, images, conditions):
    if method == "predict":
        return model.predict((images, conditions), verbose=0)
    return getattr(model, method)(images, conditions, verbose=0)


@each_method
@pytest.mark.parametrize(
    ("kind", "conditions", "match"),
    [
        ("labels", None, "events and conditions, integer labels.*only"),
        ("labels", _LABELS + 1, r"integer labels in \[0, 5\), got \[5\]"),
        ("labels", np.stack([_LABELS] * 2, 1), r"one for each event, got shape \(8, 2\);"),
        ("labels", np.eye(5, dtype=int)[_LABELS], r"got shape \(8, 5\); `labels.argmax\(-1\)`"),
        ("vectors", np.zeros([8, 2]), r"vectors \[..., 3\], got float64 of shape \(8, 2\)"),
        ("vectors", np.zeros([8, 1, 3]), r"one for each event, got shape \(8, 1, 3\)"),
        ("vectors", _LABELS, r"vectors \[..., 3\], got int64 of shape"),
        ("images", np.zeros([8, 4, 4, 3]), r"images \[..., 4, 4, 2\], got float64 of shape"),
    ],
)
def test_conditions_that_are_not_as_declared(kind, conditions, match, method):
    with pytest.raises(ValueError, match=f"FlowModel: expected .*{match}"):
        _call(_MODELS[kind], method, _IMAGES, conditions)


_MODELS = {kind: _model(kind) for kind in ("labels", "vectors", "images")}


@pytest.mark.parametrize(
    ("method", "jit_compile"),
    [
        *(pytest.param("fit", is_xla, marks=pytest.mark.graph) for is_xla in (False, True)),
        *(("evaluate", False), ("predict", False)),
    ],
)
def test_labels_of_a_dataset_that_are_out_of_range(method, jit_compile):
    model, labels = _model(jit_compile=jit_compile), np.where(_LABELS < 2, _LABELS - 3, _LABELS + 4)
    expected = r"FlowModel: expected a .*integer labels in \[0, 5\), got (\[-3, -2, |other)"
    with pytest.raises(ValueError, match=expected):
        getattr(model, method)(ft.dataset((_IMAGES, labels)), verbose=0)
    assert all(np.isfinite(variable).all() for variable in model.trainable_variables)


@pytest.mark.graph
def test_arrays_are_not_copied_to_the_accelerator(monkeypatch):
    # In eager mode, an array becomes a tensor on the default device.
    convert, seen, model = constant_op.convert_to_eager_tensor, [], _model("vectors")

    def record(value, ctx, *args, **kwargs):
        if np.shape(value)[:1] == (len(_IMAGES),):
            seen.append(ctx.device_name)
        return convert(value, ctx, *args, **kwargs)

    monkeypatch.setattr(constant_op, "convert_to_eager_tensor", record)
    conditions = np.zeros([len(_IMAGES), 3], np.float32)
    for method in ("fit", "evaluate", "predict"):
        for images in (_IMAGES, _IMAGES.astype(np.float32)):
            _call(model, method, images, conditions)
    assert seen and all(device.endswith("CPU:0") for device in seen)


# As many labels as classes were once taken as the weights of the classes.
@pytest.mark.parametrize("labels", [[3.0, 1, 0, 2, 1], np.eye(5)[[3, 1, 0, 2, 1]]])
def test_floats_are_no_labels(labels):
    model, images, labels = _MODELS["labels"], _IMAGES[:5], np.array(labels)
    flow, values = model.distribution, tf.cast(images, tf.float32)
    calls = [
        lambda: flow.log_prob(values, bijector_kwargs={"conditional_input": labels}),
        lambda: tf.function(flow.log_prob)(values, bijector_kwargs={"conditional_input": labels}),
        lambda: tfr.condition(flow, labels),
        lambda: tfr.log_prob(model, images, labels),
        lambda: tfr.latents.encode(flow, images, conditional_input=labels),
        lambda: model((values, labels)),
        lambda: model.train_on_batch(images, labels),
        *(
            functools.partial(_call, model, method, *data)
            for method in ("fit", "evaluate", "predict")
            for data in ((images, labels), (images, tf.constant(labels)))
        ),
        lambda: model.fit(ft.dataset((images, labels)), verbose=0),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"labels in \[0, 5\), got float.*`labels.astype\(int"):
            call()

import flow_testing as ft
import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_realnvp as tfr

pytestmark = pytest.mark.core

tfb = tfp.bijectors
tfd = tfp.distributions

_SHAPE = (4, 4, 1)


def _distribution(base=None, **kwargs):
    """One scale of two couplings, which is little to trace and has all kinds of variables."""
    kwargs = {"num_scales": 1, "num_couplings": 1, "network_fn": ft.convolution, **kwargs}
    flow = ft.randomize(tfr.RealNVPImage(_SHAPE, **kwargs))
    dtype = kwargs.get("dtype", tf.float32)
    return tfd.TransformedDistribution(base or ft.standard_normal(_SHAPE, dtype), flow)


def _resnets(base=None, **kwargs):
    return _distribution(base, network_fn=None, num_blocks=0, num_filters=3, **kwargs)


def _model(distribution=None, *, seed=0, dequantize=True, **kwargs):
    model = tfr.FlowModel(distribution or _distribution(), seed=seed, dequantize=dequantize)
    model.compile(**kwargs)
    return model


_IMAGES = ft.grey_levels(8)


# What training changes.


@pytest.mark.parametrize("jit_compile", [False, pytest.param(True, marks=pytest.mark.full)])
def test_fit_changes_every_trainable_variable(jit_compile):
    base = tfd.Independent(
        tfd.Normal(
            tf.Variable(tf.zeros(_SHAPE), name="loc"),
            tfp.util.TransformedVariable(tf.ones(_SHAPE), tfb.Softplus(), name="scale"),
        ),
        3,
    )
    distribution = _resnets(base)
    model = _model(distribution, jit_compile=jit_compile)
    trained = list(distribution.trainable_variables)
    of_bijector = len(distribution.bijector.trainable_variables)
    assert len(model.trainable_variables) == len(trained) == of_bijector + 2
    moving = [v for v in distribution.variables if "moving" in v.name or "num_updates" in v.name]
    before = ft.values([*trained, *moving])
    model.fit(_IMAGES, batch_size=4, epochs=2, verbose=0)
    for variable, value in zip([*trained, *moving], before, strict=True):
        assert np.abs(variable - value).max() > 0, variable.name
    assert model.distribution is distribution


@pytest.mark.eager
def test_the_variables_of_a_frozen_model_and_of_its_distribution():
    distribution = _distribution()
    model = _model(distribution)
    distribution.log_prob(ft.pixels([1, *_SHAPE]))
    everything = {variable.ref() for variable in distribution.trainable_variables}
    frozen = model.networks[0]
    for layer, removed in ((frozen, frozen.variables), (model, model.variables)):
        expected = everything - {variable.value.ref() for variable in removed}
        for trainable in (False, True):
            layer.trainable = trainable
            of_model = {variable.value.ref() for variable in model.trainable_variables}
            assert of_model == (everything if trainable else expected)
            assert {v.ref() for v in distribution.trainable_variables} == of_model
    frozen.trainable = False
    with ft.unchanged(frozen):
        model.fit(_IMAGES, batch_size=4, verbose=0)


def _unset():
    """Returns a distribution, and its `ActNorm`s, which no batch has set."""
    distribution = _distribution(normalization="actnorm")
    norms = [p for p in distribution.bijector.submodules if isinstance(p, tfr.ActNorm)]
    ft.unset(distribution)
    return distribution, norms


_FIRST_BATCHES = {
    "arrays": lambda images: {"x": images, "batch_size": 8, "shuffle": False},
    "dataset": lambda images: {"x": ft.dataset(images, 8)},
    "generator": lambda images: {"x": ((batch,) for batch in (images[:8], images[8:]))},
}


@pytest.mark.parametrize("data", _FIRST_BATCHES)
def test_fit_sets_normalizations_by_the_first_batch(data):
    distribution, (norm, *_) = _unset()
    assert distribution.bijector.bijectors[1] is norm
    model = _model(distribution, optimizer=keras.optimizers.SGD(0.0))
    first = model.get_weights()
    # The second time, after the weights were reset.
    for seed in (0, 1):
        model.set_weights(first)
        model.optimizer.iterations.assign(0)
        images = ft.grey_levels(16, seed=seed)
        history = model.fit(**_FIRST_BATCHES[data](images), verbose=0)
        assert int(model.optimizer.iterations) == 2 and np.isfinite(history.history["loss"][0])
        values = distribution.bijector.bijectors[0].inverse(tfr.dequantize(images[:8], seed=(0, 0)))
        np.testing.assert_allclose(norm.learned.shift, values.numpy().mean((0, 1, 2)), rtol=1e-4)


@pytest.mark.parametrize("refused", ["scaled", "outside", "not a number", "weights"])
def test_a_refused_fit_changes_nothing(refused):
    distribution, norms = _unset()
    model = _model(distribution)
    model.build_optimizer()
    images = ft.grey_levels(16).astype(np.float32)
    bad = {"scaled": images / 255, "outside": images + 200, "not a number": images * np.nan}
    # Keras takes no weights beside a dataset.
    options = {"sample_weight": np.ones(16)} if refused == "weights" else {}
    errors = (ValueError, tfr.NonFiniteLossError)
    with ft.unchanged(model), ft.unchanged(model.optimizer), pytest.raises(errors):
        dataset = ft.dataset(bad.get(refused, images), 8)
        model.fit(dataset, verbose=0, **options)
    model.evaluate(images, verbose=0)
    assert not any(norm.learned.is_known_to_be_set for norm in norms)
    history = model.fit(ft.dataset(images, 8), verbose=0)
    assert history.history["bits_per_dim"][0] < 10


def test_values_of_a_stateless_scope_are_the_variables_of_bijectors():
    model, levels = _model(_distribution(normalization="actnorm")), ft.grey_levels(2)
    images = tf.constant(ft.with_event_noise(levels))
    kinds = (model.trainable_variables, model.non_trainable_variables)
    ft.randomize(model, 1)
    values = [(variable, variable.numpy()) for variable in model.variables]
    lists = [ft.values(kind) for kind in kinds]
    ft.randomize(model, 2)
    # The first call is within the scope: nothing may keep its values.
    with keras.StatelessScope(values):
        first = tfr.log_prob(model, levels)
    second = tfr.log_prob(model, levels)
    assert np.abs(second - first).min() > 1e-2
    # The same tensor with other values: no result of before comes back.
    for weights, expected in ((lists, first), ([ft.values(kind) for kind in kinds], second)):
        result, _ = model.stateless_call(*weights, images)
        np.testing.assert_allclose(result, expected, rtol=1e-5)
    with keras.StatelessScope(values):
        np.testing.assert_allclose(tfr.log_prob(model, levels), first, rtol=1e-5)
    for variable, value in values:
        variable.assign(value)
    np.testing.assert_allclose(tfr.log_prob(model, levels), first, rtol=1e-5)


def test_gray_levels_in_a_call():
    model, levels = _model(_distribution()), ft.grey_levels(2)
    whole = levels.astype(np.float32)
    expected = (
        r"continuous pixel values, got gray.*tfr.dequantize.*predict.*tfr.log_prob.*log_prob_uint8"
    )
    for images in (levels, tf.constant(levels), whole, tf.constant(whole), (whole, None)):
        with pytest.raises(ValueError, match=expected):
            model(images)
    with pytest.raises(ValueError, match=expected):
        tf.function(model)(tf.constant(levels))
    assert np.isfinite(model(tfr.dequantize(levels, (0, 1)))).all()
    assert model(whole[:0]).shape == (0,)
    # Without noise, whole values are as good as any others.
    assert np.isfinite(tfr.FlowModel(model.distribution, dequantize=False)(whole)).all()


# Seeds.


def _first_epoch(seed):
    keras.utils.set_random_seed(0)
    model = _model(seed=seed)
    history = model.fit(_IMAGES, batch_size=4, epochs=1, verbose=0).history
    return history["loss"], model.distribution.sample(2, seed=(1, 2)).numpy()


@pytest.mark.eager
def test_the_same_seed_gives_the_same_run():
    (loss, samples), (loss_again, samples_again) = _first_epoch(0), _first_epoch(0)
    assert loss == loss_again
    np.testing.assert_array_equal(samples, samples_again)
    other_loss, other_samples = _first_epoch(1)
    assert other_loss != loss and np.abs(other_samples - samples).max() > 0


def test_noise_is_fresh_at_each_step():
    # No learning and no moving statistics: the losses of two steps differ by their noise alone.
    model = _model(_distribution(normalization=None), optimizer=keras.optimizers.SGD(0.0))
    history = model.fit(_IMAGES, batch_size=8, epochs=3, shuffle=False, verbose=0).history
    assert len(set(history["loss"])) == 3


# Compile.


def test_defaults_of_compile():
    for model, kind, rate in ((_model(), tfr.Muon, 4e-3), (_vectors(), tfr.FusedAdam, 1e-3)):
        optimizer = model.optimizer
        assert type(optimizer) is kind
        assert float(optimizer.learning_rate) == pytest.approx(rate)
        assert optimizer.global_clipnorm == 100
        assert (optimizer.beta_1, optimizer.beta_2) == (0.9, 0.999)
        assert model.compile_options.scale_l2 == 5e-5


_POINTS = ft.normal([8, 2]).numpy()


def _vectors():
    return ft.compiled(tfd.Sample(tfd.Normal(tf.Variable(0.3), 1.0), [2]))


def test_compiling_again():
    model = _model()
    model.fit(_IMAGES, batch_size=4, verbose=0)
    model.compile("sgd", scale_l2=0.0)
    model.optimizer.learning_rate = 0.0
    before = ft.values(model.trainable_variables)
    model.fit(_IMAGES, batch_size=4, verbose=0)
    ft.assert_equal(model.trainable_variables, before)


@pytest.fixture
def bfloat16():
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    yield
    keras.mixed_precision.set_global_policy("float32")


@pytest.mark.eager
def test_mixed_bfloat16(bfloat16):
    model = _model(_resnets())
    assert {part.network.compute_dtype for part in _couplings(model)} == {"bfloat16"}
    history = model.fit(_IMAGES, batch_size=4, epochs=2, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    assert model.predict(_IMAGES, verbose=0).dtype == np.float32


@pytest.mark.eager
@pytest.mark.parametrize(
    "wrap",
    [
        pytest.param(lambda flow: flow, marks=pytest.mark.graph),
        lambda flow: tfd.TransformedDistribution(flow, tfb.Invert(tfb.Scale(1.0))),
        lambda flow: tfd.TransformedDistribution(
            flow.distribution, tfb.Chain([tfb.Scale(1.0), flow.bijector])
        ),
        lambda flow: tfd.Independent(flow),
    ],
    ids=["itself", "transformed_twice", "chain", "independent"],
)
def test_statistics_move_once_a_step(wrap):
    flow = _distribution()
    (norm, *_) = [p for p in flow.bijector.submodules if isinstance(p, tfr.BatchNormalization)]
    start, model = int(norm.moving.num_updates), _model(wrap(flow))
    history = model.fit(_IMAGES, batch_size=4, epochs=3, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    assert int(norm.moving.num_updates) == start + 6
    model.evaluate(_IMAGES, verbose=0)
    model.predict(_IMAGES, verbose=0)
    assert int(norm.moving.num_updates) == start + 6


# Losses that are not finite.


def _all_state(model):
    return ft.values([*model.distribution.variables, *model.optimizer.variables])


def _with_nan(images, index):
    images = images.astype(np.float32) + 0.5
    images[index, 1, 2, 0] = np.nan
    return images


# The ways in which a step is made.
_WAYS = {
    "graph": {},
    "xla": {"jit_compile": True},
    "eager": {"run_eagerly": True},
    "several_steps": {"steps_per_execution": 4},
    "several_steps_xla": {"steps_per_execution": 4, "jit_compile": True},
    "recompute": {"recompute": True},
    "recompute_xla": {"recompute": True, "jit_compile": True},
}
_FEW_WAYS = ("graph", "xla", "eager", "recompute")


def _failing_model(way, optimizer=None, **kwargs):
    keras.utils.set_random_seed(0)
    options = dict(_WAYS[way])
    distribution = _distribution(recompute=options.pop("recompute", False), **kwargs)
    return _model(distribution, dequantize=False, optimizer=optimizer, **options)


@pytest.mark.parametrize(
    ("way", "optimizer"),
    [
        *[("graph", "adam"), ("eager", None), ("several_steps", None)],
        *ft.full(("xla", None), ("recompute", None), ("xla", "sgd"), ("several_steps_xla", None)),
    ],
)
def test_a_nan_in_the_data_changes_nothing(way, optimizer):
    bad, good = (_failing_model(way, optimizer) for _ in range(2))
    # In the second of four batches: the third must not be trained on, even in the same execution.
    images = _with_nan(ft.grey_levels(16), 5)
    with pytest.raises(tfr.NonFiniteLossError, match="at step 1, first in the data") as error:
        bad.fit(ft.dataset(images), verbose=0)
    assert (error.value.step, error.value.part) == (1, "the data")
    good.fit(ft.dataset(images[:4]), verbose=0)
    rtol = 1e-6 if "several" in way else 0
    ft.assert_close(_all_state(bad), _all_state(good), rtol=rtol)
    # And training can go on.
    history = bad.fit(images[:4], batch_size=4, verbose=0).history
    assert np.isfinite(history["loss"]).all()


def _couplings(model):
    parts = model.distribution.bijector.submodules
    return [part for part in parts if isinstance(part, tfr.AffineCoupling)]


class _RootOfZero(keras.layers.Layer):
    """A network whose output is finite, and whose gradient is not."""

    def build(self, input_shape):
        self.kernel = self.add_weight(name="kernel", shape=[1], initializer="zeros")

    def call(self, inputs):
        return tf.sqrt(self.kernel * tf.concat([inputs, inputs], axis=-1) ** 2)


# Each function returns a model, and what the error may name.


def _bijector(way):
    # Without the norms of the network and between couplings, which hide a scale.
    model = _failing_model(way, normalization=None)
    # A finite scale, whose exponential is not.
    coupling = _couplings(model)[-1]
    coupling.scale.assign(1e4)
    return model, [f"the bijector {coupling.name}"]


def _variable(way):
    model = _failing_model(way)
    bias = _couplings(model)[1].network.bias
    bias.assign(tf.fill(bias.shape, np.inf))
    return model, [f"the variable {bias.path}"]


def _base(way):
    base = tfd.Independent(tfd.Uniform(tf.fill(_SHAPE, -1e-3), 1e-3), 3)
    model = _failing_model(way, base=base)
    return model, [f"the log density of {model.distribution.name}, after its bijectors"]


def _gradient(way):
    network_fn = lambda name, **_: _RootOfZero(name=name)  # noqa: E731
    model = _failing_model(way, normalization=None, network_fn=network_fn)
    for coupling in _couplings(model):
        coupling.network.kernel.assign([0.0])
    return model, [f"the gradient of {variable.path}" for variable in model.trainable_variables]


_OTHERS = (_variable, _base, _gradient)


@pytest.mark.parametrize(
    ("fail", "way"),
    [
        *((_bijector, way) for way in _FEW_WAYS),
        *((fail, way) for fail in _OTHERS for way in ("graph", "eager")),
        *ft.full(*((_bijector, way) for way in _WAYS if way not in _FEW_WAYS)),
        *ft.full(*((fail, way) for fail in _OTHERS for way in ("xla", "recompute"))),
    ],
)
def test_what_is_not_finite_is_named(fail, way):
    model, parts = fail(way)
    with ft.unchanged(model.distribution), pytest.raises(tfr.NonFiniteLossError) as error:
        model.fit(_IMAGES + 0.5, batch_size=4, shuffle=False, verbose=0)
    assert error.value.step == 0 and error.value.part in parts


def test_the_graph_that_runs_names_the_part():
    model = _vectors()
    model.fit(ft.dataset(_POINTS), verbose=0)
    # The graph with weights has another first part.
    model.fit(ft.dataset({"image": _POINTS, "sample_weight": np.ones(8)}), verbose=0)
    with pytest.raises(tfr.NonFiniteLossError, match="first in the data"):
        model.fit(ft.dataset(np.concatenate([_POINTS[:4], _POINTS[:4] * np.nan])), verbose=0)


def test_the_log_density_of_a_model():
    images, labels = ft.grey_levels(6), np.arange(6) % 3
    model = tfr.FlowModel(_distribution(num_classes=3, network_fn=None, num_blocks=0))
    expected = tfr.log_prob(model, images, labels)
    np.testing.assert_allclose(model.log_prob(images, labels), expected, rtol=1e-5)


def test_predict_leaves_evaluate_its_parts():
    model = _model()
    images, weights = _IMAGES.astype(np.float32), np.ones(8)
    model.evaluate(ft.dataset({"image": images, "sample_weight": weights}), verbose=0)
    model.predict(ft.dataset(images), verbose=0)
    with pytest.raises(ValueError, match="expected finite sample weights of at least 0"):
        model.evaluate(ft.dataset({"image": images, "sample_weight": -weights}), verbose=0)


@pytest.mark.eager
@pytest.mark.parametrize("invert", [tfb.Invert, lambda part: tfb.Invert(tfr.FlowChain([part]))])
def test_an_inverted_bijector_that_overflows_is_named(invert):
    network = tfr.DenseResNet(2, num_filters=2)
    coupling = tfr.AffineCoupling(tfr.ChannelMask(), network, event_ndims=1)
    flow = tfr.FlowChain([invert(coupling), tfr.ActNorm(event_ndims=1)])
    model = ft.compiled(tfd.TransformedDistribution(ft.standard_normal([2]), flow))
    coupling.scale.assign(-1e4)
    coupling.network.output_bias.assign([1.0, 1.0])
    with pytest.raises(tfr.NonFiniteLossError, match=f"first in the bijector {coupling.name};"):
        model.fit(_POINTS, verbose=0)


# Data that cannot be trained on.


@pytest.mark.eager
@pytest.mark.parametrize("method", ["fit", "evaluate", "predict"])
def test_an_empty_dataset(method):
    call, dataset = getattr(_model(), method), ft.dataset(_IMAGES)
    with pytest.raises(ValueError, match="expected images, got an empty dataset"):
        call(dataset.take(0), verbose=0)
    # The cardinality is unknown before the data are read.
    with pytest.raises(ValueError, match=r"expected data.*, got an empty dataset"):
        call(dataset.filter(lambda image: False), verbose=0)


@pytest.mark.parametrize("epochs", [{"epochs": 0}, {"epochs": 2, "initial_epoch": 2}])
def test_no_epochs_are_no_error_as_in_keras(epochs):
    model = _model()
    before = model.get_weights()
    assert not model.fit(_IMAGES, verbose=0, **epochs).history
    ft.assert_equal(model.get_weights(), before)

"""Errors of saving unsupported objects, and of loading malicious or malformed files."""

import json
import zipfile

import flow_testing as ft
import keras
import pytest
import tensorflow as tf
from tensorflow_probability import distributions as tfd

import tfp_realnvp as tfr
from tfp_realnvp.internal import versions
from tfp_realnvp.saving.keras_config import deserialize, serialize

pytestmark = [pytest.mark.quick, pytest.mark.core]


SHAPE = (4, 4, 1)


doubled = lambda x: tf.concat([x, x], axis=-1)  # noqa: E731


class UnknownLayer(keras.layers.Layer):
    def call(self, inputs):
        return doubled(inputs)


class Unregistered(tfr.Squeeze):
    def __init__(self, factor, name="unregistered"):
        super().__init__(name=name)
        self._parameters = {"factor": factor, "name": name}


@keras.saving.register_keras_serializable(package="tests")
class Incomplete(Unregistered):
    def get_config(self):
        return {"name": self.name}


@keras.saving.register_keras_serializable(package="tests")
class Hiding(tfr.Additive):
    def __init__(self, factor=1.0):
        super().__init__()
        self._factor = factor


@keras.saving.register_keras_serializable(package="tests")
class FewBins(tfr.RationalQuadraticSpline):
    def __init__(self, **kwargs):
        super().__init__(num_bins=3, **kwargs)


@keras.saving.register_keras_serializable(package="tests")
class WithoutKwargs(keras.layers.Layer):
    def __init__(self, units):
        super().__init__()


@keras.saving.register_keras_serializable(package="tests")
class WithoutFromConfig:
    def __call__(self, x):
        return tf.concat([x, x], axis=-1)

    def get_config(self):
        return {}


def coupling(network):
    return [tfr.AffineCoupling(tfr.CheckerboardMask(), network)]


def shared():
    bijector = tfr.ActNorm(num_channels=1)
    return [bijector, bijector.copy(name="other")]


def transformed(transformer):
    network = tfr.ShallowConv(transformer.num_parameters, 4)
    return [tfr.Coupling(tfr.CheckerboardMask(), network, transformer)]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: coupling(UnknownLayer()), r"0\]\.network .* UnknownLayer is not registered"),
        (
            lambda: coupling(keras.layers.Lambda(doubled)),
            r"0\]\.network cannot be saved: __lambda__ is not registered",
        ),
        (lambda: coupling(tf.identity), r"0\]\.network cannot be saved: .* a named function"),
        (lambda: [Unregistered(2.0)], "Unregistered is not registered .*@keras.saving.register_"),
        (lambda: [Incomplete(2.0)], "a get_config of Incomplete that returns.* argument: 'factor'"),
        (
            lambda: transformed(Hiding()),
            r"transformer cannot .*Hiding: expected an attribute .* attributes \['factor'\]",
        ),
        (
            lambda: transformed(FewBins()),
            "transformer cannot .* a get_config of FewBins .*multiple values.* 'num_bins'",
        ),
        (lambda: coupling(WithoutKwargs(2)), "get_config of WithoutKwargs .* argument 'trainable'"),
        (lambda: coupling(WithoutFromConfig()), "method from_config, .* got WithoutFromConfig"),
        (shared, r"1\] cannot be saved: it shares variables"),
    ],
)
@pytest.mark.filterwarnings("ignore:The object being serialized includes a `lambda`")
def test_a_bijector_that_could_not_be_loaded_is_not_saved(make, message):
    flow = tfd.TransformedDistribution(ft.standard_normal(SHAPE), tfr.FlowChain(make()))
    with pytest.raises(TypeError, match=rf"flow\.bijector\.bijectors\[.*{message}"):
        serialize(flow, "flow")


def test_a_base_with_a_function_that_is_not_registered_is_not_saved():
    joint = tfd.JointDistributionSequential([tfd.Normal(0.0, 1.0), lambda x: tfd.Normal(x, 1.0)])
    with pytest.raises(TypeError, match=r"base\.model\[1\] cannot be saved"):
        serialize(joint, "base")
    base = tfr.ConditionalBase(lambda label: tfd.Normal(tf.zeros(label.shape), 1.0), event_shape=[])
    with pytest.raises(TypeError, match=r"base\.make_distribution cannot be saved: .*lambda"):
        serialize(base, "base")


@pytest.mark.filterwarnings("ignore:The object being serialized includes a `lambda`")
def test_loading_runs_no_code_of_the_file(tmp_path):
    chain = tfr.FlowChain(coupling(tfr.ShallowConv(2, 4)))
    flow = tfd.TransformedDistribution(ft.standard_normal(SHAPE), chain)
    tfr.FlowModel(flow).save(tmp_path / "flow.keras")
    marker = str(tmp_path / "ran")
    layer = keras.layers.Lambda(lambda x: open(marker, "w") and tf.concat([x, x], axis=-1))
    for evil in (
        keras.saving.serialize_keras_object(layer),
        {"class_name": "__lambda__", "config": {"value": "AAAA"}},
        {"module": "os", "class_name": "function", "config": "system"},
        {"module": "subprocess", "class_name": "Popen", "config": {}},
    ):
        evil, bad = {"registered_name": evil["class_name"], **evil}, tmp_path / "bad.keras"
        with zipfile.ZipFile(tmp_path / "flow.keras") as good, zipfile.ZipFile(bad, "w") as changed:
            for name in good.namelist():
                content = good.read(name)
                if name == "config.json":
                    config = json.loads(content)
                    bijector = config["config"]["distribution"]["arguments"]["bijector"]
                    first = bijector["arguments"]["bijectors"][0]
                    first["arguments"]["network"] = {"kind": "keras", "config": evil}
                    content = json.dumps(config).encode()
                changed.writestr(name, content)
        with pytest.raises(ValueError, match=r"arbitrary code|unsafe|Could not locate"):
            keras.models.load_model(bad)
    assert not (tmp_path / "ran").exists()


def test_configurations_of_other_objects_raise():
    for config, expected in (
        ({"kind": "pickle"}, "a configuration of one of the kinds"),
        ({"kind": "dtype", "name": "float32"}, "the configuration of a Distribution"),
        ({"kind": "dtype"}, "the configuration of a Distribution"),
    ):
        with pytest.raises(ValueError, match=f"expected {expected}"):
            deserialize(config, tfd.Distribution)


@keras.saving.register_keras_serializable(package="tests")
class Versioned(keras.layers.Layer):
    """A network whose variables differ between versions of its class."""

    num_filters = 4

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.layers = [keras.layers.Dense(units) for units in (self.num_filters, 2)]

    def call(self, x):
        return self.layers[1](self.layers[0](x))


def versioned_model():
    flow = tfr.FlowChain(coupling(Versioned()))
    return tfr.FlowModel(tfd.TransformedDistribution(ft.standard_normal(SHAPE), flow))


def saved_by(writer, how, folder):
    """Saves a model as another version does; returns a function that loads it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(versions, "current", lambda: writer)
        model = versioned_model()
        model.save(folder / "model.keras")
        model.save_weights(folder / "model.weights.h5")
        if how == "from_preset":
            model.save_to_preset(folder / "preset")
    return {
        "load_model": lambda: keras.models.load_model(folder / "model.keras"),
        "from_preset": lambda: tfr.FlowModel.from_preset(folder / "preset"),
        "load_weights": lambda: versioned_model().load_weights(folder / "model.weights.h5"),
    }[how]


EARLIER = {"tfp_realnvp_version": "0.1.7", "format_version": 1}
LATER = {"tfp_realnvp_version": "3.1.4", "format_version": 3}


@pytest.mark.parametrize(
    ("how", "writer", "name"),
    [
        ("load_model", EARLIER, r"tfp_realnvp 0\.1\.7"),
        ("load_weights", EARLIER, r"tfp_realnvp 0\.1\.7"),
        ("from_preset", EARLIER, r"tfp_realnvp 0\.1\.7"),
        ("load_model", {}, "an earlier version of tfp_realnvp"),
        ("load_weights", {}, "an earlier version of tfp_realnvp"),
    ],
)
def test_an_error_names_both_versions(how, writer, name, tmp_path, monkeypatch):
    load = saved_by(writer, how, tmp_path)
    load()
    both = (
        rf"by {name} \(file format 1\), and this is tfp_realnvp {tfr.__version__} \(file format 2\)"
    )
    monkeypatch.setattr(Versioned, "num_filters", 6)
    with pytest.raises(ValueError, match=rf"\(1, 4\) instead of .*\(1, 6\) for layers/.*{both}"):
        load()
    if how != "load_weights":
        monkeypatch.setattr(Versioned, "num_filters", None)
        # Keras 3.5 names a shape with `None`, later releases the argument.
        unknown = r"(?s)(units|fully-defined)"
        with pytest.raises(ValueError, match=rf"{unknown}.*\. The file was written {both}: load"):
            load()


@pytest.mark.parametrize("how", ["load_model", "load_weights", "from_preset"])
def test_an_error_of_a_file_of_this_version_names_no_version(how, tmp_path, monkeypatch):
    load = saved_by(versions.current(), how, tmp_path)
    monkeypatch.setattr(Versioned, "num_filters", 6)
    with pytest.raises(ValueError, match=r"\(1, 4\) instead of .*\(1, 6\)") as error:
        load()
    assert "written by" not in str(error.value)


@pytest.mark.parametrize("how", ["load_model", "from_preset"])
def test_a_file_of_a_later_format_is_not_loaded(how, tmp_path):
    load = saved_by(LATER, how, tmp_path)
    match = r"format_version of at most 2, got 3\. .* by tfp_realnvp 3\.1\.4 \(file format 3\), and"
    with pytest.raises(ValueError, match=match):
        load()

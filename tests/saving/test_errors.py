"""Errors of saving unsupported objects, and of loading malicious or malformed files."""

import json
import os
import zipfile

import keras
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from flow_testing import flow_distribution, standard_normal

import tfp_realnvp as tfr
from tfp_realnvp.networks import ShallowConv
from tfp_realnvp.saving.keras_config import deserialize_distribution, serialize_distribution

pytestmark = [pytest.mark.quick, pytest.mark.core]

tfd, tfb = tfp.distributions, tfp.bijectors

SHAPE = (4, 4, 1)


class UnknownLayer(keras.layers.Layer):
    def call(self, inputs):
        return tf.concat([inputs, inputs], axis=-1)


@pytest.mark.parametrize(
    "network",
    [
        lambda: UnknownLayer(),
        lambda: keras.layers.Lambda(lambda x: tf.concat([x, x], axis=-1)),
        lambda: tf.identity,
    ],
    ids=["unregistered layer", "lambda layer", "function"],
)
@pytest.mark.filterwarnings("ignore:The object being serialized includes a `lambda`")
def test_serializing_a_network_that_keras_cannot_load_raises(network):
    chain = tfr.FlowChain([tfr.AffineCoupling(tfr.CheckerboardMask(), network())])
    flow = tfd.TransformedDistribution(standard_normal(SHAPE), chain)
    match = r"distribution\.bijector\.bijectors\[0\]\.network cannot be saved"
    with pytest.raises(TypeError, match=match):
        serialize_distribution(flow)


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
class WithoutKwargs(keras.layers.Layer):
    def __init__(self, units):
        super().__init__()


@keras.saving.register_keras_serializable(package="tests")
class WithoutFromConfig:
    def __call__(self, x):
        return tf.concat([x, x], axis=-1)

    def get_config(self):
        return {}


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (lambda: Unregistered(2.0), "Unregistered is not registered .*@keras.saving.register_"),
        (lambda: Incomplete(2.0), "a get_config of Incomplete that returns.* argument: 'factor'"),
        (
            lambda: tfr.Coupling(tfr.CheckerboardMask(), ShallowConv(1, 4), Hiding()),
            r"transformer cannot .*Hiding: expected attributes .* got none for \['factor'\]",
        ),
        (
            lambda: tfr.AffineCoupling(tfr.CheckerboardMask(), WithoutKwargs(2)),
            "network cannot .*a get_config of WithoutKwargs .* unexpected .* argument 'trainable'",
        ),
        (
            lambda: tfr.AffineCoupling(tfr.CheckerboardMask(), WithoutFromConfig()),
            "network cannot .*the class method from_config, .* got WithoutFromConfig",
        ),
    ],
)
def test_serializing_a_class_of_the_user_that_cannot_be_loaded_raises(part, message):
    flow = tfd.TransformedDistribution(standard_normal(SHAPE), tfr.FlowChain([part()]))
    with pytest.raises(TypeError, match=rf"distribution\.bijector\.bijectors\[0\].*{message}"):
        serialize_distribution(flow)


def test_serializing_a_base_with_a_function_raises():
    base = tfd.JointDistributionSequential([tfd.Normal(0.0, 1.0), lambda x: tfd.Normal(x, 1.0)])
    with pytest.raises(TypeError, match=r"distribution\.model\[1\] cannot be saved"):
        serialize_distribution(base)


def test_serializing_a_conditional_base_with_an_unregistered_function_raises():
    base = tfr.ConditionalBase(
        lambda label: tfd.Independent(tfd.Normal(tf.zeros([*label.shape, *SHAPE]), 1.0), 3),
        event_shape=SHAPE,
    )
    with pytest.raises(
        TypeError, match=r"distribution\.make_distribution cannot be saved: .*lambda"
    ):
        serialize_distribution(base)


def test_serializing_bijectors_that_share_variables_raises():
    bijector = tfr.ActNorm(num_channels=1)
    chain = tfr.FlowChain([bijector, bijector.copy(name="other")])
    flow = tfd.TransformedDistribution(standard_normal(SHAPE), chain)
    with pytest.raises(TypeError, match=r"bijectors\[1\] cannot be saved: it shares variables"):
        serialize_distribution(flow)


def edited(source, target, edit):
    """Copies a `.keras` file, applies `edit` to its configuration, and returns the copy's path."""
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(target, "w") as changed:
        for name in archive.namelist():
            content = archive.read(name)
            if name == "config.json":
                config = json.loads(content)
                edit(config["config"]["distribution"]["arguments"])
                content = json.dumps(config).encode()
            changed.writestr(name, content)
    return target


@pytest.mark.parametrize(
    "name", ["os.system", "subprocess.Popen", "tfp.distributions.np", "tfp_realnvp.FlowModel", "x"]
)
def test_loading_any_other_class_raises(tmp_path, name):
    tfr.FlowModel(flow_distribution(SHAPE, num_scales=1, num_blocks=0, num_couplings=1)).save(
        tmp_path / "flow.keras"
    )
    path = edited(
        tmp_path / "flow.keras",
        tmp_path / "bad.keras",
        lambda arguments: arguments["bijector"].update({"class": name}),
    )
    with pytest.raises(ValueError, match="expected a public distribution or bijector"):
        keras.models.load_model(path)


def test_loading_a_lambda_raises(tmp_path):
    tfr.FlowModel(flow_distribution(SHAPE, num_scales=1, num_blocks=0, num_couplings=1)).save(
        tmp_path / "flow.keras"
    )
    evil = {"class_name": "__lambda__", "config": {"value": "AAAA"}}
    path = edited(
        tmp_path / "flow.keras",
        tmp_path / "bad.keras",
        lambda arguments: arguments["bijector"]["arguments"]["bijectors"][1]["arguments"].update(
            network={"kind": "keras", "config": evil}
        ),
    )
    with pytest.raises(ValueError, match="lambda"):
        keras.models.load_model(path)


@pytest.mark.parametrize("kind", ["lambda layer", "function of a module", "class of a module"])
@pytest.mark.filterwarnings("ignore:The object being serialized includes a `lambda`")
def test_loading_runs_no_code_of_the_file(tmp_path, kind):
    marker = str(tmp_path / "ran")
    layer = keras.layers.Lambda(lambda x: open(marker, "w") and tf.concat([x, x], axis=-1))
    evil = {
        "lambda layer": keras.saving.serialize_keras_object(layer),
        "function of a module": {"module": "os", "class_name": "function", "config": "system"},
        "class of a module": {"module": "subprocess", "class_name": "Popen", "config": {}},
    }[kind]
    network = {"kind": "keras", "config": {"registered_name": evil["class_name"], **evil}}
    coupling = tfr.AffineCoupling(tfr.CheckerboardMask(), tfr.ShallowConv(2, 4))
    flow = tfd.TransformedDistribution(standard_normal(SHAPE), tfr.FlowChain([coupling]))
    tfr.FlowModel(flow).save(tmp_path / "flow.keras")
    path = edited(
        tmp_path / "flow.keras",
        tmp_path / "bad.keras",
        lambda arguments: arguments["bijector"]["arguments"]["bijectors"][0]["arguments"].update(
            network=network
        ),
    )
    with pytest.raises((TypeError, ValueError), match=r"arbitrary code|unsafe|Could not locate"):
        keras.models.load_model(path)
    assert not os.path.exists(marker)


def test_configurations_of_other_objects_raise():
    with pytest.raises(ValueError, match="expected a configuration of one of the kinds"):
        deserialize_distribution({"kind": "pickle"})
    with pytest.raises(ValueError, match="expected the configuration of a Distribution"):
        deserialize_distribution({"kind": "dtype", "name": "float32"})
    with pytest.raises(ValueError, match="expected the configuration of a Distribution"):
        deserialize_distribution({"kind": "dtype"})

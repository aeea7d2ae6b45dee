"""The private APIs that `internal/private_api.py` uses exist, and do what they are used for.

A failure says which one a new release of TensorFlow, TFP or Keras has moved or changed.
"""

import ast
import importlib
import pathlib

import keras
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

tfb = tfp.bijectors
tfd = tfp.distributions

_FILE = "tfp_realnvp/internal/private_api.py"
_CODE = (pathlib.Path(__file__).parents[2] / _FILE).read_text()

# What each name is for.
_PURPOSES = {
    "BijectorCacheWithGreedyAttrs": "the cache of one network pass for value and log det",
    "Chain": "recognizing a `tfb.Chain` of bijectors that hold networks",
    "EphemeralDict": "the storage of the cache",
    "Independent": "recognizing a `tfd.Independent` of a flow",
    "Invert": "recognizing a `tfb.Invert` of a bijector that holds networks",
    "TransformedDistribution": "recognizing a distribution with a flow",
    "assign_on_replica": "assigning to the copy of a variable on one replica",
    "could_possibly_record": "knowing whether a gradient tape is active",
    "flatten_layers": "finding the scales of weight normalization within a network",
    "record_operation": "giving a tape the gradient of a part that is computed again",
    "set_trainable": "freezing the variables of a frozen Keras layer for TFP and the tape",
    "should_record_backprop": "knowing whether a gradient tape watches a tensor",
    "stop_recording": "keeping the activations of a part that is computed again off the tape",
}


def _imports():
    """Returns the module, the name there, and the name here of each private import."""
    return [
        (node.module, alias.name, alias.asname or alias.name)
        for node in ast.walk(ast.parse(_CODE))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if ".python." in node.module
    ]


@pytest.mark.parametrize(("module", "name", "here"), _imports(), ids=lambda value: value)
def test_the_name_exists(module, name, here):
    try:
        exists = hasattr(importlib.import_module(module), name)
    except ImportError:
        exists = False
    assert exists, (
        f"{module}.{name} does not exist in this release; {_FILE} needs it for {_PURPOSES[here]}."
    )


@pytest.fixture
def private_api():
    try:
        return importlib.import_module("tfp_realnvp.internal.private_api")
    except ImportError as error:
        pytest.fail(f"{_FILE} imports a private API that this release does not have: {error}.")


def _works(name, condition):
    """Asserts the condition, with a sentence about the name."""
    assert condition, f"{name} does not work in this release; it is for {_PURPOSES[name]}."


def test_every_name_has_a_purpose(private_api):
    assert sorted(_PURPOSES) == sorted(private_api.__all__)


class _Exp(tfb.Bijector):
    """A bijector that is not a composite tensor, as those that hold networks."""

    def __init__(self):
        super().__init__(forward_min_event_ndims=0, parameters={}, name="exp")


def test_bases_of_bijectors(private_api):
    # Subclasses, and composite tensors as well.
    for inner in (_Exp(), tfb.Exp()):
        _works("Invert", isinstance(tfb.Invert(inner), private_api.Invert))
        _works("Invert", tfb.Invert(inner).bijector is inner)
        chain = tfb.Chain([inner])
        _works("Chain", isinstance(chain, private_api.Chain) and chain.bijectors[0] is inner)
    _works("Invert", not isinstance(tfb.Exp(), private_api.Invert))
    _works("Chain", not isinstance(tfb.Invert(tfb.Exp()), private_api.Chain))


def test_bases_of_distributions(private_api):
    normal = tfd.Normal([0.0], 1.0)
    for bijector in (_Exp(), tfb.Exp()):
        transformed = tfd.TransformedDistribution(normal, bijector)
        _works(
            "TransformedDistribution",
            isinstance(transformed, private_api.TransformedDistribution)
            and transformed.bijector is bijector
            and transformed.distribution is normal,
        )
        independent = tfd.Independent(transformed)
        _works(
            "Independent",
            isinstance(independent, private_api.Independent)
            and independent.distribution is transformed,
        )
    _works("Independent", not isinstance(normal, private_api.Independent))


def test_the_cache_of_bijectors(private_api):
    calls = []

    class Double(tfb.Bijector):
        _cache = private_api.BijectorCacheWithGreedyAttrs("_double", "_half")

        def __init__(self):
            super().__init__(forward_min_event_ndims=0, parameters={}, name="double")

        def _double(self, x):
            calls.append("double")
            return 2 * x, {"ildj": -tf.ones_like(x)}

        def _half(self, y):
            calls.append("half")
            return y / 2, {"ildj": tf.ones_like(y)}

        def _forward(self, x):
            return self._cache.forward(x)

        def _forward_log_det_jacobian(self, x):
            return -self._cache.forward_attributes(x)["ildj"]

    x, bijector = tf.constant(3.0), Double()
    y, log_det = bijector.forward(x), bijector.forward_log_det_jacobian(x)
    _works(
        "BijectorCacheWithGreedyAttrs",
        (float(y), float(log_det), calls) == (6.0, 1.0, ["double"]),
    )
    for method in ("_lookup", "_attributes", "_get_or_create_edge", "_invoke"):
        _works(
            "BijectorCacheWithGreedyAttrs",
            callable(getattr(private_api.BijectorCacheWithGreedyAttrs, method, None)),
        )


def test_the_storage_of_the_cache(private_api):
    storage = private_api.EphemeralDict()
    _works("EphemeralDict", isinstance(storage, dict) and callable(storage.maybe_del))


def test_whether_a_tape_is_active_or_watches(private_api):
    x, other = tf.constant(1.0), tf.constant(2.0)
    _works("could_possibly_record", not private_api.could_possibly_record())
    with tf.GradientTape() as tape:
        tape.watch(x)
        _works("could_possibly_record", private_api.could_possibly_record())
        _works("should_record_backprop", private_api.should_record_backprop([x]))
        _works("should_record_backprop", not private_api.should_record_backprop([other]))


@pytest.mark.parametrize("mode", ["eager", "function"])
def test_recording_a_gradient_of_our_own(private_api, mode):
    def gradient_of(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            with private_api.stop_recording():
                y = x**2
            _works("stop_recording", not private_api.should_record_backprop([y]))
            private_api.record_operation("Test", [y], [x], lambda upstream: [7 * upstream])
            z = 3 * y
        return tape.gradient(z, x)

    function = tf.function(gradient_of) if mode == "function" else gradient_of
    _works("record_operation", float(function(tf.constant(1.0))) == 21.0)


def test_setting_whether_a_variable_is_trainable(private_api):
    module = tf.Module()
    module.variable = tf.Variable(1.0)
    for trainable in (False, True):
        private_api.set_trainable(module.variable, trainable)
        with tf.GradientTape() as tape:
            y = 2 * module.variable
        _works("set_trainable", module.variable.trainable is trainable)
        _works("set_trainable", len(module.trainable_variables) == trainable)
        _works("set_trainable", (tape.gradient(y, module.variable) is not None) is trainable)


def test_all_layers_within_a_layer(private_api):
    class Block(keras.layers.Layer):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

    dense = keras.layers.Dense(1)
    block = Block(keras.Sequential([keras.Input([2]), dense]))
    layers = private_api.flatten_layers(block)
    _works("flatten_layers", {id(block), id(dense)} <= {id(layer) for layer in layers})


def test_assigning_on_a_replica(private_api):
    variable = tf.Variable([1.0, 2.0])
    value = tf.constant([3.0, 4.0])
    private_api.assign_on_replica(variable, value)
    _works("assign_on_replica", variable.numpy().tolist() == value.numpy().tolist())

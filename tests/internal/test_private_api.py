"""The private APIs that `internal/private_api.py` names exist, do what they are for, and are all.

A failure says which one a new release of TensorFlow, TFP or Keras has moved or changed, or which
one the package uses without naming it there.
"""

import ast
import importlib
import inspect
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_realnvp.internal.private_api import HOOKS, INHERITED, OVERRIDDEN

pytestmark = [pytest.mark.quick, pytest.mark.core]

tfb = tfp.bijectors
tfd = tfp.distributions

_FILE = "tfp_realnvp/internal/private_api.py"
_ROOT = pathlib.Path(__file__).parents[2]
_CODE = (_ROOT / _FILE).read_text()

# What each name is for.
_PURPOSES = {
    "ArrayDataAdapter": "making the batches that Keras makes, without autotuning",
    "BijectorCacheWithGreedyAttrs": "the cache of one network pass for value and log det",
    "Chain": "recognizing a `tfb.Chain` of bijectors that hold networks",
    "EphemeralDict": "the storage of the cache",
    "FunctionCallOptions": "choosing the rewrites that TensorFlow makes of a graph",
    "HOOKS": "naming the methods that TFP documents for subclasses",
    "INHERITED": "naming the attributes that classes inherit and use",
    "Independent": "recognizing a `tfd.Independent` of a flow",
    "Invert": "recognizing a `tfb.Invert` of a bijector that holds networks",
    "OVERRIDDEN": "naming the methods that classes override",
    "Sample": "recognizing a `tfd.Sample` of a distribution with variables",
    "TransformedDistribution": "recognizing a distribution with a flow",
    "WITHIN_FIT": "using averaged weights in the validation of `FlowModel.fit`",
    "assign_on_replica": "assigning to the copy of a variable on one replica",
    "batch_counter": "the number of a step where an optimizer accumulates gradients",
    "can_convert_arrays": "telling arrays from datasets as Keras does",
    "convert_variables_to_constants_v2": "making a graph without variables for an ONNX model",
    "could_possibly_record": "knowing whether a gradient tape is active",
    "eager_context": "choosing the rewrites of graphs for the calls of a thread",
    "flatten_layers": "finding the scales of weight normalization within a network",
    "is_onednn_enabled": "telling whether convolutions use oneDNN",
    "record_operation": "giving a tape the gradient of a part that is computed again",
    "set_trainable": "freezing the variables of a frozen Keras layer for TFP and the tape",
    "should_record_backprop": "knowing whether a gradient tape watches a tensor",
    "stop_recording": "keeping the activations of a part that is computed again off the tape",
    "validate_data": "checking tables as scikit-learn does, also before its release 1.6",
    "weights_in_memory": "writing weights to a full disk without a crash",
}
# Public, as the documentation of Python's named tuples says.
_OF_NAMED_TUPLES = {"_asdict", "_fields", "_replace"}


def _imports():
    """Returns the module, the name there, and the name here of each private import."""
    return [
        (node.module, alias.name, alias.asname or alias.name)
        for node in ast.walk(ast.parse(_CODE))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if ".python." in node.module or node.module.startswith("keras.src")
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


# Attributes and methods that begin with an underscore.

_LISTED = [
    (owner, name)
    for names in (HOOKS, OVERRIDDEN, INHERITED)
    for owner in names
    for name in names[owner]
]
_OF_OTHERS = ("tensorflow", "tensorflow_probability", "keras")


@pytest.mark.parametrize(
    ("owner", "name"), _LISTED, ids=lambda value: getattr(value, "__name__", value)
)
def test_the_attribute_exists(owner, name):
    # Some are set in `__init__`, and some hooks have no definition in the base class.
    exists = hasattr(owner, name) or any(
        f"self.{name}" in inspect.getsource(base) for base in owner.__mro__[:-1]
    )
    reasons = {**OVERRIDDEN.get(owner, {}), **INHERITED.get(owner, {})}
    assert exists, (
        f"{owner.__name__}.{name} does not exist in this release; {_FILE} names it: "
        f"{reasons.get(name, 'TFP documents it for subclasses')}."
    )


def _is_private(name):
    is_special = name.endswith("__") or name in _OF_NAMED_TUPLES
    return name.startswith("_") and not is_special


def _trees():
    """Returns the syntax trees of the package, by path, without that of `private_api.py`."""
    paths = (_ROOT / "tfp_realnvp").rglob("*.py")
    paths = sorted(path.relative_to(_ROOT) for path in paths)
    return {path: ast.parse((_ROOT / path).read_text()) for path in paths if str(path) != _FILE}


def _defined_names(node):
    """Returns the private names that code defines: functions, variables and attributes."""
    names = set()
    for part in ast.walk(node):
        if isinstance(part, (ast.FunctionDef, ast.ClassDef)):
            names.add(part.name)
        elif isinstance(part, ast.Attribute) and isinstance(part.ctx, ast.Store):
            names.add(part.attr)
        elif isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
            names.add(part.id)
    return {name for name in names if _is_private(name)}


def _unknown_attributes(trees, known):
    """Returns where code uses a private attribute that is not known."""
    return [
        f"{path}:{node.lineno}: {node.attr}"
        for path, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and _is_private(node.attr) and node.attr not in known
    ]


def _overridden(cls, names):
    """Returns those of the private names that a class of another library defines or calls."""
    bases = [b for b in cls.__mro__ if b.__module__.split(".")[0] in _OF_OTHERS]
    return {name for name in names if any(hasattr(base, name) for base in bases)}


def test_the_package_uses_no_other_attributes():
    trees = _trees()
    known = {name for _, name in _LISTED}.union(*map(_defined_names, trees.values()))
    unknown = _unknown_attributes(trees, known)
    assert not unknown, f"name these private attributes in {_FILE}:\n" + "\n".join(unknown)


def test_the_package_overrides_no_other_methods():
    unknown = []
    for path, tree in _trees().items():
        classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
        try:
            module = importlib.import_module(".".join(path.with_suffix("").parts))
        except ModuleNotFoundError as error:
            # Modules of optional features, which need a library that is not a requirement.
            assert "tfp_realnvp" not in error.name
            continue
        for name, node in classes.items():
            cls = getattr(module, name)
            listed = {attribute for owner, attribute in _LISTED if issubclass(cls, owner)}
            others = _overridden(cls, _defined_names(node)) - listed
            unknown += [f"{path}: {name}.{attribute}" for attribute in sorted(others)]
    assert not unknown, f"name these methods, with a reason, in {_FILE}:\n" + "\n".join(unknown)


def test_every_listed_attribute_is_used():
    code = "".join(ast.unparse(tree) for tree in _trees().values())
    unused = [name for _, name in _LISTED if name not in code]
    assert not unused, f"{_FILE} names {unused}, which nothing uses."


def test_attributes_and_methods_are_found():
    code = """
class Model(keras.Model):
    def __init__(self):
        self._own = 1
        self._tracker = 2

    def _symbolic_build(self):
        return self._own, self._distribute_strategy
"""
    tree = ast.parse(code)
    names = _defined_names(tree)
    assert names == {"_own", "_tracker", "_symbolic_build"}
    assert _unknown_attributes({"model.py": tree}, names) == ["model.py:8: _distribute_strategy"]
    assert _overridden(keras.Model, names) == {"_symbolic_build"}


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
        sample = tfd.Sample(transformed, [2])
        _works(
            "Sample",
            isinstance(sample, private_api.Sample) and sample.distribution is transformed,
        )
    for name in ("Independent", "Sample"):
        _works(name, not isinstance(normal, getattr(private_api, name)))


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
    for method in ("_lookup", "_attributes", "_get_or_create_edge"):
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


def test_options_of_calls(private_api):
    context = private_api.eager_context()
    before = context.function_call_options
    square = tf.function(lambda x: x * x)
    config = tf.compat.v1.ConfigProto.FromString(before.config_proto_serialized)
    context.function_call_options = private_api.FunctionCallOptions("no such executor", config)
    try:
        # That the error comes shows that calls have the options.
        with pytest.raises(tf.errors.OpError, match="no such executor"):
            square(tf.constant(3.0))
    except pytest.fail.Exception:
        _works("eager_context", False)
    finally:
        context.function_call_options = before
    _works("FunctionCallOptions", float(square(tf.constant(3.0))) == 9.0)


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


def _mirrored():
    return tf.distribute.MirroredStrategy(["cpu:0"])


@pytest.mark.parametrize(
    "strategy", [tf.distribute.get_strategy, _mirrored], ids=["one", "mirrored"]
)
def test_setting_whether_a_variable_is_trainable(private_api, strategy):
    module = tf.Module()
    with strategy().scope():
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


def test_a_graph_without_variables(private_api):
    variable, captured = tf.Variable([1.0, 2.0]), tf.zeros([200, 2])
    function = tf.function(lambda x: x + variable + captured)
    function = function.get_concrete_function(tf.TensorSpec([2], tf.float32, "x"))
    frozen = private_api.convert_variables_to_constants_v2(
        function, lower_control_flow=False, aggressive_inlining=True
    )
    names = [tensor.name for tensor in frozen.inputs]
    _works("convert_variables_to_constants_v2", names == ["x:0"])
    (outputs,) = frozen(tf.constant([3.0, 4.0]))
    _works("convert_variables_to_constants_v2", outputs.numpy()[0].tolist() == [4.0, 6.0])


def test_assigning_on_a_replica(private_api):
    variable = tf.Variable([1.0, 2.0])
    value = tf.constant([3.0, 4.0])
    private_api.assign_on_replica(variable, value)
    _works("assign_on_replica", variable.numpy().tolist() == value.numpy().tolist())


class _Plain(keras.Model):
    """Keeps the batches of its steps and the options of `evaluate`."""

    def __init__(self):
        super().__init__()
        self.built = True
        self.seen, self.options = [], []
        self.compile(run_eagerly=True)

    def train_step(self, data):
        self.seen.append(data.numpy().tolist())
        return {"loss": tf.zeros([])}

    test_step = train_step

    def predict_step(self, data):
        return data

    def evaluate(self, *args, **kwargs):
        self.options.append(kwargs)
        return super().evaluate(*args, **kwargs)


def test_batches_of_arrays(private_api):
    arrays = np.arange(5.0)
    _works("can_convert_arrays", private_api.can_convert_arrays((arrays, None)))
    dataset = tf.data.Dataset.range(3)
    _works("can_convert_arrays", not private_api.can_convert_arrays((dataset, None)))
    # `fit` takes the adapter as it is.
    parts = arrays[:3], arrays[3:]
    adapters = [private_api.ArrayDataAdapter(part, batch_size=2) for part in parts]
    model = _Plain()
    model.fit(adapters[0], validation_data=adapters[1], shuffle=False, verbose=0)
    _works("ArrayDataAdapter", model.seen == [[0.0, 1.0], [2.0], [3.0, 4.0]])


def test_the_validation_within_fit(private_api):
    model = _Plain()
    model.fit(np.zeros([2]), validation_data=np.zeros([2]), verbose=0)
    model.evaluate(np.zeros([2]), verbose=0)
    within, alone = (options.get(private_api.WITHIN_FIT, False) for options in model.options)
    _works("WITHIN_FIT", within and not alone)


def test_checking_a_table(private_api):
    base = pytest.importorskip("sklearn.base")
    estimator = base.BaseEstimator()
    rows = private_api.validate_data(estimator, [[1, 2], [3, 4]], dtype=np.float64)
    _works("validate_data", (rows.dtype, estimator.n_features_in_) == (np.float64, 2))
    with pytest.raises(ValueError, match="2 features"):
        private_api.validate_data(estimator, [[1.0]], reset=False)


def test_weights_in_memory(private_api, tmp_path):
    model = keras.Sequential([keras.Input([2]), keras.layers.Dense(3)])
    path = tmp_path / "model.weights.h5"
    path.write_bytes(private_api.weights_in_memory(model).getvalue())
    expected = model.get_weights()
    model.set_weights([weight + 1 for weight in expected])
    model.load_weights(path)
    pairs = zip(model.get_weights(), expected, strict=True)
    _works("weights_in_memory", all(np.array_equal(*pair) for pair in pairs))


def test_onednn(private_api):
    _works("is_onednn_enabled", isinstance(private_api.is_onednn_enabled(), bool))

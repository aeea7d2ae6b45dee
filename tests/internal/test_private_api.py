"""The private APIs that `internal/private_api.py` names exist, and the package uses no others.

A failure says which one a new release of TensorFlow, TFP or Keras has moved, or which one the
package uses without naming it there. What they do is tested where the package uses them.
"""

import ast
import importlib
import inspect
import pathlib

import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_realnvp.internal.private_api import ATTRIBUTES, set_trainable

pytestmark = [pytest.mark.quick, pytest.mark.core]

_FILE = "tfp_realnvp/internal/private_api.py"
_ROOT = pathlib.Path(__file__).parents[2]
_CODE = (_ROOT / _FILE).read_text()

# Public, as the documentation of Python's named tuples says.
_OF_NAMED_TUPLES = {"_asdict", "_fields", "_replace"}


def _imports():
    """Returns the module and the name there of each private import."""
    return [
        (node.module, alias.name)
        for node in ast.walk(ast.parse(_CODE))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if ".python." in node.module or node.module.startswith("keras.src")
    ]


@pytest.mark.parametrize(("module", "name"), _imports(), ids=lambda value: value)
def test_the_name_exists(module, name):
    try:
        exists = hasattr(importlib.import_module(module), name)
    except ImportError:
        exists = False
    assert exists, f"{module}.{name} does not exist in this release; {_FILE} says what it is for."


# Attributes and methods that begin with an underscore.

# Methods that TFP documents for subclasses to override.
_HOOKS = {
    tfp.bijectors.Bijector: """
        _forward _inverse _forward_log_det_jacobian _inverse_log_det_jacobian _parameter_properties
        _forward_event_shape _forward_event_shape_tensor
        _inverse_event_shape _inverse_event_shape_tensor
    """.split(),
    tfp.distributions.Distribution: """
        _log_prob _event_shape _event_shape_tensor
        _batch_shape _batch_shape_tensor _parameter_properties _default_event_space_bijector
    """.split(),
}

_LISTED = [
    (owner, name) for names in (_HOOKS, ATTRIBUTES) for owner in names for name in names[owner]
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
    reason = ATTRIBUTES.get(owner, {}).get(name, "TFP documents it for subclasses")
    assert exists, (
        f"{owner.__name__}.{name} does not exist in this release; {_FILE} names it: {reason}."
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


def test_freezing_a_variable_of_a_strategy():
    module = tf.Module()
    with tf.distribute.MirroredStrategy(["cpu:0"]).scope():
        module.variable = tf.Variable(1.0)
    for trainable in (False, True):
        set_trainable(module.variable, trainable)
        with tf.GradientTape() as tape:
            y = 2 * module.variable
        assert module.variable.trainable is trainable
        assert len(module.trainable_variables) == trainable
        assert (tape.gradient(y, module.variable) is not None) is trainable

"""Exposes the variables of a distribution to Keras, by names."""

import collections
import re
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_realnvp.internal import layer_variables

tfd = tfp.distributions


class TrackedVariables(keras.layers.Layer):
    """A Keras layer that tracks `tf.Variable`s outside of networks.

    Weights files store each variable under its name, not its position.
    """

    def __init__(self, layers: Sequence[keras.layers.Layer], modules: Sequence[tf.Module]) -> None:
        """Constructs the layer for `modules`: a distribution, and a dequantizer if there is one."""
        super().__init__(name="other_variables")
        of_layers = {id(v.value) for layer in layers for v in layer.variables}
        variables: dict[str, tf.Variable] = {}
        for root, module in zip(("distribution", "dequantizer"), modules, strict=False):
            names = variable_names(module, root)
            for variable in module.variables:
                if id(variable) not in of_layers:
                    variables.setdefault(names[id(variable)], variable)
        self.wrapped = [
            keras.Variable(v, trainable=v.trainable, dtype=v.dtype.name, name=key)
            for key, v in variables.items()
        ]
        for variable in self.wrapped:
            layer_variables.link_trainable(variable)
        self.built = True

    def save_own_variables(self, store: Any) -> None:
        """Writes the variables by name."""
        for variable in self.wrapped:
            store[variable.name] = variable

    def load_own_variables(self, store: Any) -> None:
        """Reads the variables by name."""
        for variable in self.wrapped:
            variable.assign(store[variable.name])


def variable_names(module: tf.Module, root: str) -> dict[int, str]:
    """Returns the names of a module's variables, keyed by the `id` of each variable.

    A name is the path from `root` to the variable: constructor arguments of distributions and
    bijectors, attributes of other modules, names in Keras layers, and names or indices of elements
    in lists. The name does not depend on the number or order of other variables.
    """
    names: dict[int, str] = {}
    # Keys are `id`s, which are unique because the values keep the objects alive.
    seen: dict[int, Any] = {}
    pending: collections.deque[tuple[str, Any]] = collections.deque([(root, module)])
    # Search breadth first, so that a variable in several places gets its shortest name.
    while pending:
        path, value = pending.popleft()
        if id(value) not in seen:
            seen[id(value)] = value
            if isinstance(value, tf.Variable):
                names[id(value)] = path
            else:
                pending.extend((f"{path}.{key}", child) for key, child in _children(value))
    # Name the remaining variables, for example in a list attribute of a user's bijector. Their
    # scopes, and default names of Keras, contain counters of the process.
    for variable in module.variables:
        own_name = variable.name.split(":")[0].split("/")[-1]
        own_name = re.sub(r"^variable_\d+$", "variable", own_name)
        names.setdefault(id(variable), f"{root}.{own_name}")
    counts: dict[str, int] = {}
    for key, name in names.items():
        names[key] = _numbered(name, counts)
    return names


def _children(value: Any) -> list[tuple[str, Any]]:
    """Returns the named children of a module, list or dictionary that can contain variables."""
    if isinstance(value, (list, tuple)):
        counts: dict[str, int] = {}
        children = [
            (_numbered(part.name, counts) if _has_parameters(part) else str(i), part)
            for i, part in enumerate(value)
        ]
    elif isinstance(value, dict):
        children = [(str(key), part) for key, part in value.items()]
    elif isinstance(value, keras.layers.Layer):
        children = [(variable.name, variable.value) for variable in value.variables]
    elif isinstance(value, tf.Module):
        attributes = sorted(vars(value).items())
        if _has_parameters(value):
            # Skip other attributes, which are caches and collections of variables.
            attributes = [(k, v) for k, v in attributes if isinstance(v, (tf.Variable, tf.Module))]
            attributes = [*value.parameters.items(), *attributes]
        children = [(key.lstrip("_"), part) for key, part in attributes]
    else:
        return []
    # Keras rejects a slash in a name.
    return [(key.replace("/", "_"), part) for key, part in children]


def _has_parameters(value: Any) -> bool:
    # Test `tf.Module` first: the first `isinstance(..., kinds)` for a type takes a millisecond.
    kinds = (tfd.Distribution, tfp.bijectors.Bijector)
    return isinstance(value, tf.Module) and isinstance(value, kinds)


def _numbered(name: str, counts: dict[str, int]) -> str:
    """Appends a number to a name from its second occurrence on."""
    number = counts[name] = counts.get(name, -1) + 1
    return f"{name}_{number}" if number else name

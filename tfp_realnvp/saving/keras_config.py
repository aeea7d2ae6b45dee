"""Converts distributions and their networks to JSON-compatible configurations and back."""

import inspect
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_realnvp import bijectors, distributions, flows
from tfp_realnvp.internal import configurable, layer_variables, validation

tfd, tfb = tfp.distributions, tfp.bijectors

_PARTS = (tfd.Distribution, tfb.Bijector, bijectors.Mask, bijectors.Transformer)
_PARTS += (distributions.VariationalDequantization,)
# Public classes, keyed by their names in configurations. Loading constructs only these classes and
# classes that the user has registered with Keras.
_CLASSES = {
    f"{prefix}.{name}": found
    for prefix, module in (
        ("tfp.distributions", tfd),
        ("tfp.bijectors", tfb),
        ("tfp_realnvp", bijectors),
        ("tfp_realnvp", flows),
        ("tfp_realnvp.distributions", distributions),
    )
    for name, found in vars(module).items()
    if isinstance(found, type) and issubclass(found, _PARTS)
}
# TFP constructors can return private base classes: `tfd.Independent(...)` is an `_Independent`.
_NAMES = {
    base: path
    for path, found in _CLASSES.items()
    for base in found.__mro__
    if base.__name__.lstrip("_") == found.__name__
}

_PLAIN = (str, bool, int, float, types.NoneType)


def serialize(value: Any, path: str) -> Any:
    """Returns a JSON-compatible configuration, from which `deserialize` makes an equal object.

    The configuration describes distributions, bijectors, masks and transformers by their
    constructor arguments, including values of `tf.Variable`s, and networks by their Keras
    configuration. The configuration contains no network weights, no moving statistics and no code.
    Raises `TypeError` if a class is neither public in TFP or this package nor registered with
    Keras. The message names the location of such an object, starting with `path`.
    """
    return _Serializer().describe(value, path)


def deserialize(config: Any, kind: type) -> Any:
    """Returns the object of a configuration, with newly initialized networks.

    Raises `ValueError` if the configuration is malformed, names a class that is neither public nor
    registered with Keras, or describes an object that is not of `kind`.
    """
    expected = f"expected the configuration of a {kind.__name__}"
    try:
        value = _Deserializer().restore(config)
    except Exception as error:
        cause = f"{type(error).__name__}: {error}"
        raise ValueError(f"{expected}, but constructing it failed: {cause}") from error
    validation.require(isinstance(value, kind), expected, value)
    return value


class _Serializer:
    """Describes each object once; later occurrences are references to the first."""

    def __init__(self) -> None:
        # The number of each object, by `id`. Keep the objects alive: the `id` of an object that a
        # `get_config` made would otherwise be given to another object.
        self._described: dict[int, tuple[int, Any]] = {}
        self._claimed_variables: set[int] = set()

    def describe(self, value: Any, path: str) -> Any:
        if isinstance(value, np.generic) and not isinstance(value, str):
            return {"kind": "scalar", **_tensor_config(value)}
        if isinstance(value, _PLAIN):
            return value
        if isinstance(value, (list, tuple, tf.TensorShape)):
            return [self.describe(item, f"{path}[{i}]") for i, item in enumerate(value)]
        if isinstance(value, tf.DType):
            return {"kind": "dtype", "name": value.name}
        # Do not use `tf.is_tensor`, which is true for variables and TFP's deferred tensors too.
        is_constant = isinstance(value, tf.Tensor) and hasattr(value, "numpy")
        if is_constant or isinstance(value, np.ndarray):
            return {"kind": "tensor", **_tensor_config(value)}
        if id(value) in self._described:
            return {"kind": "reference", "to": self._described[id(value)][0]}
        number = len(self._described)
        self._described[id(value)] = number, value
        return {"id": number, **self._describe_object(value, path)}

    def _describe_object(self, value: Any, path: str) -> dict[str, Any]:
        if isinstance(value, tf.Variable):
            self._claim([value], path)
            return {
                "kind": "variable",
                "name": value.name.split(":")[0],
                "trainable": value.trainable,
                **_tensor_config(value),
            }
        if isinstance(value, tfp.util.TransformedVariable):
            return {
                "kind": "transformed_variable",
                "variable": self.describe(value.pretransformed_input, path),
                "bijector": self.describe(value.bijector, f"{path}.bijector"),
            }
        if isinstance(value, keras.layers.Layer):
            self._claim(value.variables, path)
        if isinstance(value, _PARTS):
            return {"kind": "object", **self._describe_by_arguments(value, path)}
        return {"kind": "keras", "config": _keras_config(value, path)}

    def _describe_by_arguments(self, value: Any, path: str) -> dict[str, Any]:
        try:
            # Distributions and bijectors of TFP have no `get_config`.
            arguments = value.get_config() if hasattr(value, "get_config") else value.parameters
        except NotImplementedError as error:
            raise TypeError(f"{path} cannot be saved: {error}") from error
        if (name := _NAMES.get(type(value))) is None:
            name = keras.saving.get_registered_name(type(value))
            _check_registered(name, arguments, path)
        if isinstance(value, bijectors.FlowBijector):
            for key, argument in value.parameters.items():
                is_described = argument is arguments.get(key)
                if isinstance(argument, keras.Variable):
                    self._claim([argument], path)
                elif isinstance(argument, keras.layers.Layer) and not is_described:
                    self._claim(argument.variables, path)
        if name.startswith("tfp."):
            # Omit defaults of TFP, because some are objects that cannot be serialized. Write all
            # other defaults, because a later version of this package may change them.
            signature = inspect.signature(type(value).__init__).parameters
            arguments = {
                key: argument
                for key, argument in arguments.items()
                if key not in signature or argument is not signature[key].default
            }
        described = {k: self.describe(v, f"{path}.{k}") for k, v in arguments.items()}
        return {"class": name, "arguments": described}

    def _claim(self, variables: Sequence[tf.Variable | keras.Variable], path: str) -> None:
        """Raises `TypeError` if objects share a variable, because loading would duplicate it."""
        ids = {id(v.value if isinstance(v, keras.Variable) else v) for v in variables}
        if ids & self._claimed_variables:
            raise TypeError(
                f"{path} cannot be saved: it shares variables with another part of the "
                "distribution; use one object in both places."
            )
        self._claimed_variables |= ids


class _Deserializer:
    def __init__(self) -> None:
        self._objects: dict[int, Any] = {}
        self._constructors: dict[str, Callable[[dict[str, Any]], Any]] = {
            "reference": lambda config: self._objects[config["to"]],
            "dtype": lambda config: tf.as_dtype(config["name"]),
            "tensor": _tensor,
            "scalar": lambda config: tf.as_dtype(config["dtype"]).as_numpy_dtype(config["value"]),
            "variable": lambda config: tf.Variable(
                _tensor(config), trainable=config["trainable"], name=config["name"]
            ),
            "transformed_variable": self._transformed_variable,
            "object": self._object,
            # Keras applies the caller's safe mode, which is on by default.
            "keras": lambda config: keras.saving.deserialize_keras_object(config["config"]),
        }

    def restore(self, config: Any) -> Any:
        if isinstance(config, _PLAIN):
            return config
        if isinstance(config, (list, tuple)):
            return [self.restore(item) for item in config]
        expected = f"expected a configuration of one of the kinds {sorted(self._constructors)}"
        validation.require(config.get("kind") in self._constructors, expected, config)
        value = self._constructors[config["kind"]](config)
        if "id" in config:
            self._objects[config["id"]] = value
        return value

    def _transformed_variable(self, config: dict[str, Any]) -> tfp.util.TransformedVariable:
        variable, bijector = self.restore(config["variable"]), self.restore(config["bijector"])
        transformed = tfp.util.TransformedVariable(
            bijector.forward(variable),
            bijector,
            dtype=variable.dtype,
            trainable=variable.trainable,
            name=config["variable"]["name"],
        )
        # The constructor applies the inverse of the bijector. Undo its rounding errors.
        transformed.pretransformed_input.assign(variable)
        return transformed

    def _object(self, config: dict[str, Any]) -> Any:
        found = find_class(config["class"])
        arguments = {name: self.restore(value) for name, value in config["arguments"].items()}
        return found.from_config(arguments) if hasattr(found, "from_config") else found(**arguments)


def find_class(path: Any) -> type:
    """Returns the class for a name in a configuration, such as `tfp_realnvp.ImageFlow`."""
    found = _CLASSES.get(str(path)) or keras.saving.get_registered_object(str(path))
    expected = "expected a public distribution or bijector of tfp.distributions, tfp.bijectors or "
    expected += "tfp_realnvp, or a class that is registered with Keras"
    validation.require(isinstance(found, type) and issubclass(found, _PARTS), expected, path)
    return found


def _tensor_config(value: Any) -> dict[str, Any]:
    return {"value": np.asarray(value).tolist(), "dtype": tf.as_dtype(value.dtype).name}


def _tensor(config: dict[str, Any]) -> tf.Tensor:
    return tf.constant(config["value"], config["dtype"])


def _keras_config(value: Any, path: str) -> Any:
    """Returns the Keras configuration of a layer, registered function or registered object."""
    if isinstance(value, (types.FunctionType, type)):
        # `serialize_keras_object` omits the registered name of a function.
        name = keras.saving.get_registered_name(value)
        _check_registered(name, None, path)
        return {"module": None, "class_name": "function", "config": name, "registered_name": name}
    if not hasattr(value, "get_config"):
        raise TypeError(
            f"{path} cannot be saved: expected numbers, tensors, variables, distributions and "
            "bijectors of TFP and of this package, Keras layers, or functions registered with "
            f"keras.saving.register_keras_serializable, got {value!r}."
        )
    try:
        config = keras.saving.serialize_keras_object(value)
    except (NotImplementedError, TypeError) as error:
        raise TypeError(f"{path} cannot be saved: Keras does not serialize it: {error}") from error
    if isinstance(value, keras.layers.Layer) and not layer_variables.has_build(value):
        # Loading would call `keras.Layer.build`, which sets `built`, but creates no variables.
        config.pop("build_config", None)
    for part in parts(config):
        is_object = {"class_name", "config"} <= part.keys()
        if is_object and (part.get("module") or "").split(".")[0] not in ("keras", "builtins"):
            name = part["class_name"]
            if name == "__lambda__" or not name.startswith("__"):
                arguments = part["config"] if name != "function" else None
                _check_registered(part.get("registered_name") or name, arguments, path)
    return config


def _check_registered(name: str, arguments: dict[str, Any] | None, path: str) -> None:
    """Raises `TypeError` unless Keras can load the user's function or class of this name.

    `arguments` is the configuration of an object of the class, or `None` for a function.
    """
    found = keras.saving.get_registered_object(name)
    if found is None:
        raise TypeError(
            f"{path} cannot be saved: {name} is not registered with Keras; expected a named "
            "function, or a class with a method get_config that returns the constructor arguments, "
            "with the decorator @keras.saving.register_keras_serializable()."
        )
    if arguments is None:
        return
    from_config = getattr(found, "from_config", None)
    if from_config is None and not issubclass(found, _PARTS):
        raise TypeError(
            f"{path} cannot be saved: expected a class with the class method from_config, with "
            f"which Keras loads it, got {found.__name__}."
        )
    if getattr(from_config, "__func__", None) in (None, keras.Operation.from_config.__func__):
        try:
            inspect.signature(found.__init__).bind(None, **arguments)
            if issubclass(found, configurable.Configurable):
                # A base class can refuse what `**kwargs` passes to it.
                found(**arguments)
        except TypeError as error:
            raise TypeError(
                f"{path} cannot be saved: expected a get_config of {found.__name__} that returns "
                f"its constructor arguments, got {sorted(arguments)}: {error}."
            ) from error


def parts(config: Any) -> Iterator[dict[str, Any]]:
    """Yields all dictionaries that are nested in a configuration."""
    pending = [config]
    while pending:
        value = pending.pop()
        if isinstance(value, (list, tuple)):
            pending += value
        elif isinstance(value, dict):
            yield value
            pending += value.values()

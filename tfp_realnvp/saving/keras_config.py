"""Converts a distribution to a JSON-compatible configuration and back."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_realnvp import bijectors, distributions, flows
from tfp_realnvp.bijectors import FlowBijector, Transformer
from tfp_realnvp.bijectors.masks import Mask

__all__ = [
    "deserialize",
    "deserialize_distribution",
    "find_class",
    "parts",
    "serialize",
    "serialize_distribution",
]

tfd = tfp.distributions

# Public names of this package, but for distributions.
_FLOW_PARTS = types.SimpleNamespace(
    **{name: getattr(module, name) for module in (bijectors, flows) for name in module.__all__}
)
# For each prefix of a class name: the module that has the class, and its required base classes.
# Loading constructs no other classes, except those that the user has registered with Keras.
_NAMESPACES = {
    "tfp.distributions": (tfp.distributions, tfp.distributions.Distribution),
    "tfp.bijectors": (tfp.bijectors, tfp.bijectors.Bijector),
    "tfp_realnvp": (_FLOW_PARTS, (FlowBijector, Mask, Transformer)),
    "tfp_realnvp.distributions": (
        distributions,
        (tfp.distributions.Distribution, distributions.VariationalDequantization),
    ),
}
_BASES = (
    *(tfp.distributions.Distribution, tfp.bijectors.Bijector, Mask, Transformer),
    distributions.VariationalDequantization,
)

_PLAIN = (str, bool, int, float, types.NoneType)


def serialize_distribution(distribution: tfd.Distribution) -> dict[str, Any]:
    """Returns a configuration from which `deserialize_distribution` makes an equal distribution.

    The configuration holds the constructor arguments of the distribution, its base and its
    bijectors, all arguments of those of this package, and the values of `tf.Variable` and
    `tfp.util.TransformedVariable` arguments. It holds no network weights and no moving statistics:
    `FlowModel.save` and `tf.train.Checkpoint` save those. It holds no code.

    Supported are the distributions and bijectors of this package and of TFP, and subclasses of
    them, masks and transformers that are registered with
    `keras.saving.register_keras_serializable`, by the constructor arguments that their `get_config`
    returns. Networks must be loadable by Keras in its safe mode: Keras layers, and registered
    functions or objects with `get_config` and `from_config`.

    Args:
      distribution: the distribution.

    Returns:
      A dictionary of strings, numbers, `None`, lists and dictionaries.

    Raises:
      TypeError: if a part of the distribution is not supported; the message names the part.
    """
    return serialize(distribution, "distribution")


def deserialize_distribution(config: dict[str, Any]) -> tfd.Distribution:
    """Returns the distribution of a configuration, with newly initialized networks.

    Args:
      config: the result of `serialize_distribution`.

    Returns:
      The distribution.

    Raises:
      ValueError: if the configuration is malformed, or names a class that is not a distribution
        or bijector of TFP or of this package.
      TypeError: if a constructor rejects its arguments.
    """
    return deserialize(config, tfd.Distribution)


def serialize(value: Any, path: str) -> Any:
    """Returns the configuration of a part of a model, as `serialize_distribution`.

    Args:
      value: the part, or `None`.
      path: the name of the part, for messages.
    """
    return _Serializer().describe(value, path)


def deserialize(config: Any, kind: type) -> Any:
    """Returns the part of a configuration, of a certain type, as `deserialize_distribution`."""
    expected = f"expected the configuration of a {kind.__name__}"
    try:
        value = _Deserializer().restore(config)
    except Exception as error:
        if isinstance(error, ValueError) and "expected" in str(error):
            raise
        # Missing keys, and errors of constructors that do not check their arguments.
        error_type = TypeError if isinstance(error, TypeError) else ValueError
        raise error_type(
            f"{expected}, but constructing it failed: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(value, kind):
        raise ValueError(f"{expected}, got {value!r}.")
    return value


class _Serializer:
    """Describes each object once; later occurrences are references to the first."""

    def __init__(self) -> None:
        self._ids: dict[int, int] = {}
        self._claimed_variables: set[int] = set()

    def describe(self, value: Any, path: str) -> Any:
        if isinstance(value, np.generic):
            value = value.item()
        if isinstance(value, _PLAIN):
            return value
        if isinstance(value, tf.TensorShape):
            value = value.as_list()
        if isinstance(value, (list, tuple)):
            return [self.describe(item, f"{path}[{i}]") for i, item in enumerate(value)]
        if isinstance(value, tf.DType):
            return {"kind": "dtype", "name": value.name}
        if isinstance(value, np.ndarray) or _is_constant(value):
            return {"kind": "tensor", **_tensor_config(value)}
        if id(value) in self._ids:
            return {"kind": "reference", "to": self._ids[id(value)]}
        self._ids[id(value)] = len(self._ids)
        return {"id": self._ids[id(value)], **self._describe_object(value, path)}

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
        if isinstance(value, _BASES):
            return {"kind": "object", **self._describe_by_arguments(value, path)}
        if isinstance(value, keras.layers.Layer):
            self._claim([variable.value for variable in value.variables], path)
        return {"kind": "keras", "config": _keras_config(value, path)}

    def _describe_by_arguments(self, value: Any, path: str) -> dict[str, Any]:
        try:
            # Distributions and bijectors of TFP have no `get_config`.
            arguments = value.get_config() if hasattr(value, "get_config") else value.parameters
        except NotImplementedError as error:
            raise TypeError(f"{path} cannot be saved: {error}") from error
        name = _public_name(value) or _registered_name(value, path, arguments)
        if isinstance(value, FlowBijector):
            for shared in value.parameters.keys() - arguments.keys():
                self._claim(value.parameters[shared].variables, path)
        if name.startswith("tfp."):
            # Defaults of TFP can be objects without a description. Other defaults may change, and
            # must not change a saved model.
            signature = inspect.signature(type(value).__init__).parameters
            arguments = {
                key: argument
                for key, argument in arguments.items()
                if key not in signature or argument is not signature[key].default
            }
        described = {
            key: self.describe(argument, f"{path}.{key}") for key, argument in arguments.items()
        }
        return {"class": name, "arguments": described}

    def _claim(self, variables: Sequence[tf.Variable], path: str) -> None:
        """Raises `TypeError` if another object has one of `variables`: they would be duplicated."""
        ids = {id(variable) for variable in variables}
        if ids & self._claimed_variables:
            raise TypeError(
                f"{path} cannot be saved: it shares variables with another part of the "
                "distribution; expected one object that is used in both places."
            )
        self._claimed_variables |= ids


class _Deserializer:
    """Constructs the described objects."""

    def __init__(self) -> None:
        self._objects: dict[int, Any] = {}
        self._constructors: dict[str, Callable[[dict[str, Any]], Any]] = {
            "reference": lambda config: self._objects[config["to"]],
            "dtype": lambda config: tf.as_dtype(config["name"]),
            "tensor": _tensor,
            "variable": self._variable,
            "transformed_variable": self._transformed_variable,
            "object": self._object,
            # Keras uses the caller's setting of safe mode, which is on by default.
            "keras": lambda config: keras.saving.deserialize_keras_object(config["config"]),
        }

    def restore(self, config: Any) -> Any:
        if isinstance(config, _PLAIN):
            return config
        if isinstance(config, (list, tuple)):
            return [self.restore(item) for item in config]
        if config.get("kind") not in self._constructors:
            kinds = sorted(self._constructors)
            raise ValueError(
                f"expected a configuration of one of the kinds {kinds}, got {config!r}."
            )
        value = self._constructors[config["kind"]](config)
        if "id" in config:
            self._objects[config["id"]] = value
        return value

    def _variable(self, config: dict[str, Any]) -> tf.Variable:
        return tf.Variable(_tensor(config), trainable=config["trainable"], name=config["name"])

    def _transformed_variable(self, config: dict[str, Any]) -> tfp.util.TransformedVariable:
        variable, bijector = self.restore(config["variable"]), self.restore(config["bijector"])
        transformed = tfp.util.TransformedVariable(
            bijector.forward(variable),
            bijector,
            dtype=variable.dtype,
            trainable=variable.trainable,
            name=config["variable"]["name"],
        )
        # The constructor applies the inverse of the bijector, which rounds.
        transformed.pretransformed_input.assign(variable)
        return transformed

    def _object(self, config: dict[str, Any]) -> Any:
        found = find_class(config["class"])
        arguments = {name: self.restore(value) for name, value in config["arguments"].items()}
        return found.from_config(arguments) if hasattr(found, "from_config") else found(**arguments)


def find_class(path: Any) -> type:
    """Returns the class that a configuration names, such as `tfp_realnvp.RealNVPImage`.

    Raises:
      ValueError: if it is neither a public distribution or bijector of TFP or of this package, nor
        a registered one.
    """
    namespace, _, name = str(path).rpartition(".")
    if namespace in _NAMESPACES:
        module, bases = _NAMESPACES[namespace]
        found = getattr(module, name, None)
    else:
        found, bases = keras.saving.get_registered_object(str(path)), _BASES
    if not (isinstance(found, type) and issubclass(found, bases)):
        raise ValueError(
            "expected a public distribution or bijector of tfp.distributions, tfp.bijectors or "
            f"tfp_realnvp, or a class that is registered with Keras, got {path!r}."
        )
    return found


def _public_name(value: Any) -> str | None:
    # Constructors of TFP return private base classes: `tfd.Independent(...)` an `_Independent`.
    name = type(value).__name__.lstrip("_")
    for namespace, (module, bases) in _NAMESPACES.items():
        public = getattr(module, name, None)
        is_public = isinstance(public, type) and issubclass(public, type(value))
        if is_public and isinstance(value, bases):
            return f"{namespace}.{name}"
    return None


def _registered_name(value: Any, path: str, arguments: dict[str, Any]) -> str:
    """Returns the name of a class of the user; raises `TypeError` if it could not be loaded."""
    name = keras.saving.get_registered_name(type(value))
    if (found := keras.saving.get_registered_object(name)) is None:
        raise TypeError(
            f"{path} cannot be saved: {name} is not registered with Keras; expected a class with "
            "the decorator @keras.saving.register_keras_serializable() and a method get_config "
            f"that returns the constructor arguments, got {value!r}."
        )
    if not hasattr(found, "from_config"):
        _check_arguments(found, arguments, path)
    return name


def _check_arguments(found: type, arguments: dict[str, Any], path: str) -> None:
    """Raises `TypeError` unless a constructor takes these arguments by name."""
    try:
        inspect.signature(found.__init__).bind(None, **arguments)  # type: ignore[misc]
    except TypeError as error:
        raise TypeError(
            f"{path} cannot be saved: expected a get_config of {found.__name__} that returns its "
            f"constructor arguments, got {sorted(arguments)}: {error}."
        ) from error


def _is_constant(value: Any) -> bool:
    # `tf.is_tensor` is true for variables and TFP's deferred tensors as well.
    return isinstance(value, tf.Tensor) and hasattr(value, "numpy")


def _tensor_config(value: Any) -> dict[str, Any]:
    return {"value": np.asarray(value).tolist(), "dtype": tf.as_dtype(value.dtype).name}


def _tensor(config: dict[str, Any]) -> tf.Tensor:
    return tf.constant(config["value"], config["dtype"])


def _keras_config(value: Any, path: str) -> Any:
    """Returns the Keras configuration of a layer, registered function or registered object."""
    is_function = isinstance(value, (types.FunctionType, type))
    if not (is_function or hasattr(value, "get_config")):
        raise TypeError(
            f"{path} cannot be saved: expected numbers, tensors, variables, distributions and "
            "bijectors of TFP and of this package, Keras layers, or functions registered with "
            f"keras.saving.register_keras_serializable, got {value!r}."
        )
    try:
        if is_function:
            # A class as well. `serialize_keras_object` omits the registered name of a function.
            name = keras.saving.get_registered_name(value)
            config = {
                "module": None,
                "class_name": "function",
                "config": name,
                "registered_name": name,
            }
        else:
            config = keras.saving.serialize_keras_object(value)
    except (NotImplementedError, TypeError) as error:
        raise TypeError(f"{path} cannot be saved: Keras does not serialize it: {error}") from error
    for part in parts(config):
        if not {"class_name", "config"} <= part.keys():
            continue
        if not _keras_can_load(part):
            raise TypeError(
                f"{path} cannot be saved: {part.get('registered_name') or part['class_name']} is "
                "not registered with Keras; expected a named function or a class registered with "
                f"keras.saving.register_keras_serializable, got {value!r}."
            )
        found = keras.saving.get_registered_object(part.get("registered_name"))
        if isinstance(found, type) and part["class_name"] != "function":
            _check_from_config(found, part["config"], path)
    return config


def _check_from_config(found: type, config: dict[str, Any], path: str) -> None:
    """Raises `TypeError` if Keras could not construct the class of the user."""
    from_config = getattr(found, "from_config", None)
    if from_config is None:
        raise TypeError(
            f"{path} cannot be saved: expected a class with the class method from_config, with "
            f"which Keras loads it, got {found.__name__}."
        )
    if getattr(from_config, "__func__", None) is keras.Operation.from_config.__func__:
        _check_arguments(found, config, path)


def parts(config: Any) -> Iterator[dict[str, Any]]:
    """Yields all dictionaries of a configuration."""
    pending = [config]
    while pending:
        value = pending.pop()
        if isinstance(value, (list, tuple)):
            pending += value
        elif isinstance(value, dict):
            yield value
            pending += value.values()


def _keras_can_load(config: dict[str, Any]) -> bool:
    name = config["class_name"]
    if name.startswith("__"):
        return name != "__lambda__"
    if (config.get("module") or "").split(".")[0] in ("keras", "builtins"):
        return True
    return keras.saving.get_registered_object(config.get("registered_name")) is not None

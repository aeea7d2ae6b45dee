"""A distribution as plain JSON values, and back: no code is stored, and none is run."""

from __future__ import annotations

import contextlib
import inspect
import types
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_realnvp import bijectors
from tfp_realnvp.bijectors import ActNorm, BatchNormalization, FlowBijector, RealNVPImage

__all__ = ["deserialize_distribution", "serialize_distribution"]

tfd = tfp.distributions

# Where classes are looked for by name, and what they must be: nothing else is ever constructed.
_NAMESPACES = {
    "tfp.distributions": (tfp.distributions, tfp.distributions.Distribution),
    "tfp.bijectors": (tfp.bijectors, tfp.bijectors.Bijector),
    "tfp_realnvp": (
        bijectors,
        (FlowBijector, bijectors.ChannelMask, bijectors.CheckerboardMask),
    ),
}

# Arguments by which a copy shares variables: the constructor makes them from all the others.
_STATE_ARGUMENTS = {RealNVPImage: "flow", BatchNormalization: "moving", ActNorm: "learned"}

_PLAIN = (str, bool, int, float, types.NoneType)


def serialize_distribution(distribution: tfd.Distribution) -> dict[str, Any]:
    """Returns a configuration from which `deserialize_distribution` makes the same distribution.

    It has the constructor arguments of the distribution, of its bijectors and of its base, down to
    numbers, and the values of `tf.Variable` and `tfp.util.TransformedVariable` parameters. The
    weights of networks and moving statistics are not in it: `FlowModel.save` and
    `tf.train.Checkpoint` save those.

    Distributions and bijectors may be those of this package and of TFP; networks, and a
    `network_fn` of `RealNVPImage`, what Keras can serialise and load in its safe mode: layers,
    and functions or objects with a `get_config` that were registered by
    `keras.saving.register_keras_serializable`.

    #### Example

    >>> import tensorflow as tf, tensorflow_probability as tfp, tfp_realnvp as tfr
    >>> tfd = tfp.distributions
    >>> base = tfd.Sample(tfd.Normal(tf.Variable(1.), 2.), [4, 4, 1])
    >>> flow = tfd.TransformedDistribution(base, tfr.RealNVPImage((4, 4, 1), num_blocks=1))
    >>> again = deserialize_distribution(serialize_distribution(flow))
    >>> float(again.distribution.distribution.loc), len(again.variables) == len(flow.variables)
    (1.0, True)

    Args:
      distribution: the distribution.

    Returns:
      A dictionary of strings, numbers, `None`, lists and dictionaries.

    Raises:
      TypeError: if a part of it cannot be described; the message names it.
    """
    return _Serializer().describe(distribution, "distribution")


def deserialize_distribution(config: dict[str, Any]) -> tfd.Distribution:
    """Returns the distribution that `serialize_distribution` described, with new networks.

    Args:
      config: the configuration.

    Raises:
      ValueError: if it names a class that is no distribution or bijector, or is malformed.
      TypeError: if a constructor does not take its arguments.
    """
    try:
        distribution = _Deserializer().restore(config)
    except ValueError:
        raise
    except Exception as error:
        # Missing keys, and whatever arises in constructors that do not look at their arguments.
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(
            "expected the configuration of a distribution, got one that does not make one: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not isinstance(distribution, tfd.Distribution):
        raise ValueError(f"expected the configuration of a distribution, got {distribution!r}.")
    return distribution


class _Serializer:
    """Describes objects, each once: what is met a second time is a reference to the first."""

    def __init__(self) -> None:
        self._ids: dict[int, int] = {}
        self._variables: set[int] = set()

    def describe(self, value: Any, path: str) -> Any:
        if isinstance(value, np.generic):
            value = value.item()
        if isinstance(value, _PLAIN):
            return value
        if isinstance(value, tf.TensorShape):
            value = value.as_list()
        if isinstance(value, (list, tuple)):
            return [self.describe(each, f"{path}[{i}]") for i, each in enumerate(value)]
        if isinstance(value, tf.DType):
            return {"kind": "dtype", "name": value.name}
        if isinstance(value, np.ndarray) or (tf.is_tensor(value) and _is_constant(value)):
            return {"kind": "tensor", **_values(value)}
        if id(value) in self._ids:
            return {"kind": "reference", "to": self._ids[id(value)]}
        self._ids[id(value)] = len(self._ids)
        return {"id": self._ids[id(value)], **self._describe_object(value, path)}

    def _describe_object(self, value: Any, path: str) -> dict[str, Any]:
        if isinstance(value, tf.Variable):
            self._claim([value], path)
            name = value.name.split(":")[0]
            return {
                "kind": "variable",
                "name": name,
                "trainable": value.trainable,
                **_values(value),
            }
        if isinstance(value, tfp.util.TransformedVariable):
            return {
                "kind": "transformed_variable",
                "variable": self.describe(value.pretransformed_input, path),
                "bijector": self.describe(value.bijector, f"{path}.bijector"),
            }
        for namespace, (module, bases) in _NAMESPACES.items():
            if isinstance(value, bases) and (name := _public_name(module, value)):
                return {
                    "kind": "object",
                    "class": f"{namespace}.{name}",
                    **self._arguments(value, path),
                }
        if isinstance(value, keras.layers.Layer):
            self._claim([variable.value for variable in value.variables], path)
        return {"kind": "keras", "config": _keras_config(value, path)}

    def _arguments(self, value: Any, path: str) -> dict[str, Any]:
        arguments = dict(value.parameters) if hasattr(value, "parameters") else dict(vars(value))
        extra = {}
        for bijector_class, name in _STATE_ARGUMENTS.items():
            if isinstance(value, bijector_class):
                state = arguments.pop(name)
                self._claim(state.variables, path)
                if "num_channels" in arguments:
                    arguments["num_channels"] = state.num_channels
        if isinstance(value, RealNVPImage):
            # Networks made without a dtype took the policy of their day.
            extra["dtype_policy"] = _common_dtype_policy(value)
        defaults = inspect.signature(type(value).__init__).parameters
        described = {
            name: self.describe(argument, f"{path}.{name}")
            for name, argument in arguments.items()
            if name not in defaults or argument is not defaults[name].default
        }
        return {"arguments": described, **extra}

    def _claim(self, variables: Sequence[tf.Variable], path: str) -> None:
        # Loaded, each of two parts would have variables of its own.
        claimed = {id(variable) for variable in variables}
        if claimed & self._variables:
            raise TypeError(
                f"{path} cannot be saved: it shares variables with another part of the "
                "distribution without being the same object; use that one twice instead."
            )
        self._variables |= claimed


class _Deserializer:
    """Makes the described objects again."""

    def __init__(self) -> None:
        self._objects: dict[int, Any] = {}

    def restore(self, config: Any) -> Any:
        if isinstance(config, _PLAIN):
            return config
        if isinstance(config, (list, tuple)):
            return [self.restore(each) for each in config]
        makers = {
            "reference": lambda config: self._objects[config["to"]],
            "dtype": lambda config: tf.as_dtype(config["name"]),
            "tensor": _tensor,
            "variable": self._variable,
            "transformed_variable": self._transformed_variable,
            "object": self._object,
            # In the safe mode that the caller set, which is on unless somebody turned it off.
            "keras": lambda config: keras.saving.deserialize_keras_object(config["config"]),
        }
        if config.get("kind") not in makers:
            raise ValueError(
                f"expected a configuration of a kind of {sorted(makers)}, got {config!r}."
            )
        value = makers[config["kind"]](config)
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
        # There and back through the bijector would round it.
        transformed.pretransformed_input.assign(variable)
        return transformed

    def _object(self, config: dict[str, Any]) -> Any:
        namespace, _, name = config["class"].rpartition(".")
        module, bases = _NAMESPACES.get(namespace, (None, ()))
        found = getattr(module, name, None)
        if not (isinstance(found, type) and issubclass(found, bases)):
            raise ValueError(
                "expected a public distribution or bijector of tfp.distributions, tfp.bijectors or "
                f"tfp_realnvp, got {config['class']!r}."
            )
        arguments = {key: self.restore(value) for key, value in config["arguments"].items()}
        with _dtype_policy(config.get("dtype_policy")):
            return found(**arguments)


def _public_name(module: types.ModuleType, value: Any) -> str | None:
    # `tfd.TransformedDistribution` makes objects of a private class: see `tfp_types`.
    name = type(value).__name__.lstrip("_")
    public = getattr(module, name, None)
    return name if isinstance(public, type) and issubclass(public, type(value)) else None


def _is_constant(value: Any) -> bool:
    # `tf.is_tensor` says yes to variables, and to what TFP computes from them.
    return isinstance(value, tf.Tensor) and hasattr(value, "numpy")


def _values(value: Any) -> dict[str, Any]:
    return {"value": np.asarray(value).tolist(), "dtype": tf.as_dtype(value.dtype).name}


def _tensor(config: dict[str, Any]) -> tf.Tensor:
    return tf.constant(config["value"], config["dtype"])


def _keras_config(value: Any, path: str) -> Any:
    is_function = isinstance(value, types.FunctionType)
    if not (is_function or hasattr(value, "get_config")):
        raise TypeError(
            f"{path} cannot be saved: expected numbers, tensors, variables, distributions and "
            "bijectors of TFP and of this package, Keras layers, or functions registered by "
            f"keras.saving.register_keras_serializable, got {value!r}."
        )
    try:
        if is_function:
            config = keras.saving.get_registered_name(value)
            config = {"module": None, "class_name": "function", "config": config}
            config["registered_name"] = config["config"]
        else:
            config = keras.saving.serialize_keras_object(value)
    except (NotImplementedError, TypeError) as error:
        raise TypeError(f"{path} cannot be saved, Keras does not serialise it: {error}") from error
    for inner in _keras_objects(config):
        if not _keras_can_load(inner):
            raise TypeError(
                f"{path} cannot be saved: {inner.get('registered_name') or inner['class_name']} is "
                "unknown to Keras, register it by keras.saving.register_keras_serializable (a "
                f"named function or a class, no lambda); got {value!r}."
            )
    return config


def _keras_objects(config: Any) -> Iterator[dict[str, Any]]:
    if isinstance(config, dict):
        if "class_name" in config and "config" in config:
            yield config
        config = list(config.values())
    if isinstance(config, (list, tuple)):
        for each in config:
            yield from _keras_objects(each)


def _keras_can_load(config: dict[str, Any]) -> bool:
    name = config["class_name"]
    if name.startswith("__"):
        return name != "__lambda__"
    if (config.get("module") or "").split(".")[0] in ("keras", "builtins"):
        return True
    return keras.saving.get_registered_object(config.get("registered_name")) is not None


def _common_dtype_policy(bijector: RealNVPImage) -> str | None:
    parts = [part for part in bijector.submodules if isinstance(part, FlowBijector)]
    names = {layer.dtype_policy.name for part in parts for layer in part.layers}
    return names.pop() if len(names) == 1 else None


@contextlib.contextmanager
def _dtype_policy(name: str | None) -> Iterator[None]:
    before = keras.config.dtype_policy()
    try:
        if name is not None:
            keras.config.set_dtype_policy(name)
        yield
    finally:
        keras.config.set_dtype_policy(before)

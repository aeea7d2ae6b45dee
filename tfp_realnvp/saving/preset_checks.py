"""Checks a preset from an untrusted source, before and after constructing its model."""

import contextlib
import json
import math
import pathlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_realnvp.saving import keras_config

tfd = tfp.distributions

_MAX_JSON_BYTES = 2**26
# Allows for the elements of counters and metrics, which are not in the weights file.
_NUM_OTHER_ELEMENTS = 1_000

# Classes of Keras that a configuration may name. No class in this table runs code or reads files.
_KERAS_CLASSES = {
    "keras": {"DTypePolicy", "Sequential"},
    "keras.src.models.functional": {"Functional"},
    "keras.layers": {
        *("Activation", "Add", "Average", "AveragePooling2D", "BatchNormalization", "Concatenate"),
        *("Conv1D", "Conv2D", "Conv2DTranspose", "Dense", "DepthwiseConv2D", "Dropout", "ELU"),
        *("Embedding", "Flatten", "GlobalAveragePooling2D", "GroupNormalization", "Identity"),
        *("InputLayer", "LayerNormalization", "LeakyReLU", "MaxPooling2D", "MultiHeadAttention"),
        *("Multiply", "PReLU", "Permute", "RMSNormalization", "ReLU", "RepeatVector", "Rescaling"),
        *("Reshape", "Resizing", "SeparableConv2D", "Softmax", "SpectralNormalization"),
        *("Subtract", "UnitNormalization", "UpSampling2D", "ZeroPadding2D"),
    },
    **{
        f"keras.{kind}": {
            name for name, found in vars(getattr(keras, kind)).items() if isinstance(found, type)
        }
        for kind in ("constraints", "initializers", "regularizers")
    },
}
# Keras' type names of arrays and tensors, which a configuration stores as lists of numbers.
_KERAS_VALUES = {"__keras_tensor__", "__numpy__", "__tensor__"}


@contextlib.contextmanager
def expecting(expected: str) -> Iterator[None]:
    """Turns an error into a `ValueError` that states what was expected and the first cause."""
    try:
        yield
    except Exception as error:
        # Keras wraps the first cause in a message with the whole configuration.
        first: BaseException = error
        while cause := first.__cause__ or (not first.__suppress_context__ and first.__context__):
            first = cause
        got = f"{type(first).__name__}: {first}"
        raise ValueError(f"from_preset: expected {expected}, got {got}") from error


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """Returns the JSON object in a file."""

    def finite(text: str) -> float:
        if not math.isfinite(number := float(text)):
            raise ValueError(f"the number {text}, which is not finite")
        return number

    with expecting(f"a JSON object of at most {_MAX_JSON_BYTES:,} bytes in {path}"):
        if (size := path.stat().st_size) > _MAX_JSON_BYTES:
            raise ValueError(f"{size:,} bytes")
        value = json.loads(path.read_bytes(), parse_float=finite, parse_constant=finite)
        if not isinstance(value, dict):
            raise ValueError(f"{value!r:.80}")
    return value


def check_names(config: Any) -> None:
    """Raises `ValueError` if a configuration names a class or function that is not allowed."""
    for part in keras_config.parts(config):
        if "class_name" in part and not _is_allowed(part):
            name, module, registered = map(part.get, ("class_name", "module", "registered_name"))
            raise ValueError(
                "from_preset: expected layers, initializers, regularizers and constraints of Keras "
                "in config.json, or classes and functions that are registered with Keras or given "
                f"as custom_objects, got {name!r:.80} of the module {module!r:.80}, registered as "
                f"{registered!r:.80}."
            )
        if part.get("kind") == "object":
            keras_config.find_class(part.get("class"))


def _is_allowed(config: dict[str, Any]) -> bool:
    """Returns whether Keras finds an allowed class or function for the names in `config`."""
    name = str(config["class_name"])
    # Keras looks up a function by its `config`, and all else by its `registered_name`.
    key = config.get("config" if name == "function" else "registered_name")
    registered = keras.saving.get_registered_object(str(key))
    if name in _KERAS_VALUES or "module" not in config:
        return name in _KERAS_VALUES
    if registered is not None:
        # If the class name differs from the registered class, Keras may construct another object.
        return name in ("function", getattr(registered, "__name__", None))
    return name in _KERAS_CLASSES.get(str(config["module"]), ())


def check_parameters(model: keras.Model) -> None:
    """Raises `ValueError` if a distribution has an invalid parameter, such as a negative scale."""
    for part in (model.distribution, *model.distribution.submodules):
        if not isinstance(part, tfd.Distribution) or "validate_args" not in part.parameters:
            continue
        # TFP checks constants at construction, but variables only at use.
        constants = {
            name: tf.convert_to_tensor(value)
            for name, value in part.parameters.items()
            if isinstance(value, (tf.Variable, tfp.util.TransformedVariable))
        }
        with expecting(f"valid parameters of the distribution {part.name}"):
            part.copy(validate_args=True, **constants)


@contextlib.contextmanager
def limited_variables(num_elements: int) -> Iterator[None]:
    """Raises `ValueError` if new variables have many more elements in all than `num_elements`."""
    left, graph = num_elements + _NUM_OTHER_ELEMENTS, tf.Graph()

    def create(next_creator: Any, **kwargs: Any) -> tf.Variable:
        nonlocal left
        value = kwargs["initial_value"]
        if callable(value):
            # In a graph, the initial value has a shape, but takes no memory.
            try:
                with graph.as_default():
                    value = value()
            except RuntimeError:  # The initializer uses an eager tensor.
                value = value()
        left -= tf.TensorShape(np.shape(value)).num_elements()
        if left < 0:
            raise ValueError(f"a model with more than the {num_elements:,} weights of the preset")
        return next_creator(**kwargs)

    with tf.variable_creator_scope(create):
        yield

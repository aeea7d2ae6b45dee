"""Constructs a model from a configuration that may come from anyone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_realnvp.saving import keras_config
from tfp_realnvp.saving.preset_files import CONFIG, WEIGHTS, refusal

__all__ = [
    "check_config",
    "check_number_of_parts",
    "check_parameters",
    "check_parts",
    "construct",
    "most_special",
    "replace_network_dtype",
]

tfd = tfp.distributions

# Elements of counters and metrics, which the weights file does not have.
_NUM_OTHER_ELEMENTS = 1_000
# Couplings and other parts of a model: for each array in the weights file, and in addition. A Keras
# layer with its initializers, policies and inputs is many parts.
_NUM_PARTS_OF_ARRAY, _NUM_OTHER_PARTS = 20, 1_000

# Objects of Keras that a configuration may name. None of them runs code or reads files.
_KERAS_CLASSES = {
    "keras": ("DTypePolicy", "Sequential"),
    "keras.src.models.functional": ("Functional",),
    "keras.layers": (
        *("Activation", "Add", "Average", "AveragePooling2D", "BatchNormalization", "Concatenate"),
        *("Conv1D", "Conv2D", "Conv2DTranspose", "Dense", "DepthwiseConv2D", "Dropout", "ELU"),
        *("Embedding", "Flatten", "GlobalAveragePooling2D", "GroupNormalization", "Identity"),
        *("InputLayer", "LayerNormalization", "LeakyReLU", "MaxPooling2D", "MultiHeadAttention"),
        *("Multiply", "PReLU", "Permute", "RMSNormalization", "ReLU", "RepeatVector", "Rescaling"),
        *("Reshape", "Resizing", "SeparableConv2D", "Softmax", "SpectralNormalization"),
        *("Subtract", "UnitNormalization", "UpSampling2D", "ZeroPadding2D"),
    ),
}
_KERAS_BASES = {
    "keras.constraints": (keras.constraints, keras.constraints.Constraint),
    "keras.initializers": (keras.initializers, keras.initializers.Initializer),
    "keras.regularizers": (keras.regularizers, keras.regularizers.Regularizer),
}
# Keras' notation for values, which are in the file as lists of numbers.
_KERAS_VALUES = ("__keras_tensor__", "__numpy__", "__tensor__")


def check_config(config: dict[str, Any]) -> type[keras.Model]:
    """Returns the class of the model, or raises `ValueError` if anything is not allowed."""
    model_class = keras.saving.get_registered_object(str(config.get("registered_name")))
    is_model = isinstance(model_class, type) and issubclass(model_class, keras.Model)
    if not (is_model and {"class_name", "config"} <= config.keys()):
        raise ValueError(
            f"from_preset: expected the configuration of a FlowModel in {CONFIG}, got one with "
            f"{sorted(config)}, of {config.get('registered_name')!r:.80}."
        )
    check_parts(config["config"])
    return model_class


def check_parts(config: dict[str, Any]) -> None:
    """Raises `ValueError` if a configuration names a class or function that is not allowed."""
    for part in keras_config.parts(config):
        if "class_name" in part:
            _check_keras_object(part)
        if part.get("kind") == "object":
            keras_config.find_class(part.get("class"))


def most_special(saved: type[keras.Model], expected: type[keras.Model] | None) -> type[keras.Model]:
    """Returns the class of a preset, or the expected subclass of it."""
    if expected is None or issubclass(saved, expected):
        return saved
    if not issubclass(expected, saved):
        raise ValueError(
            f"from_preset: expected a preset of a {expected.__name__}, or of one of its base "
            f"classes, got one of a {saved.__name__}; call {saved.__name__}.from_preset."
        )
    return expected


def check_number_of_parts(config: dict[str, Any], num_arrays: int) -> None:
    """Raises `ValueError` if there are many more couplings and other parts than arrays."""
    by_id: dict[Any, float] = {}
    many = 1e18  # so that no number overflows

    def positive(number: Any) -> float:
        return min(number, many) if isinstance(number, (int, float)) and number > 0 else 0

    def count(value: Any) -> float:
        if isinstance(value, list):
            return sum(map(count, value))
        if not isinstance(value, dict):
            return 0
        if value.get("kind") == "reference":
            # A part counts wherever it is used: in nested chains that is exponentially often.
            return 1 + by_id[value.get("to")]
        number = sum(map(count, value.values())) + ("kind" in value or "class_name" in value)
        couplings = [
            positive(value.get(f"num_{name}")) for name in ("couplings", "channel_couplings")
        ]
        number += max(1, positive(value.get("num_scales"))) * sum(couplings)
        if "id" in value:
            by_id[value["id"]] = min(number, many)
        return number

    try:
        number = count(config)
    except (KeyError, TypeError, RecursionError) as error:
        raise refusal(f"references to earlier parts in {CONFIG}", error) from error
    if number > (limit := _NUM_PARTS_OF_ARRAY * num_arrays + _NUM_OTHER_PARTS):
        raise ValueError(
            f"from_preset: expected a {CONFIG} with at most {limit:,} couplings and other parts, "
            f"for the {num_arrays:,} arrays in {WEIGHTS}, got {number:.4g}."
        )


def replace_network_dtype(config: dict[str, Any], network_dtype: Any) -> None:
    """Sets the dtype policy of all networks; raises `ValueError` without any."""
    try:
        policy = keras.dtype_policies.get(network_dtype).name
    except (TypeError, ValueError) as error:
        raise refusal("a Keras dtype policy as network_dtype", error) from error
    policies = [
        part["config"]
        for network in [part["network"] for part in keras_config.parts(config) if "network" in part]
        for part in keras_config.parts(network)
        if part.get("class_name") == "DTypePolicy" and isinstance(part.get("config"), dict)
    ]
    if not policies:
        raise ValueError(
            "from_preset: expected networks that are Keras layers in the preset with "
            f"network_dtype={policy!r}, got a model without."
        )
    for policy_config in policies:
        policy_config["name"] = policy


def _check_keras_object(config: dict[str, Any]) -> None:
    name, module, registered_name = (
        str(config.get(key)) for key in ("class_name", "module", "registered_name")
    )
    # Keras looks functions up by `config`.
    key = str(config.get("config")) if name == "function" else registered_name
    registered = keras.saving.get_registered_object(key)
    namespace, base = _KERAS_BASES.get(module, (None, ()))
    found = getattr(namespace, name, None)
    if name.startswith("__"):
        is_allowed = name in _KERAS_VALUES
    elif registered is not None:
        # With another name, or without a module, Keras may take another object.
        is_allowed = name in ("function", getattr(registered, "__name__", None))
    else:
        is_allowed = name in _KERAS_CLASSES.get(module, ()) or (
            isinstance(found, type) and issubclass(found, base)
        )
    if not (is_allowed and (name in _KERAS_VALUES or "module" in config)):
        raise ValueError(
            f"from_preset: expected layers, initializers, regularizers and constraints of Keras in "
            f"{CONFIG}, or classes and functions that are registered with Keras or given as "
            f"custom_objects, got {name!r:.80} of the module {module!r:.80}, registered as "
            f"{registered_name!r:.80}."
        )


def construct(
    model_class: type[keras.Model],
    config: dict[str, Any],
    custom_objects: dict[str, Any],
    num_elements: int,
) -> keras.Model:
    """Returns a model without its weights; raises `ValueError` if it has more than there are."""
    try:
        with _limited_variables(num_elements):
            return model_class.from_config(config["config"], custom_objects)
    except _TooLargeError:
        raise
    except Exception as error:
        raise refusal(f"a {CONFIG} from which a model can be constructed", error) from error


def check_parameters(model: keras.Model) -> None:
    """Raises `ValueError` if parameters of a distribution are out of range, as a negative scale."""
    for part in (model.distribution, *model.distribution.submodules):
        if not isinstance(part, tfd.Distribution) or "validate_args" not in part.parameters:
            continue
        # TFP checks constants at once, variables only later.
        constants = {
            name: tf.convert_to_tensor(value)
            for name, value in part.parameters.items()
            if isinstance(value, (tf.Variable, tfp.util.TransformedVariable))
        }
        try:
            part.copy(validate_args=True, **constants)
        except (tf.errors.InvalidArgumentError, ValueError) as error:
            raise refusal(f"valid parameters of the distribution {part.name}", error) from error


class _TooLargeError(ValueError):
    pass


@contextlib.contextmanager
def _limited_variables(num_elements: int) -> Iterator[None]:
    """Raises an error if the variables that are created have more elements than that."""
    left, graph = num_elements + _NUM_OTHER_ELEMENTS, tf.Graph()

    def create(next_creator: Any, **kwargs: Any) -> tf.Variable:
        nonlocal left
        value, variable = kwargs["initial_value"], None
        if callable(value):
            # In a graph its result has a shape, but takes no memory.
            try:
                with graph.as_default():
                    value = value()
            except RuntimeError:  # It uses an eager tensor.
                value = variable = next_creator(**kwargs)
        left -= tf.TensorShape(np.shape(value)).num_elements()
        if left < 0:
            raise _TooLargeError(
                f"from_preset: expected a model with the {num_elements:,} numbers in {WEIGHTS}, "
                f"got a {CONFIG} of a larger one."
            )
        return next_creator(**kwargs) if variable is None else variable

    with tf.variable_creator_scope(create):
        yield

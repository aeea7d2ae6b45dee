"""Presets: a trained model as a folder, in the form of keras-hub."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import io
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import h5py
import keras
import numpy as np
import tensorflow as tf

from tfp_realnvp.internal import atomic_files, private_api
from tfp_realnvp.internal.optional_packages import missing_package
from tfp_realnvp.serialization import keras_config

__all__ = ["from_preset", "save_to_preset"]

_CONFIG, _METADATA, _WEIGHTS = "config.json", "metadata.json", "model.weights.h5"
_CARD = "README.md"
_FORMAT_VERSION = 1
_BUNDLED = pathlib.Path(__file__).parents[1] / "presets"

_MAX_JSON_BYTES = 2**26
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

# Shape, dtype and size of arrays by name.
_Arrays: TypeAlias = dict[str, tuple[tuple[int, ...], np.dtype, int]]


def save_to_preset(
    model: keras.Model,
    folder: str | os.PathLike[str],
    *,
    card: Mapping[str, Any] | None = None,
    weights: bool = True,
) -> None:
    """Writes a model to a folder, for `from_preset`.

    | file | content |
    | --- | --- |
    | `config.json` | Keras' configuration of the model, without that of `compile` |
    | `model.weights.h5` | the weights, also for `model.load_weights`; without the optimizer's |
    | `metadata.json` | the versions that wrote it, the date, `parameter_count` and `card` |
    | `README.md` | a model card for the Hugging Face Hub, with the entries of `card` as a table |

    All files are replaced at once, when the new ones are complete: a process that is killed leaves
    the old preset or the new one. Other files in the folder stay.

    Args:
      model: a `FlowModel`.
      folder: created if it is missing.
      card: facts about the model by name, such as `data`, `command`, `steps`, `seconds`,
        `bits/dim` and `limits`. Values are those of JSON, or NumPy's numbers and arrays.
      weights: `False` leaves the weights file in the folder as it is, where something else writes
        it, for example a `TrainingCheckpoint` with `best_weights='model.weights.h5'`.

    Raises:
      TypeError: if a part of the distribution cannot be described; the message names it. If a value
        of `card` is not JSON.
      ValueError: if a number in `card` is not finite, which JSON does not have.
      OSError: if the files cannot be written. What was in the folder stays.
    """
    folder, card = pathlib.Path(folder), _as_json(card or {})
    serialized = keras.saving.serialize_keras_object(model)
    config = {key: serialized[key] for key in ("module", "class_name", "config", "registered_name")}
    metadata = {
        "format_version": _FORMAT_VERSION,
        "tfp_realnvp_version": _version("tfp_realnvp"),
        "keras_version": keras.__version__,
        "tensorflow_version": tf.__version__,
        "parameter_count": model.count_params(),
        "date_saved": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "card": card,
    }
    with atomic_files.replace_together(folder) as new:
        if weights:
            (new / _WEIGHTS).write_bytes(_weights(model).getbuffer())
        atomic_files.write_json(new / _CONFIG, config)
        atomic_files.write_text(new / _CARD, _model_card(folder.absolute().name, metadata))
        atomic_files.write_json(new / _METADATA, metadata)


def from_preset(
    handle: str | os.PathLike[str],
    custom_objects: Mapping[str, Any] | None = None,
    network_dtype: str | None = None,
    model_class: type[keras.Model] | None = None,
) -> keras.Model:
    """Returns the model of a preset, with its weights, not compiled.

    | handle | |
    | --- | --- |
    | a name | of a preset that comes with this package |
    | `results/digits` | a folder of `save_to_preset` |
    | `hf://user/repo` | of the Hugging Face Hub; needs huggingface_hub |
    | `kaggle://user/model/keras/variation` | of Kaggle; needs kagglehub |

    Loading runs no code from the preset. Before anything is constructed, its configuration is
    checked: it names only layers, initializers, regularizers and constraints of Keras, public
    distributions and bijectors of TFP, classes of this package, and what the caller gives as
    `custom_objects` or has registered with `keras.saving.register_keras_serializable`. The weights
    are plain arrays in the folder itself, with the names, shapes and dtypes of the model's. A model
    that is much larger than its weights file, or has weights that are not finite, is refused.

    Args:
      handle: see the table. A name of this package takes precedence over a folder of that name;
        `./name` is the folder.
      custom_objects: the caller's own layers and functions, by their names in the configuration.
      network_dtype: name of a Keras dtype policy for the networks of each `RealNVPImage` and
        `RealNVPVector`, instead of the one they were trained with. After training with
        `'mixed_bfloat16'`, `'float32'` makes `decode(encode(x))` exact.
      model_class: a subclass of the preset's class, to construct instead; or a base class of it,
        which the preset is expected to be of.

    Raises:
      ValueError: if there is no such preset, it is not a valid one, or it has no flow whose
        `network_dtype` can be replaced. The message says what was expected and what came.
      ImportError: if the handle needs a library that is not installed; the message has the command
        that installs it.
    """
    folder, root = _locate(os.fspath(handle))
    files = {name: _file(folder, root, name) for name in (_METADATA, _CONFIG, _WEIGHTS)}
    _check_version(files[_METADATA])
    config = _read_json(files[_CONFIG])
    declared = _declared_weights(files[_WEIGHTS])
    custom_objects = dict(custom_objects or {})
    if model_class is not None:
        # Classes that are not registered have names as well.
        name = keras.saving.get_registered_name(model_class)
        custom_objects = {name: model_class, **custom_objects}
    with keras.saving.custom_object_scope(custom_objects):
        model_class = _most_special(_check_config(config), model_class)
        _check_number_of_parts(config, len(declared))
        if network_dtype is not None:
            _replace_network_dtype(config, network_dtype)
        num_elements = sum(size for _, _, size in declared.values())
        model = _construct(model_class, config, custom_objects, num_elements)
    _check_weights(model, declared, files[_WEIGHTS])
    try:
        model.load_weights(files[_WEIGHTS])
    except Exception as error:
        raise _refusal(f"readable weights in {files[_WEIGHTS]}", error) from error
    _check_finite(model, files[_WEIGHTS])
    return model


# Saving.


def _as_json(card: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the facts as `json` reads them, with numbers of NumPy as Python's."""

    def plain(value: Any) -> Any:
        if isinstance(value, (np.generic, np.ndarray)):
            return value.tolist()
        raise TypeError(f"a {type(value).__name__}")

    plain_card = {}
    for name, value in card.items():
        expected = f"save_to_preset: expected card[{name!r}]"
        try:
            plain_card[str(name)] = json.loads(json.dumps(value, default=plain, allow_nan=False))
        except TypeError as error:
            raise TypeError(f"{expected} as a value of JSON, got {value!r}: {error}.") from error
        except ValueError as error:
            message = f"{expected} with finite numbers, as JSON has them, got {value!r}."
            raise ValueError(message) from error
    return plain_card


def _weights(model: keras.Model) -> io.BytesIO:
    """Returns the weights file of a model, without its optimizer."""
    weights = io.BytesIO()
    with (
        h5py.File(private_api.weights_in_memory(model)) as source,
        h5py.File(weights, "w") as target,
    ):
        for name in source:
            if name != "optimizer":
                source.copy(name, target)
    return weights


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _model_card(name: str, metadata: Mapping[str, Any]) -> str:
    facts = {"parameters": f"{metadata['parameter_count']:,}", **metadata["card"]}
    rows = "\n".join(f"| {key} | {_as_cell(value)} |" for key, value in facts.items())
    return f"""---
library_name: tfp_realnvp
tags:
- density-estimation
- normalizing-flow
---

# {name}

A normalizing flow: exact densities and samples, as a distribution of TensorFlow Probability.

```python
import tfp_realnvp as tfr

model = tfr.FlowModel.from_preset("{name}")  # this folder, or its hf:// or kaggle:// handle
```

`model.distribution` has `sample` and `log_prob`; `model.predict` takes the data as it is.

| | |
| --- | --- |
{rows}

Written by tfp_realnvp {metadata["tfp_realnvp_version"]}, Keras {metadata["keras_version"]} and
TensorFlow {metadata["tensorflow_version"]} on {metadata["date_saved"][:10]}.
"""


def _as_cell(value: Any) -> str:
    if isinstance(value, Mapping):
        value = ", ".join(f"{key}: {inner}" for key, inner in value.items())
    return str(value).replace("|", "\\|").replace("\n", " ")


# Finding the files.


def _locate(handle: str) -> tuple[pathlib.Path, pathlib.Path]:
    """Returns the folder of a preset, and the folder that its files must not leave."""
    if handle.startswith("hf://"):
        try:
            import huggingface_hub
        except ImportError as error:
            raise missing_package(f"The preset {handle!r}", "huggingface_hub") from error
        names = [_CONFIG, _METADATA, _WEIGHTS, _CARD]
        repository = handle.removeprefix("hf://")
        folder = pathlib.Path(
            huggingface_hub.snapshot_download(repository, allow_patterns=names)
        ).resolve()
        # The files of repository/snapshots/revision are links to repository/blobs.
        return folder, folder.parents[1]
    if handle.startswith("kaggle://"):
        try:
            import kagglehub
        except ImportError as error:
            raise missing_package(f"The preset {handle!r}", "kagglehub") from error
        folder = pathlib.Path(kagglehub.model_download(handle.removeprefix("kaggle://")))
    else:
        bundled = sorted(path.name for path in _BUNDLED.glob("*") if path.is_dir())
        folder = _BUNDLED / handle if handle in bundled else pathlib.Path(handle)
        if not folder.is_dir():
            raise ValueError(
                f"from_preset: expected one of the names {bundled}, a folder of save_to_preset, or "
                f"a handle hf://user/repo or kaggle://user/model/keras/variation, got {handle!r}."
            )
    folder = folder.resolve()
    return folder, folder


def _file(folder: pathlib.Path, root: pathlib.Path, name: str) -> pathlib.Path:
    path = atomic_files.current_path(folder, name).resolve()
    if not path.is_relative_to(root):
        raise ValueError(f"from_preset: expected {name} in {folder}, got a link to {path}.")
    if not path.is_file():
        raise ValueError(
            f"from_preset: expected {_CONFIG}, {_METADATA} and {_WEIGHTS} in {folder}, got no file "
            f"{name}."
        )
    return path


# Checks before anything is constructed.


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    if path.stat().st_size > _MAX_JSON_BYTES:
        raise ValueError(
            f"from_preset: expected at most {_MAX_JSON_BYTES:,} bytes in {path}, got "
            f"{path.stat().st_size:,}."
        )
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise _refusal(f"JSON in {path}", error) from error
    if not isinstance(value, dict):
        raise ValueError(f"from_preset: expected a JSON object in {path}, got {value!r:.80}.")
    return value


def _check_version(path: pathlib.Path) -> None:
    version = _read_json(path).get("format_version")
    is_integer = isinstance(version, int) and not isinstance(version, bool)
    if not is_integer or not 1 <= version <= _FORMAT_VERSION:
        raise ValueError(
            f"from_preset: expected format_version 1 to {_FORMAT_VERSION} in {path}, got "
            f"{version!r:.80}; a newer version of tfp_realnvp may be able to read it."
        )


def _check_config(config: dict[str, Any]) -> type[keras.Model]:
    """Returns the class of the model, or raises `ValueError` if anything is not allowed."""
    model_class = keras.saving.get_registered_object(str(config.get("registered_name")))
    is_model = isinstance(model_class, type) and issubclass(model_class, keras.Model)
    if not (is_model and {"class_name", "config"} <= config.keys()):
        raise ValueError(
            f"from_preset: expected the configuration of a FlowModel in {_CONFIG}, got one with "
            f"{sorted(config)}, of {config.get('registered_name')!r:.80}."
        )
    for part in _parts(config):
        if "class_name" in part:
            _check_keras_object(part)
        if part.get("kind") == "object":
            keras_config.find_class(part.get("class"))
    return model_class


def _most_special(
    saved: type[keras.Model], expected: type[keras.Model] | None
) -> type[keras.Model]:
    """Returns the class of a preset, or the expected subclass of it."""
    if expected is None or issubclass(saved, expected):
        return saved
    if not issubclass(expected, saved):
        raise ValueError(
            f"from_preset: expected a preset of a {expected.__name__}, or of one of its base "
            f"classes, got one of a {saved.__name__}; call {saved.__name__}.from_preset."
        )
    return expected


def _check_number_of_parts(config: dict[str, Any], num_arrays: int) -> None:
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
        raise _refusal(f"references to earlier parts in {_CONFIG}", error) from error
    if number > (limit := _NUM_PARTS_OF_ARRAY * num_arrays + _NUM_OTHER_PARTS):
        raise ValueError(
            f"from_preset: expected a {_CONFIG} with at most {limit:,} couplings and other parts, "
            f"for the {num_arrays:,} arrays in {_WEIGHTS}, got {number:.4g}."
        )


def _parts(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields all dictionaries of a configuration."""
    pending: list[Any] = [config]
    while pending:
        value = pending.pop()
        if isinstance(value, list):
            pending += value
        elif isinstance(value, dict):
            yield value
            pending += value.values()


def _replace_network_dtype(config: dict[str, Any], network_dtype: Any) -> None:
    try:
        policy = keras.dtype_policies.get(network_dtype).name
    except (TypeError, ValueError) as error:
        raise _refusal("a Keras dtype policy as network_dtype", error) from error
    flows = [
        arguments
        for part in _parts(config)
        if isinstance(arguments := part.get("arguments"), dict) and "network_dtype" in arguments
    ]
    if not flows:
        raise ValueError(
            "from_preset: expected a RealNVPImage or RealNVPVector in the preset with "
            f"network_dtype={policy!r}, got a model without."
        )
    for arguments in flows:
        arguments["network_dtype"] = policy


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
            f"{_CONFIG}, or classes and functions that are registered with Keras or given as "
            f"custom_objects, got {name!r:.80} of the module {module!r:.80}, registered as "
            f"{registered_name!r:.80}."
        )


def _declared_weights(path: pathlib.Path) -> _Arrays:
    """Returns the arrays of a file, which are not larger than the file."""
    try:
        with h5py.File(path) as file:
            declared = _arrays(file)
    except OSError as error:
        raise _refusal(f"weights in the HDF5 format in {path}", error) from error
    num_bytes = sum(size * dtype.itemsize for _, dtype, size in declared.values())
    if num_bytes > path.stat().st_size:
        raise ValueError(
            f"from_preset: expected weights of at most the {path.stat().st_size:,} bytes of {path},"
            f" got arrays of {num_bytes:,} bytes."
        )
    return declared


def _arrays(file: h5py.File) -> _Arrays:
    """Returns shape, dtype and size of all arrays by name; those behind links do not count."""
    arrays = {}

    def add(name: str, item: Any) -> None:
        # The optimizer is in the files that `model.save_weights` writes during training.
        if not isinstance(item, h5py.Dataset) or name.startswith("optimizer/"):
            return
        if item.external or item.is_virtual:
            raise ValueError(
                f"from_preset: expected the values of {name} in {file.filename}, got a reference "
                "to another file."
            )
        arrays[name] = (item.shape, item.dtype, item.size or 0)

    file.visititems(add)
    return arrays


# Construction.


def _construct(
    model_class: type[keras.Model],
    config: dict[str, Any],
    custom_objects: dict[str, Any],
    num_elements: int,
) -> keras.Model:
    try:
        with _limited_variables(num_elements):
            return model_class.from_config(config["config"], custom_objects)
    except _TooLargeError:
        raise
    except Exception as error:
        raise _refusal(f"a {_CONFIG} from which a model can be constructed", error) from error


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
                f"from_preset: expected a model with the {num_elements:,} numbers in {_WEIGHTS}, "
                f"got a {_CONFIG} of a larger one."
            )
        return next_creator(**kwargs) if variable is None else variable

    with tf.variable_creator_scope(create):
        yield


def _check_weights(model: keras.Model, declared: _Arrays, path: pathlib.Path) -> None:
    with h5py.File(private_api.weights_in_memory(model)) as file:
        expected = _arrays(file)
    numbered = _with_positions(expected, model)
    if numbered.keys() == declared.keys():
        expected = numbered
    for name in sorted({*expected, *declared}):
        here, there = (
            "no such array" if name not in arrays else "{1}{0}".format(*arrays[name])
            for arrays in (expected, declared)
        )
        if here != there:
            raise ValueError(
                f"from_preset: expected the weights of the model in {_CONFIG}, {name}: {here}, in "
                f"{path}, got {there}."
            )


def _check_finite(model: keras.Model, path: pathlib.Path) -> None:
    for weight in model.weights:
        if not keras.backend.is_float_dtype(weight.dtype):
            continue
        values = np.asarray(weight.numpy(), np.float64)
        if number := np.count_nonzero(~np.isfinite(values)):
            raise ValueError(
                f"from_preset: expected finite weights in {path}, got {number:,} of "
                f"{values.size:,} values of {weight.path} that are not."
            )


def _with_positions(expected: dict[str, Any], model: keras.Model) -> dict[str, Any]:
    """Returns the arrays of a file of 0.2.0: variables outside networks are there by position."""
    layer = getattr(model, "other_variables", None)
    positions = {} if layer is None else {v.name: i for i, v in enumerate(layer.wrapped)}

    def renamed(name: str) -> str:
        head, _, tail = name.rpartition("/")
        return f"{head}/{positions.get(tail, tail)}"

    return {renamed(name): array for name, array in expected.items()}


def _refusal(expected: str, error: BaseException) -> ValueError:
    # Keras' own sentence is around the reason, with the whole configuration.
    while reason := error.__cause__ or error.__context__:
        error = reason
    return ValueError(f"from_preset: expected {expected}, got {type(error).__name__}: {error}")

"""Presets: folders with a trained model, in the layout of keras-hub."""

import datetime
import json
import math
import operator
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from tfp_realnvp.internal import atomic_files, optional_packages, private_api, validation, versions
from tfp_realnvp.saving import keras_config, preset_checks, weights_file

_FILES = ["config.json", "metadata.json", "model.weights.h5", "README.md"]
_CONFIG, _METADATA, _WEIGHTS, _CARD = _FILES
_BUNDLED = pathlib.Path(__file__).parents[1] / "presets"
# For each hub: its package, the function that downloads a model to a folder, and options.
_HUBS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "hf": ("huggingface_hub", "snapshot_download", {"allow_patterns": _FILES}),
    "kaggle": ("kagglehub", "model_download", {}),
}


def write_preset(
    model: keras.Model,
    folder: str | os.PathLike[str],
    card: Mapping[str, Any] | None,
    with_weights: bool,
) -> None:
    """Writes a preset; see `FlowModel.save_to_preset`."""
    name = pathlib.PurePath(folder).name
    expected = f"save_to_preset: expected a folder, such as './{name}', not a name or handle of "
    expected += "another preset"
    validation.require(_is_folder(folder), expected, folder)
    folder = pathlib.Path(os.path.expanduser(folder))
    try:
        numbers_of_numpy = operator.methodcaller("tolist")
        facts = json.loads(json.dumps(dict(card or {}), default=numbers_of_numpy, allow_nan=False))
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"save_to_preset: expected a JSON card with finite numbers, got {card!r}: {error}."
        ) from error
    serialized = keras.saving.serialize_keras_object(model)
    config = {key: serialized[key] for key in ("module", "class_name", "config", "registered_name")}
    try:
        preset_checks.check_names(config["config"])
    except ValueError as error:
        raise TypeError(f"save_to_preset: the preset could not be loaded. {error}") from error
    metadata = {
        "tfp_realnvp_version": versions.current()["tfp_realnvp_version"],
        "keras_version": keras.__version__,
        "tensorflow_version": tf.__version__,
        "parameter_count": model.count_params(),
        "date_saved": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "card": facts,
    }
    with atomic_files.replace_together(folder) as new:
        if with_weights:
            (new / _WEIGHTS).write_bytes(weights_file.weights_of(model).getbuffer())
        atomic_files.write_json(new / _CONFIG, config)
        atomic_files.write_text(new / _CARD, _model_card(folder.absolute().name, metadata))
        atomic_files.write_json(new / _METADATA, metadata)


def read_preset(
    cls: type[keras.Model],
    handle: str | os.PathLike[str],
    custom_objects: Mapping[str, Any] | None,
    network_dtype: str | None,
) -> keras.Model:
    """Returns the model of a preset; see `FlowModel.from_preset`."""
    folder = _folder_of(handle)
    names = (_CONFIG, _WEIGHTS)
    config_file, weights = (atomic_files.current_path(folder, name) for name in names)
    for path in (config_file, weights):
        if not path.is_file():
            raise ValueError(f"from_preset: expected {names} in {folder}, got no file {path.name}.")
    config = preset_checks.read_json(config_file)
    with preset_checks.expecting(f"plain HDF5 arrays in {weights}"):
        arrays = weights_file.declared_arrays(weights)
    # `get_registered_name` also returns names for classes that are not registered.
    custom_objects = {keras.saving.get_registered_name(cls): cls, **(custom_objects or {})}
    with private_api.custom_object_scope(custom_objects):
        name = config.get("registered_name")
        saved_class = keras.saving.get_registered_object(str(name))
        is_class = isinstance(saved_class, type) and isinstance(config.get("config"), dict)
        if is_class and issubclass(saved_class, cls):
            cls = saved_class
        elif not (is_class and issubclass(cls, saved_class)):
            raise ValueError(
                f"from_preset: expected the configuration of a {cls.__name__}, or of one of its "
                f"base classes, in {_CONFIG}, got {name!r:.80}; call from_preset of that class."
            )
        with versions.named_in_errors(config["config"]):
            preset_checks.check_names(config["config"])
            if network_dtype is not None:
                _replace_network_dtype(config, network_dtype)
            num_elements = sum(math.prod(shape) for _, shape in arrays.values())
            with (
                preset_checks.expecting(f"a {_CONFIG} from which a model can be constructed"),
                preset_checks.limited_variables(num_elements),
            ):
                model = cls.from_config(config["config"])
            with preset_checks.expecting(f"finite weights in {weights} for the model in {_CONFIG}"):
                weights_file.load_weights(model, weights, arrays)
    preset_checks.check_parameters(model)
    return model


def _bundled_names() -> list[str]:
    return sorted(path.name for path in _BUNDLED.glob("*") if path.is_dir())


def _is_folder(handle: str | os.PathLike[str]) -> bool:
    # A `pathlib.Path` is always a folder: it drops the "./" that tells a folder from a name.
    return not isinstance(handle, str) or not (handle in _bundled_names() or "://" in handle)


def _folder_of(handle: str | os.PathLike[str]) -> pathlib.Path:
    """Returns a preset's folder, downloading the preset if the handle names a hub."""
    hub, _, name = os.fspath(handle).rpartition("://")
    if hub in _HUBS:
        package, function, options = _HUBS[hub]
        module = optional_packages.load(package, f"The preset {handle!r}", package)
        return pathlib.Path(getattr(module, function)(name, **options))
    folder = pathlib.Path(os.path.expanduser(handle)) if _is_folder(handle) else _BUNDLED / handle
    expected = f"from_preset: expected one of the names {_bundled_names()}, a folder of "
    expected += "save_to_preset, or a handle hf://user/repo or kaggle://user/model/keras/variation"
    validation.require(folder.is_dir(), expected, os.fspath(handle))
    return folder


def _replace_network_dtype(config: dict[str, Any], network_dtype: Any) -> None:
    """Sets the dtype policy of all networks; raises `ValueError` if there are none."""
    policy = keras.dtype_policies.get(network_dtype).name
    policies = [
        part["config"]
        for owner in keras_config.parts(config)
        for part in keras_config.parts(owner.get("network"))
        if part.get("class_name") == "DTypePolicy"
    ]
    expected = "from_preset: expected a preset whose networks are Keras layers"
    validation.require(bool(policies), f"{expected} for network_dtype={policy!r}", policies)
    for policy_config in policies:
        policy_config["name"] = policy


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

model = tfr.FlowModel.from_preset("./{name}")  # this folder, or its hf:// or kaggle:// handle
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

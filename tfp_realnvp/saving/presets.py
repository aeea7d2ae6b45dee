"""Presets: a trained model as a folder, in the form of keras-hub."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfp_realnvp.internal import atomic_files
from tfp_realnvp.saving.preset_config import (
    check_config,
    check_number_of_parts,
    check_parameters,
    check_parts,
    construct,
    most_special,
    replace_network_dtype,
)
from tfp_realnvp.saving.preset_files import (
    CARD,
    CONFIG,
    FORMAT_VERSION,
    METADATA,
    WEIGHTS,
    check_version,
    file_of,
    locate,
    read_json,
    refusal,
)
from tfp_realnvp.saving.weights_file import (
    check_finite,
    check_weights,
    declared_weights,
    weights_of,
)

__all__ = ["from_preset", "save_to_preset"]


def save_to_preset(
    model: keras.Model,
    folder: str | os.PathLike[str],
    *,
    card: Mapping[str, Any] | None = None,
    weights: bool = True,
) -> None:
    """Writes a model to a folder; see `FlowModel.save_to_preset`."""
    folder, card = pathlib.Path(os.path.expanduser(folder)), _as_json(card or {})
    serialized = keras.saving.serialize_keras_object(model)
    config = {key: serialized[key] for key in ("module", "class_name", "config", "registered_name")}
    try:
        check_parts(config["config"])
    except ValueError as error:
        raise TypeError(f"save_to_preset: the preset could not be loaded. {error}") from error
    metadata = {
        "format_version": FORMAT_VERSION,
        "tfp_realnvp_version": _version("tfp_realnvp"),
        "keras_version": keras.__version__,
        "tensorflow_version": tf.__version__,
        "parameter_count": model.count_params(),
        "date_saved": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "card": card,
    }
    with atomic_files.replace_together(folder) as new:
        if weights:
            (new / WEIGHTS).write_bytes(weights_of(model).getbuffer())
        atomic_files.write_json(new / CONFIG, config)
        atomic_files.write_text(new / CARD, _model_card(folder.absolute().name, metadata))
        atomic_files.write_json(new / METADATA, metadata)


def from_preset(
    handle: str | os.PathLike[str],
    custom_objects: Mapping[str, Any] | None = None,
    network_dtype: str | None = None,
    model_class: type[keras.Model] | None = None,
) -> keras.Model:
    """Returns the model of a preset; see `FlowModel.from_preset`.

    Args:
      handle: as in `FlowModel.from_preset`.
      custom_objects: as in `FlowModel.from_preset`.
      network_dtype: as in `FlowModel.from_preset`.
      model_class: a subclass of the preset's class, to construct instead; or a base class of it,
        which the preset is expected to be of.
    """
    folder, root = locate(os.fspath(handle))
    files = {name: file_of(folder, root, name) for name in (METADATA, CONFIG, WEIGHTS)}
    check_version(files[METADATA])
    config = read_json(files[CONFIG])
    declared = declared_weights(files[WEIGHTS])
    custom_objects = dict(custom_objects or {})
    if model_class is not None:
        # Classes that are not registered have names as well.
        name = keras.saving.get_registered_name(model_class)
        custom_objects = {name: model_class, **custom_objects}
    with keras.saving.custom_object_scope(custom_objects):
        model_class = most_special(check_config(config), model_class)
        check_number_of_parts(config, len(declared))
        if network_dtype is not None:
            replace_network_dtype(config, network_dtype)
        num_elements = sum(size for _, _, size in declared.values())
        model = construct(model_class, config, custom_objects, num_elements)
    check_weights(model, declared, files[WEIGHTS])
    try:
        model.load_weights(files[WEIGHTS])
    except Exception as error:
        raise refusal(f"readable weights in {files[WEIGHTS]}", error) from error
    check_finite(model, files[WEIGHTS])
    check_parameters(model)
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
        try:
            plain_card[str(name)] = json.loads(json.dumps(value, default=plain, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise type(error)(
                f"save_to_preset: expected card[{name!r}] as JSON, whose numbers are finite, got "
                f"{value!r}: {error}."
            ) from error
    return plain_card


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

"""The results folder of a training run: its configuration and its model.

A folder contains `config.json`, with the flags of the run and, as `"bijector"`, the model, here
one of digits given their class:

```
{"dataset": "digits", "condition": "label", "seed": 0, ..., "dequantizer": "uniform",
 "bijector": {"configuration": "compact",
              "arguments": {"image_shape": [8, 8, 1], "num_classes": 10, ...}}}
```

and the weights `best.weights.h5` and `final.weights.h5`.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import keras
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_realnvp as tfr
from tfp_realnvp import data
from tfp_realnvp.internal.atomic_files import write_json

__all__ = [
    "BEST_WEIGHTS",
    "CONFIG",
    "FINAL_WEIGHTS",
    "build_bijector",
    "build_model",
    "check_same_config",
    "data_arguments",
    "load_run",
    "load_split",
    "num_validation",
    "num_values",
    "read_config",
    "write_config",
]

tfd = tfp.distributions

Folder = str | os.PathLike[str]

CONFIG = "config.json"
BEST_WEIGHTS = "best.weights.h5"
FINAL_WEIGHTS = "final.weights.h5"

_CONFIGURATIONS = {"paper": tfr.RealNVPImage, "compact": tfr.RealNVPImage.compact}


def write_config(folder: Folder, config: Mapping[str, Any]) -> pathlib.Path:
    """Writes the configuration of a run to its folder, atomically.

    Args:
      folder: the results folder, created if it is missing.
      config: the configuration, as in the docstring of this file.

    Returns:
      The path of the file.

    Raises:
      TypeError: if a value is not serializable as JSON.
    """
    return write_json(pathlib.Path(folder) / CONFIG, dict(config))


def read_config(folder: Folder) -> dict[str, Any]:
    """Returns the configuration of the run in a folder.

    Raises:
      FileNotFoundError: if the folder contains no run.
      ValueError: if the configuration is damaged.
    """
    path = pathlib.Path(folder) / CONFIG
    if not path.is_file():
        raise FileNotFoundError(
            f"Expected the results of examples/train_image.py in {os.fspath(folder)!r}, found no "
            f"{CONFIG}."
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"Expected JSON in {path}: {error}.") from error
    if not isinstance(config, dict) or "bijector" not in config:
        raise ValueError(f"Expected a key 'bijector' in {path}.")
    return config


def check_same_config(
    folder: Folder, config: Mapping[str, Any], ignore: Collection[str] = ()
) -> None:
    """Checks that a folder does not contain a run with another configuration.

    Args:
      folder: the results folder, which can be empty or missing.
      config: the expected configuration.
      ignore: top-level keys that may differ.

    Raises:
      ValueError: if the configuration in the folder differs. The message lists the differences.
    """
    if not (pathlib.Path(folder) / CONFIG).exists():
        return
    found = dict(_entries(read_config(folder)))
    wanted = dict(_entries(json.loads(json.dumps(dict(config)))))
    missing = object()
    differing = [
        key
        for key in sorted({*found, *wanted})
        if key.split(".")[0] not in ignore and found.get(key, missing) != wanted.get(key, missing)
    ]
    if differing:
        lines = [
            f"  {key}: {found.get(key, '-')} in the folder, {wanted.get(key, '-')} expected"
            for key in differing
        ]
        raise ValueError(
            f"{os.fspath(folder)!r} contains results of another configuration:\n"
            + "\n".join(lines)
            + "\nUse another folder or the flags of that run."
        )


def build_bijector(spec: Mapping[str, Any]) -> tfr.RealNVPImage:
    """Returns a bijector with new weights.

    Args:
      spec: a dictionary with `"configuration"`, which is `"paper"` for `RealNVPImage` or
        `"compact"` for `RealNVPImage.compact`, and `"arguments"`, the keyword arguments, with the
        dtype by name.

    Raises:
      ValueError: if a key is missing, or if the configuration or an argument is unknown.
    """
    missing = {"configuration", "arguments"} - set(spec)
    if missing:
        raise ValueError(f"Expected the keys {sorted(missing)} of a bijector, got {sorted(spec)}.")
    configuration, arguments = spec["configuration"], dict(spec["arguments"])
    if configuration not in _CONFIGURATIONS:
        raise ValueError(
            f"Expected a configuration of {sorted(_CONFIGURATIONS)}, got {configuration!r}."
        )
    if "dtype" in arguments:
        arguments["dtype"] = tf.as_dtype(arguments["dtype"])
    try:
        return _CONFIGURATIONS[configuration](**arguments)
    except TypeError as error:
        raise ValueError(f"Expected arguments of RealNVPImage: {error}") from error


def build_model(config: Mapping[str, Any], mixed_precision: bool | None = None) -> tfr.FlowModel:
    """Returns the model of a configuration, with new weights and a standard normal base.

    With `"dequantizer": "variational"` it learns its noise, see `VariationalDequantization`.

    Args:
      config: configuration of a run.
      mixed_precision: whether the networks compute in bfloat16; `None` means as in the run. The
        inverse is exact only without mixed precision.
    """
    if mixed_precision is None:
        mixed_precision = config.get("mixed_precision", False)
    with _dtype_policy("mixed_bfloat16" if mixed_precision else "float32"):
        bijector = build_bijector(config["bijector"])
        zero = tf.zeros([], bijector.dtype)
        base = tfd.Sample(tfd.Normal(zero, zero + 1), bijector.image_shape)
        distribution = tfd.TransformedDistribution(base, bijector)
        dequantizer = None
        if config.get("dequantizer", "uniform") == "variational":
            dequantizer = tfr.VariationalDequantization(
                bijector.image_shape,
                num_values=num_values(config),
                recompute=config["bijector"]["arguments"].get("recompute", False),
                dtype=bijector.dtype,
            )
        seed = int(config.get("seed", 0))
        return tfr.FlowModel(distribution, dequantizer=dequantizer, seed=seed)


def load_run(
    folder: Folder,
    weights: str | os.PathLike[str] | None = None,
    mixed_precision: bool | None = None,
) -> tuple[tfr.FlowModel, dict[str, Any]]:
    """Returns the trained model of a run, and its configuration.

    Args:
      folder: the results folder.
      weights: weights file of `FlowModel.save_weights`; `None` means the best weights of the run,
        or the final ones if there are no best weights.
      mixed_precision: see `build_model`.

    Raises:
      FileNotFoundError: if the folder contains no run, or if there is no weights file.
      ValueError: if the weights do not match the model.
    """
    config = read_config(folder)
    if weights is None:
        candidates = [pathlib.Path(folder) / name for name in (BEST_WEIGHTS, FINAL_WEIGHTS)]
    else:
        candidates = [pathlib.Path(weights)]
    path = next((path for path in candidates if path.is_file()), None)
    if path is None:
        raise FileNotFoundError(
            f"Expected weights in {' or '.join(map(str, candidates))}, found none."
        )
    model = build_model(config, mixed_precision)
    try:
        model.load_weights(path)
    except (ValueError, KeyError, OSError) as error:
        raise ValueError(
            f"Expected weights of the model in {folder}/{CONFIG}, got {path}: {error}"
        ) from error
    return model, config


def load_split(config: Mapping[str, Any], split: str, **options: Any) -> data.ImageBatches:
    """Returns the batches of a split of the data of a run.

    Args:
      config: configuration of the run. Only `"dataset"` is required.
      split: name of the split, or `"evaluation"` for the evaluation split of the dataset.
      **options: arguments of `data.load`, which take precedence over those of the run.

    Raises:
      ValueError: see `data.load`.
      FileNotFoundError: see `data.load`.
    """
    names = ("batch_size", "condition", "flip", "image_size", "num_validation", "on_error", "seed")
    of_run = {name: config[name] for name in names if config.get(name) is not None}
    options = {"batch_size": 64, **of_run, **options}
    if split == "evaluation":
        split = data.load(
            config["dataset"], **{**options, "batch_size": 1, "cache_bytes": 0}
        ).evaluation_split
    return data.load(config["dataset"], split=split, **options)


def data_arguments(images: data.ImageBatches) -> dict[str, Any]:
    """Returns the arguments of `RealNVPImage` that the data determine."""
    names = ("image_shape", "num_values", "num_classes", "conditional_event_shape")
    found = {name: getattr(images, name) for name in names}
    return {name: value for name, value in found.items() if value is not None}


def num_validation(images: data.ImageBatches, requested: int | None = None) -> int:
    """Returns the number of training images to hold out for validation.

    Args:
      images: the training images.
      requested: the number to hold out; `None` means one tenth, at most 1,000.

    Returns:
      0 if the dataset has a split `'validation'`, otherwise the number.
    """
    if "validation" in images.splits:
        return 0
    if requested is not None:
        return requested
    return min((images.num_images or 10_000) // 10, 1_000)


def num_values(config: Mapping[str, Any]) -> int:
    """Returns the number of gray levels of the model of a run."""
    return config["bijector"]["arguments"].get("num_values", 256)


@contextlib.contextmanager
def _dtype_policy(name: str) -> Iterator[None]:
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(policy)


def _entries(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the values in nested dictionaries, with keys joined by dots."""
    if not isinstance(value, dict):
        yield key, value
        return
    for name, inner in value.items():
        yield from _entries(inner, f"{key}.{name}" if key else name)

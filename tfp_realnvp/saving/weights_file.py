"""Writes weights files atomically, and reads only files of plain arrays."""

import io
import math
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import h5py
import keras
import numpy as np

from tfp_realnvp.internal import atomic_files, private_api, validation, versions

# Maps the name of an array to its dtype and shape.
Arrays = dict[str, tuple[np.dtype, tuple[int, ...]]]


def save_weights(model: keras.Model, path: str | os.PathLike[str]) -> None:
    """Saves weights to a file, atomically.

    Args:
      model: any Keras model, whose `load_weights` reads the file.
      path: `*.weights.h5`; a missing folder is created.

    Raises:
      ValueError: if `path` has another ending.
      OSError: if the file cannot be written. The old file stays.
    """
    name = os.fspath(path)
    expected = "save_weights: expected a file *.weights.h5"
    validation.require(name.endswith(".weights.h5"), expected, name)
    weights = private_api.weights_in_memory(model)
    with atomic_files.atomic_replace(path) as new:
        new.write_bytes(weights.getbuffer())


def weights_of(model: keras.Model) -> io.BytesIO:
    """Returns the weights file of a model in memory, without the optimizer's variables."""
    whole, weights = private_api.weights_in_memory(model), io.BytesIO()
    with h5py.File(whole) as source, h5py.File(weights, "w") as target:
        target.attrs.update(source.attrs)
        for name in source:
            if name != "optimizer":
                source.copy(name, target)
    return weights


def declared_arrays(path: pathlib.Path) -> Arrays:
    """Returns the dtype and shape of each array in a file; raises an error if one is not plain."""
    with h5py.File(path) as file:
        arrays = _arrays(file)
    num_bytes = sum(dtype.itemsize * math.prod(shape) for dtype, shape in arrays.values())
    if num_bytes > (size := path.stat().st_size):
        raise ValueError(f"arrays of {num_bytes:,} bytes in a file of {size:,} bytes")
    return arrays


def _arrays(file: h5py.Group) -> Arrays:
    arrays = {}

    def add(name: str, item: h5py.Dataset | h5py.Group) -> None:
        # `save_weights` of a trained model also writes the optimizer, which presets do not need.
        if isinstance(item, h5py.Dataset) and not name.startswith("optimizer/"):
            if item.external or item.is_virtual:
                raise ValueError(f"a reference to another file instead of {name}")
            arrays[name] = item.dtype, item.shape

    # `visititems` does not follow links.
    file.visititems(add)
    return arrays


def write_versions(store: Any) -> None:
    """Writes the version of this package to the file of a store of Keras."""
    if (group := private_api.weights_group_of(store)) is not None:
        group.attrs.update(versions.current())


def check_layers(model: keras.Model, store: Any) -> None:
    """Raises `ValueError` if a store of Keras lacks arrays of a model's layers, or has others.

    Keras itself ignores arrays of layers that have no variables yet. A store that consists of
    several files is not checked.
    """
    if (group := private_api.weights_group_of(store)) is None:
        return
    # Equal shapes are enough: Keras raises an error if a variable has no array. Names take longer.
    found = _shapes_of_layers(group)
    if sorted(found.values()) == sorted(tuple(weight.shape) for weight in model.weights):
        return
    with (
        versions.named_in_errors(group.attrs),
        h5py.File(private_api.weights_in_memory(model)) as whole,
    ):
        if differences := _differences(_shapes_of_layers(whole), found):
            raise ValueError(
                "FlowModel: expected a file with the arrays of the model's layers, got one with "
                f"{len(differences)} differences: {'; '.join(differences[:3])}."
            )


def _shapes_of_layers(group: h5py.Group) -> dict[str, Any]:
    arrays = _arrays(group).items()
    return {name: shape for name, (_, shape) in arrays if re.match("layers/.*/vars/[^/]*$", name)}


def _differences(expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    return [
        f"{found.get(name, 'no such array')} instead of {expected.get(name, 'no such array')} for "
        f"{name}"
        for name in sorted({*expected, *found})
        if expected.get(name) != found.get(name)
    ]


def load_weights(model: keras.Model, path: pathlib.Path, declared: Arrays) -> None:
    """Loads all weights of a model; raises `ValueError` if the file lacks weights or has others."""
    with h5py.File(private_api.weights_in_memory(model)) as file:
        both = (
            {name: "{}{}".format(*array) for name, array in arrays.items()}
            for arrays in (_arrays(file), declared)
        )
        if differences := _differences(*both):
            raise ValueError(differences[0])
    model.load_weights(path)
    for weight in model.weights:
        values = np.asarray(weight.numpy(), np.float64)
        if n := np.count_nonzero(~np.isfinite(values)):
            raise ValueError(f"{n:,} of {values.size:,} values of {weight.path} are not finite")

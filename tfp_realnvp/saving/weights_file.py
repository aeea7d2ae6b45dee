"""Writes weights files atomically, and reads only files of plain arrays."""

import io
import math
import os
import pathlib
import re
from typing import Any

import h5py
import keras
import numpy as np

from tfp_realnvp.internal import atomic_files, private_api, validation

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


def _arrays(file: h5py.File) -> Arrays:
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


def check_layers(model: keras.Model, store: Any) -> None:
    """Raises `ValueError` if a store of Keras lacks arrays of a model's layers, or has others.

    Keras itself ignores arrays of layers that have no variables yet. A store that consists of
    several files is not checked.
    """
    group = private_api.weights_group_of(store)
    # Keras raises an error if a variable has no array, so that equal numbers are enough.
    if group is None or len(names := _names_of_layers(group)) == len(model.weights):
        return
    with h5py.File(private_api.weights_in_memory(model)) as whole:
        expected = _names_of_layers(whole)
    missing, others = sorted(expected - names), sorted(names - expected)
    if missing or others:
        raise ValueError(
            "FlowModel: expected a file with the arrays of the model's layers, got one that lacks "
            f"{len(missing)} of them, {missing[:5]}, and has {len(others)} others, {others[:5]}."
        )


def _names_of_layers(group: h5py.Group) -> set[str]:
    names: list[str] = []
    group.visit(names.append)
    return {name for name in names if re.match("layers/.*/vars/[^/]*$", name)}


def load_weights(model: keras.Model, path: pathlib.Path, declared: Arrays) -> None:
    """Loads all weights of a model; raises `ValueError` if the file lacks weights or has others."""
    with h5py.File(private_api.weights_in_memory(model)) as file:
        expected = _arrays(file)
    for name in sorted({*expected, *declared}):
        here, there = (
            "{}{}".format(*arrays[name]) if name in arrays else "no such array"
            for arrays in (expected, declared)
        )
        if here != there:
            raise ValueError(f"{there} instead of {here} for {name}")
    model.load_weights(path)
    for weight in model.weights:
        values = np.asarray(weight.numpy(), np.float64)
        if n := np.count_nonzero(~np.isfinite(values)):
            raise ValueError(f"{n:,} of {values.size:,} values of {weight.path} are not finite")

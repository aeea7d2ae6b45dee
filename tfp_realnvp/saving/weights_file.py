"""Weights files: written whole, and read as plain arrays, those of the model and no others."""

from __future__ import annotations

import io
import os
import pathlib
from typing import Any, TypeAlias

import h5py
import keras
import numpy as np

from tfp_realnvp.internal import atomic_files, private_api
from tfp_realnvp.saving.preset_files import CONFIG, refusal

__all__ = [
    "Arrays",
    "check_finite",
    "check_weights",
    "declared_weights",
    "save_weights",
    "weights_of",
]

# Shape, dtype and size of arrays by name.
Arrays: TypeAlias = dict[str, tuple[tuple[int, ...], np.dtype, int]]


def save_weights(model: keras.Model, path: str | os.PathLike[str]) -> None:
    """Saves weights to `path`, which is replaced when the new file is complete.

    The file is that of `keras.Model.save_weights`, also for `model.load_weights`.

    Args:
      model: any Keras model.
      path: `*.weights.h5`; its folder is created if it is missing.

    Raises:
      ValueError: if `path` does not end so.
      OSError: if the file cannot be written. The old file stays.
    """
    if not os.fspath(path).endswith(".weights.h5"):
        raise ValueError(f"save_weights: expected a file *.weights.h5, got {os.fspath(path)!r}.")
    weights = private_api.weights_in_memory(model)
    with atomic_files.atomic_replace(path) as new:
        new.write_bytes(weights.getbuffer())


def weights_of(model: keras.Model) -> io.BytesIO:
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


def declared_weights(path: pathlib.Path) -> Arrays:
    """Returns the arrays of a file, which are not larger than the file."""
    try:
        with h5py.File(path) as file:
            declared = _arrays(file)
    except OSError as error:
        raise refusal(f"weights in the HDF5 format in {path}", error) from error
    num_bytes = sum(size * dtype.itemsize for _, dtype, size in declared.values())
    if num_bytes > path.stat().st_size:
        raise ValueError(
            f"from_preset: expected weights of at most the {path.stat().st_size:,} bytes of {path},"
            f" got arrays of {num_bytes:,} bytes."
        )
    return declared


def _arrays(file: h5py.File) -> Arrays:
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


def check_weights(model: keras.Model, declared: Arrays, path: pathlib.Path) -> None:
    """Raises `ValueError` unless the model has the declared arrays and no others."""
    with h5py.File(private_api.weights_in_memory(model)) as file:
        expected = _arrays(file)
    for name in sorted({*expected, *declared}):
        here, there = (
            "no such array" if name not in arrays else "{1}{0}".format(*arrays[name])
            for arrays in (expected, declared)
        )
        if here != there:
            raise ValueError(
                f"from_preset: expected the weights of the model in {CONFIG}, {name}: {here}, in "
                f"{path}, got {there}."
            )


def check_finite(model: keras.Model, path: pathlib.Path) -> None:
    """Raises `ValueError` if weights are not finite."""
    for weight in model.weights:
        if not keras.backend.is_float_dtype(weight.dtype):
            continue
        values = np.asarray(weight.numpy(), np.float64)
        if number := np.count_nonzero(~np.isfinite(values)):
            raise ValueError(
                f"from_preset: expected finite weights in {path}, got {number:,} of "
                f"{values.size:,} values of {weight.path} that are not."
            )

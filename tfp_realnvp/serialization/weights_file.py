"""Files with the weights of a model alone."""

from __future__ import annotations

import os

import keras

from tfp_realnvp.internal import atomic_files, private_api

__all__ = ["save_weights"]


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
    with atomic_files.atomic_write(path) as (file, _):
        file.write(weights.getbuffer())

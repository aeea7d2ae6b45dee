"""Samples of a model in a grid, by condition if it has one."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow_probability as tfp

import tfp_realnvp as tfr
from tfp_realnvp import data

__all__ = ["sample_grid"]

tfd = tfp.distributions

_MAX_CLASSES = 20


def sample_grid(
    distribution: tfd.Distribution, images: data.ImageBatches, columns: int, seed: Any
) -> np.ndarray:
    """Returns samples as gray levels, `uint8`, `[rows, columns, H, W, C]`.

    Without a condition there are as many rows as columns. With labels there is a row for each
    class, of the first 20. With vectors, a row has samples given the vector of an image, and then
    this image. With images, a row begins with the condition.

    Args:
      distribution: of a model of `run_folder.build_model`.
      images: images with conditions.
      columns: number of columns, at least 3.
      seed: seed of the samples.
    """
    embedding = distribution.bijector.condition_embedding
    num_values = images.num_values
    if embedding is None:
        samples = tfr.to_uint8(distribution.sample(columns**2, seed=seed), num_values)
        return samples.reshape(columns, columns, *samples.shape[1:])
    before, after = [], []
    if embedding.num_classes is not None:
        conditions = np.arange(min(embedding.num_classes, _MAX_CLASSES))
    else:
        originals, conditions = next(images.dataset.rebatch(columns).as_numpy_iterator())
        after = [originals]
        if embedding.event_ndims == 3:
            levels = np.rint(conditions * (num_values - 1)).astype(np.uint8)
            before = [np.broadcast_to(levels, originals.shape)]
    given = tfr.condition(distribution, conditions)
    samples = given.sample(columns - len(before) - len(after), seed=seed)
    return np.stack([*before, *tfr.to_uint8(samples, num_values), *after], axis=1)

"""Batches of images in memory, the same for every contender."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

__all__ = ["in_batches", "training_batches"]


def in_batches(
    function: Callable[[np.ndarray], np.ndarray], images: np.ndarray, batch_size: int = 100
) -> Iterator[np.ndarray]:
    """Yields what `function` gives for each batch in turn."""
    for start in range(0, len(images), batch_size):
        yield function(images[start : start + batch_size])


def training_batches(
    images: np.ndarray, batch_size: int, flip: bool, seed: int
) -> Iterator[np.ndarray]:
    """Yields shuffled full batches for ever, each image mirrored with probability 1/2."""
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(len(images))
        for start in range(0, len(images) - batch_size + 1, batch_size):
            batch = images[order[start : start + batch_size]]
            if flip:
                mirrored = rng.random(batch_size) < 0.5
                batch[mirrored] = batch[mirrored, :, ::-1]
            yield batch

"""Bits/dim after equal steps in float32 and in bfloat16: `python -m benchmarks.precision --help`.

The size `small`, the same initial weights, batches and noise; the network computes in one precision
or the other. The learning rate goes down to zero over the second half. The outcome is printed as
one JSON object.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from benchmarks.contenders.ours import Ours
from benchmarks.image_batches import in_batches, training_batches
from benchmarks.sizes import SIZES

__all__ = ["main"]

_POLICIES = ("float32", "mixed_bfloat16")


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Trains twice, prints and returns the outcome."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=pathlib.Path, required=True, help="an .npz file")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--size", choices=list(SIZES), default="small")
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args(arguments)
    with np.load(flags.data) as arrays:
        train, test = arrays["train_images"], arrays["test_images"]
    bits = {policy: _bits_per_dim(policy, train, test, flags) for policy in _POLICIES}
    outcome = {
        "size": flags.size,
        "steps": flags.steps,
        "bits_per_dim": bits,
        "difference": bits["mixed_bfloat16"] - bits["float32"],
    }
    print(json.dumps(outcome, indent=1))
    return outcome


def _bits_per_dim(
    policy: str, train: np.ndarray, test: np.ndarray, flags: argparse.Namespace
) -> float:
    keras.utils.set_random_seed(flags.seed)
    size = SIZES[flags.size]
    contender = Ours(size, train[: size.batch_size], policy=policy)
    batches = training_batches(train, size.batch_size, flip=True, seed=flags.seed)
    optimizer = contender.model.optimizer
    peak = float(optimizer.learning_rate)
    for step, batch in enumerate(itertools.islice(batches, flags.steps)):
        # Down to nothing over the second half: the last batches would decide otherwise.
        optimizer.learning_rate = peak * min(1.0, 2.0 * (1.0 - step / flags.steps))
        contender.train_on(batch)
    log_prob = np.concatenate(list(in_batches(contender.score, test)))
    return float(-np.mean(log_prob) / (test[0].size * math.log(2)))


if __name__ == "__main__":
    main()

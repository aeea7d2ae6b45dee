"""Measures bits/dim after a given time of training: `python -m benchmarks.quality --help`.

The time includes imports, building and compiling, but not the evaluation at the end. Each contender
runs in its own process, alone on the machine:

```
python -m benchmarks.quality --contender=ours --data=images.npz --seconds=600
```

The data file contains `train_images` and `test_images`, `uint8` [N, H, W, C]. The script prints the
outcome as one JSON object.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import pathlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from benchmarks.contenders import Contender, contender_class
from benchmarks.machine import bfloat16_pays, matrix_rates, num_cores
from benchmarks.sizes import Size

__all__ = ["main"]

_NUM_SAMPLES = 1000

# The peak learning rate of this package, with Muon. Other contenders use Adam with 1e-3.
_LEARNING_RATE = 4e-3


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Trains, evaluates, prints and returns the outcome."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--contender", choices=["ours", "pytorch", "glow"], default="ours")
    parser.add_argument("--data", type=pathlib.Path, required=True, help="an .npz file")
    parser.add_argument("--seconds", type=float, default=600.0, help="of training, imports and all")
    parser.add_argument("--seed", type=int, default=0, help="of ours")
    flags = parser.parse_args(arguments)
    with np.load(flags.data) as arrays:
        train, test = arrays["train_images"], arrays["test_images"]
    in_bfloat16 = bfloat16_pays(matrix_rates())
    start = time.perf_counter()
    if flags.contender == "ours":
        # In bfloat16, operations of small networks are too small to use all cores: run two at once.
        os.environ.setdefault("TF_NUM_INTEROP_THREADS", "2")
        os.environ.setdefault("TF_NUM_INTRAOP_THREADS", str(max(1, num_cores() // 2)))
    contender = _make(flags, train.shape[1:], in_bfloat16)
    steps = _train(contender, train, start, flags)
    outcome = {
        "contender": flags.contender,
        "seed": flags.seed,
        "seconds": time.perf_counter() - start,
        "steps": steps,
        "num_parameters": contender.num_parameters,
        "bits_per_dim": _bits_per_dim(contender, test),
        # Evaluates as many training images as test images, with the same weights.
        "train_bits_per_dim": _bits_per_dim(contender, train[: len(test)]),
        "samples": _NUM_SAMPLES,
        "finite_samples": _num_finite_samples(contender),
    }
    if flags.contender == "ours":
        outcome["largest_latent_error"] = _largest_latent_error(contender)
    print(json.dumps(outcome, indent=1))
    return outcome


def _make(flags: argparse.Namespace, image_shape: tuple[int, ...], in_bfloat16: bool) -> Contender:
    name = flags.contender
    make = contender_class(name)
    size = Size(image_shape, 2, 4, 32, batch_size=64, rounds=0)
    if name == "pytorch":
        return make(size, autocast=in_bfloat16)
    import keras

    import tfp_realnvp as tfr

    keras.utils.set_random_seed(flags.seed)
    if name == "glow":
        return make(size, num_blocks=3, num_steps=4, num_hidden=64)
    policy = "mixed_bfloat16" if in_bfloat16 else "float32"
    contender = make(dataclasses.replace(size, batch_size=16), policy=policy, compact=True)
    contender.model.compile(tfr.Muon(_LEARNING_RATE, global_clipnorm=100.0))
    return contender


def _train(contender: Any, images: np.ndarray, start: float, flags: argparse.Namespace) -> int:
    """Trains until `flags.seconds` after `start`; returns the number of steps."""
    seconds = flags.seconds
    if hasattr(contender, "model"):
        return _fit(contender, images, seconds - (time.perf_counter() - start), flags.seed)
    for step, batch in enumerate(_batches(images, contender.size.batch_size)):
        if time.perf_counter() - start >= seconds:
            return step
        contender.train_step(batch)
    raise AssertionError("expected batches without end")


def _fit(contender: Any, images: np.ndarray, seconds: float, seed: int) -> int:
    """Trains `ours` by `fit`, with a learning rate that is annealed at the end."""
    import tfp_realnvp as tfr
    from benchmarks.batches import training_batches

    batches = training_batches(images, contender.size.batch_size, flip=True, seed=seed)
    budget = tfr.LearningRateBudget(_LEARNING_RATE, seconds=seconds)
    contender.model.fit(batches, steps_per_epoch=10**9, callbacks=[budget], verbose=0)
    return int(contender.model.optimizer.iterations.numpy())


def _batches(images: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
    """Yields shuffled full batches forever, each image mirrored with probability 1/2."""
    rng = np.random.default_rng(0)
    while True:
        order = rng.permutation(len(images))
        for start in range(0, len(images) - batch_size + 1, batch_size):
            batch = images[order[start : start + batch_size]]
            mirrored = rng.random(batch_size) < 0.5
            batch[mirrored] = batch[mirrored, :, ::-1]
            yield batch


def _bits_per_dim(contender: Contender, images: np.ndarray, batch_size: int = 100) -> float:
    """Returns the mean of -log₂ p / D of images plus uniform noise."""
    values = images + np.random.default_rng(0).random(images.shape, np.float32)
    starts = range(0, len(values), batch_size)
    log_prob = [contender.log_prob(values[start : start + batch_size]) for start in starts]
    return float(-np.mean(np.concatenate(log_prob)) / (images[0].size * math.log(2)))


def _num_finite_samples(contender: Contender) -> int:
    num_batches = -(-_NUM_SAMPLES // contender.size.batch_size)
    samples = np.concatenate([contender.sample() for _ in range(num_batches)])[:_NUM_SAMPLES]
    return int(np.isfinite(samples).all(axis=(1, 2, 3)).sum())


def _largest_latent_error(contender: Any, batch_size: int = 100) -> float:
    """Encodes samples of `ours` again; returns the largest difference from their latents.

    The networks compute in float32 here: in bfloat16 the two directions round differently.
    """
    import tensorflow as tf

    exact = contender_class("ours")(contender.size, compact=True)
    bijector = exact.distribution.bijector
    trained = contender.distribution.bijector.variables
    for variable, value in zip(bijector.variables, trained, strict=True):
        variable.assign(value)
    # In a single function, the bijector's cache would return the latents.
    draw, encode = tf.function(bijector.forward), tf.function(bijector.inverse)
    errors = []
    for index in range(_NUM_SAMPLES // batch_size):
        latents = exact.distribution.distribution.sample(batch_size, seed=[0, index])
        errors.append(np.abs(encode(draw(latents)) - latents).max())
    return float(np.max(errors))


if __name__ == "__main__":
    main()

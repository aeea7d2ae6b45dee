"""Bits/dim after a given time of training from scratch: `python -m benchmarks.quality --help`.

The time counts everything from the start of the process, imports, building and compiling included,
but for the final evaluation. Each contender runs in a process of its own, alone on the machine:

```
python -m benchmarks.quality --contender=ours --data=images.npz --seconds=600
```

The data file has `train_images` and `test_images`, `uint8` [N, H, W, C]. The outcome is printed as
one JSON object; `--output` also writes it to a file.
"""

from __future__ import annotations

import argparse
import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.contenders import Contender, contender_class
from benchmarks.image_batches import in_batches, training_batches
from benchmarks.matrix_rate import bfloat16_pays, matrix_rates, rate_of
from benchmarks.process_age import process_age
from benchmarks.schedule import learning_rate_factor
from benchmarks.sizes import Size
from benchmarks.spec import num_cores

__all__ = ["main", "ours_configuration"]

_NUM_SAMPLES = 1000


def ours_configuration(image_shape: tuple[int, int, int]) -> dict[str, Any]:
    """Returns all that is chosen for this package's run: the one place to change it.

    Returns:
      `make_bijector`, `policy` (the Keras dtype policy), `batch_size`, `learning_rate`,
      `warm_up_steps` and `decay_from` (see `benchmarks.schedule`).
    """
    import tfp_realnvp as tfr

    def make_bijector() -> Any:
        return tfr.RealNVPImage.compact(image_shape)

    return {
        "make_bijector": make_bijector,
        # A small product, for its time counts.
        "policy": "mixed_bfloat16" if bfloat16_pays(matrix_rates(1024, 3)) else "float32",
        "batch_size": 16,
        "learning_rate": 1e-3,
        "warm_up_steps": 100,
        "decay_from": 0.5,
    }


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Trains, evaluates, prints and returns the outcome."""
    flags = _parse(arguments)
    with np.load(flags.data) as arrays:
        train, test = arrays["train_images"], arrays["test_images"]
    run = {"ours": _run_ours, "pytorch": _run_pytorch, "glow": _run_glow}[flags.contender]
    outcome = {
        "contender": flags.contender,
        "seconds": flags.seconds,
        "threads": num_cores(),
        **run(train, test, flags),
    }
    text = json.dumps(outcome, indent=1)
    print(text)
    if flags.output is not None:
        flags.output.parent.mkdir(parents=True, exist_ok=True)
        flags.output.write_text(text + "\n")
    return outcome


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--contender", choices=["ours", "pytorch", "glow"], default="ours")
    parser.add_argument("--data", type=pathlib.Path, required=True, help="an .npz file")
    parser.add_argument("--seconds", type=float, default=600.0, help="of training, imports and all")
    parser.add_argument("--flip", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action="store_true", help="torch.compile its networks")
    parser.add_argument("--output", type=pathlib.Path, help="a .json file")
    return parser.parse_args(arguments)


# This package.


def _run_ours(train: np.ndarray, test: np.ndarray, flags: argparse.Namespace) -> dict[str, Any]:
    import keras
    import tensorflow as tf
    import tensorflow_probability as tfp

    import tfp_realnvp as tfr
    from tfp_realnvp.data.image_dataset import image_dataset

    chosen = ours_configuration(train.shape[1:])
    keras.utils.set_random_seed(flags.seed)
    keras.config.set_dtype_policy(chosen["policy"])
    base = tfp.distributions.Sample(tfp.distributions.Normal(0.0, 1.0), train.shape[1:])
    flow = tfp.distributions.TransformedDistribution(base, chosen["make_bijector"]())
    model = tfr.FlowModel(flow, seed=flags.seed)
    model.compile()
    dataset = image_dataset(
        train,
        chosen["batch_size"],
        shuffle=True,
        flip=flags.flip,
        seed=flags.seed,
        repeat=True,
        drop_remainder=True,
    )
    timer = _fit_timer(model, flags.seconds, chosen)
    # One long epoch: the timer ends it.
    history = model.fit(dataset, epochs=1, steps_per_epoch=10**9, verbose=0, callbacks=[timer])
    trained_seconds = process_age()

    bits = float(tfr.bits_per_dim(np.mean(model.predict(test, verbose=0)), test[0].size))
    # Two directions agree closely only if their networks round alike: the same weights in float32.
    keras.config.set_dtype_policy("float32")
    exact = chosen["make_bijector"]()
    for variable, value in zip(exact.variables, flow.bijector.variables, strict=True):
        variable.assign(value)
    draw = tf.function(lambda latents: exact.forward(latents))
    encode = tf.function(lambda images: exact.inverse(images))
    errors, num_finite = [], 0
    for index in range(_NUM_SAMPLES // 100):
        latents = base.sample(100, seed=[flags.seed, index])
        images = draw(latents)
        is_finite = np.isfinite(images.numpy()).all(axis=(1, 2, 3))
        num_finite += int(is_finite.sum())
        errors.append(np.abs(encode(images) - latents).max(axis=(1, 2, 3)))
    errors = np.concatenate(errors)
    return {
        "policy": chosen["policy"],
        "bits_per_dim": bits,
        "train_bits_per_dim": history.history["bits_per_dim"][-1],
        "steps": int(model.optimizer.iterations),
        "trained_seconds": trained_seconds,
        "num_parameters": sum(int(np.prod(v.shape)) for v in flow.trainable_variables),
        "finite_samples": num_finite,
        "samples": len(errors),
        # A NaN is the largest error.
        "largest_latent_error": float(np.max(errors)),
        "samples_within_1e-2": int(np.sum(errors <= 1e-2)),
    }


def _fit_timer(model: Any, seconds: float, chosen: dict[str, Any]) -> Any:
    import keras

    class Timer(keras.callbacks.Callback):
        """Sets the learning rate by the time left, and ends training when it is up."""

        def __init__(self) -> None:
            super().__init__()
            self.clock = _Clock(seconds)

        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            factor = learning_rate_factor(
                batch, self.clock.time_used(), chosen["warm_up_steps"], chosen["decay_from"]
            )
            model.optimizer.learning_rate = chosen["learning_rate"] * factor

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if self.clock.is_up_after_a_step():
                model.stop_training = True

    return Timer()


class _Clock:
    """Tells when no further step fits into the time, and what share of it has gone."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._last = self._start = process_age()
        self._steps = 0

    def time_used(self) -> float:
        """Returns the share of the time that was left when the clock was made, from 0 to 1."""
        left = max(self._seconds - self._start, 1e-9)
        return min(1.0, (process_age() - self._start) / left)

    def is_up_after_a_step(self) -> bool:
        """Notes the end of a step, and returns whether another one would end too late."""
        now = process_age()
        step, self._last = now - self._last, now
        self._steps += 1
        # The first step compiles, and tells nothing of the next.
        return now + (step if self._steps > 1 else 0.0) >= self._seconds


# The others.


def _run_pytorch(train: np.ndarray, test: np.ndarray, flags: argparse.Namespace) -> dict[str, Any]:
    make = contender_class("pytorch")
    import torch

    torch.set_num_threads(num_cores())
    # The paper's way at the size that is measured for speed.
    size = Size(train.shape[1:], 2, 4, 32, batch_size=64, rounds=0)
    compiled = "networks" if flags.compile else None
    # By its own product: TensorFlow's import would take of its time.
    matrix = torch.randn(1024, 1024)
    rates = {
        name: rate_of(lambda x: x @ x, matrix.to(getattr(torch, name)), 3)
        for name in ("float32", "bfloat16")
    }
    autocast = bfloat16_pays(rates)
    contender = make(size, autocast=autocast, compile=compiled)
    outcome = _train_and_evaluate(contender, train, test, flags)
    return {"policy": "bfloat16 autocast" if autocast else "float32", **outcome}


def _run_glow(train: np.ndarray, test: np.ndarray, flags: argparse.Namespace) -> dict[str, Any]:
    make = contender_class("glow")
    size = Size(train.shape[1:], 0, 0, 0, batch_size=64, rounds=0)
    contender = make(size, num_blocks=3, num_steps=4, num_hidden=64)
    return _train_and_evaluate(contender, train, test, flags)


def _train_and_evaluate(
    contender: Contender, train: np.ndarray, test: np.ndarray, flags: argparse.Namespace
) -> dict[str, Any]:
    clock = _Clock(flags.seconds)
    steps = 0
    for batch in training_batches(train, contender.size.batch_size, flags.flip, flags.seed):
        loss = contender.train_on(batch)
        steps += 1
        if clock.is_up_after_a_step():
            break
    trained_seconds = process_age()
    dims = test[0].size
    log_prob = np.concatenate(list(in_batches(contender.score, test)))
    finite = [np.isfinite(contender.sample()).all(axis=(1, 2, 3)) for _ in range(_num_batches())]
    return {
        "bits_per_dim": float(-np.mean(log_prob) / (dims * math.log(2))),
        "train_bits_per_dim": loss / (dims * math.log(2)),
        "steps": steps,
        "trained_seconds": trained_seconds,
        "num_parameters": contender.num_parameters,
        "finite_samples": int(np.concatenate(finite)[:_NUM_SAMPLES].sum()),
        "samples": _NUM_SAMPLES,
    }


def _num_batches(batch_size: int = 64) -> int:
    return -(-_NUM_SAMPLES // batch_size)


if __name__ == "__main__":
    main()

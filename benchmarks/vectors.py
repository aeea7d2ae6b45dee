"""Compares flows of vectors with TFP's own flows: `python -m benchmarks.vectors --help`.

Each contender trains from scratch for the same time, including building and tracing, in the same
loop: Adam, the same batches, warm-up and annealing. Then the contenders take turns at `log_prob`
and `sample`.

```
python -m benchmarks.vectors --output_dir=results/vectors      # about five minutes
python -m benchmarks.vectors --seconds=10 --rounds=3           # a quick look
```

A fixed seed generates a table with a known density: each column depends on earlier columns through
sines. A rotation of the rows makes all orders of columns equally good for autoregressive flows.
"""

from __future__ import annotations

import argparse
import functools
import math
import os
import pathlib
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_realnvp as tfr
from benchmarks.machine import cpu_name, num_cores
from tfp_realnvp.internal import atomic_files

__all__ = ["CONTENDERS", "NUM_COLUMNS", "main", "make_table", "warp"]

tfb = tfp.bijectors
tfd = tfp.distributions

NUM_COLUMNS = 16
_BATCH_SIZE, _LEARNING_RATE, _CLIP_NORM, _WARM_UP_STEPS = 256, 1e-3, 10.0, 100


class Contender(NamedTuple):
    """A distribution, its variables, and the arguments of `log_prob` in training."""

    distribution: tfd.Distribution
    variables: Sequence[tf.Variable]
    training: dict[str, Any]


def make_table(number: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns rows, float32 [number, 16], and the log density of each.

    Args:
      number: number of rows.
      seed: seed of the rows; the density is always the same.
    """
    noise = np.random.RandomState(seed).normal(size=[number, NUM_COLUMNS])
    rows, log_det = warp(noise)
    log_prob = -0.5 * (noise**2 + math.log(2 * math.pi)).sum(axis=1) - log_det
    return rows.astype(np.float32), log_prob


def warp(noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Maps normal noise [N, 16] to rows [N, 16]; also returns the log det [N]."""
    weights = np.random.RandomState(0)
    rows, log_det = np.zeros_like(noise), np.zeros(len(noise))
    for i in range(NUM_COLUMNS):
        waves = np.sin(2 * rows[:, :i] @ weights.normal(size=[i, 8]) / math.sqrt(max(i, 1)))
        shift, log_scale = (waves @ weights.normal(size=[8, 2])).T / 2
        log_scale = 0.7 * np.tanh(log_scale) - 0.5
        rows[:, i] = shift + np.exp(log_scale) * noise[:, i]
        log_det += log_scale
    rotation, _ = np.linalg.qr(weights.normal(size=[NUM_COLUMNS, NUM_COLUMNS]))
    return rows @ rotation, log_det


def _transformed(bijector: tfb.Bijector) -> tfd.Distribution:
    base = tfd.Sample(tfd.Normal(0.0, 1.0), [NUM_COLUMNS])
    return tfd.TransformedDistribution(base, bijector)


def _ours(flags: argparse.Namespace, **options: Any) -> Contender:
    bijector = tfr.RealNVPVector(
        NUM_COLUMNS,
        flags.num_couplings,
        num_blocks=2,
        num_filters=flags.num_units,
        activation="relu",  # as in the other flows
        **options,
    )
    flow = _transformed(bijector)
    return Contender(flow, flow.trainable_variables, {"bijector_kwargs": {"training": True}})


def _ours_with_splines(flags: argparse.Namespace) -> Contender:
    return _ours(flags, transformer="rational_quadratic_spline")


def _tfp_real_nvp(flags: argparse.Namespace) -> Contender:
    # As many dense layers as the residual networks have.
    templates = [
        tfb.real_nvp_default_template([flags.num_units] * 5) for _ in range(flags.num_couplings)
    ]
    return _tfp_chain(
        [tfb.RealNVP(NUM_COLUMNS // 2, shift_and_log_scale_fn=each) for each in templates],
        templates,
    )


def _tfp_maf(flags: argparse.Namespace) -> Contender:
    networks = [
        tfb.AutoregressiveNetwork(2, hidden_units=[flags.num_units] * 2, activation="relu")
        for _ in range(flags.num_couplings)
    ]
    return _tfp_chain([tfb.MaskedAutoregressiveFlow(each) for each in networks], networks)


def _tfp_chain(bijectors: Sequence[tfb.Bijector], networks: Sequence[Any]) -> Contender:
    """Returns the chain of bijectors, each after a permutation."""
    parts = []
    for i, bijector in enumerate(bijectors):
        order = np.random.RandomState(i).permutation(NUM_COLUMNS).tolist()
        parts += [tfb.Permute(order), bijector]
    flow = _transformed(tfb.Chain(parts))
    # The networks create their variables when they are called.
    flow.log_prob(tf.zeros([1, NUM_COLUMNS]))
    return Contender(flow, [v for each in networks for v in each.trainable_variables], {})


CONTENDERS: dict[str, Callable[[argparse.Namespace], Contender]] = {
    "ours": _ours,
    "ours-splines": _ours_with_splines,
    "tfb.RealNVP": _tfp_real_nvp,
    "tfb.MaskedAutoregressiveFlow": _tfp_maf,
}


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Trains and measures all contenders; prints, writes and returns the results."""
    flags = _parser().parse_args(arguments)
    (train, _), (test, known) = make_table(flags.num_rows, 1), make_table(flags.num_rows // 5, 2)
    results: dict[str, dict[str, Any]] = {}
    calls: dict[str, dict[str, Callable[[], tf.Tensor]]] = {"log_prob": {}, "sample": {}}
    rows = tf.constant(test[: flags.batch_size])
    for name in flags.contenders.split(","):
        keras.utils.set_random_seed(0)
        contender, trained = _train(CONTENDERS[name], train, flags)
        log_prob, sample = map(
            tf.function, (contender.distribution.log_prob, contender.distribution.sample)
        )
        nats = -np.concatenate([log_prob(part) for part in np.array_split(test, 10)])
        kl = known + nats
        results[name] = {
            **trained,
            "held_out_nats": float(nats.mean()),
            "kl_from_table": float(kl.mean()),
            "kl_error": float(kl.std() / math.sqrt(len(kl))),
        }
        print(f"{name}: {nats.mean():.3f} nats", flush=True)
        calls["log_prob"][name] = functools.partial(log_prob, rows)
        calls["sample"][name] = functools.partial(sample, flags.batch_size)
    for what, by_name in calls.items():
        for name, seconds in _take_turns(by_name, flags.rounds).items():
            results[name][f"{what}_rows_per_second"] = flags.batch_size / seconds
    outcome = {
        "machine": f"{cpu_name()}, {num_cores()} cores",
        "seconds": flags.seconds,
        "table_nats": float(-known.mean()),
        "contenders": results,
    }
    table = as_markdown(outcome)
    print("\n" + table)
    if flags.output_dir is not None:
        atomic_files.write_json(flags.output_dir / "results.json", outcome)
        atomic_files.write_text(flags.output_dir / "results.md", table)
    return outcome


def _train(
    make: Callable[[argparse.Namespace], Contender], rows: np.ndarray, flags: argparse.Namespace
) -> tuple[Contender, dict[str, Any]]:
    """Trains a contender for `flags.seconds`, including the time to build and trace it."""
    start = time.perf_counter()
    contender = make(flags)
    variables = contender.variables
    optimizer = keras.optimizers.Adam(_LEARNING_RATE, global_clipnorm=_CLIP_NORM)
    optimizer.build(variables)
    batches = tf.data.Dataset.from_tensor_slices(rows).shuffle(len(rows), seed=0).repeat()
    batches = iter(batches.batch(flags.batch_size, drop_remainder=True).prefetch(4))

    @tf.function
    def step(batch: tf.Tensor) -> None:
        with tf.GradientTape() as tape:
            loss = -tf.reduce_mean(contender.distribution.log_prob(batch, **contender.training))
        optimizer.apply(tape.gradient(loss, variables), variables)

    steps = 0
    while (used := (time.perf_counter() - start) / flags.seconds) < 1:
        warm, annealed = min(1.0, (steps + 1) / _WARM_UP_STEPS), min(1.0, 2 * (1 - used))
        optimizer.learning_rate = _LEARNING_RATE * warm * annealed
        step(next(batches))
        steps += 1
        if steps == 1:
            first_step = time.perf_counter() - start
    number = sum(int(np.prod(variable.shape)) for variable in variables)
    return contender, {"steps": steps, "first_step_seconds": first_step, "parameters": number}


def _take_turns(calls: dict[str, Callable[[], tf.Tensor]], rounds: int) -> dict[str, float]:
    """Returns the seconds per call, as medians over turns; a turn takes about half a second."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    repeats = {}
    for name, call in calls.items():
        call()  # traces
        repeats[name] = max(1, round(0.5 / _seconds(call, 1)))
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(_seconds(call, repeats[name]) / repeats[name])
    return {name: statistics.median(each) for name, each in times.items()}


def _seconds(call: Callable[[], tf.Tensor], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call().numpy()
    return time.perf_counter() - start


def as_markdown(outcome: dict[str, Any]) -> str:
    """Returns the results as a table."""
    lines = [
        f"{outcome['machine']}; {outcome['seconds']:g} s of training each; the table's own density "
        f"has {outcome['table_nats']:.3f} nats.",
        "",
        "| contender | parameters | steps | first step | held-out nats | KL from the table | "
        "log_prob, rows/s | sample, rows/s |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, each in outcome["contenders"].items():
        lines.append(
            f"| {name} | {each['parameters']:,} | {each['steps']:,} | "
            f"{each['first_step_seconds']:.1f} s | {each['held_out_nats']:.3f} | "
            f"{each['kl_from_table']:.3f} ± {each['kl_error']:.3f} | "
            f"{each['log_prob_rows_per_second']:,.0f} | {each['sample_rows_per_second']:,.0f} |"
        )
    return "\n".join(lines) + "\n"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="of training, of each")
    parser.add_argument("--rounds", type=int, default=5, help="turns at log_prob and sample")
    parser.add_argument("--batch_size", type=int, default=_BATCH_SIZE)
    parser.add_argument("--num_couplings", type=int, default=8)
    parser.add_argument("--num_units", type=int, default=64, help="of the dense layers")
    parser.add_argument("--num_rows", type=int, default=100_000, help="of the training data")
    parser.add_argument("--contenders", default=",".join(CONTENDERS), help="names from the table")
    parser.add_argument("--output_dir", type=pathlib.Path, help="for results.json and results.md")
    return parser


if __name__ == "__main__":
    main()

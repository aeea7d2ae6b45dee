"""Compares the default options of flows of vectors with former defaults and defaults of zuko.

    python -m benchmarks.defaults --output_dir=results/defaults    # five seeds
    python -m benchmarks.defaults --seeds=1 --datasets=iris,wine   # a quick look

Each contender follows the first example of its documentation: a flow with the default options, and
`FlowModel.compile()` or, for zuko, Adam with a learning rate of 1e-3. `before` has former defaults:
8 couplings, networks of two blocks, and biases that start at zero. Batches have 32 rows. zuko gets
standardized rows, as its documentation recommends. Toys have 4,000 points each for training,
validation and testing. Tables have 60% training, 20% validation and 20% test rows, and each column
gets uniform noise as wide as its rounding interval.

After each epoch, the script computes the mean log likelihood of validation and test rows. Each
contender trains for `--passes` epochs, and then until it has used as many CPU seconds as `now`, the
current defaults, needed for these epochs. The seconds exclude the evaluation and the first epoch,
which builds and traces a flow.
"""

from __future__ import annotations

import argparse
import functools
import math
import os
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from sklearn import datasets

import tfp_realnvp as tfr
from benchmarks.machine import cpu_name, num_cores
from tfp_realnvp.internal import atomic_files

__all__ = ["CONTENDERS", "DATASETS", "load", "main"]

tfd = tfp.distributions

DATASETS = ("moons", "circles", "iris", "wine", "diabetes", "breast_cancer")
_BATCH_SIZE, _LEARNING_RATE = 32, 1e-3


class Splits(NamedTuple):
    """Rows, float32 [N, D]."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


class Pass(NamedTuple):
    """CPU seconds of training after the first epoch, and mean log likelihoods, in nats."""

    seconds: float
    validation: float
    test: float


class Log:
    """Logs the epochs of a training run of at least `passes` epochs and `seconds`."""

    def __init__(self, splits: Splits, passes: int, seconds: float) -> None:
        self.rows: list[Pass] = []
        self._splits, self._passes, self._seconds = splits, passes, seconds
        self._used = self._start = 0.0

    def add(self, log_prob: Callable[[np.ndarray], np.ndarray]) -> bool:
        """Evaluates at the end of an epoch; returns whether it was the last one."""
        if self.rows:
            self._used += time.process_time() - self._start
        nats = (float(np.mean(log_prob(rows))) for rows in self._splits[1:])
        self.rows.append(Pass(self._used, *nats))
        self._start = time.process_time()
        return len(self.rows) >= self._passes and self._used >= self._seconds


def load(name: str, seed: int, num_points: int) -> Splits:
    """Returns a dataset, split at random."""
    if name in ("moons", "circles"):
        make = {
            "moons": functools.partial(datasets.make_moons, noise=0.05),
            "circles": functools.partial(datasets.make_circles, noise=0.05, factor=0.5),
        }[name]
        parts = [make(num_points, random_state=3 * seed + i)[0] for i in range(3)]
    else:
        options = {"scaled": False} if name == "diabetes" else {}
        rows = np.asarray(getattr(datasets, f"load_{name}")(**options).data)
        rng = np.random.default_rng(seed)
        widths = [np.diff(np.unique(column.round(9))).min() for column in rows.T]
        rows = rng.permutation(rows + widths * rng.uniform(size=rows.shape))
        parts = np.split(rows, [len(rows) * 3 // 5, len(rows) * 4 // 5])
    return Splits(*(part.astype(np.float32) for part in parts))


# Contenders: functions that train a flow and log its epochs.


def _now(
    splits: Splits,
    log: Log,
    passes: int,
    start: Callable[[tfr.VectorFlow], None] | None = None,
    **options: Any,
) -> None:
    size = splits.train.shape[1]
    bijector = tfr.RealNVPVector(size, **options)
    if start is not None:
        start(bijector)
    base = tfd.Sample(tfd.Normal(0.0, 1.0), [size])
    flow = tfd.TransformedDistribution(base, bijector)
    model = tfr.FlowModel(flow)
    model.compile()
    log_prob = tf.function(flow.log_prob)

    def on_epoch_end(epoch: int, logs: dict[str, Any]) -> None:
        model.stop_training = log.add(log_prob)

    model.fit(
        splits.train,
        batch_size=_BATCH_SIZE,
        epochs=passes,
        verbose=0,
        callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=on_epoch_end)],
    )


def _zero_biases(bijector: tfr.VectorFlow) -> None:
    for part in bijector.bijectors:
        if isinstance(part, tfr.Coupling):
            part.network.input_bias.assign(tf.zeros_like(part.network.input_bias))


def _standardized(splits: Splits, log: Log, passes: int) -> None:
    _now(splits, log, passes, standardization=tfr.Standardization.of(splits.train))


def _zuko(splits: Splits, log: Log, passes: int, name: str) -> None:
    import torch
    import zuko

    torch.manual_seed(int(tf.random.uniform([], maxval=2**31 - 1, dtype=tf.int32)))
    mean, stddev = splits.train.mean(axis=0), splits.train.std(axis=0)

    def standardized(rows: np.ndarray) -> torch.Tensor:
        return torch.from_numpy((rows - mean) / stddev)

    def log_prob(rows: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return flow().log_prob(standardized(rows)).numpy() - np.log(stddev).sum()

    flow = getattr(zuko.flows, name)(splits.train.shape[1])
    adam = torch.optim.Adam(flow.parameters(), lr=_LEARNING_RATE)
    train = standardized(splits.train)
    is_last = False
    while not is_last:
        for batch in train[torch.randperm(len(train))].split(_BATCH_SIZE):
            loss = -flow().log_prob(batch).mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
        is_last = log.add(log_prob)


CONTENDERS: dict[str, Callable[[Splits, Log, int], None]] = {
    "now": _now,
    "before": functools.partial(_now, start=_zero_biases, num_couplings=8, num_blocks=2),
    "now, standardized": _standardized,
    "now, swish": functools.partial(_now, activation="swish"),
    "zuko RealNVP": functools.partial(_zuko, name="RealNVP"),
    "zuko NSF": functools.partial(_zuko, name="NSF"),
}


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Trains all contenders; prints, writes and returns the results."""
    flags = _parser().parse_args(arguments)
    contenders = flags.contenders.split(";")
    results: dict[str, dict[str, list[dict[str, float]]]] = {}
    for dataset in flags.datasets.split(","):
        results[dataset] = {name: [] for name in contenders}
        for seed in range(flags.seeds):
            splits = load(dataset, seed, flags.num_points)
            seconds = 0.0
            for name in contenders:
                keras.utils.set_random_seed(seed)
                log = Log(splits, flags.passes, seconds)
                CONTENDERS[name](splits, log, flags.passes)
                if name == "now":
                    seconds = log.rows[-1].seconds
                result = _summary(log.rows, flags.passes, seconds)
                results[dataset][name].append(result)
                values = ", ".join(f"{key} {value:.3f}" for key, value in result.items())
                print(f"{dataset}, seed {seed}, {name}: {values}", flush=True)
    outcome = {
        "machine": f"{cpu_name()}, {num_cores()} cores",
        "seeds": flags.seeds,
        "passes": flags.passes,
        "results": results,
    }
    table = as_markdown(outcome)
    print("\n" + table)
    if flags.output_dir is not None:
        atomic_files.write_json(flags.output_dir / "results.json", outcome)
        atomic_files.write_text(flags.output_dir / "results.md", table)
    return outcome


def _summary(rows: Sequence[Pass], passes: int, seconds: float) -> dict[str, float]:
    """Returns test nats after the last and the best epoch, for equal epochs and equal CPU time."""
    within = next((i for i, row in enumerate(rows, 1) if row.seconds >= seconds), len(rows))
    summary = {"CPU seconds of the passes": rows[passes - 1].seconds}
    for key, number in (("passes", passes), ("time", within)):
        summary[f"last, equal {key}"] = rows[number - 1].test
        summary[f"best, equal {key}"] = max(rows[:number], key=lambda row: row.validation).test
    return summary


def as_markdown(outcome: dict[str, Any]) -> str:
    """Returns a table for each quantity, with mean ± standard deviation over seeds."""
    lines = [
        f"{outcome['machine']}; {outcome['passes']} passes; test log likelihood in nats, mean ± "
        f"standard deviation of {outcome['seeds']} seeds."
    ]
    by_dataset = outcome["results"]
    by_name = next(iter(by_dataset.values()))
    for quantity in next(iter(by_name.values()))[0]:
        lines += ["", f"| {quantity} | " + " | ".join(by_dataset) + " |"]
        lines.append("| --- |" + " ---: |" * len(by_dataset))
        for name in by_name:
            cells = (
                _mean([result[quantity] for result in results[name]])
                for results in by_dataset.values()
            )
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _mean(values: Sequence[float]) -> str:
    mean, deviation = np.mean(values), np.std(values, ddof=1) if len(values) > 1 else math.nan
    digits = 3 if abs(mean) < 10 else 2 if abs(mean) < 100 else 0
    return f"{mean:,.{digits}f} ± {deviation:,.{digits}f}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds")
    parser.add_argument("--passes", type=int, default=40, help="over the training rows")
    parser.add_argument("--num_points", type=int, default=4_000, help="of a toy")
    parser.add_argument("--datasets", default=",".join(DATASETS), help="names, with commas")
    parser.add_argument(
        "--contenders", default=";".join(CONTENDERS), help="names, with semicolons; `now` first"
    )
    parser.add_argument("--output_dir", type=pathlib.Path, help="for results.json and results.md")
    return parser


if __name__ == "__main__":
    main()

"""Measures the gain of each addition to a small Real NVP: `python -m benchmarks.ablation --help`.

The row `plain` differs from `RealNVPImage.compact`: it has fewer and wider networks, no 1×1
convolutions and no split priors, and it uses the paper's logit and Adam. Other rows add to `plain`;
`conv1x1+split-prior+channels+more-linear` is `compact`. Each row is trained from scratch in its own
process, for equal time or equally many steps, and evaluated on the test images. A run uses the
whole machine; with `--side_by_side` each run has one core, and all cores work at once.

```
python -m benchmarks.ablation --data=images.npz --seconds=300 --seeds=0,1 --side_by_side
python -m benchmarks.ablation --data=images.npz --steps=2000 --rows=plain,split-prior
python -m benchmarks.ablation --data=images.npz --seconds=600 --rows=conv1x1+split-prior
```

`+` combines rows. Results are added to `results.json` in the output folder; `results.md` shows the
results as a table. The same command resumes an interrupted run.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.machine import ROOT, bfloat16_pays, cpu_name, matrix_rates, num_cores
from tfp_realnvp.internal import atomic_files

__all__ = ["ROWS", "main"]

# What each row changes in the flow, the optimizer and the noise.
ROWS: dict[str, dict[str, Any]] = {
    "plain": {},
    "deeper": {"width": {"num_filters": 64}, "scales": {"num_couplings": 4}},
    "channels": {
        "width": {"num_filters": 64},
        "scales": {"num_couplings": 2, "num_channel_couplings": 8},
    },
    "additive": {"layer": {"transformer": "additive"}},
    "spline": {"layer": {"transformer": "rational_quadratic_spline"}},
    "mixture": {"layer": {"transformer": "logistic_mixture"}},
    "conv1x1": {"layer": {"mixing": "lu"}},
    "split-prior": {"prior": {}},
    "attention": {"width": {"attention": 4}},
    "linear": {"pixels": {"alpha": 0.25}},
    "more-linear": {"pixels": {"alpha": 0.4}},
    "variational": {"dequantizer": {}},
    "half-rate": {"optimizer": {"learning_rate": 2e-3}},
    "quarter-rate": {"optimizer": {"learning_rate": 1e-3}},
    "adamax": {"optimizer": {"class": "Adamax", "learning_rate": 8e-3}},
    "adamw": {"optimizer": {"class": "AdamW"}},
    "muon": {"optimizer": {"class": "Muon"}},
    "no-decay": {"optimizer": {"weight_decay": 0.0}},
    "average": {"optimizer": {"class": "Adam", "use_ema": True, "ema_momentum": 0.998}},
}

_PLAIN: dict[str, dict[str, Any]] = {
    "width": {"num_filters": 96, "filter_growth": 1.25},
    "layer": {"normalization": "actnorm"},
    "scales": {"num_couplings": 3},
    "pixels": {"alpha": 0.05},
}
_LEARNING_RATE, _BATCH_SIZE, _NUM_DRAWS = 4e-3, 16, 4


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Trains the rows that have no result yet; returns and writes all results."""
    flags = _parser().parse_args(arguments)
    if flags.worker is not None:
        row, seed = flags.worker
        print(json.dumps(train_row(row, int(seed), flags)))
        return []
    path = flags.output_dir / "results.json"
    results = json.loads(path.read_text()) if path.exists() else []
    done = {(each["row"], each["seed"], each["limit"]) for each in results}
    runs = [(row, int(seed)) for row in flags.rows.split(",") for seed in flags.seeds.split(",")]
    for row, _ in runs:
        row_settings(row)
    cores = sorted(os.sched_getaffinity(0))
    groups = [{core} for core in cores] if flags.side_by_side else [set(cores)]
    limit = _limit(flags, len(groups[0]))
    runs = [run for run in runs if (*run, limit) not in done]
    flags.policy = "mixed_bfloat16" if bfloat16_pays(matrix_rates()) else "float32"
    for first in range(0, len(runs), len(groups)):
        at_once = zip(runs[first : first + len(groups)], groups, strict=False)
        processes = [_start(*run, own, flags) for run, own in at_once]
        outputs = [process.communicate()[0] for process in processes]
        for process, output in zip(processes, outputs, strict=True):
            if process.returncode:
                continue
            results.append(json.loads(output.splitlines()[-1]))
            atomic_files.write_json(path, results)
            atomic_files.write_text(flags.output_dir / "results.md", as_markdown(results))
            print(json.dumps(results[-1]), flush=True)
        for process in processes:
            if process.returncode:
                raise subprocess.CalledProcessError(process.returncode, process.args)
    return results


def _start(row: str, seed: int, cores: set[int], flags: argparse.Namespace) -> subprocess.Popen:
    """Starts a run on the given cores."""
    command = [sys.executable, "-m", "benchmarks.ablation", f"--worker={row}:{seed}"]
    command += [f"--data={flags.data.resolve()}", f"--seconds={flags.seconds}"]
    command += [f"--policy={flags.policy}"]
    command += [] if flags.steps is None else [f"--steps={flags.steps}"]
    pin = functools.partial(os.sched_setaffinity, 0, cores)
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, preexec_fn=pin)


def row_settings(row: str) -> dict[str, Any]:
    """Returns the settings of a row, or of several joined by `+`.

    #### Example

    >>> row_settings('conv1x1+split-prior')
    {'layer': {'mixing': 'lu'}, 'prior': {}}

    Raises:
      ValueError: if there is no such row.
    """
    settings: dict[str, Any] = {}
    for name in row.split("+"):
        if name not in ROWS:
            raise ValueError(f"expected rows of {list(ROWS)}, joined by '+', got {name!r}.")
        for part, values in ROWS[name].items():
            settings[part] = {**settings.get(part, {}), **values}
    return settings


def make_flow(shape: tuple[int, int, int], settings: dict[str, Any]) -> Any:
    """Returns the bijector of a row for images of this shape."""
    import tfp_realnvp as tfr
    from tfp_realnvp.flows.multi_scale import max_num_scales

    options = {part: {**_PLAIN[part], **settings.get(part, {})} for part in _PLAIN}
    network_fn = tfr.network_of(tfr.ShallowConv)
    layer = tfr.coupling_layer(network_fn, **options["width"], **options["layer"])
    prior = tfr.coupling_layer(network_fn, **options["width"]) if "prior" in settings else None
    pixels, num_scales = tfr.PixelLogit(**options["pixels"]), min(3, max_num_scales(shape))
    return tfr.multi_scale(
        shape, num_scales, layer, prior=prior, pixels=pixels, **options["scales"]
    )


def train_row(row: str, seed: int, flags: argparse.Namespace) -> dict[str, Any]:
    """Trains and evaluates a row; the result of a diverged run has an `error`."""
    start = time.perf_counter()
    import keras
    import tensorflow_probability as tfp

    import tfp_realnvp as tfr
    from benchmarks.batches import training_batches
    from tfp_realnvp import evaluation

    settings = row_settings(row)
    keras.utils.set_random_seed(seed)
    keras.config.set_dtype_policy(flags.policy)
    with np.load(flags.data) as arrays:
        train, test = arrays["train_images"], arrays["test_images"]
    shape = train.shape[1:]
    base = tfp.distributions.Sample(tfp.distributions.Normal(0.0, 1.0), shape)
    flow = tfp.distributions.TransformedDistribution(base, make_flow(shape, settings))
    dequantizer = None
    if "dequantizer" in settings:
        dequantizer = tfr.VariationalDequantization(shape, **settings["dequantizer"])
    model = tfr.FlowModel(flow, dequantizer=dequantizer, seed=seed)
    options = {"learning_rate": _LEARNING_RATE, **settings.get("optimizer", {})}
    peak = options["learning_rate"]
    name = options.pop("class", "FusedAdam")
    optimizer_class = getattr(tfr, name, None) or getattr(keras.optimizers, name)
    model.compile(optimizer_class(**options, global_clipnorm=100.0))
    batches = training_batches(train, _BATCH_SIZE, flip=True, seed=seed)
    if flags.steps is not None:
        limit = {"steps": flags.steps}
    else:
        limit = {"seconds": flags.seconds - (time.perf_counter() - start)}
    budget = tfr.LearningRateBudget(peak, **limit)
    run = {"row": row, "seed": seed, "limit": _limit(flags, num_cores())}
    run["num_parameters"] = model.count_params()
    run["machine"] = f"{cpu_name()}, {flags.policy}"
    try:
        model.fit(batches, steps_per_epoch=flags.steps or 10**9, callbacks=[budget], verbose=0)
    except tfr.NonFiniteLossError as error:
        return {**run, "error": str(error)}
    seconds = time.perf_counter() - start
    result = evaluation.bits_per_dim(flow, test, num_samples=_NUM_DRAWS, dequantizer=dequantizer)
    steps = int(model.optimizer.iterations.numpy())
    return {
        **run,
        "bits_per_dim": result.mean,
        "importance_weighted": result.importance_weighted,
        "steps": steps,
        "images_per_second": steps * _BATCH_SIZE / seconds,
    }


def as_markdown(results: Sequence[dict[str, Any]]) -> str:
    """Returns a table of means over seeds, with a line for each limit and row."""
    lines = [
        f"Bits/dim of test images; importance-weighted with {_NUM_DRAWS} noise samples. "
        f"{results[-1]['machine']}.",
        "",
        "| limit | row | bits/dim | importance-weighted | by seed | images/s | parameters |",
        "| --- | --- | ---: | ---: | --- | ---: | ---: |",
    ]
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for each in results:
        groups.setdefault((each["limit"], each["row"]), []).append(each)
    for (limit, row), group in groups.items():
        seeds = ["diverged" if "error" in run else f"{run['bits_per_dim']:.3f}" for run in group]
        cells = [
            limit,
            row,
            _mean(group, "bits_per_dim", ".3f"),
            _mean(group, "importance_weighted", ".3f"),
            ", ".join(seeds),
            _mean(group, "images_per_second", ".1f"),
            f"{group[0]['num_parameters']:,}",
        ]
        lines.append("|" + "".join(f" {cell} |" if cell else " |" for cell in cells))
    return "\n".join(lines) + "\n"


def _mean(results: Sequence[dict[str, Any]], key: str, spec: str) -> str:
    """Returns the formatted mean over runs, or an empty text if one of them diverged."""
    if any("error" in run for run in results):
        return ""
    return format(float(np.mean([run[key] for run in results])), spec)


def _limit(flags: argparse.Namespace, cores: int) -> str:
    if flags.steps is not None:
        return f"{flags.steps:,} steps"
    return f"{flags.seconds:g} s, {cores} core{'s' * (cores > 1)}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=pathlib.Path, required=True, help="an .npz file")
    parser.add_argument("--seconds", type=float, default=300.0, help="of training, with imports")
    parser.add_argument("--steps", type=int, help="equal steps instead of equal time")
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--rows", default=",".join(ROWS), help="names, joined by + to combine")
    parser.add_argument("--output_dir", type=pathlib.Path, default=pathlib.Path("results/ablation"))
    parser.add_argument(
        "--side_by_side", action="store_true", help="one core for each run, several runs at once"
    )
    parser.add_argument("--policy", default="float32", help=argparse.SUPPRESS)
    parser.add_argument("--worker", type=lambda text: text.split(":"), help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    main()

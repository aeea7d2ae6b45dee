"""Measures latencies: of calls with one image, of requests, and of predictions of one row.

    python -m benchmarks.latency                       # all parts, a few minutes
    python -m benchmarks.latency --parts=images
    python -m benchmarks.latency --rounds=100

* `images`: calls of Python functions with the preset `digits`, as in a user's session.
* `served`: `log_prob` of an exported SavedModel, and of the exported ONNX model in onnxruntime.
  Both runtimes take turns in one process, with as many threads as cores. This part needs `pip
  install tf2onnx onnxruntime`.
* `requests`: 1,000 requests of one image, 50 a round, from four threads to the SavedModel of
  `digits`.
* `tables`: predictions of one row by a `FlowRegressor`, which was fitted to 1,000 rows.

The script prints medians over all calls except the first three, which trace functions, and the
largest relative difference between the results of both runtimes.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import functools
import os
import tempfile
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_realnvp as tfr
from benchmarks.machine import cpu_name, num_cores

__all__ = ["main", "milliseconds"]

tfd = tfp.distributions

_NUM_WARM_UP = 3


def images(rounds: int) -> None:
    """Prints the table of calls with one image."""
    model = tfr.FlowModel.from_preset("digits")
    labelled = tfr.FlowModel.from_preset("digits_label")
    flow = model.distribution
    image = tfr.to_uint8(flow.sample(1, seed=(0, 1)), num_values=17)
    x = tfr.dequantize(image, seed=(0, 1))
    latents, cluster = tfr.latents.encode(flow, x), flow.clusters.nearest(x)
    given = flow.components_distribution
    in_graph = tf.function(flow.log_prob, autograph=False)
    threes = tfr.condition(labelled.distribution, 3)
    calls: dict[str, Callable[[], Any]] = {
        "`tfr.log_prob(model, image)`": lambda: tfr.log_prob(model, image),
        "`flow.log_prob(x)` in a `tf.function`": lambda: in_graph(x),
        "`flow.log_prob(x)`, eager": lambda: flow.log_prob(x),
        "`flow.sample(16)`, eager": lambda: flow.sample(16, seed=(0, 1)),
        "`model.sample(16)`": lambda: model.sample(16, 0),
        "`model.sample(16, guidance=0.15)`": lambda: model.sample(16, 0, guidance=0.15),
        "`tfr.class_log_probs(labelled, image)`": lambda: tfr.class_log_probs(labelled, x),
        "`tfr.condition(labelled, 3).sample(16)`": lambda: threes.sample(16, seed=(0, 1)),
        "`tfr.latents.encode(flow, x)`": lambda: tfr.latents.encode(flow, x),
        "`tfr.latents.decode(given, latents, conditional_input=cluster)`": lambda: (
            tfr.latents.decode(given, latents, conditional_input=cluster)
        ),
    }
    print("| call | ms |\n| --- | ---: |")
    for name, call in calls.items():
        print(f"| {name} | {np.median(milliseconds([call], rounds)[0]):.1f} |", flush=True)


def served(rounds: int) -> None:
    """Prints the table that compares SavedModels with onnxruntime."""
    import onnxruntime

    print(f"onnxruntime {onnxruntime.__version__}\n")
    print("| model | batch | SavedModel, ms | onnxruntime, ms | relative difference |")
    print("| --- | ---: | ---: | ---: | ---: |")
    flows = {name: tfr.FlowModel.from_preset(name).distribution for name in ("photos",)}
    flows["vectors of 16"] = _vectors(16)
    for name, flow in flows.items():
        saved_model, session = _exported(flow, onnxruntime)
        names = [spec.name for spec in session.get_inputs()]
        for batch_size in (1, 64):
            events = flow.sample(batch_size, seed=(0, 1)).numpy()
            noise = np.zeros_like(events)  # vectors need no noise
            if len(flow.event_shape) == 3:
                events = tfr.to_uint8(events, flow.bijector.num_values)
                noise = np.random.default_rng(0).random(events.shape, np.float32)
            inputs = dict(zip(names, (events, noise), strict=False))
            calls = [
                functools.partial(_served_log_prob, saved_model, events + noise),
                lambda inputs=inputs, session=session: session.run(None, inputs)[0],
            ]
            actual, expected = (call() for call in calls)
            difference = np.max(np.abs(actual - expected) / np.abs(expected))
            ours, theirs = np.median(milliseconds(calls, rounds), axis=1)
            row = f"{batch_size} | {ours:.2f} | {theirs:.2f} | {difference:.1e}"
            print(f"| {name} | {row} |", flush=True)


def requests(rounds: int, num_threads: int = 4) -> None:
    """Prints percentiles of the time of a request, for 50 requests a round."""
    num_requests = 50 * rounds
    flow = tfr.FlowModel.from_preset("digits").distribution
    with tempfile.TemporaryDirectory() as folder:
        tfr.export_saved_model(flow, f"{folder}/1", image_shape=flow.event_shape)
        saved_model = tf.saved_model.load(f"{folder}/1")
    image = flow.sample(1, seed=(0, 1)).numpy()
    call = functools.partial(_served_log_prob, saved_model, image)
    with concurrent.futures.ThreadPoolExecutor(num_threads) as pool:
        times = list(pool.map(lambda _: milliseconds([call], 1, 0)[0, 0], range(num_requests)))
    median, last = np.percentile(times, [50, 99])
    print("| requests of one image | threads | p50, ms | p99, ms |\n| --- | ---: | ---: | ---: |")
    print(f"| {num_requests:,} | {num_threads} | {median:.1f} | {last:.1f} |")


def tables(rounds: int) -> None:
    """Prints the table of predictions of one row."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=[1_000, 4])
    y = np.sin(x[:, 0]) + 0.3 * np.exp(x[:, 1] / 2) * rng.normal(size=1_000)
    start = time.perf_counter()
    regressor = tfr.FlowRegressor(random_state=0).fit(x, y)
    print(f"fit: {time.perf_counter() - start:.0f} s\n\n| call | ms |\n| --- | ---: |")
    for name, call in {
        "`predict` of one row": lambda: regressor.predict(x[:1]),
        "`predict_interval` of one row": lambda: regressor.predict_interval(x[:1]),
        "`score_samples` of one row": lambda: regressor.score_samples(x[:1], y[:1]),
        "`predict` of 1,000 rows": lambda: regressor.predict(x),
    }.items():
        print(f"| {name} | {np.median(milliseconds([call], rounds)[0]):.1f} |", flush=True)


def milliseconds(
    calls: list[Callable[[], Any]], rounds: int, warm_up: int = _NUM_WARM_UP
) -> np.ndarray:
    """Times calls in turns; returns milliseconds, [calls, rounds]."""
    times = np.zeros([len(calls), warm_up + rounds])
    for i in range(warm_up + rounds):
        for j, call in enumerate(calls):
            start = time.perf_counter()
            np.asarray(call())
            times[j, i] = 1e3 * (time.perf_counter() - start)
    return times[:, warm_up:]


def _vectors(size: int) -> tfd.Distribution:
    """Returns a flow of vectors with the default options and random weights."""
    base = tfd.Sample(tfd.Normal(0.0, 1.0), [size])
    flow = tfd.TransformedDistribution(base, tfr.RealNVPVector(size))
    rng = np.random.default_rng(0)
    for variable in flow.trainable_variables:
        variable.assign_add(0.1 * rng.normal(size=variable.shape))
    return flow


def _exported(flow: tfd.Distribution, onnxruntime: Any) -> tuple[Any, Any]:
    """Returns the loaded SavedModel, and onnxruntime's session of the ONNX model."""
    with tempfile.TemporaryDirectory() as folder:
        tfr.export_saved_model(flow, f"{folder}/1")
        tfr.export_onnx(flow, f"{folder}/onnx")
        session = onnxruntime.InferenceSession(f"{folder}/onnx/log_prob.onnx")
        return tf.saved_model.load(f"{folder}/1"), session


def _served_log_prob(saved_model: Any, events: np.ndarray) -> np.ndarray:
    return saved_model.log_prob(events)["log_prob"].numpy()


_PARTS = {"images": images, "served": served, "requests": requests, "tables": tables}


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--parts", default=",".join(_PARTS), help="separated by commas")
    parser.add_argument("--rounds", type=int, default=20, help="measured calls of each row")
    arguments = parser.parse_args()
    parts = arguments.parts.split(",")
    if unknown := set(parts) - set(_PARTS):
        parser.error(f"expected parts out of {', '.join(_PARTS)}, got {', '.join(unknown)}")
    print(f"{cpu_name()}, {num_cores()} cores, TensorFlow {tf.__version__}")
    for part in parts:
        print(f"\n{part}\n")
        _PARTS[part](arguments.rounds)


if __name__ == "__main__":
    main()

"""`log_prob` in onnxruntime beside TensorFlow: `python -m benchmarks.onnx`.

Each model is exported as SavedModel and as ONNX model. Both take turns in one process, with the
same batches and as many threads as there are cores. Needs `pip install tf2onnx onnxruntime`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

import numpy as np
import onnxruntime
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_realnvp as tfr
from benchmarks.machine import cpu_name, num_cores

tfd = tfp.distributions


def vectors(size: int = 16) -> tfd.Distribution:
    """Returns a flow of vectors with the default options."""
    base = tfd.Sample(tfd.Normal(0.0, 1.0), [size])
    return tfd.TransformedDistribution(base, tfr.RealNVPVector(size))


def compare(flow: tfd.Distribution, batch_size: int, rounds: int) -> tuple[float, ...]:
    """Returns events per second of TensorFlow and onnxruntime, and their relative difference."""
    rng = np.random.default_rng(0)
    shape = (batch_size, *flow.event_shape)
    with tempfile.TemporaryDirectory() as folder:
        tfr.export_saved_model(flow, f"{folder}/1", image_shape=flow.event_shape)
        served = tf.saved_model.load(f"{folder}/1")
        tfr.export_onnx(flow, f"{folder}/onnx")
        session = onnxruntime.InferenceSession(f"{folder}/onnx/log_prob.onnx")
    if len(shape) == 2:
        events = rng.normal(size=shape).astype(np.float32)
        feeds = {"x": events}
    else:
        images = np.repeat(flow.sample(1, seed=(0, 1)), batch_size, axis=0)
        noise = rng.random(shape, np.float32)
        images = np.clip(images + 2 * rng.normal(size=shape), 0, 16).astype(np.uint8)
        feeds, events = {"images": images, "noise": noise}, tf.constant(images + noise)
    contenders: list[Callable[[], np.ndarray]] = [
        lambda: served.log_prob(events)["log_prob"].numpy(),
        lambda: session.run(None, feeds)[0],
    ]
    expected, actual = (contender() for contender in contenders)
    seconds: list[list[float]] = [[], []]
    for _ in range(rounds):
        for contender, times in zip(contenders, seconds, strict=True):
            contender()
            start = time.perf_counter()
            for _ in range(5):
                contender()
            times.append((time.perf_counter() - start) / 5)
    rates = [batch_size / statistics.median(times) for times in seconds]
    return *rates, np.max(np.abs(actual - expected) / np.abs(expected))


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch_sizes", default="1,64", help="separated by commas")
    args = parser.parse_args()
    flows = {
        "digits": tfr.FlowModel.from_preset("digits").distribution,
        "photos": tfr.FlowModel.from_preset("photos").distribution,
        "vectors of 16": vectors(),
    }
    print(f"{cpu_name()}, {num_cores()} cores, TensorFlow {tf.__version__}, ", end="")
    print(f"onnxruntime {onnxruntime.__version__}\n")
    print("| model | batch | TensorFlow | onnxruntime | relative difference |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name, flow in flows.items():
        for batch_size in map(int, args.batch_sizes.split(",")):
            ours, theirs, difference = compare(flow, batch_size, args.rounds)
            row = f"{batch_size} | {ours:,.0f} | {theirs:,.0f} | {difference:.1e}"
            print(f"| {name} | {row} |", flush=True)


if __name__ == "__main__":
    main()

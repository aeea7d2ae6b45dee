"""Compares `log_prob` in onnxruntime and TensorFlow: `python -m benchmarks.onnx`.

Each model is exported as SavedModel and as ONNX model. Both take turns in one process, on the same
batches, with as many threads as cores. The fastest call of each counts. Needs
`pip install tf2onnx onnxruntime`.
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
import time
from collections.abc import Callable, Sequence

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

import numpy as np
import onnxruntime
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_realnvp as tfr
from benchmarks.machine import cpu_name, num_cores

tfd = tfp.distributions


def vectors(size: int = 16) -> tfd.Distribution:
    """Returns a flow of vectors with the default options and random weights."""
    base = tfd.Sample(tfd.Normal(0.0, 1.0), [size])
    flow = tfd.TransformedDistribution(base, tfr.RealNVPVector(size))
    rng = np.random.default_rng(0)
    for variable in flow.trainable_variables:
        variable.assign_add(0.1 * rng.normal(size=variable.shape))
    return flow


def contenders(flow: tfd.Distribution) -> list[Callable[[np.ndarray, np.ndarray], np.ndarray]]:
    """Returns `log_prob` of TensorFlow and of onnxruntime: functions of events and noise."""
    with tempfile.TemporaryDirectory() as folder:
        tfr.export_saved_model(flow, f"{folder}/1", image_shape=flow.event_shape)
        served = tf.saved_model.load(f"{folder}/1")
        tfr.export_onnx(flow, f"{folder}/onnx")
        session = onnxruntime.InferenceSession(f"{folder}/onnx/log_prob.onnx")
    names = [spec.name for spec in session.get_inputs()]
    return [
        lambda events, noise: served.log_prob(events + noise)["log_prob"].numpy(),
        lambda events, noise: session.run(None, dict(zip(names, (events, noise))))[0],  # noqa: B905
    ]


def compare(
    functions: Sequence[Callable[..., np.ndarray]], inputs: Sequence[np.ndarray], rounds: int
) -> tuple[list[float], float]:
    """Returns events per second of both functions, and their largest relative difference."""
    expected, actual = (function(*inputs) for function in functions)
    seconds = [math.inf, math.inf]
    for _ in range(rounds):
        for i, function in enumerate(functions):
            for _ in range(5):
                start = time.perf_counter()
                function(*inputs)
                seconds[i] = min(seconds[i], time.perf_counter() - start)
    rates = [len(inputs[0]) / fastest for fastest in seconds]
    return rates, np.max(np.abs(actual - expected) / np.abs(expected))


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=40)
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
        functions = contenders(flow)
        for batch_size in map(int, args.batch_sizes.split(",")):
            events = flow.sample(batch_size, seed=(0, 1)).numpy()
            noise = np.zeros_like(events)  # vectors need none
            if len(flow.event_shape) == 3:
                events = tfr.to_uint8(events, flow.bijector.num_values)
                noise = np.random.default_rng(0).random(events.shape, np.float32)
            (ours, theirs), difference = compare(functions, (events, noise), args.rounds)
            row = f"{batch_size} | {ours:,.0f} | {theirs:,.0f} | {difference:.1e}"
            print(f"| {name} | {row} |", flush=True)


if __name__ == "__main__":
    main()

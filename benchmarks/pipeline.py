"""Images a second of the input pipeline alone, beside those of a training step.

`python -m benchmarks.pipeline --help`. The outcome is printed as one JSON object.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.contenders.ours import Ours
from benchmarks.sizes import SIZES
from tfp_realnvp import data

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measures, prints and returns the outcome."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="photos", help="a name, a folder, or an .npz file")
    parser.add_argument("--data_dir", help="of tensorflow-datasets")
    parser.add_argument("--size", choices=list(SIZES), default="small", help="of the model")
    parser.add_argument("--seconds", type=float, default=4.0)
    flags = parser.parse_args(arguments)
    size = SIZES[flags.size]
    loaded = data.load(
        flags.dataset, batch_size=size.batch_size, training=True, data_dir=flags.data_dir
    )
    batches = iter(loaded.dataset)
    for _ in range(20):
        next(batches)
    number, start = 0, time.perf_counter()
    while (used := time.perf_counter() - start) < flags.seconds:
        number += len(next(batches))
    contender = Ours(size)
    contender.train_steps(2)
    start = time.perf_counter()
    contender.train_steps(3)
    training = 3 * size.batch_size / (time.perf_counter() - start)
    outcome = {
        "dataset": flags.dataset,
        "size": flags.size,
        "pipeline_images_per_second": number / used,
        "training_images_per_second": training,
        "ratio": number / used / training,
    }
    print(json.dumps(outcome, indent=1))
    return outcome


if __name__ == "__main__":
    main()

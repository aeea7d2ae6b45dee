"""Compares `compact` with and without clusters after equal time: `python -m benchmarks.clusters`.

Each command trains one flow on one core, then prints its bits/dim and writes samples, which
`python -m benchmarks.recognition` evaluates. Run both commands at the same time:

```
taskset -c 0 python -m benchmarks.clusters --data=images.npz --clusters=0 --output=one_normal
taskset -c 1 python -m benchmarks.clusters --data=images.npz --clusters=100 --output=clusters
```

With `--components=50`, the script instead samples a normal distribution that is fitted to the first
50 principal components of the training images.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_realnvp as tfr
from benchmarks.batches import training_batches
from benchmarks.machine import bfloat16_pays, matrix_rates

__all__ = ["main"]

tfd = tfp.distributions

_LEARNING_RATE, _DROPOUT, _NUM_HELD_OUT = 4e-3, 0.1, 1_000
_GUIDANCE = (0.0, 0.15, 0.5)


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Trains, writes samples, prints and returns the number of steps and bits/dim."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="photos", help="name or file, as in load_arrays")
    parser.add_argument("--clusters", type=int, default=0, help="0: one normal distribution")
    parser.add_argument("--components", type=int, help="principal components, instead of a flow")
    parser.add_argument("--num_filters", type=int, default=32, help="feature maps of the networks")
    parser.add_argument("--seconds", type=float, default=3_300, help="of training")
    parser.add_argument("--num_samples", type=int, default=1_000, help="multiple of 100")
    parser.add_argument("--output", required=True, help="first part of the names of the files")
    flags = parser.parse_args(arguments)
    keras.utils.set_random_seed(0)
    data = tfr.data.load_arrays(flags.data)
    if data.validation is None:
        data = data.hold_out(min(_NUM_HELD_OUT, len(data.train) // 10))
    if flags.components:
        samples = _of_components(data.train, flags.components, flags.num_samples)
        np.save(f"{flags.output}.npy", samples.clip(0, data.num_values - 1).astype(np.uint8))
        return {}
    if bfloat16_pays(matrix_rates()):
        keras.mixed_precision.set_global_policy("mixed_bfloat16")
    options = {}
    if flags.clusters:
        clusters = tfr.Clusters.of(data.train, num_clusters=flags.clusters)
        options = {"num_classes": flags.clusters, "condition_dropout": _DROPOUT}
    bijector = tfr.RealNVPImage.compact(
        data.image_shape, num_values=data.num_values, num_filters=flags.num_filters, **options
    )
    base = tfd.Sample(tfd.Normal(0.0, 1.0), data.image_shape)
    flow = tfd.TransformedDistribution(base, bijector)
    if flags.clusters:
        flow = tfr.ClusterMixture(flow, clusters)
    model = tfr.FlowModel(flow, seed=0)
    model.compile(tfr.Muon(_LEARNING_RATE, global_clipnorm=100.0))
    budget = tfr.LearningRateBudget(_LEARNING_RATE, seconds=flags.seconds)
    batches = training_batches(data.train, 16, flip=data.flip)
    model.fit(batches, steps_per_epoch=1_000, epochs=10**6, callbacks=[budget], verbose=2)
    outcome = {"steps": int(model.optimizer.iterations.numpy())}
    for name, images in {"validation": data.validation, "test": data.test}.items():
        result = tfr.evaluation.bits_per_dim(model, images, num_samples=4)
        outcome |= {name: result.mean, f"{name}_importance_weighted": result.importance_weighted}
    print(outcome)
    for guidance in _GUIDANCE if flags.clusters else _GUIDANCE[:1]:
        parts = [
            tfr.to_uint8(model.sample(100, seed, guidance=guidance), data.num_values)
            for seed in range(flags.num_samples // 100)
        ]
        np.save(f"{flags.output}_{guidance}.npy", tf.concat(parts, axis=0).numpy())
    return outcome


def _of_components(images: np.ndarray, num_components: int, num_samples: int) -> np.ndarray:
    """Samples N(mean, V S² Vᵀ / N) of images [N, H, W, C]; U S Vᵀ is the SVD of centered rows."""
    rows = images.reshape(len(images), -1).astype(np.float64)
    mean = rows.mean(axis=0)
    _, scale, axes = np.linalg.svd(rows - mean, full_matrices=False)
    scale, axes = scale[:num_components] / np.sqrt(len(rows)), axes[:num_components]
    latents = np.random.default_rng(0).normal(size=[num_samples, len(scale)])
    return (mean + latents * scale @ axes).reshape(num_samples, *images.shape[1:])


if __name__ == "__main__":
    main()

"""The report of a training run: bits/dim, also of two baselines, and figures."""

from __future__ import annotations

import math
import pathlib

import numpy as np

import tfp_realnvp as tfr
from tfp_realnvp import baselines, data, latents, plots
from tfp_realnvp.internal.atomic_files import write_json

__all__ = ["write_report"]

# Limits for fitting the baselines.
_MAX_DIMS = 3_072
_MAX_IMAGES = 50_000
# Keeps the report short compared with training. evaluate.py evaluates whole splits.
_MAX_BATCHES = 32


def write_report(
    model: tfr.FlowModel,
    train: data.ImageBatches,
    evaluation: data.ImageBatches,
    output_dir: pathlib.Path,
    *,
    num_steps: int,
    seed: int = 0,
) -> None:
    """Prints and writes bits/dim, and draws samples, reconstructions and learning curves.

    Args:
      model: the trained and compiled model.
      train: one pass over the training images.
      evaluation: one pass over the images to report on.
      output_dir: folder for `report.json`, `samples.png`, `reconstructions.png` and `curve.png`,
        which shows the `log.csv` in this folder.
      num_steps: number of training steps. The best weights can be from an earlier step.
      seed: seed of the samples.
    """
    splits = {"train": train, evaluation.split: evaluation}
    bits = {"Real NVP": {name: _bits_per_dim(model, split) for name, split in splits.items()}}
    num_dims = math.prod(train.image_shape)
    # With fewer images than dimensions, a Gaussian with full covariance overfits.
    if num_dims <= _MAX_DIMS and num_dims < (train.num_images or 0) <= _MAX_IMAGES:
        bits |= _baselines(splits)
    images = next(iter(evaluation.dataset))[:32].numpy()
    decoded, error = latents.reconstruct(model.distribution, images)
    samples = tfr.to_uint8(model.distribution.sample(64, seed=(0, seed)), train.num_values)
    pairs = np.stack([images, tfr.to_uint8(decoded, train.num_values)], axis=1)
    draw = {"num_values": train.num_values, "columns": 8}
    plots.save_image_grid(output_dir / "samples.png", samples, **draw)
    plots.save_image_grid(
        output_dir / "reconstructions.png", pairs.reshape(-1, *pairs.shape[2:]), **draw
    )
    if (output_dir / "log.csv").exists():
        _save_curves(output_dir)

    print(f"\n{'bits/dim':<18}" + "".join(f"{name:>12}" for name in splits))
    for name, by_split in bits.items():
        print(f"{name:<18}" + "".join(f"{value:>12.3f}" for value in by_split.values()))
    print(f"largest error of decode(encode(x)): {error:.2g} gray levels")
    print(f"results are in {output_dir}")
    report = {"bits_per_dim": bits, "reconstruction_error": error, "steps": num_steps}
    write_json(output_dir / "report.json", report)


def _bits_per_dim(model: tfr.FlowModel, images: data.ImageBatches) -> float:
    some = images.dataset.take(_MAX_BATCHES)
    return model.evaluate(some, verbose=0, return_dict=True)["bits_per_dim"]


def _baselines(splits: dict[str, data.ImageBatches]) -> dict[str, dict[str, float]]:
    arrays = {
        name: np.concatenate(list(split.dataset.as_numpy_iterator()))
        for name, split in splits.items()
    }
    train = splits["train"]
    fitted = {
        "Gaussian": baselines.FullCovarianceGaussian.fit(
            arrays["train"], train.num_values, flip=train.flip
        ),
        "pixel histograms": baselines.IndependentHistograms.fit(arrays["train"], train.num_values),
    }
    return {
        name: {split: density.bits_per_dim(images) for split, images in arrays.items()}
        for name, density in fitted.items()
    }


def _save_curves(output_dir: pathlib.Path) -> None:
    rows = np.genfromtxt(output_dir / "log.csv", delimiter=",", names=True, ndmin=1)
    curves = {
        label: (rows["step"], rows[column])
        for label, column in (("training", "bits_per_dim"), ("validation", "val_bits_per_dim"))
    }
    plots.save_curves(output_dir / "curve.png", curves, "step", "bits/dim")

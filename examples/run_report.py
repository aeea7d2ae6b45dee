"""The report of a training run: bits/dim, also of two baselines, classification, and figures."""

from __future__ import annotations

import dataclasses
import math
import pathlib

import numpy as np
import run_samples
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_realnvp as tfr
from tfp_realnvp import data, evaluation, latents, plots
from tfp_realnvp.internal.atomic_files import write_json
from tfp_realnvp.pixels import image_component

__all__ = ["fit_gaussian", "gaussian_bits_per_dim", "histogram_bits_per_dim", "write_report"]

tfd = tfp.distributions

# Limits for fitting the baselines.
_MAX_DIMS = 3_072
_MAX_IMAGES = 50_000
# Keep the report short compared with training. evaluate.py evaluates whole splits.
_MAX_BATCHES = 32
_BATCH_SIZE = 64
# Noise samples of each image, for the importance-weighted bound and for classification, which
# evaluates the density of each image given each class.
_NUM_DRAWS = 4
_MAX_DENSITIES = 20_000
_MAX_DENSITIES_AT_ONCE = 1_000


def write_report(
    model: tfr.FlowModel,
    train: data.ImageBatches,
    held_out: data.ImageBatches,
    output_dir: pathlib.Path,
    *,
    num_steps: int,
    seed: int = 0,
) -> None:
    """Prints and writes bits/dim, and draws samples, reconstructions and learning curves.

    With a variational dequantizer the bits/dim are a bound. The importance-weighted ones, a tighter
    bound, of the held-out images are reported beside them.

    Of a model with labels, it also reports the accuracy and the expected calibration error of
    classification by Bayes' rule, with equal probabilities of all classes.

    Args:
      model: the trained and compiled model.
      train: one pass over the training images.
      held_out: one pass over the images to report on.
      output_dir: folder for `report.json`, `samples.png`, `reconstructions.png` and `curve.png`,
        which shows the `log.csv` in this folder.
      num_steps: number of training steps. The best weights can be from an earlier step.
      seed: seed of the samples.
    """
    splits = {"train": train, held_out.split: held_out}
    is_bound = model.dequantizer is not None
    title = "Real NVP (bound)" if is_bound else "Real NVP"
    bits = {title: {name: _bits_per_dim(model, split) for name, split in splits.items()}}
    if is_bound:
        bits["importance-weighted"] = {held_out.split: _importance_weighted(model, held_out)}
    embedding = model.distribution.bijector.condition_embedding
    if embedding is not None and embedding.dropout is not None:
        bits["without condition"] = {
            name: _bits_per_dim(model, split, with_condition=False)
            for name, split in splits.items()
        }
    num_dims = math.prod(train.image_shape)
    # With fewer images than dimensions, a Gaussian with full covariance overfits.
    if num_dims <= _MAX_DIMS and num_dims < (train.num_images or 0) <= _MAX_IMAGES:
        bits |= _baselines(splits)
    batch = next(held_out.dataset.rebatch(32).as_numpy_iterator())
    images, condition = batch if isinstance(batch, tuple) else (batch, None)
    decoded, error = latents.reconstruct(model.distribution, images, conditional_input=condition)
    samples = run_samples.sample_grid(model.distribution, held_out, 8, seed=(0, seed))
    pairs = np.stack([images, tfr.to_uint8(decoded, train.num_values)], axis=1)
    draw = {"num_values": train.num_values, "columns": 8}
    for name, rows in (("samples", samples), ("reconstructions", pairs)):
        plots.save_image_grid(output_dir / f"{name}.png", rows.reshape(-1, *rows.shape[2:]), **draw)
    if (output_dir / "log.csv").exists():
        _save_curves(output_dir)

    print(f"\n{'bits/dim':<20}" + "".join(f"{name:>12}" for name in splits))
    for name, by_split in bits.items():
        values = (f"{by_split[split]:.3f}" if split in by_split else "" for split in splits)
        print(f"{name:<20}" + "".join(f"{value:>12}" for value in values))
    classified = {}
    if embedding is not None and embedding.num_classes is not None:
        found = _classification(model, held_out)
        classified = {"classification": dataclasses.asdict(found)}
        print(
            f"classification of {found.num_images:,} {held_out.split} images: {found.accuracy:.1%} "
            f"right, expected calibration error {found.expected_calibration_error:.3f}"
        )
    print(f"largest error of decode(encode(x)): {error:.2g} gray levels")
    print(f"results are in {output_dir}")
    report = {"bits_per_dim": bits, "reconstruction_error": error, "steps": num_steps}
    write_json(output_dir / "report.json", report | classified)


def _first_images(images: data.ImageBatches) -> tf.data.Dataset:
    """Returns batches of up to `_MAX_BATCHES * _BATCH_SIZE` images, whatever the run's batch is."""
    return images.dataset.rebatch(_BATCH_SIZE).take(_MAX_BATCHES)


def _bits_per_dim(
    model: tfr.FlowModel, images: data.ImageBatches, with_condition: bool = True
) -> float:
    batches = _first_images(images)
    if not with_condition:
        batches = batches.map(lambda images, _: images)
    return model.evaluate(batches, verbose=0, return_dict=True)["bits_per_dim"]


def _importance_weighted(model: tfr.FlowModel, images: data.ImageBatches) -> float:
    result = evaluation.bits_per_dim(
        model.distribution,
        _first_images(images),
        _NUM_DRAWS,
        dequantizer=model.dequantizer,
        seed=model.seed,
    )
    return result.importance_weighted


def _classification(model: tfr.FlowModel, images: data.ImageBatches) -> evaluation.Classification:
    number = max(1, _MAX_DENSITIES // (_NUM_DRAWS * images.num_classes))
    batch_size = max(1, _MAX_DENSITIES_AT_ONCE // images.num_classes)
    some = images.dataset.unbatch().take(number).batch(batch_size)
    return evaluation.classification(
        model.distribution,
        some,
        num_draws=_NUM_DRAWS,
        dequantizer=model.dequantizer,
        seed=model.seed,
    )


def _baselines(splits: dict[str, data.ImageBatches]) -> dict[str, dict[str, float]]:
    """Returns the bits/dim of two simple densities that are fitted to the training images."""
    arrays = {
        name: np.concatenate([*map(image_component, split.dataset.as_numpy_iterator())])
        for name, split in splits.items()
    }
    train, images = splits["train"], arrays["train"]
    mirrored = [images[:, :, ::-1]] if train.flip else []
    gaussian = fit_gaussian(np.concatenate([images, *mirrored]))
    return {
        "Gaussian": {name: gaussian_bits_per_dim(gaussian, part) for name, part in arrays.items()},
        "pixel histograms": {
            name: histogram_bits_per_dim(images, part, train.num_values)
            for name, part in arrays.items()
        },
    }


def fit_gaussian(images: np.ndarray) -> tfd.MultivariateNormalTriL:
    """Returns the Gaussian with the mean and covariance of images `[N, H, W, C]` and noise U[0, 1).

    The noise has mean 1/2 and variance 1/12. Its variance keeps the covariance from being singular
    where a pixel is constant.
    """
    mean = images.mean(axis=0, dtype=np.float64).ravel()
    covariance = np.eye(len(mean)) / 12
    for pixels in _in_parts(images):
        covariance += (pixels - mean).T @ (pixels - mean) / len(images)
    return tfd.MultivariateNormalTriL(mean + 0.5, np.linalg.cholesky(covariance))


def gaussian_bits_per_dim(
    gaussian: tfd.MultivariateNormalTriL, images: np.ndarray, seed: int = 0
) -> float:
    """Returns the bits/dim of images with noise U[0, 1), under a Gaussian over their pixels."""
    rng = np.random.default_rng(seed)
    log_prob = sum(
        np.sum(gaussian.log_prob(pixels + rng.random(pixels.shape))) for pixels in _in_parts(images)
    )
    return -float(log_prob) / (images.size * math.log(2))


def histogram_bits_per_dim(train: np.ndarray, images: np.ndarray, num_values: int) -> float:
    """Returns the bits/dim of images under independent histograms, one for each pixel and channel.

    A level that n of the N training images have has the probability (n + 1) / (N + num_values).
    """
    counts, train_counts = (
        np.stack([np.bincount(column, minlength=num_values) for column in columns])
        for columns in (array.reshape(len(array), -1).T for array in (images, train))
    )
    bits = -np.log2((train_counts + 1) / (len(train) + num_values))
    return float(np.sum(counts * bits) / images.size)


def _in_parts(images: np.ndarray) -> list[np.ndarray]:
    """Returns images as vectors, 1,024 at a time, so that float64 copies need little memory."""
    return np.array_split(images.reshape(len(images), -1), -(-len(images) // 1024))


def _save_curves(output_dir: pathlib.Path) -> None:
    rows = np.genfromtxt(output_dir / "log.csv", delimiter=",", names=True, ndmin=1)
    curves = {
        label: (rows["step"], rows[column])
        for label, column in (("training", "bits_per_dim"), ("validation", "val_bits_per_dim"))
    }
    plots.save_curves(output_dir / "curve.png", curves, "step", "bits/dim")

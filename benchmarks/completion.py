"""Compares completions of digits with nearest neighbors: `python -m benchmarks.completion`.

The script samples the lower halves of test digits given the upper halves, which are integer gray
levels, in three ways:

*   `tfr.latents.complete` with the preset `digits`;
*   the lower halves of the 20 training digits with the nearest upper halves;
*   the lower halves of the 20 nearest of 20,000 samples of the preset.

For each, the script prints the mean absolute error of the median, the continuous ranked probability
score (CRPS) of a pixel, the energy score of the half, all in gray levels; and the fraction of
samples that classifiers recognize, as in `python -m benchmarks.recognition`, and that they assign
to the true class. It also prints the mean difference of the energy score of a digit to that of the
first way, with its standard error.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence

import numpy as np

import tfp_realnvp as tfr
from benchmarks.recognition import CONFIDENCE, Judge

__all__ = ["main", "scores"]

_NUM_NEIGHBORS, _NUM_FLOW_SAMPLES = 20, 20_000


def main(arguments: Sequence[str] | None = None) -> dict[str, dict[str, float]]:
    """Prints and returns the scores of each method."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--first", type=int, default=0, help="index of the first test digit")
    parser.add_argument("--num_digits", type=int, default=30, help="test digits")
    parser.add_argument("--num_samples", type=int, default=400, help="samples of each digit")
    parser.add_argument("--epochs", type=int, default=30, help="of training the classifiers")
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args(arguments)
    model, data = tfr.FlowModel.from_preset("digits"), tfr.data.load_arrays("digits")
    judge = Judge(data.train, data.train_labels, data.test, data.num_values, flags.epochs)
    part = slice(flags.first, flags.first + flags.num_digits)
    digits, labels = data.test[part], data.test_labels[part]
    is_known = (np.arange(8) < 4)[:, np.newaxis, np.newaxis]
    start = time.perf_counter()
    options = {"num_samples": flags.num_samples, "seed": flags.seed}
    completion = tfr.latents.complete(model, digits, is_known, **options)
    print(
        f"{len(digits)} digits in {time.perf_counter() - start:.0f} s; R-hat: median "
        f"{np.median(completion.r_hat):.2f}, largest {completion.r_hat.max():.2f}, at most 1.1 for "
        f"{np.mean(completion.r_hat <= 1.1):.0%}"
    )
    of_flow = tfr.to_uint8(model.sample(_NUM_FLOW_SAMPLES, seed=flags.seed), data.num_values)
    samples = {
        "complete": completion.samples,
        "20 nearest neighbors": _nearest(data.train, digits),
        "20 nearest flow samples": _nearest(np.asarray(of_flow), digits),
    }
    results, energy_scores = {}, {}
    for name, images in samples.items():
        of_digits = scores(images[:, :, 4:], digits[:, 4:])
        energy_scores[name] = of_digits["energy score"]
        results[name] = {key: values.mean() for key, values in of_digits.items()}
        probabilities = judge.probabilities(images.reshape(-1, *digits.shape[1:]))
        is_recognized = probabilities.max(axis=1) > CONFIDENCE
        is_true = probabilities.argmax(axis=1) == np.tile(labels, len(images))
        results[name] |= {"recognized": is_recognized.mean(), "true class": is_true.mean()}
        print(f"{name}: " + ", ".join(f"{key} {value:.3f}" for key, value in results[name].items()))
    for name in list(samples)[1:] if len(digits) > 1 else []:
        differences = energy_scores[name] - energy_scores["complete"]
        error = differences.std(ddof=1) / math.sqrt(len(differences))
        print(f"energy score of {name} - complete: {differences.mean():.2f} ± {error:.2f}")
    return results


def scores(samples: np.ndarray, truth: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the scores [N] of samples [S, N, ...] of N events, [N, ...]."""
    samples = samples.reshape(*samples.shape[:2], -1).astype(np.float64)
    number, truth = len(samples), truth.reshape(len(truth), -1).astype(np.float64)
    # The mean distance of two samples of a pixel, from their order.
    weights = 2 * np.arange(1, number + 1) - number - 1
    spread = 2 * np.tensordot(weights, np.sort(samples, axis=0), axes=1) / number**2
    errors = np.linalg.norm(samples - truth, axis=-1).mean(axis=0)
    pairs = [np.linalg.norm(samples - other, axis=-1).mean(axis=0) for other in samples]
    return {
        "MAE": np.abs(np.median(samples, axis=0) - truth).mean(axis=-1),
        "CRPS": (np.abs(samples - truth).mean(axis=0) - 0.5 * spread).mean(axis=-1),
        "energy score": errors - 0.5 * np.mean(pairs, axis=0),
    }


def _nearest(images: np.ndarray, digits: np.ndarray) -> np.ndarray:
    """Returns digits [20, N, ...] with the lower halves of the nearest images."""
    halves = images[:, :4].reshape(len(images), -1).astype(np.float64)
    known = digits[:, :4].reshape(len(digits), 1, -1)
    nearest = [np.argsort(np.square(halves - half).sum(axis=1))[:_NUM_NEIGHBORS] for half in known]
    completed = images[np.transpose(nearest)]
    completed[:, :, :4] = digits[:, :4]
    return completed


if __name__ == "__main__":
    main()

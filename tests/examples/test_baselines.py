"""The two simple densities that a report compares a flow with."""

import math
import types

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

pytestmark = [pytest.mark.full, pytest.mark.usefixtures("no_graph_optimizer")]


@pytest.fixture
def train_paper(load_script):
    return load_script("train_paper")


def _random_images(count, seed=0):
    rng = np.random.default_rng(seed)
    # The random brightness of each image correlates its pixels.
    brightness = rng.integers(128, size=[count, 1, 1, 1])
    return (brightness + rng.integers(128, size=[count, 2, 3, 2])).astype(np.uint8)


def test_gaussian_is_the_multivariate_normal_of_dequantized_pixels(train_paper):
    # More images than one part.
    train, test = _random_images(1500), _random_images(40, seed=1)
    pixels = train.reshape(1500, -1).astype(np.float64)
    covariance = np.cov(pixels, rowvar=False, bias=True) + np.eye(12) / 12
    x = test.reshape(40, -1) + np.random.default_rng(7).random([40, 12])
    log_probs = stats.multivariate_normal(pixels.mean(0) + 0.5, covariance).logpdf(x)
    expected = -log_probs.mean() / (12 * math.log(2))
    bits = train_paper.gaussian_bits_per_dim(train_paper.fit_gaussian(train), test, seed=7)
    np.testing.assert_allclose(bits, expected, rtol=1e-10)


def test_histograms_of_known_counts(train_paper):
    # Two dimensions, three images, four levels: probabilities (3, 2, 1, 1) / 7, (1, 1, 2, 3) / 7.
    train = np.array([[0, 3], [0, 2], [1, 3]], np.uint8).reshape([3, 1, 2, 1])
    test = np.array([[0, 0], [3, 3]], np.uint8).reshape([2, 1, 2, 1])
    expected = -(math.log2(3 / 7) + math.log2(1 / 7) + math.log2(1 / 7) + math.log2(3 / 7)) / 4
    assert train_paper.histogram_bits_per_dim(train, test, 4) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("number", "shape", "reason"),
    [
        (13, (2, 3, 2), None),
        (12, (2, 3, 2), "a Gaussian of 12 dimensions overfits 12 training images"),
        (50_001, (2, 3, 2), "50,001 training images are too many, more than 50,000"),
        (9_999, (64, 64, 3), "images of 12,288 dimensions are too large, more than 3,072"),
    ],
)
def test_a_report_without_baselines_says_why(train_paper, number, shape, reason):
    images = types.SimpleNamespace(num_images=lambda split: number, image_shape=shape)
    assert train_paper.why_no_baselines(images) == reason


def test_mirrored_images_are_fitted_where_training_flips(train_paper):
    images = _random_images(50)
    bits = {}
    for flip in (False, True):
        dataset = types.SimpleNamespace(
            batches=lambda split, batch_size: tf.data.Dataset.from_tensors(images),
            num_images=lambda split: 50,
            **{"evaluation_split": "test", "num_values": 256, "flip": flip},
        )
        bits[flip] = train_paper.baseline_bits(dataset)["Gaussian"]["train"]
    both = np.concatenate([images, images[:, :, ::-1]])
    gaussian = train_paper.fit_gaussian(both)
    assert bits[True] == pytest.approx(train_paper.gaussian_bits_per_dim(gaussian, images))
    assert bits[True] > bits[False] + 1e-3

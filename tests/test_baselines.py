import math

import numpy as np
import pytest
import tensorflow_probability as tfp

from tfp_realnvp.baselines import FullCovarianceGaussian, IndependentHistograms
from tfp_realnvp.data import load_arrays


def _random_images(count, seed=0, shape=(2, 3, 2), num_values=256):
    rng = np.random.default_rng(seed)
    # The random brightness of each image correlates its pixels.
    brightness = rng.integers(num_values // 2, size=[count, 1, 1, 1])
    return (brightness + rng.integers(num_values // 2, size=[count, *shape])).astype(np.uint8)


def test_gaussian_is_the_multivariate_normal_of_dequantized_pixels():
    train, test = _random_images(300), _random_images(40, seed=1)
    pixels = train.reshape(300, -1).astype(np.float64)
    normal = tfp.distributions.MultivariateNormalFullCovariance(
        pixels.mean(0) + 0.5, np.cov(pixels, rowvar=False, bias=True) + np.eye(12) / 12
    )
    x = test.reshape(40, -1) + np.random.default_rng(7).random([40, 12])
    expected = -normal.log_prob(x).numpy().mean() / (12 * math.log(2))

    gaussian = FullCovarianceGaussian.fit(train, 256)
    np.testing.assert_allclose(gaussian.bits_per_dim(test, seed=7), expected, rtol=1e-10)


def test_gaussian_agrees_with_moments_of_sampled_noise():
    train = _random_images(50, num_values=4)
    gaussian = FullCovarianceGaussian.fit(train, 4)
    noise = np.random.default_rng(0).random([4000, 50, 12])
    x = (train.reshape(50, 12) + noise).reshape(-1, 12)
    np.testing.assert_allclose(gaussian.mean, x.mean(0), atol=0.01)
    np.testing.assert_allclose(gaussian.covariance, np.cov(x, rowvar=False, bias=True), atol=0.01)


def test_gaussian_with_flips_is_the_fit_to_images_and_their_mirror_images():
    # More images than one chunk.
    train = _random_images(1500)
    both = np.concatenate([train, train[:, :, ::-1]])
    flipped = FullCovarianceGaussian.fit(train, 256, flip=True)
    expected = FullCovarianceGaussian.fit(both, 256)
    np.testing.assert_allclose(flipped.mean, expected.mean)
    np.testing.assert_allclose(flipped.covariance, expected.covariance)
    assert not np.allclose(flipped.mean, FullCovarianceGaussian.fit(train, 256).mean, atol=1e-3)


def test_gaussian_of_a_constant_pixel_has_the_variance_of_the_noise():
    gaussian = FullCovarianceGaussian.fit(np.full([5, 1, 1, 1], 3, np.uint8), 17)
    assert gaussian.mean == pytest.approx(3.5)
    assert gaussian.covariance == pytest.approx(1 / 12)


def test_histograms_of_known_counts():
    # Two dimensions, three images, four levels.
    train = np.array([[0, 3], [0, 2], [1, 3]], np.uint8).reshape([3, 1, 2, 1])
    histograms = IndependentHistograms.fit(train, 4)
    np.testing.assert_allclose(histograms.probabilities, np.array([[3, 2, 1, 1], [1, 1, 2, 3]]) / 7)
    test = np.array([[0, 0], [3, 3]], np.uint8).reshape([2, 1, 2, 1])
    expected = -(math.log2(3 / 7) + math.log2(1 / 7) + math.log2(1 / 7) + math.log2(3 / 7)) / 4
    assert histograms.bits_per_dim(test) == pytest.approx(expected)


def test_digits():
    digits = load_arrays("digits")
    gaussian = FullCovarianceGaussian.fit(digits.train, digits.num_values)
    histograms = IndependentHistograms.fit(digits.train, digits.num_values)
    assert gaussian.bits_per_dim(digits.test) == pytest.approx(2.943, abs=0.01)
    assert histograms.bits_per_dim(digits.test) == pytest.approx(2.421, abs=0.001)


@pytest.mark.parametrize("baseline", [FullCovarianceGaussian, IndependentHistograms])
class TestErrors:
    def test_float_images(self, baseline):
        with pytest.raises(ValueError, match="integer dtype, got float64"):
            baseline.fit(np.zeros([2, 1, 1, 1]), 2)

    @pytest.mark.parametrize("shape", [(2, 3, 3), (0, 3, 3, 1)])
    def test_shape(self, baseline, shape):
        with pytest.raises(ValueError, match=r"\[N, H, W, C\], got shape \("):
            baseline.fit(np.zeros(shape, np.uint8), 2)

    def test_values(self, baseline):
        images = np.array([0, 16], np.uint8).reshape([2, 1, 1, 1])
        with pytest.raises(ValueError, match=r"\[0, 16\), got values from 0 to 16"):
            baseline.fit(images, 16)
        with pytest.raises(ValueError, match="got values from -1 to 0"):
            baseline.fit(np.array([-1, 0]).reshape([2, 1, 1, 1]), 16)

    def test_another_image_shape(self, baseline):
        fitted = baseline.fit(_random_images(20), 256)
        with pytest.raises(ValueError, match=r"\(2, 3, 2\), got \(3, 2, 2\)"):
            fitted.bits_per_dim(_random_images(4, shape=(3, 2, 2)))

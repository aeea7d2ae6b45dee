"""Scores of outliers and conformal p-values by their formulas."""

import io
import math
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from tfp_realnvp import outliers


@pytest.mark.parametrize("size", [1, 4])
def test_typicality(size, rng):
    log_probs, reference = rng.normal(-50, 9, [12]), rng.normal(-50, 9, [30])
    means = [log_probs[i : i + size].mean() for i in range(0, 12, size)]
    scores = outliers.typicality(log_probs.astype(np.float32), list(reference), size)
    assert scores.dtype == np.float64
    np.testing.assert_allclose(scores, np.abs(means - reference.mean()), rtol=1e-4)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32])
@pytest.mark.parametrize("channels", [1, 3])
def test_bits_of_png_files(channels, dtype, rng):
    images = rng.integers(0, 256, [4, 9, 7, channels])
    images //= np.array([1, 9, 99, 256])[:, None, None, None]
    log_probs = rng.normal(-300, 50, [4])
    expected = []
    for image, log_prob in zip(images.astype(np.uint8), log_probs, strict=True):
        file = io.BytesIO()
        Image.fromarray(image.squeeze()).save(file, "png", optimize=True)
        with Image.open(file) as decoded:
            np.testing.assert_array_equal(decoded, image.squeeze())
        expected.append(-log_prob / math.log(2) - 8 * len(file.getvalue()))
    scores = outliers.complexity_corrected(log_probs, images.astype(dtype))
    np.testing.assert_allclose(scores, expected)


@pytest.mark.parametrize("shape", [[5], [2, 3], [4, 4, 2]])
def test_bits_of_zlib(shape, rng):
    events = rng.integers(0, 17, [6, *shape])
    num_bytes = [len(zlib.compress(event.astype(np.uint8).tobytes(), 9)) for event in events]
    scores = outliers.complexity_corrected(np.full([6], -math.log(2.0)), events)
    np.testing.assert_allclose(scores, 1 - 8 * np.array(num_bytes))


def test_bits_of_a_given_code(rng):
    images = rng.integers(0, 256, [3, 4, 4, 1])
    encode = lambda image: bytes(int(image[0, 0, 0]))  # noqa: E731
    scores = outliers.complexity_corrected(np.zeros([3]), images, encode)
    np.testing.assert_array_equal(scores, -8 * images[:, 0, 0, 0])


def test_committee(rng):
    log_probs = rng.normal(-80, 10, [4, 6])
    mean = sum(log_probs) / 4
    expected = sum((log_probs - mean) ** 2) / 3 - mean
    np.testing.assert_allclose(outliers.committee(list(log_probs)), expected)


def test_a_density_of_zero_is_an_outlier(rng):
    log_probs = np.array([-90.0, -np.inf, -85.0])
    images = rng.integers(0, 256, [3, 4, 4, 3])
    for scores in (
        -log_probs,
        outliers.typicality(log_probs, [-88.0]),
        outliers.complexity_corrected(log_probs, images),
        outliers.committee([log_probs, [-90.0, -91.0, -85.0]]),
    ):
        assert scores[1] == np.inf and np.isfinite(scores[[0, 2]]).all()
        assert outliers.p_values(scores, np.zeros([4]))[1] == 0.2


def test_p_values_by_counting(rng):
    # Few values, so that many scores are tied.
    scores, held_out = rng.integers(0, 6, [3, 5]), rng.integers(0, 6, [40])
    expected = [[(1 + (held_out >= score).sum()) / 41 for score in row] for row in scores]
    np.testing.assert_array_equal(outliers.p_values(scores, held_out), expected)


def test_p_values_of_extremes():
    held_out = [-np.inf, 0.0, 1.0, np.inf]
    scores = [-np.inf, -1.0, 1.0, 2.0, np.inf]
    np.testing.assert_allclose(outliers.p_values(scores, held_out), [1.0, 0.8, 0.6, 0.4, 0.4])
    assert outliers.p_values(3.0, [1.0]) == 0.5


@pytest.mark.parametrize("num_scores", [1, 4])
def test_scores_of_the_wrong_sign(num_scores, rng):
    held_out, noise = rng.normal(-100, 5, [100]), rng.normal(-900, 5, [num_scores])
    with pytest.warns(
        UserWarning, match=r"below all 100 held-out scores.*`-log_probs`.*typicality"
    ):
        assert (outliers.p_values(noise, held_out) == 1).all()
    assert (outliers.p_values(-noise, -held_out) == 1 / 101).all()


@pytest.mark.filterwarnings("error")
def test_low_scores_that_are_likely(rng):
    outliers.p_values([-1.0], np.zeros([99]))
    outliers.p_values([-1.0, 0.0], np.zeros([99]))
    outliers.p_values([], np.zeros([99]))


_IMAGES = np.zeros([2, 4, 4, 1], np.uint8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: outliers.typicality([0.0] * 5, [0.0], 2), "divisible by group_size=2.*got 5"),
        (lambda: outliers.typicality([0.0], []), r"of shape \[R\], got \(0,\)"),
        (lambda: outliers.typicality([0.0], [-np.inf]), "finite reference_log_probs, .*-inf"),
        (lambda: outliers.typicality([0.0, np.nan], [0.0]), r"got nan at index \[1\]"),
        (lambda: outliers.complexity_corrected([0.0], [3]), r"each of 1 log densities, got \(1,\)"),
        (lambda: outliers.complexity_corrected([0.0] * 2, _IMAGES + 0.5), "from 0.5 to 0.5"),
        (lambda: outliers.committee([[0.0, 1.0]]), r"M ≥ 2, got \(1, 2\)"),
        (lambda: outliers.committee([[0.0], [np.nan]]), r"got nan at index \[1, 0\]"),
        (lambda: outliers.p_values([0.0], []), r"at least one event, got \(0,\)"),
        (lambda: outliers.p_values([np.nan], [0.0]), "expected scores without NaN, got"),
        (lambda: outliers.p_values([0.0], [np.nan]), "expected held_out_scores without NaN"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_without_pillow(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(ImportError, match="needs pillow, which is not installed: `pip install p"):
        outliers.complexity_corrected([0.0] * 2, _IMAGES)
    assert outliers.complexity_corrected([0.0] * 2, _IMAGES[..., 0]).shape == (2,)


@pytest.fixture
def rng():
    return np.random.default_rng(0)

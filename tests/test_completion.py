"""Samples of unknown values, beside conditional distributions that are known or integrated."""

import re
import warnings

import flow_testing as ft
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_realnvp as tfr
from tfp_realnvp import latents
from tfp_realnvp.latents import completion

tfb = tfp.bijectors
tfd = tfp.distributions

_LEVELS = 4


def _image_flow():
    """Returns a flow of images of two pixels."""
    flow = ft.vector_distribution(2)
    logit = tfr.PixelLogit(num_values=_LEVELS)
    chain = tfb.Chain([logit, tfb.Reshape([1, 2, 1], [2]), flow.bijector])
    return tfd.TransformedDistribution(flow.distribution, chain)


def _normal(size):
    """Returns a normal distribution made of linear bijectors, its mean and its covariance."""
    rng = np.random.default_rng(0)
    factor = np.tril(rng.normal(size=[size, size]))
    factor[np.diag_indices(size)] = rng.uniform(0.5, 1.5, size)
    mean = rng.normal(size=size)
    shift, scale = (tf.constant(value, tf.float32) for value in (mean, factor))
    bijector = tfb.Chain([tfb.Shift(shift), tfb.ScaleMatvecTriL(scale)])
    flow = tfd.TransformedDistribution(ft.standard_normal([size]), bijector)
    return flow, mean, factor @ factor.T


def test_conditional_moments_of_a_normal_distribution():
    flow, mean, covariance = _normal(4)
    events = flow.sample(3, seed=1).numpy()
    is_known = np.array([[1, 0, 1, 0], [0, 0, 1, 0], [1, 1, 0, 1]], bool)
    missing = np.where(is_known, events, np.nan)
    samples, r_hat, acceptance_rate = latents.complete(
        flow, missing, num_samples=60_000, num_chains=300, num_burnin_steps=100
    )
    assert samples.shape == (60_000, 3, 4) and samples.dtype == np.float32
    assert (samples[:, is_known] == events[is_known]).all()
    assert r_hat.shape == (3,) and (r_hat < 1.05).all()
    assert (acceptance_rate > 0.6).all()
    for event, known, draws in zip(events, is_known, samples.swapaxes(0, 1), strict=True):
        gain = covariance[~known][:, known] @ np.linalg.inv(covariance[known][:, known])
        expected = mean[~known] + gain @ (event[known] - mean[known])
        rest = covariance[~known][:, ~known] - gain @ covariance[known][:, ~known]
        stddev = np.sqrt(np.diag(rest))
        np.testing.assert_allclose(draws[:, ~known].mean(axis=0), expected, atol=0.02)
        np.testing.assert_allclose(draws[:, ~known].std(axis=0), stddev, atol=0.02)


def test_conditional_moments_of_a_flow_under_each_label():
    flow = ft.vector_distribution(2, num_classes=3)
    labels, known = np.arange(3), 0.3
    options = {"num_samples": 20_000, "num_chains": 200, "num_burnin_steps": 100}
    events = np.array([[known, np.nan]] * 3, np.float32)
    completion = latents.complete(flow, events, conditional_input=labels, **options)
    grid = np.linspace(-15, 15, 3001, dtype=np.float32)
    points = np.stack([np.full_like(grid, known), grid], axis=-1)
    for label, draws in zip(labels, completion.samples[:, :, 1].T, strict=True):
        weights = np.exp(tfr.condition(flow, label).log_prob(points).numpy().astype(np.float64))
        weights /= weights.sum()
        expected = weights @ grid
        stddev = np.sqrt(weights @ np.square(grid - expected))
        assert draws.mean() == pytest.approx(expected, abs=0.05 * stddev)
        assert draws.std() == pytest.approx(stddev, rel=0.05)


@pytest.mark.parametrize("dtype", [np.uint8, *ft.full(np.float32)])
def test_gray_levels(dtype):
    flow = _image_flow()
    images = np.array([[1, 0], [3, 0]]).reshape(2, 1, 2, 1).astype(dtype)
    is_known = np.array([True, False]).reshape(2, 1)
    options = {"num_samples": 20_000, "num_chains": 200, "num_burnin_steps": 100}
    samples = latents.complete(flow, images, is_known, **options).samples
    assert samples.dtype == dtype
    assert (samples[:, :, :, 0] == images[:, :, 0]).all()
    assert (samples >= 0).all() and (samples < _LEVELS).all()
    is_gray = dtype == np.uint8
    # The known pixel is anywhere in its gray level, or is the continuous value.
    centers = (np.arange(100) + 0.5) / 100
    unknown = (np.arange(400) + 0.5) / 100
    for image, draws in zip(images, samples.swapaxes(0, 1), strict=True):
        known = image.flat[0] + (centers if is_gray else np.zeros(1))
        points = np.stack(np.meshgrid(known, unknown, indexing="ij"), axis=-1)
        points = points.reshape(-1, 1, 2, 1).astype(np.float32)
        density = np.exp(flow.log_prob(points).numpy().astype(np.float64))
        expected = density.reshape(len(known), _LEVELS, 100).sum(axis=(0, 2))
        counts = np.bincount(np.floor(draws[:, 0, 1, 0]).astype(int), minlength=_LEVELS)
        np.testing.assert_allclose(counts / len(draws), expected / expected.sum(), atol=0.02)
        if is_gray:
            assert (draws == np.floor(draws)).all()


def test_r_hat_tells_of_chains_that_have_not_mixed():
    modes = tfd.Mixture(
        tfd.Categorical(probs=[0.5, 0.5]),
        [tfd.MultivariateNormalDiag([0.0, mean], [1.0, 0.1]) for mean in (-9.0, 9.0)],
    )
    with pytest.warns(UserWarning, match="the chains of 1 of 2 events have not mixed"):
        _, r_hat, _ = latents.complete(modes, [[0.0, np.nan], [0.0, 1.0]], num_samples=80)
    assert r_hat[0] > 2
    assert r_hat[1] == 1


def _warning(flow, events, **options):
    """Returns the R-hat of each event, and the text of the warning or `None`."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        r_hat = latents.complete(flow, events, **options).r_hat
    texts = [str(w.message) for w in caught if "complete: the chains" in str(w.message)]
    assert len(texts) <= 1
    if texts:
        assert [w.filename for w in caught if str(w.message) == texts[0]] == [__file__]
    return r_hat, texts[0] if texts else None


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "flow", "events", "options"),
    [
        (
            "num_samples",
            tfd.MultivariateNormalDiag([0.0, 0.0, 0.0]),
            [[0.3, np.nan, np.nan], [0.1, 0.2, 0.3]],
            {"num_burnin_steps": 50, "num_samples": 24, "num_leapfrog_steps": 8, "seed": 1},
        ),
        (
            "num_leapfrog_steps",
            # Narrow beside the normal distribution of the same covariance, so that steps are small.
            tfd.TransformedDistribution(
                ft.standard_normal([2]),
                tfb.Chain([tfb.SinhArcsinh(tailweight=0.2), tfb.Scale(3.0)]),
            ),
            [[0.3, np.nan]],
            {"num_burnin_steps": 100, "num_samples": 400, "num_leapfrog_steps": 1},
        ),
    ],
)
def test_chains_mix_with_what_the_warning_names(name, flow, events, options):
    r_hat, text = _warning(flow, events, **options)
    assert r_hat[0] > 1.1 and f"R-hat is up to {r_hat[0]:.2f}" in text
    assert f"1 of {len(events)} events" in text
    found = re.search(rf"{name} from [\d,]+ to ([\d,]+)", text)
    advised = int(found[1].replace(",", ""))
    assert advised > options[name]
    r_hat, text = _warning(flow, events, **{**options, name: advised})
    assert r_hat[0] < 1.1 and text is None


def test_chains_that_never_moved_have_not_mixed():
    with pytest.warns(UserWarning, match=r"1 of 2 .* R-hat is up to inf.* Raise num_burnin_steps"):
        completion._warn_unless_mixed(np.array([1.0, np.nan]), np.ones(2), 400, 8)


def test_samples_depend_on_the_seed():
    flow, events = tfd.MultivariateNormalDiag([0.0, 0.0]), [[0.3, np.nan]]
    one, same, other = (
        latents.complete(flow, events, num_samples=16, num_burnin_steps=3, seed=seed).samples
        for seed in (1, (1, 0), 2)
    )
    np.testing.assert_array_equal(one, same)
    assert (one[:, 0, 1] != other[:, 0, 1]).all()


@pytest.mark.parametrize(
    ("events", "options", "message"),
    [
        ([[1.0, 2.0]], {}, "known and unknown values, got only known ones: unknown values are NaN"),
        ([[np.nan, np.nan]], {}, r"got only unknown ones: .* `distribution.sample`"),
        ([[np.inf, np.nan]], {}, "expected finite known values"),
        ([[1.0, np.nan, 2.0]], {}, r"expected events \[N, 2\], got \(1, 3\)"),
        ([[1.0, 2.0]], {"is_known": np.ones([3], bool)}, r"is_known .* \(1, 2\), got \(3,\)\."),
        ([[1.0, np.nan]], {"conditional_input": [0]}, "only for a distribution that takes"),
        ([[1.0, np.nan]], {"num_samples": 15}, "num_samples of at least four per chain, 16"),
        ([[1e30, np.nan]], {}, "finite log densities where chains start, got"),
    ],
)
def test_bad_vectors(events, options, message):
    with pytest.raises(ValueError, match=message):
        latents.complete(ft.vector_distribution(2), events, **options)


def test_bad_images():
    is_known = np.array([True, False]).reshape(2, 1)
    with pytest.raises(ValueError, match=r"gray levels 0 to 3, .*, got values from 4 to 4"):
        latents.complete(_image_flow(), np.full([1, 1, 2, 1], 4), is_known)
    with pytest.raises(ValueError, match=r"Leave out `Rescaling\(1 / 255\)`"):
        latents.complete(_image_flow(), np.full([1, 1, 2, 1], 0.5), is_known)


@pytest.mark.parametrize("leading", [(), (5,)])
def test_a_mask_without_channels(leading):
    is_known, message = np.ones([*leading, 1, 2], bool), r"got \(.*1, 2\): .*`is_known\[\.\.\., np"
    with pytest.raises(ValueError, match=message):
        latents.complete(_image_flow(), np.zeros([5, 1, 2, 1], int), is_known)


def test_objects_that_have_no_density():
    with pytest.raises(TypeError, match=r"TransformedDistribution\(tfd.*got <.*RealNVPVector"):
        latents.complete(ft.vector_flow(2), [[1.0, np.nan]])
    with pytest.raises(TypeError, match=r"expected booleans as is_known, got dtype\('int64'\)"):
        latents.complete(ft.vector_distribution(2), [[1.0, 2.0]], [1, 0])

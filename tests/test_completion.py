"""Samples of unknown values, beside conditional distributions that are known or integrated."""

import warnings

import flow_testing as ft
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_probability import bijectors as tfb
from tensorflow_probability import distributions as tfd

import tfp_realnvp as tfr
from tfp_realnvp import latents

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
    samples, r_hat, acceptance_rate = latents.complete(flow, missing, num_samples=20_000)
    assert samples.shape == (20_000, 3, 4) and samples.dtype == np.float32
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
    events = np.array([[known, np.nan]] * 3, np.float32)
    completion = latents.complete(flow, events, conditional_input=labels, num_samples=8000)
    grid = np.linspace(-15, 15, 3001, dtype=np.float32)
    points = np.stack([np.full_like(grid, known), grid], axis=-1)
    for label, draws in zip(labels, completion.samples[:, :, 1].T, strict=True):
        weights = np.exp(tfr.condition(flow, label).log_prob(points).numpy().astype(np.float64))
        weights /= weights.sum()
        expected = weights @ grid
        stddev = np.sqrt(weights @ np.square(grid - expected))
        assert draws.mean() == pytest.approx(expected, abs=0.05 * stddev)
        assert draws.std() == pytest.approx(stddev, rel=0.05)


@pytest.mark.parametrize(
    ("dtype", "fraction"), [(np.uint8, 0), (np.float32, 0), *ft.full((np.float32, 0.25))]
)
def test_gray_levels(dtype, fraction):
    flow = _image_flow()
    images = (np.array([[1, 0], [3, 0]]) + fraction).reshape(2, 1, 2, 1).astype(dtype)
    is_known = np.array([True, False]).reshape(2, 1)
    samples = latents.complete(flow, images, is_known, num_samples=8000).samples
    assert samples.dtype == dtype
    assert (samples[:, :, :, 0] == images[:, :, 0]).all()
    assert (samples >= 0).all() and (samples < _LEVELS).all()
    is_gray = not fraction
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


def _cluster_mixture(num_classes):
    """Returns a mixture of flows of two values, whose bases are far apart, in four clusters."""
    clusters = tfr.Clusters([2], 4, num_classes)
    shares = np.array([0.4, 0.6, 0.3, 0.7]) / (2 if num_classes is None else 1)
    clusters.frequencies.assign(shares)
    means = tf.constant([[0.0, -4.0], [1.0, 3.0], [0.0, 9.0], [-1.0, 2.0]])
    base = tfr.ConditionalBase(
        lambda cluster, means: tfd.MultivariateNormalDiag(tf.gather(means, cluster), [1.0, 0.3]),
        [means],
        event_shape=[2],
    )
    flow = tfd.TransformedDistribution(base, ft.vector_flow(2, num_classes=4))
    return tfr.ClusterMixture(flow, clusters)


@pytest.mark.parametrize("num_classes", [None, 2])
def test_shares_of_clusters(num_classes):
    mixture, known = _cluster_mixture(num_classes), 0.3
    labels = None if num_classes is None else np.arange(2)
    events = np.array([[known, np.nan]] * 2, np.float32)
    options = {"conditional_input": labels, "num_samples": 4000}
    samples, r_hat, _ = latents.complete(mixture, events, **options)
    assert (r_hat < 1.05).all()
    grid = np.linspace(-20, 20, 4001, dtype=np.float32)
    points = np.stack([np.full_like(grid, known), grid], axis=-1)
    for row, draws in enumerate(samples[:, :, 1].T):
        label = None if labels is None else np.full(len(grid), labels[row])
        density = np.exp(tfr.log_prob(mixture, points, label).astype(np.float64))
        density /= density.sum()
        is_separate = np.diff(np.sign(np.diff(density))) > 0
        assert is_separate.sum() >= 1
        edges = [-20, *grid[1:-1][is_separate], 20]
        expected = np.histogram(grid, edges, weights=density)[0]
        shares = np.histogram(draws, edges)[0] / len(draws)
        np.testing.assert_allclose(shares, expected, atol=0.04)
        assert draws.mean() == pytest.approx(density @ grid, abs=0.3)


_MODES = tfd.Mixture(
    tfd.Categorical(probs=[0.7, 0.3]),
    [tfd.MultivariateNormalDiag([0.0, mean, mean], [1.0, 0.1, 0.1]) for mean in (-9.0, 9.0)],
)


def test_modes_far_apart():
    events = [*[[0.0, np.nan, np.nan]] * 20, [0.0, 9.0, np.nan]]
    with pytest.warns(UserWarning, match="populations of .* of 21 events differ"):
        samples, r_hat, _ = latents.complete(_MODES, events, num_samples=1000)
    assert (r_hat < 1.5).all() and r_hat[-1] < 1.1
    values, last = samples[:, :-1, 1:], samples[:, -1, 2]
    is_first = values[..., 0] < 0
    assert is_first.mean() == pytest.approx(0.7, abs=0.06)
    for mean, draws in ((-9, values[is_first]), (9, values[~is_first]), (9, last)):
        assert draws.mean() == pytest.approx(mean, abs=0.02)
        assert draws.std() == pytest.approx(0.1, rel=0.1)


def test_populations_that_differ():
    # Without temperatures between the start and the target, few particles have large weights.
    events = [[0.0, np.nan, np.nan], [0.0, 1.0, 2.0]]
    with pytest.warns(UserWarning, match="complete: the populations of 1 of 2 events differ") as w:
        _, r_hat, _ = latents.complete(_MODES, events, num_samples=80, num_burnin_steps=0)
    assert r_hat[0] > 1.1 and r_hat[1] == 1
    assert "means and intervals are not reliable" in str(w[0].message)
    assert w[0].filename == __file__


def test_populations_of_different_evidence():
    parts = [
        tfd.MultivariateNormalDiag([mean, *[0.0] * 10], [1.0, *[stddev] * 10])
        for mean, stddev in ((-9.0, 0.4), (9.0, 3.0))
    ]
    flow = tfd.Mixture(tfd.Categorical(probs=[0.5, 0.5]), parts)
    events = np.array([[-9.0, *[np.nan] * 10]])
    # All populations are too wide in the same way, so R-hat does not tell.
    with pytest.warns(UserWarning, match="log evidence of an event has a standard deviation"):
        samples, r_hat, _ = latents.complete(flow, events, num_burnin_steps=1)
    assert r_hat[0] < 1.1 and samples[:, 0, 1:].std() > 0.43
    # Populations with different numbers of temperatures estimate the same evidence.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        samples, r_hat, _ = latents.complete(flow, events)
    assert r_hat[0] < 1.1 and samples[:, 0, 1:].std() == pytest.approx(0.4, abs=0.01)


def test_coordinates_of_different_scales():
    # The fitted normal distribution has the scales of both parts.
    scales = [1.0, *[0.1] * 5, *[1.0] * 5]
    parts = [
        tfd.MultivariateNormalDiag([mean, *[0.0] * 10], stddev)
        for mean, stddev in ((-9.0, scales), (9.0, [1.0, *[2.0] * 10]))
    ]
    flow = tfd.Mixture(tfd.Categorical(probs=[0.5, 0.5]), parts)
    samples, r_hat, _ = latents.complete(flow, [[-9.0, *[np.nan] * 10]] * 10)
    np.testing.assert_allclose(samples[..., 1:].std(axis=(0, 1)), scales[1:], rtol=0.05)
    # With steps of the same size in all coordinates, 1.03.
    assert r_hat.mean() < 1.015


@pytest.mark.parametrize("num_samples", [1, 401, 1200])
def test_number_of_samples(num_samples):
    flow = tfd.MultivariateNormalDiag([0.0, 0.0])
    samples = latents.complete(flow, [[0.3, np.nan], [np.nan, 1]], num_samples=num_samples).samples
    assert samples.shape == (num_samples, 2, 2)


def test_events_of_which_nothing_or_everything_is_known():
    flow = tfd.MultivariateNormalDiag([1.0, -2.0], [1.0, 0.5])
    events = [[0.3, np.nan], [np.nan, np.nan], [3.0, 4.0]]
    samples, r_hat, _ = latents.complete(flow, events, num_samples=4000)
    np.testing.assert_allclose(samples[:, 1].mean(axis=0), [1, -2], atol=0.06)
    np.testing.assert_allclose(samples[:, 1].std(axis=0), [1, 0.5], rtol=0.06)
    assert (samples[:, 2] == events[2]).all() and r_hat[2] == 1


def test_samples_depend_on_the_seed():
    flow, events = tfd.MultivariateNormalDiag([0.0, 0.0]), [[0.3, np.nan]]
    one, same, other = (
        latents.complete(flow, events, num_samples=16, seed=seed).samples for seed in (1, (1, 0), 2)
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
        ([[1.0, np.nan]], {"num_samples": 0}, "num_samples of at least 1, got 0"),
        ([[1.0, np.nan]], {"num_chains": 1}, "num_chains of at least 2, got 1"),
        ([[1e30, np.nan]], {}, "finite log densities where particles start, got"),
    ],
)
def test_bad_vectors(events, options, message):
    with pytest.raises(ValueError, match=message):
        latents.complete(ft.vector_distribution(2), events, **options)


def test_bad_images():
    is_known = np.array([True, False]).reshape(2, 1)
    with pytest.raises(ValueError, match=r"gray levels 0 to 3, .*, got values from 4 to 4"):
        latents.complete(_image_flow(), np.full([1, 1, 2, 1], 4), is_known)
    with pytest.raises(ValueError, match=r"gray levels divided by 3"):
        latents.complete(_image_flow(), np.full([1, 1, 2, 1], 1 / 3), is_known)


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

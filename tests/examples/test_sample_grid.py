"""Grids of samples have the samples of each condition in its row."""

import datasets
import flow_testing as ft
import numpy as np
import pytest
import tensorflow_probability as tfp

import tfp_realnvp as tfr

pytestmark = [pytest.mark.full, pytest.mark.usefixtures("no_graph_optimizer")]

_TINY = {"num_scales": 1, "num_blocks": 0, "num_filters": 4, "num_couplings": 1}


def _flow(images):
    names = ("image_shape", "num_values", "num_classes", "conditional_event_shape")
    arguments = {name: getattr(images, name) for name in names}
    flow = ft.randomize(tfr.RealNVPImage(**arguments, **_TINY))
    return tfp.distributions.TransformedDistribution(ft.standard_normal(images.image_shape), flow)


@pytest.fixture(scope="module")
def sample_grid(load_script):
    return load_script("train_paper").sample_grid


@pytest.fixture
def load(tmp_path):
    path = tmp_path / "images.npz"
    images = ft.grey_levels(60, (4, 4, 3))
    np.savez(path, images=images, labels=np.arange(60) % 30)

    def loaded(condition):
        return datasets.load(str(path), condition=condition)

    return loaded


def test_without_a_condition(load, sample_grid):
    images = load(None)
    distribution = _flow(images)
    grid = sample_grid(distribution, images, "test", 3, seed=1)
    samples = tfr.to_uint8(distribution.sample(9, seed=(0, 1)))
    np.testing.assert_array_equal(grid.reshape(9, 4, 4, 3), samples)


def test_a_row_for_each_class(load, sample_grid):
    images = load("label")
    distribution = _flow(images)
    grid = sample_grid(distribution, images, "test", 4, seed=1)
    assert images.num_classes == 30 and grid.shape == (20, 4, 4, 4, 3)
    samples = tfr.condition(distribution, np.arange(20)).sample(4, seed=(0, 1))
    np.testing.assert_array_equal(grid, tfr.to_uint8(samples).swapaxes(0, 1))
    assert (grid[0] != grid[1]).any()


def test_rows_of_image_conditions(load, sample_grid):
    images = load("gray")
    distribution = _flow(images)
    grid = sample_grid(distribution, images, "test", 5, seed=1)
    originals, gray = next(images.batches("test", 5).as_numpy_iterator())
    assert grid.shape == (5, 5, 4, 4, 3)
    np.testing.assert_array_equal(grid[:, -1], originals)
    np.testing.assert_allclose(grid[:, 0], 255 * np.repeat(gray, 3, -1), atol=0.5001)
    given = tfr.condition(distribution, gray)
    samples = tfr.to_uint8(given.sample(3, seed=(0, 1)))
    np.testing.assert_array_equal(grid[:, 1:4], samples.swapaxes(0, 1))
    assert (samples[0] != samples[1]).any()

"""The toys in the plane."""

import json

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

pytestmark = [pytest.mark.full, pytest.mark.usefixtures("no_graph_optimizer")]

_TINY = "--num_couplings=1 --num_blocks=0 --num_filters=4 --num_points=300 --num_steps=40"
_KNOWN = ("checkerboard", "ring", "banana")


@pytest.fixture(scope="module")
def toys(load_script):
    return load_script("toy_2d")


@pytest.mark.parametrize("name", ["moons", "circles", "pinwheel", "spirals", *_KNOWN])
def test_points(name, toys):
    points = toys.sample(name, 1_000, 3)
    assert points.shape == (1_000, 2) and points.dtype == np.float32
    np.testing.assert_array_equal(toys.sample(name, 1_000, 3), points)
    other = toys.sample(name, 1_000, 4)
    assert (other != points).all(axis=1).any()
    # Another sample of the same density: the distance of means is a few standard errors at most.
    error = np.sqrt(2 / 1_000) * points.std(axis=0)
    assert (np.abs(other.mean(axis=0) - points.mean(axis=0)) < 5 * error).all()


@pytest.mark.parametrize("name", _KNOWN)
def test_known_densities_integrate_to_one(name, toys):
    # Midpoints of cells, none of which is on an edge of a square.
    along = tf.linspace(-8.0, 20.0, 1_401)[:-1] + 0.01
    grid = tf.stack(tf.meshgrid(along, along), axis=-1)
    density = toys.known_density(name).prob(grid)
    np.testing.assert_allclose(tf.reduce_sum(density) * 0.02**2, 1, atol=1e-3)


@pytest.mark.parametrize(("name", "transformer"), [("checkerboard", "affine"), ("moons", "spline")])
def test_a_run(name, transformer, tmp_path, run_script, capsys):
    options = f"--dataset={name} --transformer={transformer} --batch_size=50 {_TINY}".split()
    run_script("toy_2d", f"--output_dir={tmp_path}", *options)
    report = json.loads((tmp_path / "report.json").read_text())
    nats, kl = report["held_out_nats"], report.get("kl_from_known_density")
    flow, estimate = nats
    assert flow == "Real NVP" and estimate.startswith("KDE, bandwidth 0.")
    printed = capsys.readouterr().out
    assert f"held out nats, Real NVP: {nats[flow][0]:.4f} ±" in printed
    if name == "checkerboard":
        # Its entropy is that of eight unit squares.
        for each in (flow, estimate):
            assert nats[each][0] - kl[each][0] == pytest.approx(np.log(8), abs=1e-5)
        assert kl[flow][0] > 0
    else:
        assert kl is None
    for name in ("toy.png", "flow.jpg"):
        Image.open(tmp_path / name).load()

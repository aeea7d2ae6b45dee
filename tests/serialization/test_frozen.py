"""Files of this version, which later versions must load, with the log densities that they had.

`python tests/serialization/test_frozen.py` writes them again. Do that only for a new file.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import flow_testing as ft
import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_realnvp as tfr

tfd = tfp.distributions

_FOLDER = pathlib.Path(__file__).parent / "frozen"

_FLOWS = {
    "paper": lambda: tfr.RealNVPImage((8, 8, 1), num_blocks=1, num_filters=2, num_classes=3),
    "compact": lambda: tfr.RealNVPImage.compact(
        (8, 8, 1), num_scales=2, num_couplings=1, num_filters=2
    ),
    "vector": lambda: tfr.RealNVPVector(
        3,
        num_couplings=2,
        num_filters=4,
        transformer="rational_quadratic_spline",
        standardization=tfr.Standardization([1.0, 2.0, 3.0], [0.5, 1.0, 2.0]),
    ),
}


def _data(name):
    if name == "vector":
        return ft.normal([5, 3]).numpy()
    images = ft.grey_levels(5, (8, 8, 1))
    return (images, np.array([0, 1, 2, 0, 1])) if name == "paper" else images


@pytest.mark.parametrize("name", _FLOWS)
def test_a_file_of_this_version(name):
    model = keras.models.load_model(_FOLDER / f"{name}.keras")
    expected = np.load(_FOLDER / "log_prob.npz")[name]
    np.testing.assert_allclose(model.predict(_data(name), verbose=0), expected, rtol=1e-4)


def _write():
    log_probs = {}
    for name, make in _FLOWS.items():
        bijector = ft.randomize(make())
        base = ft.standard_normal([3] if name == "vector" else [8, 8, 1])
        model = tfr.FlowModel(tfd.TransformedDistribution(base, bijector), name=name)
        model.save(_FOLDER / f"{name}.keras")
        log_probs[name] = model.predict(_data(name), verbose=0)
        assert np.isfinite(log_probs[name]).all()
    np.savez(_FOLDER / "log_prob.npz", **log_probs)
    print(log_probs, tf.__version__)


if __name__ == "__main__":
    _write()

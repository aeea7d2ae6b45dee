"""Files of 0.2.0, which later versions must load, with the log densities that they had.

`python tests/serialization/test_frozen.py` writes those of `_FLOWS` again. Do that only for a new
file. `one_scale.keras`, `masks.keras` and the preset `table` have configurations that name only
what is not the default, options without effect, and variables by position.
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
from tfp_realnvp.serialization import defaults

pytestmark = [pytest.mark.quick, pytest.mark.core]

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


_FILES = (*_FLOWS, "one_scale", "masks", "table")


def _data(name):
    if name == "vector":
        return ft.normal([5, 3]).numpy()
    if name == "table":
        return ft.normal([5, 3]).numpy(), ft.normal([5, 2], seed=1).numpy()
    images = ft.grey_levels(5, (4, 4, 1) if name in ("one_scale", "masks") else (8, 8, 1))
    return (images, np.array([0, 1, 2, 0, 1])) if name in ("paper", "one_scale") else images


def _load(name):
    path = _FOLDER / name
    return (
        tfr.FlowModel.from_preset(path)
        if path.exists()
        else keras.models.load_model(path.with_suffix(".keras"))
    )


def _log_prob(name, model):
    """Returns log densities, of images with noise by their place in the batch."""
    data = _data(name)
    events, condition = data if isinstance(data, tuple) else (data, None)
    seed, log_noise = (model.seed ^ 0x5EED, 1), 0.0
    if model.dequantizer is not None:
        events, log_noise = model.dequantizer.dequantize(events, seed)
    elif model.dequantize:
        events = tfr.dequantize(events, seed)
    return (model(events if condition is None else (events, condition)) - log_noise).numpy()


def _assert_as_it_was(name, model):
    expected = np.load(_FOLDER / "log_prob.npz")[name]
    np.testing.assert_allclose(_log_prob(name, model), expected, rtol=1e-5)


@pytest.mark.parametrize("name", _FILES)
def test_a_file_of_this_version(name):
    _assert_as_it_was(name, _load(name))


def test_the_optimizer_of_a_file():
    model = _load("one_scale")
    assert int(model.optimizer.iterations) == 1
    moments = [np.abs(variable).max() for variable in model.optimizer.variables[2:]]
    assert np.isfinite(moments).all() and max(moments) > 0


@pytest.mark.parametrize("name", _FILES)
def test_a_file_with_other_defaults(name, monkeypatch):
    ft.other_defaults(monkeypatch)
    _assert_as_it_was(name, _load(name))


@pytest.mark.parametrize(
    "name", ["one_scale", "vector", *ft.full("compact", "paper", "masks", "table")]
)
def test_a_file_that_is_saved_again(name, monkeypatch, tmp_path):
    model = _load(name)
    with monkeypatch.context() as patch:
        # What is saved is what the model is, not what it would be now.
        ft.other_defaults(patch)
        model.save_to_preset(tmp_path / "preset")
        model.save(tmp_path / "again.keras")
    ft.other_defaults(monkeypatch)
    _assert_as_it_was(name, tfr.FlowModel.from_preset(tmp_path / "preset"))
    _assert_as_it_was(name, keras.models.load_model(tmp_path / "again.keras"))


def test_defaults_have_changed_since():
    names = ("num_couplings", "num_blocks", "activation")
    before = defaults.completed(tfr.RealNVPVector, {"event_size": 3})
    assert [before[name] for name in names] == [8, 2, "relu"]
    now = tfr.RealNVPVector(3).config
    assert [now[name] for name in names] == [10, 1, "tanh"]


def test_other_defaults_make_another_model(monkeypatch):
    before = [tfr.RealNVPImage((4, 4, 1)).config, tfr.RealNVPVector(3).config]
    ft.other_defaults(monkeypatch)
    after = [tfr.RealNVPImage((4, 4, 1)).config, tfr.RealNVPVector(3).config]
    pairs = zip(before, after, strict=True)
    different = [{name for name in old if old[name] != new[name]} for old, new in pairs]
    assert different[0] >= {"num_filters", "num_couplings", "normalization", "alpha", "name"}
    assert different[0] >= {"num_values", "invertible_conv", "num_blocks"}
    assert different[1] >= {"num_filters", "num_couplings", "normalization", "activation", "mixing"}
    assert tfr.BatchNormalization().parameters["epsilon"] == pytest.approx(0.7e-4)
    assert tfr.RationalQuadraticSpline().num_bins == 10


def _write():
    log_probs = {}
    for name, make in _FLOWS.items():
        bijector = ft.randomize(make())
        base = ft.standard_normal([3] if name == "vector" else [8, 8, 1])
        model = tfr.FlowModel(tfd.TransformedDistribution(base, bijector), name=name)
        model.save(_FOLDER / f"{name}.keras")
        log_probs[name] = _log_prob(name, model)
        assert np.isfinite(log_probs[name]).all()
    np.savez(_FOLDER / "log_prob.npz", **log_probs)
    print(log_probs, tf.__version__)


if __name__ == "__main__":
    _write()

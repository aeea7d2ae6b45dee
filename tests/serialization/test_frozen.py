"""Files of 0.2.0, which later versions must load, with the log densities that they had.

`python tests/serialization/test_frozen.py` writes those of `_FLOWS` again. Do that only for a new
file. `one_scale.keras`, `masks.keras` and the preset `table` have configurations that name only what
is not the default, options without effect, and variables by position.
"""

import dataclasses
import inspect
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
from tfp_realnvp.bijectors import architecture

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
    return tfr.FlowModel.from_preset(path) if path.exists() else keras.models.load_model(
        path.with_suffix(".keras")
    )


def _assert_as_it_was(name, model):
    expected = np.load(_FOLDER / "log_prob.npz")[name]
    np.testing.assert_allclose(model.predict(_data(name), verbose=0), expected, rtol=1e-5)


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
    other_defaults(monkeypatch)
    _assert_as_it_was(name, _load(name))


@pytest.mark.parametrize("name", _FILES)
def test_a_file_that_is_saved_again(name, monkeypatch, tmp_path):
    model = _load(name)
    with monkeypatch.context() as patch:
        # What is saved is what the model is, not what it would be now.
        other_defaults(patch)
        model.save_to_preset(tmp_path / "preset")
        model.save(tmp_path / "again.keras")
    other_defaults(monkeypatch)
    _assert_as_it_was(name, tfr.FlowModel.from_preset(tmp_path / "preset"))
    _assert_as_it_was(name, keras.models.load_model(tmp_path / "again.keras"))


def other_defaults(patch):
    """Replaces all defaults of options, and of arguments of bijectors, transformers and networks."""
    for owner in (architecture.ImageArchitecture, architecture.VectorArchitecture):
        table = [
            dataclasses.replace(option, default=_other(option.name, option.default))
            for option in owner.options
        ]
        patch.setattr(owner, "options", tuple(table))
    public = (getattr(tfr, name) for name in dir(tfr))
    kinds = (tfr.FlowBijector, tfr.Transformer, keras.layers.Layer, tfr.VariationalDequantization)
    masks = (tfr.ChannelMask, tfr.CheckerboardMask, tfr.SpatialMask)
    for owner in public:
        # The defaults of the base class are for bijectors that are written, not saved.
        is_part = isinstance(owner, type) and issubclass(owner, (*kinds, *masks))
        if is_part and owner is not tfr.FlowBijector:
            _replace_defaults(patch, owner)


def _replace_defaults(patch, owner):
    function = owner.__init__
    if not inspect.isfunction(function):
        return
    parameters = inspect.signature(function).parameters
    keyword = {k: _other(k, v) for k, v in (function.__kwdefaults__ or {}).items()}
    with_default = [k for k, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    values = function.__defaults__ or ()
    names = with_default[len(with_default) - len(values) :]
    patch.setattr(function, "__kwdefaults__", keyword)
    patch.setattr(function, "__defaults__", tuple(map(_other, names, values)))


def _other(name, value):
    """Returns another value than a default."""
    words = {"batch": "actnorm", "actnorm": "batch", "lu": None, "tanh": "swish", "relu": "tanh"}
    words |= {"running": "batch", "plain": "factor_out", "checkerboard": "vertical_stripes"}
    if name in ("validate_args", "trainable"):
        return value
    if isinstance(value, bool):
        return not value
    if name in ("parity", "event_ndims") and value is not None:
        return {"parity": 1, "event_ndims": 4}[name] - value
    if isinstance(value, int):
        return value + 2
    if isinstance(value, float):
        return 0.7 * value
    if isinstance(value, str):
        return words.get(value, f"other_{value}")
    return value


def test_other_defaults_make_another_model(monkeypatch):
    before = [tfr.RealNVPImage((4, 4, 1)).config, tfr.RealNVPVector(3).config]
    other_defaults(monkeypatch)
    after = [tfr.RealNVPImage((4, 4, 1)).config, tfr.RealNVPVector(3).config]
    different = [{k for k in old if old[k] != new[k]} for old, new in zip(before, after, strict=True)]
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
        log_probs[name] = model.predict(_data(name), verbose=0)
        assert np.isfinite(log_probs[name]).all()
    np.savez(_FOLDER / "log_prob.npz", **log_probs)
    print(log_probs, tf.__version__)


if __name__ == "__main__":
    _write()

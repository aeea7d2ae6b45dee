"""Variables outside of networks: files have them by name."""

import re

import flow_testing as ft
import h5py
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_realnvp as tfr
from tfp_realnvp.training import model_variables

tfb, tfd = tfp.bijectors, tfp.distributions

pytestmark = pytest.mark.eager


def _norm(name, seed=None):
    norm = tfr.ActNorm(num_channels=3, event_ndims=1, name=name)
    return norm if seed is None else ft.randomize(norm, seed)


def _model(*parts, base=None):
    base = base or tfd.Sample(tfd.Normal(tf.Variable(0.0), 1.0), [3])
    chain = tfr.FlowChain(parts)
    return tfr.FlowModel(tfd.TransformedDistribution(base, chain))


def _names(path):
    names = []
    with h5py.File(path) as file:
        file.visititems(
            lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None
        )
    return names


def test_names_in_a_file(tmp_path):
    scale = tfp.util.TransformedVariable(1.5, tfb.Exp())
    base = tfd.Sample(tfd.Normal(tf.Variable(0.0), scale), [8, 8, 1])
    flow = tfr.RealNVPImage((8, 8, 1), 2, 0, 2, num_couplings=1, invertible_conv=True)
    noise = tfr.VariationalDequantization((8, 8, 1), num_couplings=1, num_filters=2)
    model = tfr.FlowModel(tfd.TransformedDistribution(base, flow), dequantizer=noise)
    model.save_weights(tmp_path / "model.weights.h5")
    names = [name for name in _names(tmp_path / "model.weights.h5") if "tracked" in name]
    prefix = "layers/tracked_variables/vars/"
    assert len(names) == len(set(names)) == len(model.other_variables.variables) > 20
    assert {name.removeprefix(prefix) for name in names} >= {
        "distribution.distribution.distribution.loc",
        "distribution.distribution.distribution.scale.pretransformed_input",
        "distribution.bijector.bijectors.scale0_checkerboard0_norm.moving.mean",
        "distribution.bijector.bijectors.scale0_checkerboard0_conv1x1.factors.log_scale",
        "distribution.bijector.bijectors.scale0_channel0_coupling.scale",
    }
    assert not [name for name in names if re.search(r"/\d+$", name)]
    # Also of the noise, whose flow has parts of the same names.
    assert any(name.startswith(f"{prefix}dequantizer.bijector.bijectors.") for name in names)


def test_variables_are_loaded_by_name_in_another_order(tmp_path):
    first, second = _norm("first", 1), _norm("second", 2)
    _model(first, second).save_weights(tmp_path / "model.weights.h5")
    other = _norm("second"), _norm("first")
    _model(*other).load_weights(tmp_path / "model.weights.h5")
    for loaded, expected in zip(other, (second, first), strict=True):
        assert np.abs(expected.learned.shift).max() > 0
        np.testing.assert_array_equal(loaded.learned.shift, expected.learned.shift)
        np.testing.assert_array_equal(loaded.learned.log_scale, expected.learned.log_scale)


@pytest.mark.parametrize("save", ["weights", "preset"])
def test_a_file_without_a_variable(tmp_path, save):
    model, other = _model(_norm("first", 1)), _model(_norm("second"))
    before = [variable.numpy() for variable in other.variables]
    missing = r"distribution\.bijector\.bijectors\.second\.learned\.shift"
    if save == "weights":
        model.save_weights(tmp_path / "model.weights.h5")
        with pytest.raises(ValueError, match=rf"without .*{missing}.*, and with .*first\.learned"):
            other.load_weights(tmp_path / "model.weights.h5")
    else:
        model.save_to_preset(tmp_path)
        other.save_to_preset(tmp_path, weights=False)
        with pytest.raises(ValueError, match=r"no such array, .*first\.learned\.is_set"):
            tfr.FlowModel.from_preset(tmp_path)
    for variable, value in zip(other.variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)


class _Hidden(tfr.FlowBijector):
    """A user's bijector that has variables in a list."""

    def __init__(self, name="hidden"):
        self.shifts = [tf.Variable(tf.ones([3]), name="shift") for _ in range(2)]
        super().__init__(event_ndims=1, parameters=dict(locals()), name=name)

    def _forward_and_log_det(self, x, p):
        return x + tf.add_n(self.shifts), tf.zeros(tf.shape(x)[:-1])

    def _inverse_and_log_det(self, y, p):
        return y - tf.add_n(self.shifts), tf.zeros(tf.shape(y)[:-1])


def test_names_of_variables_elsewhere_are_unique(tmp_path):
    shared = _norm("twice", 1)
    model = _model(shared, _Hidden(), _norm("twice", 2), shared)
    names = [variable.name for variable in model.other_variables.variables]
    assert len(names) == len(set(names)) == len(model.distribution.variables)
    assert {"distribution.shift", "distribution.shift_1"} <= set(names)
    assert "distribution.bijector.bijectors.twice_1.learned.shift" in names
    assert names == [v.name for v in _model(shared, _Hidden(), _norm("twice"), shared).variables]
    model.save_weights(tmp_path / "model.weights.h5")
    fresh = _model(*[_norm("twice"), _Hidden(), _norm("twice"), _norm("twice")])
    with pytest.raises(ValueError, match=r"got one without .*twice_2"):
        fresh.load_weights(tmp_path / "model.weights.h5")


def test_names_do_not_depend_on_caches():
    flow = ft.image_flow((4, 4, 1), num_couplings=1, normalization="actnorm")
    before = model_variables.variable_names(flow, "flow")
    flow.inverse(ft.pixels([1, 4, 4, 1]))
    assert flow.state_variables and model_variables.variable_names(flow, "flow") == before


def test_networks_of_tfp_are_built():
    made = tfb.AutoregressiveNetwork(params=2, hidden_units=[4])
    flow = tfb.MaskedAutoregressiveFlow(made)(ft.standard_normal([3]))
    model = tfr.FlowModel(flow)
    variables = {variable.value.ref() for variable in model.trainable_variables}
    assert variables == {variable.ref() for variable in made.trainable_variables} != set()

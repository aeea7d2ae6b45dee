"""Variables outside of networks: files have them by name."""

import flow_testing as ft
import h5py
import keras
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_realnvp as tfr

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
        file.visit(lambda name: names.append(name) if hasattr(file[name], "dtype") else None)
    return names


def _base(**scales):
    return tfd.Sample(tfd.Normal(tf.Variable(0.0), scales.get("scale", 1.0)), [3])


def test_names_in_a_file(tmp_path):
    scale = tfp.util.TransformedVariable(1.5, tfb.Exp())
    model = _model(_norm("first"), base=_base(scale=scale))
    model.save_weights(tmp_path / "model.weights.h5")
    names = [name for name in _names(tmp_path / "model.weights.h5") if "tracked" in name]
    prefix = "layers/tracked_variables/vars/distribution.distribution.distribution"
    assert sorted(names) == [f"{prefix}.loc", f"{prefix}.scale.pretransformed_input"]


@pytest.mark.parametrize("save", ["weights", "preset"])
def test_a_file_without_a_variable(tmp_path, save):
    model, base = _model(_norm("norm", 1)), _base(scale=tf.Variable(2.0))
    other = _model(_norm("norm"), base=base)
    missing = r"distribution\.distribution\.distribution\.scale"
    if save == "weights":
        model.save_weights(tmp_path / "model.weights.h5")
        match = f"with 1 differences: no such array instead of .*{missing}"
        with ft.unchanged(other), pytest.raises(ValueError, match=match):
            other.load_weights(tmp_path / "model.weights.h5")
    else:
        model.save_to_preset(tmp_path)
        other.save_to_preset(tmp_path, weights=False)
        with pytest.raises(ValueError, match=rf"no such array .*{missing}"):
            tfr.FlowModel.from_preset(tmp_path)


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
    model = _model(_norm("norm", 1), _Hidden())
    names = [variable.name for variable in model.other_variables.variables]
    expected = ("distribution.distribution.loc", "shift", "shift_1")
    assert sorted(names) == [f"distribution.{name}" for name in expected]
    model.save_weights(tmp_path / "model.weights.h5")
    with pytest.raises(ValueError, match=r"got one with 2 differences: no such array .*shift_2"):
        _model(_norm("norm"), _Hidden(), _Hidden()).load_weights(tmp_path / "model.weights.h5")


def _function_of_layers():
    network, scale = keras.Sequential([keras.layers.Dense(2)]), keras.Variable(0.7)
    return lambda x, _: tf.split(scale * network(x), 2, axis=-1)


def _coupling(function):
    return _model(tfr.real_nvp_coupling(num_masked=2, shift_and_log_scale_fn=function))


def _means_of_classes():
    base = ft.class_base(tf.Variable(ft.normal([5, 4, 4, 1])))
    noise = tfr.VariationalDequantization((4, 4, 1), num_couplings=1, num_filters=2)
    flow = ft.conditional_flow("labels", "shallow")
    return tfr.FlowModel(tfd.TransformedDistribution(base, flow), dequantizer=noise)


_MODELS = {
    "a function of layers": lambda: _coupling(_function_of_layers()),
    "a function of TFP": lambda: _coupling(tfb.real_nvp_default_template([4])),
    "means of classes": _means_of_classes,
}


@pytest.mark.filterwarnings("ignore:.tf.layers.dense. is deprecated:UserWarning")
@pytest.mark.parametrize("kind", _MODELS)
def test_weights_of_the_same_construction(tmp_path, kind):
    model = _MODELS[kind]()
    ft.randomize(model.distribution, seed=1)
    other = ft.reloaded("load_weights", model, tmp_path, _MODELS[kind])
    assert model.other_variables.variables
    ft.assert_equal(other.variables, model.variables)

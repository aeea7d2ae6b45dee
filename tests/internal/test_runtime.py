import flow_testing as ft
import keras
import pytest
import tensorflow as tf
from tensorflow_probability import distributions as tfd

import tfp_realnvp as tfr
from tfp_realnvp.internal import private_api
from tfp_realnvp.internal.runtime import few_graph_rewrites


def _config():
    """Returns the configuration that a call of a function on this thread has."""
    serialized = private_api.eager_context().function_call_options.config_proto_serialized
    return tf.compat.v1.ConfigProto.FromString(serialized)


def _rewrites():
    """Returns the optimizers of its rewrites; none means all."""
    return list(_config().graph_options.rewrite_options.optimizers)


@pytest.fixture
def without_gpu(monkeypatch):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind=None: [])


@pytest.mark.usefixtures("without_gpu")
def test_the_context_ends_with_what_was_before():
    with few_graph_rewrites():
        assert _rewrites() == ["function", "dependency"]
        assert _config().graph_options.rewrite_options.meta_optimizer_iterations == 1
    assert _rewrites() == []
    with pytest.raises(ZeroDivisionError), few_graph_rewrites():
        raise ZeroDivisionError
    assert _rewrites() == []


def test_a_gpu_keeps_all_rewrites(monkeypatch):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind=None: [kind])
    with few_graph_rewrites():
        assert _rewrites() == []


@pytest.mark.usefixtures("without_gpu")
def test_what_the_user_chose_stays(monkeypatch):
    context, config = private_api.eager_context(), _config()
    config.graph_options.rewrite_options.optimizers.append("remap")
    options = private_api.FunctionCallOptions(config_proto=config)
    monkeypatch.setattr(context, "function_call_options", options)
    with few_graph_rewrites():
        assert _rewrites() == ["remap"]


def _network(output_channels, **kwargs):
    return keras.Sequential([keras.layers.Dense(output_channels)])


def _images(**options):
    return tfr.RealNVPImage.compact((8, 8, 1), num_couplings=1, num_filters=4, **options)


_FUSING = ["function", "remap", "dependency"]
_FEW, _ALL = [["function", "dependency"], _FUSING, _FUSING], [[]] * 3
_FLOWS = {
    "vector": (lambda: tfr.RealNVPVector(2, num_couplings=1, num_filters=4), _FEW),
    "image": (lambda: _images(num_scales=1), _FEW),
    "jet": (lambda: tfr.RealNVPImage.jet((8, 8, 1), num_couplings=2, width=4, num_heads=2), _FEW),
    "paper": (lambda: tfr.RealNVPImage((8, 8, 1), 1, num_blocks=1, num_filters=4), _FEW),
    # Their steps take longer with few rewrites, or it is not known.
    "attention": (lambda: _images(attention=2), _ALL),
    "mixture": (lambda: tfr.RealNVPVector(2, 1, transformer="logistic_mixture"), _ALL),
    "network": (lambda: tfr.RealNVPVector(2, 1, network_fn=_network), _ALL),
}


def _rewrites_of_traces(flow, **options):
    """Returns the rewrites of the traces of a step of `fit`, `evaluate` and `predict`."""
    seen = []

    def recording(name):
        def step(self, data):
            seen.append(_rewrites())
            return getattr(tfr.FlowModel, name)(self, data)

        return step

    names = ("train_step", "test_step", "predict_step")
    model_class = type("Model", (tfr.FlowModel,), {name: recording(name) for name in names})
    shape = [2] if flow.event_ndims == 1 else [8, 8, 1]
    model = model_class(tfd.TransformedDistribution(ft.standard_normal(shape), flow))
    model.compile(**options)
    data = ft.normal([8, 2]).numpy() if shape == [2] else ft.grey_levels(8, shape)
    for _ in range(2):  # the second time nothing is traced
        model.fit(data, batch_size=4, verbose=0)
        model.evaluate(data, batch_size=4, verbose=0)
        model.predict(data, batch_size=4, verbose=0)
    assert _rewrites() == []
    return seen


@pytest.mark.usefixtures("without_gpu")
@pytest.mark.parametrize("name", _FLOWS)
def test_rewrites_of_steps(name):
    make, expected = _FLOWS[name]
    assert _rewrites_of_traces(make()) == expected


@pytest.mark.usefixtures("without_gpu")
def test_several_steps_in_an_execution_keep_all_rewrites():
    traces = _rewrites_of_traces(_FLOWS["vector"][0](), steps_per_execution=2)
    assert traces and not any(traces)

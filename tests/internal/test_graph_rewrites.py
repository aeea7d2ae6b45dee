import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_realnvp as tfr
from tfp_realnvp.internal import private_api
from tfp_realnvp.internal.graph_rewrites import few_graph_rewrites

tfd = tfp.distributions


def _rewrites():
    """Returns the optimizers that a call of a function on this thread has; none means all."""
    serialized = private_api.eager_context().function_call_options.config_proto_serialized
    config = tf.compat.v1.ConfigProto.FromString(serialized)
    return list(config.graph_options.rewrite_options.optimizers)


@pytest.fixture
def without_gpu(monkeypatch):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind=None: [])


@pytest.mark.usefixtures("without_gpu")
def test_the_context_ends_with_what_was_before():
    with few_graph_rewrites():
        assert _rewrites() == ["function", "dependency"]
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
    context = private_api.eager_context()
    before = context.function_call_options
    config = tf.compat.v1.ConfigProto.FromString(before.config_proto_serialized)
    config.graph_options.rewrite_options.optimizers.append("remap")
    context.function_call_options = private_api.FunctionCallOptions(config_proto=config)
    try:
        with few_graph_rewrites():
            assert _rewrites() == ["remap"]
    finally:
        context.function_call_options = before


@pytest.mark.usefixtures("without_gpu")
def test_fit_traces_and_runs_its_step_with_few_rewrites():
    seen = []

    class Model(tfr.FlowModel):
        def train_step(self, data):
            seen.append(_rewrites())
            return super().train_step(data)

    base = tfd.Sample(tfd.Normal(0.0, 1.0), [2])
    flow = tfd.TransformedDistribution(base, tfr.RealNVPVector(2, num_couplings=1, num_filters=4))
    model = Model(flow)
    model.compile()
    model.fit(np.random.default_rng(0).normal(size=[8, 2]), batch_size=4, verbose=0)
    assert seen == [["function", "dependency"]]
    assert _rewrites() == []

import flow_testing as ft
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_probability import distributions as tfd

import tfp_realnvp as tfr

pytestmark = pytest.mark.graph

_EVENTS = np.random.default_rng(0).normal(size=[12, 2]).astype(np.float32)


class _Model(tfr.FlowModel):
    """Counts the traces of its steps, and the graphs in which a step is nested."""

    def train_step(self, data):
        self.seen.append(_num_graphs())
        return super().train_step(data)

    def test_step(self, data):
        self.seen.append(_num_graphs())
        return super().test_step(data)


def _num_graphs():
    graph, number = tf.compat.v1.get_default_graph(), 0
    while hasattr(graph, "outer_graph"):
        graph, number = graph.outer_graph, number + 1
    return number


def _model():
    flow = tfr.RealNVPVector(2, num_couplings=2, num_filters=4)
    model = _Model(tfd.TransformedDistribution(tfd.Sample(tfd.Normal(0.0, 1.0), [2]), flow))
    model.compile(tfr.FusedAdam(0.01))
    model.seen = []
    return model


def test_a_step_is_one_graph_for_batches_of_all_sizes():
    model = _model()
    for size in (4, 3, 2, 5):
        dataset = tf.data.Dataset.from_tensor_slices(_EVENTS).batch(size, drop_remainder=True)
        model.fit(dataset, verbose=0)
    model.evaluate(_EVENTS, batch_size=4, verbose=0)
    assert model.seen == [1, 1, 1]


def test_an_empty_optional_is_none():
    # So Keras puts the `None` of a generator into a `tf.data.Dataset`.
    weights = np.arange(12.0, dtype=np.float32)
    none = tf.experimental.Optional.empty(None)
    models = [_model(), _model()]
    models[1].set_weights(models[0].get_weights())
    batches = [(_EVENTS, none, weights), {"image": _EVENTS, "sample_weight": weights}]
    losses = [
        model.make_train_function()(iter(tf.data.Dataset.from_tensors(batch)))["loss"]
        for model, batch in zip(models, batches, strict=True)
    ]
    np.testing.assert_allclose(*losses, rtol=1e-6)


def test_train_on_batch_makes_the_steps_of_fit():
    models = [_model(), _model()]
    models[1].set_weights(models[0].get_weights())
    models[0].fit(ft.dataset(_EVENTS), verbose=0)
    for i in range(0, 12, 4):
        models[1].train_on_batch(_EVENTS[i : i + 4])
    ft.assert_close(models[1].get_weights(), models[0].get_weights(), rtol=1e-5, atol=1e-6)

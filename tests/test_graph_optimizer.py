import pytest
import tensorflow as tf
from tensorflow.core.protobuf import config_pb2
from tensorflow.python.eager import context

from tfp_realnvp.graph_optimizer import no_graph_optimizer


def _is_disabled():
    serialized = context.context().function_call_options.config_proto_serialized
    config = config_pb2.ConfigProto.FromString(serialized)
    return config.graph_options.rewrite_options.disable_meta_optimizer


def test_only_within():
    with no_graph_optimizer():
        assert _is_disabled()
    assert not _is_disabled()
    with pytest.raises(ZeroDivisionError), no_graph_optimizer():
        _ = 1 / 0
    assert not _is_disabled()


def test_other_settings_stay():
    tf.config.optimizer.set_experimental_options({"min_graph_nodes": 7})
    try:
        with no_graph_optimizer():
            serialized = context.context().function_call_options.config_proto_serialized
            config = config_pb2.ConfigProto.FromString(serialized)
            assert config.graph_options.rewrite_options.min_graph_nodes == 7
    finally:
        tf.config.optimizer.set_experimental_options({"min_graph_nodes": 0})

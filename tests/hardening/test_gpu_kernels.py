"""Every operation of the graphs of training, scoring and serving has a kernel for a GPU.

An operation without one runs on the processor, and its inputs and outputs are copied. TensorFlow's
registry of kernels is asked, so that the test needs no GPU.
"""

import functools

import flow_testing as ft
import pytest
import tensorflow as tf
from tensorflow.python.framework.kernels import get_registered_kernels_for_op
from tensorflow_probability import distributions as tfd

import tfp_realnvp as tfr
from tfp_realnvp.internal.progress import Progress
from tfp_realnvp.saving.saved_model import ServedFlow

pytestmark = pytest.mark.graph


_SHAPE = (4, 4, 2)


_COMPACT = {"num_filters": 4, "num_couplings": 1}
_VECTOR = {"conditional_event_shape": [2], "num_couplings": 1, "num_filters": 4}
_FLOWS = {
    "paper": lambda: ft.image_flow(_SHAPE, num_classes=3, condition_dropout=0.1),
    "compact": lambda: tfr.RealNVPImage.compact(_SHAPE, 2, **_COMPACT),
    "one_scale": lambda: tfr.RealNVPImage.compact(_SHAPE, 1, **_COMPACT),
    "jet": lambda: ft.jet(_SHAPE, [tfr.ChannelMask(), tfr.SpatialMask()]),
    "splines": lambda: ft.vector_flow(3, transformer="rational_quadratic_spline", **_VECTOR),
    "logistic_mixtures": lambda: ft.vector_flow(3, transformer="logistic_mixture", **_VECTOR),
}


@functools.cache
def _has_gpu_kernel(name, types):
    types = dict(types)
    if types.get("dtype") == tf.string.as_datatype_enum:
        return True  # the message of an assertion
    return any(
        kernel.device_type in ("GPU", "DEFAULT")
        and all(
            types.get(constraint.name) in (None, *constraint.allowed_values.list.type)
            for constraint in kernel.constraint
        )
        for kernel in get_registered_kernels_for_op(name).kernel
    )


def _operations_without(function):
    graph = function.graph.as_graph_def()
    functions = graph.library.function
    nodes = [node for nodes in (graph.node, *(f.node_def for f in functions)) for node in nodes]
    types = [{name: value.type for name, value in node.attr.items()} for node in nodes]
    operations = {
        (node.op, tuple(sorted((name, value) for name, value in of_node.items() if value)))
        for node, of_node in zip(nodes, types, strict=True)
    }
    names = {f.signature.name for f in functions}
    return {
        (name, *(tf.as_dtype(value).name for _, value in types))
        for name, types in operations
        if name not in names and not _has_gpu_kernel(name, types)
    }


def test_the_registry_knows_gpus():
    @tf.function(input_signature=[tf.TensorSpec([None], tf.uint64)])
    def sum_of(values):
        return tf.reduce_sum(values), tf.cast(values, tf.float32) + 1.0

    operations = _operations_without(sum_of.get_concrete_function())
    assert [name for name, *_ in operations] == ["Sum"]


@pytest.mark.parametrize(
    "kind", ["one_scale", *ft.full("paper", "compact", "jet", "splines", "logistic_mixtures")]
)
def test_each_operation_has_a_kernel(kind):
    flow, dequantizer = _FLOWS[kind](), None
    if kind == "paper":
        dequantizer = tfr.VariationalDequantization(_SHAPE, num_couplings=1, num_filters=4)
    is_image = flow.event_ndims == 3
    shape = _SHAPE if is_image else (3,)
    distribution = tfd.TransformedDistribution(ft.standard_normal(shape), flow)
    model = ft.compiled(distribution, dequantizer=dequantizer)
    model.build_optimizer()
    events = tf.TensorSpec([None, *shape], tf.uint8 if is_image else tf.float32)
    conditions = (
        []
        if model.data_spec.condition_spec is None
        else [model.data_spec.condition_spec.tensor_spec()]
    )
    functions = {}
    for name in ("train_step", "test_step", "predict_step"):
        step = tf.function(getattr(model, name), autograph=False)
        functions[name] = step.get_concrete_function((events, *conditions))
    served = ServedFlow(model, None, Progress("test", False)).functions()
    functions |= {name: function.get_concrete_function() for name, function in served.items()}
    missing = {name: _operations_without(function) for name, function in functions.items()}
    assert {name: operations for name, operations in missing.items() if operations} == {}

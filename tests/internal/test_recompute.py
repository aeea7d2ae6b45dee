"""Tests of what recomputed gradients are made of."""

import itertools

import pytest
import tensorflow as tf

import tfp_realnvp as tfr
from tests import flow_testing as ft
from tfp_realnvp.bijectors.traced_coupling import _function_of
from tfp_realnvp.internal.recompute import in_order


def test_in_order():
    kernel = ft.normal([3, 3, 2, 2])

    @tf.function
    def both(x):
        before = tf.nn.conv2d(-x, kernel, 1, "SAME")
        with in_order():
            first = tf.nn.conv2d(x, kernel, 1, "SAME")
            second = tf.nn.conv2d(tf.nn.relu(x), kernel, 1, "SAME")
        return before + second, first

    graph = both.get_concrete_function(tf.TensorSpec([1, 4, 4, 2])).graph
    _, first, second = [op for op in graph.get_operations() if op.type == "Conv2D"]
    assert not first.control_inputs
    assert second.control_inputs == [first]


def test_in_order_of_an_error():
    @tf.function
    def fails(x):
        with in_order():
            tf.nn.relu(x)
            raise KeyError("of the body")

    with pytest.raises(KeyError, match="of the body"):
        fails(tf.ones([1]))


def test_a_gradient_that_is_traced_keeps_the_order():
    coupling = ft.coupling(tfr.CheckerboardMask(), 3)
    options = {"inverse": True, "training": True}
    function = _function_of(coupling, ft.normal([2, 4, 4, 3]), True, options)
    operations = function.gradient.graph.get_operations()
    convolutions = [op for op in operations if op.type.startswith("Conv")]
    assert len({op.type for op in convolutions}) == 3  # forward, by images, by kernels
    for before, after in itertools.pairwise(convolutions):
        assert before in _ancestors(after)


def _ancestors(operation):
    found, rest = set(), [operation]
    while rest:
        op = rest.pop()
        for other in (*op.control_inputs, *(x.op for x in op.inputs)):
            if other not in found:
                found.add(other)
                rest.append(other)
    return found

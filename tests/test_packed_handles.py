import gc
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.eager import context

from tfp_realnvp.bare_function import BareFunction
from tfp_realnvp.packed_handles import pack_handles


@pytest.mark.parametrize("number", [1, 63, 64, 65, 200])
def test_a_function_reads_and_writes_what_it_did(number):
    rng = np.random.default_rng(number)
    values = [rng.normal(size=[1 + i % 3]).astype("float32") for i in range(number)]
    variables = [tf.Variable(value) for value in values]
    steps = tf.Variable(5, dtype=tf.int64)
    factor = tf.constant(2.0)

    def function(x):
        for i, variable in enumerate(variables):
            variable.assign(variable + factor * x + i)
        steps.assign_add(1)
        return variables[0] * 1.0, tf.add_n([tf.reduce_sum(v) for v in variables]), steps

    bare = BareFunction(function, tf.constant(0.0), optimized=False)
    for _ in range(2):
        first, total, count = bare(tf.constant(10.0))
        values = [value + 20 + i for i, value in enumerate(values)]
        np.testing.assert_allclose(first, values[0], rtol=1e-6)
        np.testing.assert_allclose(total, sum(map(np.sum, values)), rtol=1e-5)
        for variable, value in zip(variables, values, strict=True):
            np.testing.assert_allclose(variable, value, rtol=1e-6)
    assert int(count) == 7


def test_one_argument_for_64_handles():
    variables = [tf.Variable(float(i)) for i in range(100)]
    constant = tf.constant(1.0)

    def function(x):
        return x + constant + tf.add_n([tf.convert_to_tensor(v) for v in variables])

    traced = tf.function(function).get_concrete_function(tf.TensorSpec([]))
    definition = traced.function_def
    captured = traced.captured_inputs
    assert [tensor.dtype for tensor in captured].count(tf.resource) == 100
    captured = pack_handles(definition, captured)
    dtypes = [tf.as_dtype(argument.type) for argument in definition.signature.input_arg]
    assert dtypes == [tf.float32, tf.float32, tf.resource, tf.resource]
    definition.signature.name += "_packed"
    name = definition.signature.name.encode()
    context.context().add_function_def(definition)
    [total] = context.context().call_function(name, [tf.constant(2.0), *captured], 1)
    assert float(total) == 3 + sum(range(100))
    context.context().remove_function(name)


def test_a_handle_may_be_a_result():
    variable = tf.Variable(3.0)
    bare = BareFunction(lambda: variable.handle, optimized=False)
    assert float(tf.raw_ops.ReadVariableOp(resource=bare(), dtype=tf.float32)) == 3


def test_packing_leaves_no_function():
    x, y = tf.Variable(1.0), tf.Variable([2.0])
    traced = tf.function(lambda: x + y).get_concrete_function()
    gc.collect()
    before = set(context.context().list_function_names())
    assert len(pack_handles(traced.function_def, traced.captured_inputs)) == 1
    gc.collect()
    assert set(context.context().list_function_names()) == before


def test_nothing_to_pack():
    given, constant = tf.Variable(1.0), tf.constant(2.0)
    traced = tf.function(lambda handle: constant).get_concrete_function(given.handle)
    definition = traced.function_def
    assert pack_handles(definition, traced.captured_inputs) == [constant]
    assert len(definition.signature.input_arg) == 2
    traced = tf.function(lambda handle: tf.constant(2.0)).get_concrete_function(given.handle)
    definition = traced.function_def
    assert pack_handles(definition, traced.captured_inputs) == []
    assert len(definition.signature.input_arg) == 1


_OTHER_DEVICE = """
import tensorflow as tf
[cpu] = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from tfp_realnvp.bare_function import BareFunction

first, second = tf.Variable(1.0), tf.Variable(2.0)
with tf.device("CPU:1"):
    there = tf.Variable(4.0)
variables = [first, there, second]
assert there.handle.device.endswith("CPU:1")

def function(x):
    for variable in variables:
        variable.assign_add(x)
    return tf.add_n([tf.convert_to_tensor(variable) for variable in variables])

print("sum", float(BareFunction(function, tf.constant(1.0), optimized=False)(tf.constant(1.0))))
"""


def test_variables_of_other_devices_stay_there():
    command = [sys.executable, "-c", _OTHER_DEVICE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert "sum 10.0" in done.stdout, done.stderr

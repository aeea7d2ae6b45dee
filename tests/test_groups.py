import numpy as np
import pytest
import tensorflow as tf

from tfp_realnvp import groups

# More than two groups, and a part of a third; of several shapes and two dtypes.
_NUMBER = 70


def _values(seed):
    rng = np.random.default_rng(seed)
    dtypes = ["float64" if i % 5 == 0 else "float32" for i in range(_NUMBER)]
    return [rng.normal(size=[2] * (i % 3)).astype(dtype) for i, dtype in enumerate(dtypes)]


def _add_multiple(handle, x, factor):
    value = tf.raw_ops.ReadVariableOp(resource=handle, dtype=x.dtype)
    sum_ = value + x * tf.cast(factor, x.dtype)
    tf.raw_ops.AssignVariableOp(resource=handle, value=sum_)
    return sum_


@pytest.mark.parametrize("mode", ["eager", "function", "jit"])
def test_each_row_by_itself(mode):
    before, x = _values(0), _values(1)
    variables = [tf.Variable(value) for value in before]

    def step(factor):
        rows = [(v.handle, each) for v, each in zip(variables, x, strict=True)]
        return groups.map_in_groups(_add_multiple, rows, [factor])

    if mode != "eager":
        step = tf.function(step, jit_compile=mode == "jit")
    results = step(tf.constant(0.5))
    assert len(results) == _NUMBER
    for result, variable, old, each in zip(results, variables, before, x, strict=True):
        np.testing.assert_allclose(result, old + 0.5 * each, rtol=1e-6)
        np.testing.assert_array_equal(variable, result)


@pytest.mark.parametrize("mode", ["eager", "run_eagerly", "function", "jit"])
def test_sum_in_groups(mode):
    values = _values(0)

    def sum_of_squares(factor):
        rows = [[tf.constant(value)] for value in values]
        return groups.sum_in_groups(_weighted_square, rows, [factor], dtype=tf.float64)

    if mode in ("function", "jit"):
        sum_of_squares = tf.function(sum_of_squares, jit_compile=mode == "jit")
    tf.config.run_functions_eagerly(mode == "run_eagerly")
    try:
        result = sum_of_squares(tf.constant(0.5, tf.float64))
    finally:
        tf.config.run_functions_eagerly(False)
    np.testing.assert_allclose(result, 0.5 * sum(np.sum(x**2) for x in values), rtol=1e-6)


def _weighted_square(x, factor, dtype):
    return factor * tf.cast(tf.reduce_sum(x**2), dtype)


@pytest.mark.parametrize("traced", [False, True])
def test_assign_and_read(traced):
    variables = [tf.Variable(value) for value in _values(0)]

    def swap(values):
        before = groups.read(variables)
        groups.assign(variables, values)
        return before, groups.read(variables)

    new = _values(1)
    before, after = (tf.function(swap) if traced else swap)(new)
    for actual, expected in zip((*before, *after), (*_values(0), *new), strict=True):
        assert actual.dtype == expected.dtype
        np.testing.assert_array_equal(actual, expected)


def test_a_group_is_one_operation():
    variables = [tf.Variable(value) for value in _values(0)]

    @tf.function
    def read():
        values = groups.read(variables)
        assert [value.shape for value in values] == [v.shape for v in variables]
        return values

    operations = read.get_concrete_function().graph.get_operations()
    calls = [each.type for each in operations if "PartitionedCall" in each.type]
    # Two of 56 float32, one of 14 float64.
    assert len(calls) == 3


def test_nothing():
    assert groups.read([]) == [] and groups.map_in_groups(_add_multiple, []) == []


def _both_signs(x, factor):
    return x * factor, -x * factor


@pytest.mark.parametrize("traced", [False, True])
def test_several_results(traced):
    def both(x):
        return groups.map_in_groups(_both_signs, [[x], [2 * x]], [tf.constant(3.0)])

    x = tf.constant([1.0, 2.0])
    results = (tf.function(both) if traced else both)(x)
    for (plus, minus), factor in zip(results, (3, 6), strict=True):
        np.testing.assert_array_equal(plus, factor * x)
        np.testing.assert_array_equal(minus, -factor * x)


def test_constants_are_not_seen_as_such():
    @tf.function
    def shift(x):
        [result] = groups.map_in_groups(_add, [[x]], [tf.constant(3.0)])
        return result

    x = tf.constant([1.0])
    np.testing.assert_array_equal(shift(x), [4.0])
    [call] = [
        each
        for each in shift.get_concrete_function(x).graph.get_operations()
        if "PartitionedCall" in each.type
    ]
    assert "Const" not in [tensor.op.type for tensor in call.inputs]


def _add(x, y):
    return x + y

import contextlib
import gc
import weakref

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.eager import context

from tfp_realnvp import bare_function
from tfp_realnvp.bare_function import BareFunction


def test_structures_in_and_out():
    weight = tf.Variable(2.0)
    scale = tf.constant(10.0)

    def function(pair, x):
        weight.assign_add(1.0)
        return {"sums": (pair[0] + pair[1], x), "product": scale * weight}

    first = tf.constant([1.0, 2.0])
    bare = BareFunction(function, (first, first), tf.constant(3))
    assert float(weight) == 2
    for expected in (30.0, 40.0):
        result = bare((first, 2 * first), tf.constant(4))
        np.testing.assert_array_equal(result["sums"][0], [3.0, 6.0])
        assert int(result["sums"][1]) == 4
        assert float(result["product"]) == expected


def test_no_result():
    weight = tf.Variable(2.0)

    def function():
        weight.assign_add(1.0)

    assert BareFunction(function)() is None
    assert float(weight) == 3


def test_an_iterator_goes_on():
    iterator = iter(tf.data.Dataset.range(3))
    following = BareFunction(lambda it: it.get_next() + 10, iterator)
    assert [int(following(iterator)) for _ in range(3)] == [10, 11, 12]
    with pytest.raises(tf.errors.OutOfRangeError):
        following(iterator)


@pytest.mark.parametrize("optimized", [False, True])
def test_keeps_no_graph_and_what_runs_no_longer_than_itself(optimized):
    graphs = []
    inner = [tf.function(lambda x: tf.sin(x))]

    def function(x):
        graphs.append(weakref.ref(tf.compat.v1.get_default_graph()))
        return inner[0](x) + 1

    gc.collect()
    before = set(context.context().list_function_names())
    bare = BareFunction(function, tf.constant(0.0), optimized=optimized)
    assert len(graphs) == 1
    assert graphs[0]() is None
    assert float(bare(tf.constant(0.0))) == 1
    assert len(graphs) == 1
    inner.clear()
    assert set(context.context().list_function_names()) - before
    del bare
    gc.collect()
    assert not set(context.context().list_function_names()) - before


def test_an_error_says_where_the_operation_was_made():
    def a_telling_name(x):
        return tf.debugging.check_numerics(x, "not a number here")

    bare = BareFunction(a_telling_name, tf.constant(0.0))
    with pytest.raises(tf.errors.InvalidArgumentError, match="not a number here") as raised:
        bare(tf.constant(np.nan))
    # The line, which the function's name alone does not tell.
    assert __file__ in str(raised.value)
    assert "in a_telling_name" in str(raised.value)


def test_one_that_is_not_optimized_keeps_places_only_of_the_functions_that_it_calls():
    @tf.function(autograph=False)
    def a_telling_name(x):
        return tf.debugging.check_numerics(x, "not a number here")

    def function(x):
        return tf.debugging.check_numerics(x, "nor is it one to begin with")

    def caller(x):
        return a_telling_name(x)

    called = BareFunction(caller, tf.constant(0.0), optimized=False)
    with pytest.raises(tf.errors.InvalidArgumentError, match="not a number here") as raised:
        called(tf.constant(np.nan))
    assert "in a_telling_name" in str(raised.value)
    itself = BareFunction(function, tf.constant(0.0), optimized=False)
    with pytest.raises(tf.errors.InvalidArgumentError, match="nor is it one") as raised:
        itself(tf.constant(np.nan))
    assert __file__ not in str(raised.value)


@pytest.mark.parametrize("optimized", [False, True])
def test_runs_as_traced_if_it_is_not_to_be_optimized(optimized, monkeypatch):
    entered = []

    @contextlib.contextmanager
    def noted():
        entered.append(True)
        yield

    monkeypatch.setattr(bare_function, "no_graph_optimizer", noted)
    bare = BareFunction(lambda x: x + x, tf.constant(0.0), optimized=optimized)
    assert float(bare(tf.constant(2.0))) == 4
    assert bool(entered) is not optimized

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfp_realnvp as tfr

# More than a group of variables, of several shapes.
_NUMBER = 40

# Keras and TensorFlow's kernel round 1 - β₂ᵗ at different places, in float32 by 5e-5 of its value.
_CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def _values(seed, dtype="float32"):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=[2] * (i % 3)).astype(dtype) for i in range(_NUMBER)]


def _trained(optimizer, gradients, mode="function", make=keras.Variable):
    dtype = gradients[0][0].dtype.name
    variables = [make(value, dtype=dtype) for value in _values(0, dtype)]
    optimizer.build(variables)

    def step(gradients):
        optimizer.apply(gradients, variables)

    if mode != "eager":
        step = tf.function(step, jit_compile=mode == "jit")
    for each in gradients:
        step([tf.convert_to_tensor(gradient) for gradient in each])
    return [v.numpy() for v in variables], [v.numpy() for v in optimizer.variables]


def _assert_trained_alike(actual, expected):
    for one, other, before in zip(actual, expected, _values(0), strict=True):
        np.testing.assert_allclose(one, other, **_CLOSE)
        assert np.abs(one - before).min() > 1e-3


@pytest.mark.parametrize("make", [keras.Variable, tf.Variable])
@pytest.mark.parametrize("clip", [None, 0.5, 1e6])
@pytest.mark.parametrize("mode", ["eager", "function", "jit"])
def test_applies_what_keras_does(mode, clip, make):
    gradients = [_values(seed) for seed in (1, 2, 3)]
    schedule = keras.optimizers.schedules.ExponentialDecay(1e-1, 2, 0.5)
    (actual, state), (expected, expected_state) = (
        _trained(optimizer(schedule, global_clipnorm=clip), gradients, mode, make)
        for optimizer in (tfr.FusedAdam, keras.optimizers.Adam)
    )
    _assert_trained_alike(actual, expected)
    # Iterations, the learning rate and the moments, in Keras's order.
    for one, other in zip(state, expected_state, strict=True):
        np.testing.assert_allclose(one, other, **_CLOSE)


def test_double_variables_take_steps_of_double_precision():
    gradients = [_values(seed, "float64") for seed in (1, 2)]
    norms = [np.sqrt(sum(np.sum(g**2) for g in each)) for each in gradients]
    assert min(norms) > 2
    optimizer = tfr.FusedAdam(0.125, 0.9, 0.99, epsilon=1e-3, global_clipnorm=2.0)
    actual, _ = _trained(optimizer, gradients)
    for i, value in enumerate(_values(0, "float64")):
        m = v = 0.0
        for t, (each, norm) in enumerate(zip(gradients, norms, strict=True), start=1):
            g = each[i] * 2 / norm
            m = 0.9 * m + 0.1 * g
            v = 0.99 * v + 0.01 * g**2
            rate = 0.125 * np.sqrt(1 - 0.99**t) / (1 - 0.9**t)
            value = value - rate * m / (np.sqrt(v) + 1e-3)
        np.testing.assert_allclose(actual[i], value, rtol=1e-9)


def test_variables_of_both_precisions_are_clipped_by_one_norm():
    variables = [tf.Variable([3.0], dtype=tf.float32), tf.Variable([4.0], dtype=tf.float64)]
    optimizer = tfr.FusedAdam(1.0, 0.0, 0.0, epsilon=1.0, global_clipnorm=1.0)
    optimizer.apply([tf.identity(v) for v in variables], variables)
    # The gradients become 0.6 and 0.8, and the steps g / (g + 1).
    np.testing.assert_allclose(variables[0], [3 - 0.6 / 1.6], rtol=1e-6)
    np.testing.assert_allclose(variables[1], [4 - 0.8 / 1.8], rtol=1e-6)


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_gradient_that_is_not_finite_is_not_hidden(value, clip):
    gradients = _values(1)
    gradients[4] = np.full_like(gradients[4], value)
    actual, expected = (
        _trained(optimizer(1e-1, global_clipnorm=clip), [gradients])[0]
        for optimizer in (tfr.FusedAdam, keras.optimizers.Adam)
    )
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(np.isfinite(one), np.isfinite(other))
    assert not np.isfinite(actual[4]).any()


@pytest.mark.parametrize(
    "options",
    [
        {"clipnorm": 0.1},
        {"clipvalue": 0.1},
        {"weight_decay": 0.1},
        {"use_ema": True, "ema_overwrite_frequency": 2},
        {"gradient_accumulation_steps": 2},
        {"loss_scale_factor": 4.0},
    ],
)
def test_other_options_of_keras(options):
    gradients = [_values(seed) for seed in (1, 2)]
    actual, expected = (
        _trained(optimizer(1e-1, **options), gradients)[0]
        for optimizer in (tfr.FusedAdam, keras.optimizers.Adam)
    )
    _assert_trained_alike(actual, expected)


def test_rows_of_a_table():
    # The gradient of a look-up names rows.
    table = tf.Variable(np.arange(8.0, dtype="float32").reshape(4, 2))
    optimizer = tfr.FusedAdam(0.5)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.gather(table, [1, 1, 3]))
    gradient = tape.gradient(loss, table)
    assert isinstance(gradient, tf.IndexedSlices)
    optimizer.apply([gradient], [table])
    np.testing.assert_allclose(table, [[0, 1], [1.5, 2.5], [4, 5], [5.5, 6.5]], rtol=1e-5)


def test_moments_have_the_names_that_keras_gives():
    variables = [keras.Variable([1.0], name=name) for name in ("one", "two")]
    names = []
    for make in (tfr.FusedAdam, keras.optimizers.Adam):
        optimizer = make(name="adam")
        optimizer.build(variables)
        names.append([variable.path for variable in optimizer.variables])
    assert names[0] == names[1]
    assert len(set(names[0])) == 6


def test_the_graph_of_a_step_does_not_have_operations_for_each_variable():
    def num_operations(number):
        variables = [keras.Variable(np.ones([2], "float32")) for _ in range(number)]
        optimizer = tfr.FusedAdam(global_clipnorm=1.0)
        optimizer.build(variables)

        @tf.function
        def step(gradients):
            optimizer.apply(gradients, variables)

        gradients = [tf.ones([2])] * number
        graph = step.get_concrete_function(gradients).graph
        return sum(op.type != "Placeholder" for op in graph.get_operations())

    # 32 in a group, which is called twice.
    assert num_operations(128) - num_operations(64) < 16

import flow_testing as ft
import keras
import numpy as np
import pytest
import tensorflow as tf

import tfp_realnvp as tfr
from tfp_realnvp.training import fused_adam

pytestmark = [pytest.mark.quick, pytest.mark.core]

# Keras and `FusedAdam` round 1 - β₂ᵗ at different places, in float32 by 5e-5 of its value.
# Keras does so in float32 for float64 variables too: `test_steps_of_double_precision`.
_TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}

each_mode = pytest.mark.parametrize("mode", ft.MODES)


@pytest.fixture
def alone(monkeypatch):
    """Updates variables of two elements or more alone, as large ones."""
    monkeypatch.setattr(fused_adam, "_LARGE", 2)


def _values(seed, dtype="float32"):
    """Returns a scalar, a vector and a matrix."""
    rng = np.random.default_rng(seed)
    return [rng.normal(size=[2] * rank).astype(dtype) for rank in range(3)]


def _trained(optimizer, gradients, mode="function", make=keras.Variable):
    """Returns the variables and the optimizer's after a step with each of the gradients."""
    dtype = gradients[0][0].dtype.name
    variables = [make(value, dtype=dtype) for value in _values(0, dtype)]
    values = ft.optimized(optimizer, variables, gradients, mode)
    return values, ft.values(optimizer.variables)


def _with_both(options, *arguments, rate=1e-1):
    """Returns what `_trained` does with `FusedAdam`, and with Adam."""
    kinds = (tfr.FusedAdam, keras.optimizers.Adam)
    return (_trained(kind(rate, **options), *arguments) for kind in kinds)


def _assert_same(actual, expected):
    ft.assert_close(actual, expected, **_TOLERANCE)


def _assert_trained_alike(actual, expected):
    _assert_same(actual, expected)
    for one, before in zip(actual, _values(0), strict=True):
        assert np.abs(one - before).min() > 1e-3


def _assert_same_moments(state, state_of_adam):
    """Asserts that the last two variables have the moments of Adam, and the others are the same."""
    *others, m, v = state
    _assert_same(others, state_of_adam[:-6])
    # Adam has two moments of each variable, in turn.
    for actual, expected in ((m, state_of_adam[-6::2]), (v, state_of_adam[-5::2])):
        _assert_same([actual], [np.concatenate([value.ravel() for value in expected])])


_NAMES = ("clipnorm", "clipvalue", "global_clipnorm", "weight_decay")
_OPTIONS = [
    *({name: 0.1} for name in _NAMES),
    *({"global_clipnorm": clip} for clip in (None, 0.0, -1.0, 1e6)),
    {"use_ema": True, "ema_overwrite_frequency": 2},
    *({"gradient_accumulation_steps": 2}, {"loss_scale_factor": 4.0}),
]


@pytest.mark.parametrize(
    ("mode", "dtype", "options"),
    [
        *(("function", dtype, each) for dtype in ("float32", "float64") for each in _OPTIONS),
        *((mode, "float32", {"global_clipnorm": 0.5}) for mode in ("eager", "xla")),
    ],
)
def test_equals_adam(mode, dtype, options):
    gradients = [_values(seed, dtype) for seed in (1, 2, 3)]
    schedule = keras.optimizers.schedules.ExponentialDecay(1e-1, 2, 0.5)
    (actual, state), (expected, expected_state) = _with_both(
        options, gradients, mode, rate=schedule
    )
    _assert_trained_alike(actual, expected)
    _assert_same_moments(state, expected_state)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    ("mode", "dtype", "options"),
    [
        ("function", "float32", {}),
        ("function", "float64", {"global_clipnorm": 0.5}),
        *((mode, "float32", {"global_clipnorm": 0.5, "weight_decay": 0.1}) for mode in ft.MODES),
    ],
)
def test_large_variables_equal_adam(mode, dtype, options):
    gradients = [_values(seed, dtype) for seed in (1, 2, 3)]
    (actual, state), (expected, expected_state) = _with_both(options, gradients, mode)
    _assert_trained_alike(actual, expected)
    # The moments of the number are packed, as vectors.
    _assert_same([np.squeeze(value) for value in state], expected_state)


@pytest.mark.parametrize("mode", ["eager", "function"])
def test_variables_of_tensorflow(mode):
    gradients = [_values(seed) for seed in (1, 2)]
    (actual, _), (expected, _) = _with_both({}, gradients, mode, tf.Variable)
    _assert_trained_alike(actual, expected)


@each_mode
def test_steps_of_double_precision(mode):
    gradients = [_values(seed, "float64") for seed in (1, 2)]
    norms = [np.sqrt(sum(np.sum(g**2) for g in each)) for each in gradients]
    assert min(norms) > 1
    optimizer = tfr.FusedAdam(0.125, 0.9, 0.99, epsilon=1e-3, global_clipnorm=1.0)
    actual, _ = _trained(optimizer, gradients, mode)
    for i, value in enumerate(_values(0, "float64")):
        m = v = 0.0
        for t, (each, norm) in enumerate(zip(gradients, norms, strict=True), start=1):
            g = each[i] / norm
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
    gradients[1] = np.full_like(gradients[1], value)
    (actual, _), (expected, _) = _with_both({"global_clipnorm": clip}, [gradients])
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(np.isfinite(one), np.isfinite(other))
    assert not np.isfinite(actual[1]).any()


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


@pytest.mark.parametrize("large", [2**16, 2], ids=["packed", "alone"])
def test_a_variable_without_a_gradient_keeps_its_value(large, monkeypatch):
    monkeypatch.setattr(fused_adam, "_LARGE", large)
    variables = [keras.Variable(value) for value in _values(0)]
    optimizer = tfr.FusedAdam(1e-1, weight_decay=0.1)
    optimizer.build(variables)
    states = []
    # The second step has no gradient of the vector.
    for indices in ([0, 1, 2], [0, 2], [0, 1, 2]):
        gradients = [tf.constant(_values(1)[i]) for i in indices]
        optimizer.apply(gradients, [variables[i] for i in indices])
        states.append(ft.values(variables))
    np.testing.assert_array_equal(states[1][1], states[0][1])
    assert all(np.abs(states[1][i] - states[0][i]).min() > 1e-3 for i in (0, 2))
    value, m, v = _values(0)[1], 0.0, 0.0
    for t, g in ((1, _values(1)[1]), (2, 0.0), (3, _values(1)[1])):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        rate = 1e-1 * np.sqrt(1 - 0.999**t) / (1 - 0.9**t)
        if t != 2:
            value = 0.99 * value - rate * m / (np.sqrt(v) + 1e-7)
    np.testing.assert_allclose(states[2][1], value, rtol=1e-4)


def test_amsgrad():
    with pytest.raises(ValueError, match="expected amsgrad=False, got True"):
        tfr.FusedAdam(amsgrad=True)


@pytest.mark.parametrize("at", [0, 1])
def test_construction_starts_again_after_an_interrupt(monkeypatch, at):
    optimizer, gradients = tfr.FusedAdam(0.1), [_values(1), _values(2)]
    variables = [keras.Variable(value) for value in _values(0)]
    number = len(optimizer.variables)
    original = keras.optimizers.Adam.add_variable

    def interrupt(self, *args, **kwargs):
        if len(self.variables) == number + at:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(keras.optimizers.Adam, "add_variable", interrupt)
        with pytest.raises(KeyboardInterrupt):
            optimizer.build(variables)
    assert not optimizer.built
    assert len(optimizer.variables) == number
    actual, expected = (_trained(o, gradients) for o in (optimizer, tfr.FusedAdam(0.1)))
    for one, other in zip(actual, expected, strict=True):
        _assert_same(one, other)

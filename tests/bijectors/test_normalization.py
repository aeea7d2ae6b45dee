import warnings

import flow_testing as ft
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_probability import distributions as tfd

import tfp_realnvp as tfr

pytestmark = pytest.mark.quick


_SHAPE = (4, 2, 3)

# ActNorm.


def test_the_first_training_batch_sets_act_norm():
    bijector = tfr.ActNorm(dtype=tf.float64, epsilon=1e-12)
    y = 3 * ft.normal([5, *_SHAPE], tf.float64) + [1.0, 2.0, -4.0]
    # Evaluation does not.
    np.testing.assert_array_equal(bijector.inverse(y), y)
    x, ildj = bijector.inverse_and_log_det(y, training=True)
    np.testing.assert_allclose(x.numpy().mean((0, 1, 2)), 0, atol=1e-12)
    np.testing.assert_allclose(x.numpy().var((0, 1, 2)), 1, rtol=1e-9)
    expected = -0.5 * 8 * np.log(y.numpy().var((0, 1, 2))).sum()
    np.testing.assert_allclose(ildj, np.full(5, expected), rtol=1e-9)
    # And no later one.
    other = ft.normal([5, *_SHAPE], tf.float64, seed=3)
    with ft.unchanged(bijector):
        training = bijector.inverse(other, training=True)
    np.testing.assert_allclose(training, bijector.inverse(tf.identity(other)), rtol=1e-12)


@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_channels_that_the_first_batch_does_not_vary_keep_their_scale(direction):
    bijector = tfr.ActNorm(event_ndims=1)
    # The mean of 0.1 in float32 is not exactly 0.1.
    y = tf.concat([tf.fill([101, 1], 0.1), tf.zeros([101, 1]), ft.normal([101, 1])], axis=1)
    getattr(bijector, direction)(y, training=True)
    mapped = getattr(bijector, direction)(y + tf.constant([1.0, 2.0, 0.0])).numpy()
    np.testing.assert_allclose(mapped[:, :2], np.tile([[1.0, 2.0]], [101, 1]), rtol=1e-5)
    np.testing.assert_allclose(mapped[:, 2].std(), 1, rtol=1e-4)


def test_a_batch_that_is_not_finite_does_not_set_it():
    bijector = tfr.ActNorm()
    y = 3 * ft.normal([5, *_SHAPE]) + 1
    bijector.inverse(tf.where(y > 4, np.nan, y), training=True)
    assert not bijector.learned.is_known_to_be_set
    x = bijector.inverse(y, training=True)
    np.testing.assert_allclose(x.numpy().mean((0, 1, 2)), 0, atol=1e-6)


@pytest.mark.parametrize("mode", ["eager", "function"])
def test_a_tape_that_records_it_unset(mode):
    flow = tfr.RealNVPVector(2, num_couplings=2, num_filters=4)
    flow = tfd.TransformedDistribution(ft.standard_normal([2]), flow)
    rows = 300 + ft.normal([64, 2])

    def loss(rows, **options):
        with tf.GradientTape() as tape:
            loss = -tf.reduce_mean(flow.log_prob(rows, bijector_kwargs=options))
        return loss, tape.gradient(loss, flow.trainable_variables)

    loss = tf.function(loss) if mode == "function" else loss
    with pytest.warns(UserWarning, match=r"with tfr.call_options\(training=True\)"):
        loss(rows)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        flow.log_prob(rows)
        value, _ = loss(rows, training=True)
        loss(rows)
    assert float(value) < 20


def test_a_chain_whose_variables_the_first_call_creates():
    chain = tfr.FlowChain([tfr.ActNorm()])
    flow = tfd.TransformedDistribution(ft.standard_normal(_SHAPE), chain)
    y = ft.normal([5, *_SHAPE])
    before = flow.log_prob(y).numpy()
    for variable in chain.trainable_variables:
        variable.assign_add(tf.ones(variable.shape))
    after = flow.log_prob(y)
    np.testing.assert_allclose(after, flow.log_prob(tf.identity(y)), rtol=1e-6)
    assert np.abs(after - before).min() > 1


def test_gradients_in_the_very_step_that_sets_it():
    bijector = tfr.ActNorm(num_channels=3, dtype=tf.float64)
    flow = tfd.TransformedDistribution(ft.standard_normal(_SHAPE, tf.float64), bijector)
    y = 3 * ft.normal([5, *_SHAPE], tf.float64) + 1

    def gradient(value, **options):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(flow.log_prob(value, bijector_kwargs=options))
        return tape.gradient(loss, flow.trainable_variables)

    first = gradient(y, training=True)
    # They are those of the affine map with the values that were set.
    ft.assert_close(first, gradient(tf.identity(y)), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("is_set", [False, True])
def test_a_graph_that_is_traced_before_or_after_it_is_set(is_set):
    bijector = tfr.ActNorm(num_channels=3)
    first, second = 3 * ft.normal([5, *_SHAPE]) + 1, ft.normal([5, *_SHAPE], seed=3)
    expected = tfr.ActNorm(num_channels=3).inverse(first, training=True)
    if is_set:
        bijector.inverse(first, training=True)
    step = tf.function(lambda y: bijector.inverse(y, training=True))
    np.testing.assert_allclose(step(first), expected, rtol=1e-5, atol=1e-5)
    operations = step.get_concrete_function(second).graph.get_operations()
    assert [op.type for op in operations].count("AssignVariableOp") == (0 if is_set else 3)
    with ft.unchanged(bijector):
        step(second)


# BatchNormalization.


class _AppendixE:
    """The paper's Appendix E, or plain batch normalization, in NumPy."""

    def __init__(self, momentum, epsilon, statistics="running"):
        self.momentum, self.epsilon, self.statistics = momentum, epsilon, statistics
        self.mean, self.variance = None, None

    def step(self, y):
        mean, variance = y.mean((0, 1, 2)), y.var((0, 1, 2))
        if self.mean is None:
            self.mean, self.variance = mean, variance
        else:
            rho = self.momentum
            self.mean = rho * self.mean + (1 - rho) * mean
            self.variance = rho * self.variance + (1 - rho) * variance
        is_running = self.statistics == "running"
        return self.apply(y) if is_running else self.apply(y, mean, variance)

    def apply(self, y, mean=None, variance=None):
        mean = self.mean if mean is None else mean
        variance = (self.variance if variance is None else variance) + self.epsilon
        ildj = -0.5 * y.shape[1] * y.shape[2] * np.log(variance).sum()
        return (y - mean) / np.sqrt(variance), np.full([len(y)], ildj)


_BATCHES = [
    (step + 1.5) * ft.normal([5, *_SHAPE], tf.float64, seed=step) + 2 * step - 1
    for step in range(3)
]


@pytest.mark.parametrize(
    ("statistics", "mode"), [("running", "eager"), ("running", "function"), ("batch", "eager")]
)
def test_three_steps(statistics, mode):
    options = {"epsilon": 1e-3, "statistics": statistics}
    bijector = tfr.BatchNormalization(0.8, dtype=tf.float64, **options)
    expected = _AppendixE(0.8, **options)
    step = lambda y: bijector.inverse_and_log_det(y, training=True)  # noqa: E731
    step = tf.function(step) if mode == "function" else step
    for number, y in enumerate(_BATCHES):
        ft.assert_close(step(y), expected.step(y.numpy()), rtol=1e-10)
        moments = bijector.moving.mean, bijector.moving.variance
        ft.assert_close(moments, (expected.mean, expected.variance), rtol=1e-10)
        assert int(bijector.moving.num_updates) == number + 1
    # Evaluation goes on with the moving statistics, and moves nothing.
    y = ft.normal([2, *_SHAPE], tf.float64, seed=9)
    ft.assert_close(bijector.inverse_and_log_det(y), expected.apply(y.numpy()), rtol=1e-10)
    np.testing.assert_allclose(bijector.forward(bijector.inverse(y)), y, rtol=1e-10)
    assert int(bijector.moving.num_updates) == 3


@pytest.mark.parametrize("statistics", ["running", "batch"])
def test_gradients_go_through_the_current_batch_only(statistics):
    # The derivative by finite differences of the NumPy calculation, in which the moving values of
    # before are constants and the batch's moments are not.
    momentum, epsilon = 0.7, 1e-3
    first, second, _ = _BATCHES
    weights = ft.normal(second.shape, tf.float64, seed=7).numpy()
    options = {"epsilon": epsilon, "statistics": statistics, "dtype": tf.float64}
    bijector = tfr.BatchNormalization(momentum, **options)
    bijector.inverse(first, training=True)

    def loss(y):
        calculation = _AppendixE(momentum, epsilon, statistics)
        calculation.step(first.numpy())
        x, ildj = calculation.step(y)
        return (x * weights).sum() + (ildj * np.arange(5)).sum()

    with tf.GradientTape() as tape:
        tape.watch(second)
        x, ildj = bijector.inverse_and_log_det(second, training=True)
        value = tf.reduce_sum(x * weights) + tf.reduce_sum(ildj * np.arange(5))
    gradient = tape.gradient(value, second).numpy()
    y, step = second.numpy(), 1e-6
    for index in [(0, 0, 0, 0), (1, 3, 1, 2), (4, 2, 0, 1)]:
        above, below = y.copy(), y.copy()
        above[index] += step
        below[index] -= step
        expected = (loss(above) - loss(below)) / (2 * step)
        np.testing.assert_allclose(gradient[index], expected, rtol=1e-5)


def test_moments_are_over_all_leading_dimensions():
    bijector = tfr.BatchNormalization(dtype=tf.float64)
    y = ft.normal([2, 3, *_SHAPE], tf.float64)
    x, ildj = bijector.inverse_and_log_det(y, training=True)
    np.testing.assert_allclose(x.numpy().mean((0, 1, 2, 3)), 0, atol=1e-9)
    assert ildj.shape == (2, 3)


def test_forward_is_never_by_the_batch():
    bijector = ft.randomize(tfr.BatchNormalization(num_channels=3, dtype=tf.float64))
    x = ft.normal([5, *_SHAPE], tf.float64)
    y = bijector.forward(tf.identity(x), training=True)
    np.testing.assert_allclose(y, bijector.forward(x), rtol=1e-12)
    assert int(bijector.moving.num_updates) == 3
    variance = bijector.moving.variance + 1e-4
    np.testing.assert_allclose(y, x * np.sqrt(variance) + bijector.moving.mean, rtol=1e-12)


def test_statistics_are_made_once_also_in_a_function():
    bijector = tfr.BatchNormalization()
    assert bijector.moving.num_channels is None and not bijector.variables

    step = tf.function(lambda y: bijector.inverse(y, training=True))
    step(ft.normal([2, *_SHAPE]))
    step(ft.normal([3, 8, 8, 3]))
    assert bijector.moving.num_channels == 3 and len(bijector.variables) == 3
    assert int(bijector.moving.num_updates) == 2
    assert not bijector.trainable_variables


@pytest.mark.graph
@pytest.mark.parametrize("dtype", [tf.float32, tf.float64])
def test_the_first_batch_is_seen_in_a_graph(dtype):
    flow = ft.vector_distribution(2, num_filters=4, dtype=dtype, weights_seed=1)
    x = ft.normal([8, 2], dtype)

    @tf.function
    def log_prob(x):
        return flow.log_prob(x, bijector_kwargs={"training": True})

    assert log_prob(x).dtype == dtype
    np.testing.assert_allclose(log_prob(x), flow.log_prob(x), rtol=1e-4)

"""What goes wrong between TensorFlow Probability and Keras 3 unless somebody sees to it."""

import copy
import pickle

import flow_testing as ft
import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_probability import bijectors as tfb
from tensorflow_probability import distributions as tfd

import tfp_realnvp as tfr

pytestmark = pytest.mark.core


_SHAPE = (4, 4, 2)


def _refs(variables):
    return {variable.ref() for variable in variables}


def _small_flow(seed=0):
    """A flow of few parts, one of each kind with variables."""
    board = ft.convolution(input_channels=2, output_channels=4)
    channel = ft.convolution(input_channels=1, output_channels=2)
    first = tfr.AffineCoupling(tfr.CheckerboardMask(0), board)
    last = tfr.AffineCoupling(tfr.ChannelMask(0), channel)
    return ft.randomize(tfr.FlowChain([first, tfr.BatchNormalization(num_channels=2), last]), seed)


def _distribution(bijector=None):
    return tfd.TransformedDistribution(ft.standard_normal(_SHAPE), bijector or _small_flow())


def _step(variables, size=0.05):
    """What an optimizer does, with random gradients."""
    for index, variable in enumerate(variables):
        variable.assign_sub(size * ft.normal(variable.shape, variable.dtype, seed=index))


# Variables.


@pytest.mark.parametrize(
    "wrap",
    [
        lambda flow: tfb.Invert(tfb.Chain([tfb.Invert(flow), tfb.Scale(2.0)])),
        lambda flow: tfr.FlowChain([tfb.Invert(flow)]),
        lambda flow: tfd.Independent(_distribution(flow)),
        lambda flow: tfd.TransformedDistribution(_distribution(flow), tfb.Invert(tfb.Softplus())),
        lambda flow: tfd.Sample(_distribution(flow), 2),
    ],
    ids=["chain", "flow_chain", "independent", "transformed_twice", "sample"],
)
def test_variables_are_complete_through_any_nesting(wrap):
    flow = ft.image_flow(_SHAPE, network_fn=ft.convolution)
    wrapped = wrap(flow)
    # That the flow itself lists all its variables: `test_matrix.py`.
    assert len(flow.trainable_variables) > 12
    for name in ("variables", "trainable_variables", "non_trainable_variables"):
        assert _refs(getattr(wrapped, name)) == _refs(getattr(flow, name))
    assert len(wrapped.trainable_variables) == len(flow.trainable_variables)


def _frozen_part():
    """A distribution that was evaluated eagerly, a network of it, and the variables of both."""
    flow = _small_flow()
    chain = tfb.Chain([tfb.Invert(tfb.Scale(2.0)), tfb.Invert(tfb.Invert(flow))])
    distribution = tfd.Independent(_distribution(chain))
    distribution.log_prob(ft.normal([2, *_SHAPE]))
    network = flow.bijectors[0].network
    everything = _refs(distribution.trainable_variables)
    return distribution, network, everything, _refs(v.value for v in network.trainable_variables)


def _gradients(distribution, variables, function=lambda call: call):
    with tf.GradientTape() as tape:
        loss = function(distribution.log_prob)(ft.normal([2, *_SHAPE]))
    return tape.gradient(loss, variables), _refs(tape.watched_variables())


@pytest.mark.parametrize("function", [lambda call: call, tf.function], ids=["eager", "function"])
def test_tapes_follow_freezing_and_thawing(function):
    # Without a read of `trainable_variables` in between.
    distribution, network, everything, own = _frozen_part()
    variables = [variable.value for variable in network.variables]
    before, watched = _gradients(distribution, variables, function)
    assert all(gradient is not None for gradient in before) and watched == everything
    network.trainable = False
    frozen, watched = _gradients(distribution, variables, function)
    assert frozen == [None] * 3 and watched == everything - own
    network.trainable = True
    after, watched = _gradients(distribution, variables, function)
    assert watched == everything
    ft.assert_equal(after, before)


def test_a_function_that_was_traced_while_a_layer_was_frozen():
    distribution, network, everything, _ = _frozen_part()
    network.trainable = False
    traced = tf.function(distribution.log_prob)
    traced(ft.normal([2, *_SHAPE]))
    network.trainable = True
    variables = [variable.value for variable in network.variables]
    gradients, watched = _gradients(distribution, variables, lambda _: traced)
    assert all(gradient is not None for gradient in gradients) and watched == everything


def test_a_variable_of_a_class_of_its_own_is_frozen():
    class Variable(keras.Variable):
        kind = "own"

    class Bias(keras.layers.Layer):
        def build(self, input_shape):
            self.bias = Variable(tf.ones([4]), name="bias")

        def call(self, inputs):
            return tf.tile(inputs, [1, 1, 1, 2]) + self.bias.value

    coupling = tfr.AffineCoupling(tfr.CheckerboardMask(0), Bias())
    coupling.inverse(ft.normal([1, *_SHAPE]))
    assert len(coupling.trainable_variables) == 2
    coupling.network.trainable = False
    assert len(coupling.trainable_variables) == 1 and coupling.network.bias.kind == "own"


@pytest.mark.parametrize("make", [copy.deepcopy, lambda b: pickle.loads(pickle.dumps(b))])
def test_a_copy_has_its_own_variables(make):
    network = keras.layers.Conv2D(4, 3, padding="same")
    coupling = tfr.AffineCoupling(tfr.CheckerboardMask(0), network)
    x = ft.normal([2, *_SHAPE])
    coupling.inverse(x)
    ft.randomize(coupling)
    other = make(coupling)
    before = other.inverse(x)
    other.network.kernel.assign_add(tf.ones([3, 3, 2, 4]))
    after = other.inverse(x)
    np.testing.assert_array_equal(after, other.inverse(tf.identity(x)))
    assert (after.numpy() != before.numpy()).any()
    other.network.trainable = False
    assert len(other.trainable_variables) == 1 and len(other.variables) == 3
    assert len(coupling.trainable_variables) == 3
    np.testing.assert_array_equal(make(network.bias), network.bias)


@pytest.mark.parametrize(
    "part_of",
    [lambda layer: layer, lambda layer: layer.layers[0], lambda layer: layer.layers[0].bias],
    ids=["network", "layer", "variable"],
)
def test_a_part_that_is_built_and_frozen_after_its_coupling_was_made(part_of):
    convolutions = [keras.layers.Conv2D(n, 3, padding="same") for n in (2, 4)]
    network = keras.Sequential(convolutions)
    coupling = tfr.AffineCoupling(tfr.CheckerboardMask(0), network)
    assert len(coupling.trainable_variables) == 1
    x = ft.normal([1, *_SHAPE])
    held = coupling.inverse(x)
    # The cache knows the new variables as well.
    _step(coupling.trainable_variables)
    assert np.abs(coupling.inverse(x) - held).max() > 1e-3
    before, part = _refs(coupling.trainable_variables), part_of(network)
    assert len(before) == 5
    own = _refs(variable.value for variable in getattr(part, "variables", [part]))
    part.trainable = False
    assert own < before and _refs(coupling.trainable_variables) == before - own
    assert own <= _refs(coupling.non_trainable_variables)
    part.trainable = True
    assert _refs(coupling.trainable_variables) == before


# Equality and copies.


def test_two_of_one_configuration_share_no_cache():
    one, other, x = _small_flow(seed=1), _small_flow(seed=2), ft.normal([1, *_SHAPE])
    assert one != other and tfr.BatchNormalization() != tfr.BatchNormalization()
    held = one.inverse(x)
    result = other.inverse(x)
    np.testing.assert_array_equal(result, other.inverse(tf.identity(x)))
    assert np.abs(result - held).max() > 1e-3


def test_copy_of_unbuilt_batch_normalization_shares_statistics():
    bijector = tfr.BatchNormalization()
    copy = bijector.copy()
    bijector.inverse(ft.normal([4, *_SHAPE]), training=True)
    assert copy.moving is bijector.moving and copy.variables
    assert copy == bijector


# Keyword arguments are part of the key.


def test_training_is_part_of_the_key():
    bijector = ft.randomize(tfr.BatchNormalization(num_channels=2))
    y = 3 * ft.normal([8, *_SHAPE]) + 1
    running, _ = bijector.inverse(y), bijector.inverse_log_det_jacobian(y, event_ndims=3)
    training, ildj = bijector.inverse_and_log_det(y, training=True)
    assert np.abs(training - running).max() > 0.1
    # The value and the log det of training are of one pass, whose statistics are now the moving.
    after, after_ildj = bijector.inverse_and_log_det(tf.identity(y))
    np.testing.assert_allclose(training, after, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(ildj, after_ildj, rtol=1e-5)


@pytest.mark.parametrize("mode", ["eager", "function"])
def test_conditional_input_is_part_of_the_key(mode):
    coupling = ft.randomize(tfr.AffineCoupling(tfr.CheckerboardMask(0), ft.ConditionedNetwork(4)))
    coupling.inverse(ft.normal([3, *_SHAPE]))
    ft.randomize(coupling)
    one, other = ft.normal([3, 2], seed=1), ft.normal([3, 2], seed=2)

    def call(bijector, y, fresh):
        results = []
        for condition in (one, other, None, one):
            kwargs = {} if condition is None else {"conditional_input": condition}
            y = tf.identity(y) if fresh else y
            x = bijector.inverse(y, **kwargs)
            ildj = bijector.inverse_log_det_jacobian(y, event_ndims=3, **kwargs)
            results.append((x, ildj))
        return results

    call = tf.function(call) if mode == "function" else call
    y = ft.normal([3, *_SHAPE])
    for bijector in (coupling, tfb.Invert(tfb.Invert(coupling)), tfr.FlowChain([coupling])):
        actual, expected = call(bijector, y, fresh=False), call(bijector, y, fresh=True)
        ft.assert_close(actual, expected, rtol=1e-5, atol=1e-6)
        assert np.abs(actual[0][0] - actual[1][0]).max() > 1e-2
        assert np.abs(actual[0][1] - actual[1][1]).max() > 1e-3
        assert np.abs(actual[0][0] - actual[2][0]).max() > 1e-2


# A cache must not outlive what it was computed from.


def _optimizer_step(variables):
    gradients = [ft.normal(v.shape, v.dtype, seed=index) for index, v in enumerate(variables)]
    keras.optimizers.Adam(0.05).apply_gradients(zip(gradients, variables, strict=True))


_STEPS = {
    "eager": lambda flow: _step(flow.trainable_variables),
    # The eager results stand outside of the function, the weights change inside.
    "function": lambda flow: tf.function(lambda: _step(flow.trainable_variables))(),
    "optimizer": lambda flow: _optimizer_step(flow.trainable_variables),
    # Each kind of variable.
    "scale": lambda flow: flow.bijector.bijectors[0].scale.assign_add(0.3),
    "network": lambda flow: flow.bijector.bijectors[0].network.bias.assign_add([0.3] * 4),
    "moving": lambda flow: flow.bijector.bijectors[1].moving.variance.assign_add([0.3] * 2),
}


@pytest.mark.parametrize("step", _STEPS)
def test_log_prob_of_the_same_tensor_after_a_step(step):
    flow, x = _distribution(), ft.normal([3, *_SHAPE])
    for _ in range(2):
        before = flow.log_prob(x).numpy()
        np.testing.assert_array_equal(flow.log_prob(x), before)
        _STEPS[step](flow)
        after = flow.log_prob(x)
        assert np.abs(after - before).min() > 1e-3
        np.testing.assert_allclose(after, flow.log_prob(tf.identity(x)), rtol=1e-6)


def test_log_det_of_a_value_after_a_step():
    flow, y = _small_flow(), ft.normal([3, *_SHAPE])
    x = flow.inverse(y)
    before = flow.inverse_log_det_jacobian(y, event_ndims=3).numpy()
    _step(flow.trainable_variables)
    after = flow.inverse_log_det_jacobian(y, event_ndims=3)
    assert np.abs(after - before).min() > 1e-4
    expected = flow.inverse_log_det_jacobian(tf.identity(y), event_ndims=3)
    np.testing.assert_allclose(after, expected, rtol=1e-6)
    # What came from the old weights is no longer the inverse of anything.
    np.testing.assert_allclose(flow.forward(x), flow.forward(tf.identity(x)), rtol=1e-6)
    assert np.abs(flow.forward(x) - y).max() > 1e-3


@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_step_within_one_function(jit_compile):
    flow, x = _distribution(), ft.normal([3, *_SHAPE])

    def log_prob_step_log_prob(x):
        before = flow.log_prob(x)
        _step(flow.trainable_variables)
        return before, flow.log_prob(x)

    start = ft.values(flow.variables)
    function = tf.function(log_prob_step_log_prob, jit_compile=jit_compile)
    before, after = function(x)
    np.testing.assert_allclose(after, flow.log_prob(tf.identity(x)), rtol=1e-5)
    ft.assign(flow.variables, start)
    np.testing.assert_allclose(before, flow.log_prob(tf.identity(x)), rtol=1e-5)
    assert np.abs(before - after).min() > 1e-3


def test_functions_and_eager_calls_share_no_results():
    flow, x = _distribution(), ft.normal([3, *_SHAPE])
    functions = [tf.function(lambda factor=factor: factor * flow.log_prob(x)) for factor in (1, 2)]
    expected = flow.log_prob(tf.identity(x))
    np.testing.assert_allclose(functions[0](), expected, rtol=1e-5)
    held = flow.bijector.inverse(x), flow.log_prob(x)
    np.testing.assert_allclose(held[1], expected, rtol=1e-6)
    np.testing.assert_allclose(functions[1](), 2 * expected, rtol=1e-5)
    # No eager result is a constant of the second one.
    _step(flow.trainable_variables)
    np.testing.assert_allclose(functions[1](), 2 * flow.log_prob(tf.identity(x)), rtol=1e-5)


def test_the_branches_of_a_condition():
    flow, x = _distribution(), ft.normal([3, *_SHAPE])

    @tf.function
    def either(x, double):
        result = tf.cond(double, lambda: 2 * flow.log_prob(x), lambda: flow.log_prob(x))
        return result + flow.log_prob(x)

    expected = flow.log_prob(tf.identity(x))
    np.testing.assert_allclose(either(x, tf.constant(True)), 3 * expected, rtol=1e-5)
    np.testing.assert_allclose(either(x, tf.constant(False)), 2 * expected, rtol=1e-5)


@pytest.mark.parametrize("mode", ["eager", "function"])
def test_a_tape_after_a_cached_call_and_another_tape(mode):
    flow, x = _distribution(), ft.normal([3, *_SHAPE])
    variables = flow.trainable_variables

    def gradients(value):
        with tf.GradientTape() as tape:
            tape.watch(value)
            loss = tf.reduce_mean(flow.log_prob(value))
        return tape.gradient(loss, [value, *variables])

    def after_others(value):
        held = flow.bijector.inverse(value), flow.log_prob(value), gradients(value)
        return held, gradients(value)

    after_others = tf.function(after_others) if mode == "function" else after_others
    (*_, first), second = after_others(x)
    expected = gradients(tf.identity(x))
    assert all(gradient is not None for gradient in expected)
    ft.assert_close((first, second), (expected, expected), rtol=1e-4, atol=1e-6)


def _gradient_within(outer, call, x, **options):
    """Returns the gradient of `call(x)` by an inner tape, after `outer()` within an outer tape."""

    def run(x):
        with tf.GradientTape(**options):
            value = x if outer is None else outer(x)
            with tf.GradientTape() as inner:
                inner.watch(value)
                result = call(value)
            return value, inner.gradient(result, value)

    return run


@pytest.mark.parametrize("mode", ["eager", "function"])
@pytest.mark.parametrize(
    ("first", "persistent"),
    [
        ("log_prob", False),
        ("log_prob", True),
        ("inverse", False),
        ("sample", False),
        ("sample", True),
    ],
)
def test_an_inner_tape_records_what_an_outer_tape_has_recorded(first, persistent, mode):
    flow = _distribution()

    def before(x):
        held.append(getattr(flow.bijector if first == "inverse" else flow, first)(x))
        return held[-1] if first == "sample" else x

    def after(x):
        if first == "inverse":
            return flow.bijector.inverse_log_det_jacobian(x, event_ndims=3)
        return flow.log_prob(x)

    held, x = [], 3 if first == "sample" else ft.normal([3, *_SHAPE])
    run = _gradient_within(before, after, x, persistent=persistent)
    value, gradient = tf.function(run)(x) if mode == "function" else run(x)
    expected = _gradient_within(None, after, x)(tf.identity(value))[1]
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5)


# Batch normalization moves once a training step.


def _updates(flow):
    return int(flow.bijectors[1].moving.num_updates)


@pytest.mark.parametrize("mode", ["eager", "function"])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda flow: (flow, {"training": True}),
        lambda flow: (tfb.Invert(tfb.Invert(flow)), {"training": True}),
        lambda flow: (tfb.Chain([flow, tfb.Scale(0.5)]), {flow.name: {"training": True}}),
    ],
    ids=["itself", "invert", "chain"],
)
def test_statistics_move_once_a_step(wrap, mode):
    flow = _small_flow()
    bijector, options = wrap(flow)
    distribution = _distribution(bijector)
    x = ft.normal([8, *_SHAPE])

    def step(x):
        return distribution.log_prob(x, bijector_kwargs=options)

    step = tf.function(step) if mode == "function" else step
    start = _updates(flow)
    for count in range(1, 4):
        # The same tensor each time: a result for it must not stand in for the step.
        step(x)
        assert _updates(flow) == start + count
    distribution.log_prob(x)
    distribution.sample(2)
    assert _updates(flow) == start + 3


def test_two_passes_in_one_function_are_two_steps():
    flow = _small_flow()
    distribution = _distribution(flow)

    @tf.function
    def twice(x):
        first = distribution.log_prob(x, bijector_kwargs={"training": True})
        return first, distribution.log_prob(x, bijector_kwargs={"training": True})

    start = _updates(flow)
    first, second = twice(3 * ft.normal([8, *_SHAPE]))
    assert _updates(flow) == start + 2
    assert np.abs(first - second).max() > 1e-2

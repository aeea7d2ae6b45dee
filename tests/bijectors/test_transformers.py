"""The elementwise bijections of couplings, with random parameters."""

import functools

import flow_testing as ft
import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_realnvp as tfr

_TRANSFORMERS = {
    "affine": lambda dtype: tfr.Affine(0.7, dtype),
    "additive": lambda dtype: tfr.Additive(),
    "sigmoid_affine": lambda dtype: tfr.SigmoidAffine(),
    "spline": lambda dtype: tfr.RationalQuadraticSpline(num_bins=5, bound=4.0),
    "mixture": lambda dtype: tfr.LogisticMixture(num_components=3),
}
each_transformer = pytest.mark.parametrize("name", _TRANSFORMERS)
each_direction = pytest.mark.parametrize("direction", ["inverse", "forward"])


def _case(name, dtype=tf.float64, number=50):
    transformer = _TRANSFORMERS[name](dtype)
    # Some values are beyond the bound of the spline.
    x = 3 * ft.normal([number, 2], dtype)
    return transformer, x, ft.normal([number, 2 * transformer.num_parameters], dtype, seed=1)


@each_direction
@each_transformer
def test_log_det_is_that_of_the_derivative(name, direction):
    transformer, x, parameters = _case(name)
    with tf.GradientTape() as tape:
        tape.watch(x)
        z, log_det = getattr(transformer, direction)(x, parameters)
    slope = tape.gradient(z, x)
    assert (slope.numpy() > 0).all() and np.abs(z - x).max() > 0.1
    np.testing.assert_allclose(log_det, np.log(slope), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("direction", ["inverse", *ft.full("forward")])
@each_transformer
def test_vectorized_map_and_batch_jacobian(name, direction):
    transformer, x, parameters = _case(name, number=5)
    # The derivatives by the parameters as well.
    ft.assert_vectorizes(
        lambda values: getattr(transformer, direction)(values[..., :2], values[..., 2:]),
        tf.concat([x, parameters], axis=-1),
    )


@pytest.mark.parametrize(
    ("dtype", "tolerance", "jit_compile"),
    [(tf.float64, 1e-9, False), (tf.float32, 1e-4, True)],
    ids=["float64", "float32_xla"],
)
@each_transformer
def test_round_trip(name, dtype, tolerance, jit_compile):
    transformer, x, parameters = _case(name, dtype)
    inverse, forward = (
        tf.function(function, jit_compile=jit_compile, autograph=False)
        for function in (transformer.inverse, transformer.forward)
    )
    z, ildj = inverse(x, parameters)
    again, fldj = forward(z, parameters)
    np.testing.assert_allclose(again, x, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(fldj, -ildj, rtol=10 * tolerance, atol=10 * tolerance)


@each_direction
@each_transformer
def test_first_and_second_derivatives(name, direction):
    # `forward` of the mixture solves an equation.
    transformer, z, parameters = _case(name, number=10)
    weights = ft.normal(z.shape, tf.float64, seed=2)
    steps = [ft.normal(each.shape, tf.float64, seed=k) for k, each in ((3, z), (4, parameters))]

    @tf.function(autograph=False)
    def along(distance):
        values = z + distance * steps[0], parameters + distance * steps[1]
        x, log_det = getattr(transformer, direction)(*values)
        return tf.reduce_sum(weights * x + log_det)

    distance, size = tf.constant(0.0, tf.float64), tf.constant(1e-4, tf.float64)
    with tf.GradientTape() as outer:
        outer.watch(distance)
        with tf.GradientTape() as inner:
            inner.watch(distance)
            value = along(distance)
        first = inner.gradient(value, distance)
    # None for the additive one, which is linear.
    second = outer.gradient(first, distance, unconnected_gradients="zero")
    above, below = along(size), along(-size)
    np.testing.assert_allclose(first, (above - below) / (2 * size), rtol=1e-4)
    expected = (above - 2 * value + below) / size**2
    np.testing.assert_allclose(second, expected, rtol=1e-4, atol=1e-5)
    assert abs(first) > 1e-2 and (name == "additive" or abs(second) > 1e-2)


@each_direction
def test_the_spline_of_zero_parameters_is_the_identity(direction):
    transformer, x, _ = _case("spline", number=40)
    # All knots, all centers of bins, and both ends.
    grid = np.linspace(-4, 4, 11)[:, np.newaxis] * [1.0, 1.0]
    x = tf.concat([x, tf.constant(grid)], axis=0)
    with tf.GradientTape() as tape:
        tape.watch(x)
        z, log_det = getattr(transformer, direction)(x, tf.zeros([51, 28], tf.float64))
    np.testing.assert_allclose(z, x, rtol=1e-9)
    np.testing.assert_allclose(log_det, tf.zeros_like(x), atol=1e-9)
    np.testing.assert_allclose(tape.gradient(z, x), tf.ones_like(x), rtol=1e-9)


@each_direction
def test_the_spline_equals_that_of_tfp(direction):
    spline, x, parameters = _case("spline")
    # Knots and slopes as `tfb.RationalQuadraticSpline` takes them, [50, 2, ...].
    by_channel = tf.linalg.matrix_transpose(tf.reshape(parameters, [50, 14, 2]))
    sizes, slopes = tf.reshape(by_channel[..., :10], [50, 2, 2, 5]), by_channel[..., 10:]
    widths, heights = tf.unstack(8 * (1e-3 + 0.995 * tf.nn.softmax(sizes)), axis=-2)
    slopes = 1e-3 + tf.nn.softplus(slopes + np.log(np.expm1(1 - 1e-3)))
    expected = tfp.bijectors.RationalQuadraticSpline(widths, heights, slopes, range_min=-4.0)
    expected = tfp.bijectors.Invert(expected) if direction == "forward" else expected
    value, log_det = getattr(spline, direction)(x, parameters)
    np.testing.assert_allclose(value, expected.forward(x), rtol=1e-9, atol=1e-9)
    log_det_of_tfp = expected.forward_log_det_jacobian(x, event_ndims=0)
    np.testing.assert_allclose(log_det, log_det_of_tfp, rtol=1e-9, atol=1e-9)
    assert np.abs(log_det).max() > 1


each_size = pytest.mark.parametrize("size", [0.1, 2.0, 20.0])


def _many(size, seed=0):
    """Returns a spline, 20,000 values within its bounds, and parameters of a standard deviation."""
    spline = tfr.RationalQuadraticSpline()
    parameters = size * ft.normal([20_000, spline.num_parameters], seed=seed + 1)
    return spline, tf.clip_by_value(3 * ft.normal([20_000, 1], seed=seed), -8, 8), parameters


@each_direction
@each_size
def test_round_trip_of_splines_with_large_parameters(size, direction):
    spline, x, parameters = _many(size)
    there, back = spline.inverse, spline.forward
    if direction == "forward":
        there, back = back, there
    z, _ = there(x, parameters)
    again, _ = back(z, parameters)
    # Slopes of the way back, exactly, at the three values: they differ where `z` is at a knot.
    parameters = tf.cast(parameters, tf.float64)
    log_slopes = [-there(tf.cast(value, tf.float64), parameters)[1] for value in (x, again)]
    log_slopes.append(back(tf.cast(z, tf.float64), parameters)[1])
    slope = np.maximum(1, np.exp(np.max(log_slopes, axis=0)))
    # What the rounding of `z` to float32 can make of x.
    rounding = 8 * np.finfo(np.float32).eps * slope
    error = np.abs(again - x)
    assert (error <= 50 * rounding).all()
    assert error[rounding < 1e-3].max() < 1e-3


@functools.cache
def _spline_with_gradients(direction, jit_compile):
    """Returns a compiled function to the value, the log det and their gradients."""

    def function(x, parameters):
        with tf.GradientTape(persistent=True) as tape:
            tape.watch([x, parameters])
            results = getattr(tfr.RationalQuadraticSpline(), direction)(x, parameters)
        return *results, *[tape.gradient(result, [x, parameters]) for result in results]

    return tf.function(function, jit_compile=jit_compile, autograph=False)


@pytest.mark.parametrize("jit_compile", [False, *ft.full(True)], ids=["graph", "xla"])
@each_direction
@each_size
def test_splines_are_finite(size, direction, jit_compile):
    _, x, parameters = _many(size, seed=2)
    limits = [0.0, 8.0, -8.0, np.nextafter(np.float32(8), np.float32(0)), 1e8, -1e8]
    x = tf.concat([x[:-600], tf.repeat(tf.constant(limits)[:, tf.newaxis], 100, axis=0)], axis=0)
    results = _spline_with_gradients(direction, jit_compile)(x, parameters)
    assert all(np.isfinite(result).all() for result in tf.nest.flatten(results))
    value, log_det, *_ = results
    outside = np.abs(x) >= 8
    np.testing.assert_array_equal(value[outside], x[outside])
    assert (log_det[outside] == 0).numpy().all()


@pytest.mark.parametrize("size", [5.0, 100.0, *ft.full(1.0, 20.0)])
def test_the_inverse_of_mixtures_with_large_parameters(size):
    # Between components that are far apart F is nearly constant, and its inverse nearly vertical.
    mixture = tfr.LogisticMixture()
    parameters = size * ft.normal([4_000, mixture.num_parameters], seed=6)
    z, _ = mixture.inverse(ft.normal([4_000, 1], seed=5), parameters)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch([z, parameters])
        results = mixture.forward(z, parameters)
    gradients = [tape.gradient(result, [z, parameters]) for result in results]
    assert all(np.isfinite(result).all() for result in tf.nest.flatten([results, gradients]))
    x = results[0]
    distance = 16 * np.finfo(np.float32).eps * (1 + np.abs(x))
    below, at, above = (mixture.inverse(x + k * distance, parameters)[0] for k in (-1, 0, 1))
    # What the rounding to float32 can make of z: that of x, and that of logits, times exp(a).
    epsilon = np.finfo(np.float32).eps
    rounding = above - below + 32 * epsilon * np.exp(3) * (1 + np.abs(z))
    assert (np.abs(at - z) <= rounding.numpy()).all()


@pytest.mark.parametrize("size", [30.0, 1e3])
def test_log_slopes_are_bounded(size):
    transformer, x, parameters = _case("mixture")
    log_det = transformer.inverse(x, size * parameters)[1]
    # Slopes between components can be as small as these are far apart.
    assert np.isfinite(log_det).all() and np.max(log_det) <= 5 + 3 + 1e-6


@pytest.mark.parametrize("name", ["spline", "mixture"])
def test_a_coupling_keeps_the_kept_half_exactly(name):
    transformer = _TRANSFORMERS[name](tf.float64)
    network = ft.network(2, 2 * transformer.num_parameters, "float64", checkerboard_parity=1)
    mask = tfr.CheckerboardMask(1)
    coupling = ft.randomize(tfr.Coupling(mask, network, transformer, dtype=tf.float64), seed=4)
    x = ft.normal([4, 4, 2], tf.float64)
    z, ildj = coupling.inverse_and_log_det(x)
    kept = mask.board(x).numpy().astype(bool)[..., 0]
    np.testing.assert_array_equal(z.numpy()[kept], x.numpy()[kept])
    assert np.abs(z - x)[~kept].min() > 0
    # Zero parameters are not the identity of every transformer: kept positions count for nothing.
    np.testing.assert_allclose(ildj, ft.jacobian_log_det(coupling.inverse, x), rtol=1e-9)
    assert coupling.copy().transformer is transformer


class _Scaled(tfr.Transformer):
    """A user's transformer with a variable."""

    num_parameters = 1

    def __init__(self, kind):
        super().__init__()
        ones = keras.initializers.Constant(0.5)
        self.scale = self.add_weight(initializer=ones) if kind == "layer" else tf.Variable(0.5)

    def inverse(self, x, parameters):
        return x * tf.exp(self.scale * parameters), self.scale * parameters

    def forward(self, z, parameters):
        return z * tf.exp(-self.scale * parameters), -self.scale * parameters


@pytest.mark.parametrize("recompute", [False, True])
def test_variables_of_a_transformer(recompute):
    network = ft.network(2, 2)
    coupling = tfr.Coupling(tfr.ChannelMask(), network, _Scaled("layer"))
    flow = tfr.FlowChain([coupling], recompute=recompute)
    assert coupling.transformer.scale.value.ref() in {v.ref() for v in flow.trainable_variables}
    with tf.GradientTape() as tape:
        z, log_det = flow.inverse_and_log_det(ft.normal([3, 4, 4, 4]))
        loss = tf.reduce_sum(z) + tf.reduce_sum(log_det)
    assert all(np.abs(g).max() > 0 for g in tape.gradient(loss, flow.trainable_variables))
    with pytest.raises(TypeError, match=r"variables by `add_weight`, got \[<tf\.Variable"):
        tfr.Coupling(tfr.ChannelMask(), network, _Scaled("tensorflow"))


class _Own(tfr.Transformer):
    """A user's transformer, z = x exp(θ), with a mistake."""

    num_parameters = 1

    def inverse(self, x, parameters):
        return x * tf.exp(parameters), parameters

    def forward(self, z, parameters):
        return z * tf.exp(-parameters), -parameters


class _Summed(_Own):
    def inverse(self, x, parameters):
        return x * tf.exp(parameters), tf.reduce_sum(parameters, axis=-1)


class _SummedWithItsAxes(_Own):
    def inverse(self, x, parameters):
        return x * tf.exp(parameters), tf.reduce_sum(parameters, axis=-1, keepdims=True)


class _ForgottenLogDet(_Own):
    def inverse(self, x, parameters):
        return x * tf.exp(parameters)


class _TooFewParameters(_Own):
    def inverse(self, x, parameters):
        shift, log_scale = tf.split(parameters, 2, axis=-1)
        return x * tf.exp(log_scale) + shift, log_scale


class _TooManyParameters(_Own):
    num_parameters = 3


class _WrongLogDetOfForward(_Own):
    def forward(self, z, parameters):
        return z * tf.exp(-parameters), 0.0


@pytest.mark.parametrize("in_graph", [False, True])
@pytest.mark.parametrize(
    ("transformer", "match"),
    [
        (_Summed, r"_Summed.inverse to return .* of shape \(2, 3\), got \(2, 3\), \(2,\)"),
        (_SummedWithItsAxes, r"_SummedWithItsAxes.inverse to return .* got .*\(2, 1\)"),
        (_ForgottenLogDet, r"_ForgottenLogDet.inverse to return .* log det .* got .*\(2, 3\)"),
        (
            _TooFewParameters,
            r"_TooFewParameters.inverse to take .* shape \(2, 3\), num_parameters=1",
        ),
        (
            _TooManyParameters,
            r"_TooManyParameters.inverse to take .* shape \(2, 9\), num_parameters=3",
        ),
    ],
)
def test_mistakes_in_a_transformer(transformer, match, in_graph):
    coupling = ft.randomize(tfr.RealNVPVector(6, 1, mixing=None, transformer=transformer))
    inverse = tf.function(coupling.inverse) if in_graph else coupling.inverse
    with pytest.raises(ValueError, match=match):
        inverse(ft.normal([2, 6]))


def test_mistakes_in_a_transformer_of_images():
    flow = tfr.RealNVPImage((4, 4, 1), 1, num_blocks=0, num_filters=2, transformer=_Summed)
    with pytest.raises(ValueError, match=r"_Summed.inverse to return"):
        flow.inverse(ft.pixels([2, 4, 4, 1]))
    flow = tfr.RealNVPVector(6, 1, transformer=_WrongLogDetOfForward)
    with pytest.raises(ValueError, match=r"_WrongLogDetOfForward.forward to return .*, \(\)\."):
        flow.forward(ft.normal([2, 6]))


@pytest.mark.parametrize("make", [tfr.RealNVPVector, tfr.coupling_layer])
def test_an_instance_in_place_of_a_class(make):
    first = ft.shallow_conv if make is tfr.coupling_layer else 4
    with pytest.raises(TypeError, match=r"returns a new Transformer.*class `_Own`.*got <_Own"):
        make(first, transformer=_Own())
    if make is tfr.RealNVPVector:
        with pytest.raises(TypeError, match=r"returns a new Transformer.*got .*function"):
            make(first, transformer=lambda: tf.identity)

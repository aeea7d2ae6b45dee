"""Images, latents and statistics at the ends of what there is: finite, or an error that says so."""

import flow_testing as ft
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_probability import distributions as tfd

import tfp_realnvp as tfr
from tfp_realnvp import latents

pytestmark = pytest.mark.full


SHAPE = (8, 8, 1)
FLOWS = {
    "paper": lambda **kwargs: tfr.RealNVPImage(SHAPE, 2, 1, 4, **kwargs),
    "compact": lambda **kwargs: tfr.RealNVPImage.compact(SHAPE, num_filters=4, **kwargs),
}
EXTREME_IMAGES = np.stack(
    [
        np.zeros(SHAPE),
        np.full(SHAPE, 255),
        np.full(SHAPE, 128),
        255 * (np.indices(SHAPE).sum(0) % 2),
        255 * (np.indices(SHAPE)[0] < 4),
    ]
).astype(np.uint8)


def distribution(name, dtype=tf.float32, num_couplings=1, **kwargs):
    flow = ft.randomize(FLOWS[name](dtype=dtype, num_couplings=num_couplings, **kwargs))
    return tfd.TransformedDistribution(ft.standard_normal(SHAPE, dtype), flow)


@pytest.mark.parametrize("dtype", [tf.float32, tf.float64])
@pytest.mark.parametrize("name", FLOWS)
def test_extreme_images(name, dtype):
    flow = distribution(name, dtype)
    ends = np.nextafter(np.array(256, dtype.as_numpy_dtype), 0)
    images = tf.concat([tf.cast(EXTREME_IMAGES, dtype), tf.fill([1, *SHAPE], ends)], axis=0)
    with tf.GradientTape() as tape:
        log_prob = flow.log_prob(images)
    assert np.isfinite(log_prob).all()
    for gradient in tape.gradient(log_prob, flow.trainable_variables):
        assert np.isfinite(gradient).all()
    if dtype == tf.float64:
        # In single precision it is no test: random weights magnify rounding errors 1e5 times.
        latents = flow.bijector.inverse(images)
        again = flow.bijector.forward(tf.identity(latents))
        np.testing.assert_allclose(again, images, rtol=0, atol=1e-6)


@pytest.mark.parametrize("sigma", [6.0, 20.0, 1e4])
@pytest.mark.parametrize("name", FLOWS)
def test_latents_far_out(name, sigma):
    flow = distribution(name)
    latents = sigma * tf.sign(ft.normal([4, *SHAPE]))
    images, fldj = flow.bijector.forward_and_log_det(latents)
    assert np.isfinite(images).all() and np.isfinite(fldj).all()
    logit = tfr.PixelLogit()
    assert logit.low < np.min(images) and np.max(images) < logit.high
    # Rounded to the ends of the interval, where the density is small but there.
    assert np.isfinite(flow.log_prob(tf.identity(images))).all()
    assert tfr.to_uint8(images).shape == images.shape


@pytest.mark.parametrize("batch", ["black", "one_image", "one_gray_level"])
@pytest.mark.parametrize("dequantize", [True, False])
@pytest.mark.parametrize("name", FLOWS)
def test_training_on_a_batch_without_variance(name, dequantize, batch):
    images = {
        "black": np.zeros([4, *SHAPE], np.uint8),
        "one_image": ft.grey_levels(1, SHAPE),
        "one_gray_level": np.full([1, *SHAPE], 7, np.uint8),
    }[batch]
    flow = distribution(name)
    if name == "compact":
        # As before the first step: the batch sets the scales.
        ft.unset(flow)
    model = tfr.FlowModel(flow, dequantize=dequantize)
    model.compile(run_eagerly=True)
    before = [variable.numpy() for variable in flow.trainable_variables]
    try:
        history = model.fit(images, epochs=2, batch_size=4, verbose=0)
    except tfr.NonFiniteLossError as error:
        assert "not finite at step" in str(error)
    else:
        assert np.isfinite(history.history["loss"]).all()
        after = [variable.numpy() for variable in flow.trainable_variables]
        assert any(np.any(a != b) for a, b in zip(after, before, strict=True))
    assert all(np.isfinite(variable).all() for variable in flow.variables)


@pytest.mark.parametrize("images", [tf.zeros([4, *SHAPE]), ft.pixels([4, *SHAPE])])
def test_training_after_a_million_steps(images):
    flow = distribution("paper")
    counts = [variable for variable in flow.variables if "num_updates" in variable.name]
    model = tfr.FlowModel(flow, dequantize=False)
    model.compile(run_eagerly=True)
    model.optimizer.build(model.trainable_variables)
    for variable in (*counts, model.optimizer.iterations):
        variable.assign(10**6)
    history = model.fit(images, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    assert counts and all(float(count) == 1e6 + 1 for count in counts)
    assert all(np.isfinite(variable).all() for variable in flow.variables)


def with_variances(part, value, **kwargs):
    """Returns the paper's flow with all moving variances of a kind set by hand."""
    # As many normalizations as it takes for an overflow.
    flow = distribution("paper", num_couplings=3, **kwargs)
    networks = [b.network for b in flow.bijector.submodules if isinstance(b, tfr.Coupling)]
    of_networks = {id(variable.value) for network in networks for variable in network.variables}
    for variable in flow.variables:
        if "variance" in variable.name and (id(variable) in of_networks) == (part == "networks"):
            variable.assign(tf.fill(variable.shape, tf.cast(value, variable.dtype)))
    return flow


@pytest.mark.parametrize("value", [0.0, 1e-6])
def test_overflow_of_log_prob_is_announced(value):
    images = ft.pixels([2, *SHAPE])
    # Each normalization multiplies by up to 100, of which single precision holds nineteen in a row;
    # in double precision all is finite, so that it is an overflow and nothing else.
    double = with_variances("networks", value, dtype=tf.float64)
    log_prob = double.log_prob(tf.cast(images, tf.float64))
    assert np.isfinite(log_prob).all() and np.max(log_prob) < -np.finfo(np.float32).max

    flow = with_variances("networks", value)
    assert not np.isfinite(flow.log_prob(images)).any()
    validated = flow.copy(bijector=flow.bijector.copy(validate_args=True))
    for log_prob in (validated.log_prob, tf.function(validated.log_prob)):
        with pytest.raises(tf.errors.InvalidArgumentError, match="real_nvp_image: expected finite"):
            log_prob(images)

    model = tfr.FlowModel(flow, dequantize=False)
    model.compile(run_eagerly=True)
    with pytest.warns(RuntimeWarning, match="FlowModel.predict: .* got 2 of 2"):
        assert not np.isfinite(model.predict(images, verbose=0)).any()
    with pytest.warns(RuntimeWarning, match="FlowModel.evaluate: expected finite"):
        model.evaluate(images, verbose=0)
    with pytest.raises(ValueError, match="non-finite results"):
        latents.encode(flow, images)


def test_overflow_of_samples_is_announced():
    # The other direction multiplies by the standard deviations.
    flow = with_variances("bijectors", 1e12)
    validated = flow.copy(bijector=flow.bijector.copy(validate_args=True))
    assert not np.isfinite(flow.bijector.forward_and_log_det(flow.distribution.sample(2))[1]).any()
    for sample in (validated.sample, tf.function(validated.sample)):
        # A graph checks both in any order.
        with pytest.raises(tf.errors.InvalidArgumentError, match=r"expected finite (data|log det)"):
            sample(2)

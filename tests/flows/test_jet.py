"""`RealNVPImage.jet`. `test_matrix.py` and `benchmarks/test_jet_reference.py` have its numbers."""

import flow_testing as ft
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_probability import distributions as tfd

import tfp_realnvp as tfr

_SHAPE = (4, 4, 2)
_MASKS = [
    tfr.ChannelMask(permutation=[7, 0, 3, 4, 5, 1, 2, 6]),
    tfr.SpatialMask("vertical_stripes"),
]
# Two couplings can spread two gray levels.
_OPTIONS = {"patch_size": 2, "num_blocks": 1, "width": 4, "num_heads": 2, "num_values": 2}


def _images():
    return ft.pixels([3, *_SHAPE]) / 128


def test_number_of_parameters():
    # All couplings have equal networks.
    flow = tfr.RealNVPImage.jet((64, 64, 3), num_couplings=1)
    numbers = [np.prod(variable.shape) for variable in flow.trainable_variables]
    assert 32 * sum(numbers) == 207_177_216


def test_it_starts_as_the_scaling_of_pixels():
    flow = tfr.RealNVPImage.jet(_SHAPE, num_couplings=32, **{**_OPTIONS, "num_values": 5})
    masks = [part.mask for part in flow.bijectors if isinstance(part, tfr.Coupling)]
    patterns = ("checkerboard", "vertical_stripes", "horizontal_stripes")
    assert masks[4::5] == [tfr.SpatialMask(p, parity) for p in patterns for parity in (0, 1)]
    del masks[4::5]
    assert len({mask.permutation for mask in masks}) == 26
    x = ft.pixels([3, *_SHAPE]) * (5 / 256)
    z, ildj = flow.inverse_and_log_det(x)
    np.testing.assert_allclose(z, x / 2.5 - 1, atol=1e-6)
    np.testing.assert_allclose(ildj, np.full(3, 32 * np.log(2 / 5)), rtol=1e-6)


def test_few_couplings():
    few = {**_OPTIONS, "num_values": 256, "num_couplings": 8}
    flow = tfr.RealNVPImage.jet(_SHAPE, **few)
    # The best bits/dim are those of scales of 2 and latents of zero, of an image of 128.
    for variable in flow.variables:
        if "output_bias" in variable.name:
            half = variable.shape[0] // 2
            variable.assign(np.repeat(np.float32([0.0, 50.0]), half))
    distribution = tfd.TransformedDistribution(ft.standard_normal(_SHAPE), flow)
    bits = tfr.bits_per_dim(distribution.log_prob(tf.fill([1, *_SHAPE], 128.0)), 32)
    assert float(bits[0]) == pytest.approx(7 + np.log2(2 * np.pi) / 2 - 8 / 2, abs=1e-3)


def test_training_in_half_precision():
    flow = ft.randomize(ft.jet(_SHAPE, _MASKS, network_dtype="mixed_bfloat16"))
    with tf.GradientTape() as tape:
        z, ildj = flow.inverse_and_log_det(_images())
        loss = tf.reduce_sum(z**2) - tf.reduce_sum(ildj)
    assert ildj.dtype == tf.float32
    gradients = tape.gradient(loss, flow.trainable_variables)
    assert {gradient.dtype for gradient in gradients} == {tf.float32}
    assert all(np.isfinite(gradient).all() and np.any(gradient) for gradient in gradients)


def test_images_as_condition():
    flow = ft.randomize(ft.jet(_SHAPE, _MASKS, conditional_event_shape=(4, 4, 1)))
    x, condition = _images(), ft.normal([3, 4, 4, 1])
    z = flow.inverse(x, conditional_input=condition)
    assert np.abs(z - flow.inverse(x, conditional_input=-condition)).max() > 1e-2
    back = flow.forward(tf.identity(z), conditional_input=condition)
    np.testing.assert_allclose(back, x, atol=1e-4)
    with pytest.raises(ValueError, match="expected a patch_size of 2ⁿ, because the condition"):
        tfr.RealNVPImage.jet((6, 6, 2), patch_size=3, conditional_event_shape=(6, 6, 1))


def test_each_token_sees_the_condition_of_its_position():
    masks, seen = [tfr.SpatialMask("horizontal_stripes")], []
    flow = ft.jet(_SHAPE, masks, conditional_event_shape=(4, 4, 1))
    coupling = next(part for part in flow.submodules if isinstance(part, tfr.Coupling))
    call = coupling.network.call
    coupling.network.call = lambda x, **options: seen.append((x, options)) or call(x, **options)
    places = tf.reshape(tf.range(4.0), [1, 2, 2, 1])
    data = tf.repeat(places, 8, axis=-1)
    coupling.inverse(data, conditional_input=tf.repeat(places, 4, axis=-1))
    [(kept, options)] = seen
    changed, condition = coupling.mask.split(data)[1], options["conditional_input"]
    kept, changed, condition = (x.numpy()[..., 0] for x in (kept, changed, condition))
    assert np.all((condition == kept) | (condition == changed))
    assert sorted(condition.ravel()) == [0, 1, 2, 3]


@pytest.mark.full
def test_served(tmp_path):
    flow = ft.randomize(ft.jet(_SHAPE, _MASKS))
    model = tfr.FlowModel(tfd.TransformedDistribution(ft.standard_normal(_SHAPE), flow))
    images = ft.grey_levels(3, _SHAPE) % 2
    noisy = ft.with_event_noise(images)
    log_prob = model.distribution.log_prob(noisy)
    tfr.export_saved_model(model, tmp_path / "1")
    served = tf.saved_model.load(tmp_path / "1")
    np.testing.assert_allclose(served.log_prob(noisy)["log_prob"], log_prob, rtol=1e-5)
    np.testing.assert_allclose(served.log_prob_uint8(images, 0)["log_prob"], log_prob, rtol=1e-5)
    samples = served.sample_uint8(5, 0, 1.0)["images"]
    assert samples.shape == (5, *_SHAPE) and np.max(samples) <= 1

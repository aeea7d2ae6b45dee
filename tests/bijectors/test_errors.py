"""Errors say what was expected and what came."""

import flow_testing as ft
import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_realnvp as tfr

pytestmark = pytest.mark.quick

tfb = tfp.bijectors
tfd = tfp.distributions

_SHAPE = (4, 4, 2)


@pytest.fixture(scope="module")
def flow():
    return ft.image_flow(_SHAPE, num_couplings=1, network_fn=ft.convolution)


@pytest.fixture(scope="module")
def distribution(flow):
    return tfd.TransformedDistribution(ft.standard_normal(_SHAPE), flow)


# Values.


@pytest.mark.parametrize("hook", ["forward", "inverse"])
@pytest.mark.parametrize("log_det", [False, True])
def test_wrong_number_of_channels(flow, hook, log_det):
    call = getattr(flow, f"{hook}_log_det_jacobian" if log_det else hook)
    with pytest.raises(ValueError, match=r"height, width, 2\], got shape \(1, 4, 4, 3\)"):
        call(tf.zeros([1, 4, 4, 3]))


@pytest.mark.parametrize("size", [(4, 5), (5, 4)])
def test_a_size_that_the_scales_cannot_squeeze(flow, size):
    with pytest.raises(ValueError, match=rf"divisible by 2, for 2 scales, got shape \({size[0]}, "):
        flow.inverse(tf.zeros([1, *size, 2]))


@pytest.mark.parametrize("dtype", [tf.uint8, tf.int32, tf.float64, tf.float16])
def test_another_dtype_is_never_cast(distribution, dtype):
    with pytest.raises(TypeError, match=rf"expected float32 values, got {dtype.name}"):
        distribution.bijector.inverse(tf.zeros([1, *_SHAPE], dtype))
    with pytest.raises(TypeError, match=rf"{dtype.name}"):
        distribution.log_prob(tf.zeros([1, *_SHAPE], dtype))


def test_arrays_and_lists_are_converted_as_in_tfp(flow):
    values = np.random.default_rng(0).uniform(1, 255, [1, *_SHAPE])
    expected = flow.inverse(tf.constant(values, tf.float32))
    for same in (values, values.astype(np.float32), values.tolist()):
        np.testing.assert_array_equal(flow.inverse(same), expected)
    # Gray levels without noise are an error, although TFP converts them.
    with pytest.raises(TypeError, match="expected float32 values, got uint8"):
        flow.inverse(values.astype(np.uint8))


def test_vectors_of_whole_numbers_are_converted_as_in_tfp():
    rows, bijector = np.arange(6).reshape(2, 3), tfr.Standardization([0.0, 1.0, 2.0], [1.0, 2, 4])
    np.testing.assert_array_equal(bijector.inverse(rows), bijector.inverse(rows.tolist()))
    with pytest.raises(TypeError, match="got int64; cast them"):
        bijector.inverse(tf.constant(rows))


@pytest.mark.parametrize("shape", [[], [2], [4, 2]])
def test_too_low_a_rank(flow, shape):
    for bijector in (flow, tfr.PixelLogit(), tfr.Squeeze(), tfr.FlowChain([])):
        with pytest.raises(ValueError, match=r"expected images .*, got shape"):
            bijector.inverse(tf.zeros(shape))


@pytest.mark.parametrize("mode", ["eager", "function"])
def test_nan_under_validate_args(flow, mode):
    checked = flow.copy(validate_args=True)
    values = np.full([1, *_SHAPE], 7, np.float32)
    values[0, 1, 2, 0] = np.nan
    for hook in (checked.inverse, checked.forward):
        call = tf.function(hook) if mode == "function" else hook
        with pytest.raises(tf.errors.InvalidArgumentError, match="not finite"):
            call(tf.constant(values))


@pytest.mark.parametrize("mode", ["eager", "function"])
@pytest.mark.parametrize("value", [-14.3, 270.3, 1000.0])
def test_values_outside_the_open_interval(flow, value, mode):
    # 256 · 0.05 / 0.9 = 14.2222
    values = tf.fill([1, *_SHAPE], value)
    for bijector in (flow.copy(validate_args=True), tfr.PixelLogit(validate_args=True)):
        call = tf.function(bijector.inverse) if mode == "function" else bijector.inverse
        with pytest.raises(
            tf.errors.InvalidArgumentError, match=r"expected values in \(-14.2222, 270.2222\)"
        ):
            call(values)


# Networks.


@pytest.mark.parametrize("use_scale", [True, False])
@pytest.mark.parametrize("mask", [tfr.CheckerboardMask(0), tfr.ChannelMask(1)], ids=repr)
def test_a_network_with_the_wrong_number_of_channels(mask, use_scale):
    coupling = tfr.AffineCoupling(mask, keras.layers.Conv2D(3, 1), use_scale=use_scale)
    expected = mask.changed_channels(2) * (2 if use_scale else 1)
    match = rf"expected {expected} channels from the network.*got shape \(1, 4, 4, 3\)"
    with pytest.raises(ValueError, match=match):
        coupling.inverse(tf.zeros([1, *_SHAPE]))


@pytest.mark.parametrize(
    "bijector",
    [
        tfr.PixelLogit(),
        tfr.Squeeze(),
        tfr.BatchNormalization(),
        tfr.ActNorm(),
        tfr.FlowChain([tfr.PixelLogit()]),
        tfr.FactorOut(tfr.PixelLogit()),
        tfr.AffineCoupling(tfr.CheckerboardMask(0), lambda x: tf.concat([x, x], -1)),
        tfb.Invert(tfr.PixelLogit()),
    ],
    ids=lambda bijector: bijector.name,
)
def test_conditional_input_that_nobody_takes(bijector):
    with pytest.raises(ValueError, match="got a `conditional_input`, but no network here takes"):
        bijector.forward(tf.zeros([1, *_SHAPE]), conditional_input=tf.zeros([1, 2]))


@pytest.mark.parametrize("hook", ["forward", "inverse"])
@pytest.mark.parametrize("log_det", [False, True])
def test_unknown_keyword(flow, hook, log_det):
    call = getattr(flow, f"{hook}_log_det_jacobian" if log_det else hook)
    with pytest.raises(TypeError, match=r"expected the keyword arguments.*got \['trainning'\]"):
        call(tf.zeros([1, *_SHAPE]), trainning=True)


@pytest.mark.parametrize("training", ["yes", 3, tf.constant(True)], ids=repr)
def test_training_is_a_python_bool(flow, training):
    with pytest.raises(TypeError, match="expected a Python bool as `training`, got"):
        flow.inverse(tf.zeros([1, *_SHAPE]), training=training)


# Constructors.


def _coupling(network=tf.identity, mask=None, **kwargs):
    return tfr.AffineCoupling(mask or tfr.ChannelMask(), network, **kwargs)


def _image(image_shape=(8, 8, 3), **kwargs):
    return tfr.RealNVPImage(image_shape, **kwargs)


_LOGIT_64 = tfr.PixelLogit(dtype=tf.float64)
_BATCH_OF_2 = tfd.Sample(tfd.Normal([0.0, 1.0], 1.0), [4, 4, 1])


@pytest.mark.parametrize(
    ("construct", "error", "match"),
    [
        (lambda: _coupling(dtype=tf.float16), TypeError, "dtype.*got float16"),
        (lambda: _coupling(mask=tfr.CheckerboardMask), TypeError, "CheckerboardMask.*got <class"),
        (lambda: _coupling(scale=float("nan")), ValueError, "scale.*got nan"),
        (lambda: tfr.BatchNormalization(1.0), ValueError, "momentum.*got 1.0"),
        (lambda: tfr.BatchNormalization(epsilon=1e-50), ValueError, "epsilon.*got 1e-50"),
        (lambda: tfr.BatchNormalization(statistics="none"), ValueError, "statistics.*got 'none'"),
        (lambda: tfr.ActNorm(epsilon=-1.0), ValueError, "epsilon.*got -1.0"),
        (lambda: tfr.Squeeze(1), ValueError, "block_size.*got 1"),
        (lambda: tfr.Squeeze(order="other"), ValueError, "order.*got 'other'"),
        (lambda: tfr.FlowChain([tf.identity]), TypeError, "bijectors, got"),
        (
            lambda: tfr.FlowChain([_LOGIT_64]),
            TypeError,
            r"float32, got \('pixel_logit', tf.float64\)",
        ),
        (lambda: tfr.PixelLogit(0.0), ValueError, "alpha.*got 0.0"),
        (lambda: tfr.PixelLogit(num_values=1), ValueError, "num_values.*got 1"),
        (lambda: _image((8, 8, 3), num_scales=4), ValueError, r"num_scales=4 .*got \(8, 8, 3\)"),
        (lambda: _image((8, 8, 3), num_scales=0), ValueError, "num_scales.*got 0"),
        (lambda: _image((None, None, 3)), ValueError, "num_scales for images of unknown size, got"),
        (lambda: _image((8, 8)), ValueError, r"image_shape.*got \(8, 8\)"),
        (lambda: _image(normalization="layer"), ValueError, "normalization.*got 'layer'"),
        (lambda: _image(num_filters=0), ValueError, "num_filters.*got 0"),
        (lambda: _image(dtype=tf.bfloat16), TypeError, "dtype.*got bfloat16"),
        (lambda: _image(alpha=0.7, num_blocks=0, num_filters=2), ValueError, "alpha.*got 0.7"),
        (lambda: tfr.RealNVPImage.for_dataset("mnist"), ValueError, "cifar10.*got 'mnist'"),
        (lambda: tfr.ConvResNet(4, num_filters=0), ValueError, "num_filters.*got 0"),
        (lambda: tfr.ShallowConv(0), ValueError, "output_channels.*got 0"),
        (lambda: tfr.FlowModel(tf.identity), TypeError, "a tfd.Distribution, got"),
        (lambda: tfr.FlowModel(tfd.Normal(0.0, 1.0)), ValueError, r"event_shape=\[\]"),
        (lambda: tfr.FlowModel(_BATCH_OF_2), ValueError, r"batch_shape=\[2\]"),
    ],
)
def test_constructors(construct, error, match):
    with pytest.raises(error, match=match):
        construct()


def test_odd_channels_to_factor_out():
    with pytest.raises(ValueError, match=r"expected an even number of channels, got \(4, 4, 3\)"):
        tfr.FactorOut(tfb.Scale(2.0)).inverse(tf.zeros([1, 4, 4, 3]))


@pytest.mark.parametrize("make", [tfr.BatchNormalization, tfr.ActNorm])
def test_other_channels_to_a_normalization(make):
    bijector = make(num_channels=2)
    for hook in (bijector.inverse, bijector.forward):
        with pytest.raises(ValueError, match=r"height, width, 2\], got shape \(1, 4, 4, 3\)"):
            hook(tf.zeros([1, 4, 4, 3]))


def test_sizes_that_cannot_be_squeezed():
    squeeze = tfr.Squeeze(3)
    with pytest.raises(ValueError, match=r"height and width divisible by 3, got \(6, 4, 1\)"):
        squeeze.forward(tf.zeros([1, 6, 4, 1]))
    with pytest.raises(ValueError, match=r"a multiple of 9 channels to un-squeeze, got \(2, 2, 4"):
        squeeze.inverse(tf.zeros([1, 2, 2, 4]))
    with pytest.raises(ValueError, match="divisible by 3"):
        squeeze.forward_event_shape([6, 4, 1])
    with pytest.raises(ValueError, match="a multiple of 9 channels"):
        squeeze.inverse_event_shape([2, 2, 4])


def test_latents_of_another_number_of_scales(flow):
    with pytest.raises(ValueError, match="expected latents of 2 scales, got 1"):
        flow.merge_latents([tf.zeros([1, *_SHAPE])])
    with pytest.raises(ValueError, match=r"expected images \[..., height, width, 2\]"):
        flow.split_latents(tf.zeros([1, 4, 4, 3]))

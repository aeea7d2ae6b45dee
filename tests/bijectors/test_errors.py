"""Errors say what was expected and what came."""

import re

import flow_testing as ft
import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_probability import bijectors as tfb
from tensorflow_probability import distributions as tfd

import tfp_realnvp as tfr
from tfp_realnvp.bijectors import BijectorCoupling
from tfp_realnvp.networks.attention import SelfAttention

pytestmark = pytest.mark.quick


_SHAPE = (4, 4, 2)


@pytest.fixture(scope="module")
def flow():
    return ft.image_flow(_SHAPE, num_couplings=1, network_fn=ft.convolution)


# Values.


@pytest.mark.parametrize("hook", ["forward", "inverse"])
@pytest.mark.parametrize("log_det", [False, True])
def test_wrong_channels_and_keywords(flow, hook, log_det):
    call = getattr(flow, f"{hook}_log_det_jacobian" if log_det else hook)
    with pytest.raises(ValueError, match=r"height, width, 2\], got shape \(1, 4, 4, 3\)"):
        call(tf.zeros([1, 4, 4, 3]))
    with pytest.raises(TypeError, match="'trainning', did you mean 'training'"):
        call(tf.zeros([1, *_SHAPE]), trainning=True)


@pytest.mark.parametrize("size", [(4, 5), (5, 4)])
def test_a_size_that_the_scales_cannot_squeeze(flow, size):
    with pytest.raises(ValueError, match=rf"divisible by 2, for 2 scales, got shape \({size[0]}, "):
        flow.inverse(tf.zeros([1, *size, 2]))


@pytest.mark.parametrize("dtype", [tf.uint8, tf.int32, tf.float64, tf.float16])
def test_another_dtype_is_never_cast(flow, dtype):
    with pytest.raises(TypeError, match=rf"expected float32 values, got {dtype.name}"):
        flow.inverse(tf.zeros([1, *_SHAPE], dtype))
    distribution = tfd.TransformedDistribution(ft.standard_normal(_SHAPE), flow)
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


def test_a_base_of_scalars():
    match = r"expected a distribution of \(2,\) events, got scalars; .*`(.*)`, or .*`(.*)`"
    flow, bases = ft.vector_flow(2), [tfd.Normal(0.0, 1.0), tfd.Normal([0.0, 0.0], 1.0)]
    for number, base in enumerate(bases, 1):
        scalars = tfd.TransformedDistribution(base, flow)
        with pytest.raises(ValueError, match=match) as error:
            scalars.log_prob(tf.zeros([3, 2]))
        call = re.search(match, str(error.value)).group(number)
        events = eval(call, {"tfd": tfd, "base": base, "event_shape": [2]})
        assert tfd.TransformedDistribution(events, flow).sample(3).shape == [3, 2]


def test_a_base_of_another_dtype():
    base = tfd.MultivariateNormalDiag(np.zeros(2))
    match = "expected a distribution of dtype float32, got float64; .* `dtype='float64'`"
    with pytest.raises(TypeError, match=match):
        tfd.TransformedDistribution(base, tfr.RealNVPVector(2, num_couplings=1))
    flow = tfr.RealNVPVector(2, num_couplings=1, dtype="float64")
    assert tfd.TransformedDistribution(base, flow).sample(3).dtype == tf.float64


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
        tfr.Squeeze(),
        tfr.FlowChain([tfr.PixelLogit()]),
        tfr.AffineCoupling(tfr.CheckerboardMask(0), lambda x: tf.concat([x, x], -1)),
        tfb.Invert(tfr.PixelLogit()),
    ],
    ids=lambda bijector: bijector.name,
)
def test_conditional_input_that_nobody_takes(bijector):
    with pytest.raises(ValueError, match="got a `conditional_input`, but no network here takes"):
        bijector.forward(tf.zeros([1, *_SHAPE]), conditional_input=tf.zeros([1, 2]))


@pytest.mark.parametrize("training", ["yes", 3, tf.constant(True)], ids=repr)
def test_training_is_a_python_bool(flow, training):
    with pytest.raises(TypeError, match="expected a Python bool as `training`, got"):
        flow.inverse(tf.zeros([1, *_SHAPE]), training=training)


# Constructors.


def _coupling(network=tf.identity, mask=None, **kwargs):
    return tfr.AffineCoupling(mask or tfr.ChannelMask(), network, **kwargs)


def _image(image_shape=(8, 8, 3), **kwargs):
    return tfr.RealNVPImage(image_shape, **kwargs)


def _vector(event_size=3, **kwargs):
    return tfr.RealNVPVector(event_size, num_filters=4, **kwargs)


def _jet(image_shape=(4, 4, 2), **kwargs):
    return tfr.RealNVPImage.jet(image_shape, patch_size=2, num_blocks=1, width=4, **kwargs)


_LOGIT_64 = tfr.PixelLogit(dtype=tf.float64)
_BOARD, _HALF = tfr.CheckerboardMask(), tfr.ChannelMask()
_NOISE, _EITHER = tfr.VariationalDequantization, "either a conditional_event_shape or num_classes"
_NO_CONDITION = "expected a network whose call has an argument `conditional_input`, got"
_SPLINE, _MIXTURE, _MOMENTS = tfr.RationalQuadraticSpline, tfr.LogisticMixture, tfr.Standardization
_BATCH_OF_2 = tfd.Sample(tfd.Normal([0.0, 1.0], 1.0), [4, 4, 1])


@pytest.mark.parametrize(
    ("construct", "error", "match"),
    [
        (lambda: _coupling(dtype=tf.float16), TypeError, "dtype.*got float16"),
        (lambda: _coupling(mask=tfr.CheckerboardMask), TypeError, "CheckerboardMask.*got <class"),
        (lambda: _coupling(scale=float("nan")), ValueError, "scale.*got nan"),
        (lambda: tfr.BatchNormalization(1.0), ValueError, "momentum.*got 1.0"),
        (lambda: tfr.BatchNormalization("0.9"), TypeError, "momentum.*got '0.9'"),
        (lambda: tfr.ActNorm(epsilon=None), TypeError, "epsilon.*got None"),
        (lambda: tfr.BatchNormalization(epsilon=1e-50), ValueError, "epsilon.*got 1e-50"),
        (lambda: tfr.BatchNormalization(statistics="none"), ValueError, "statistics.*got 'none'"),
        (lambda: tfr.ActNorm(epsilon=-1.0), ValueError, "epsilon.*got -1.0"),
        (lambda: tfr.Squeeze(1), ValueError, "block_size.*got 1"),
        (lambda: tfr.Squeeze(order="other"), ValueError, "order.*got 'other'"),
        (lambda: tfr.FlowChain([tf.identity]), TypeError, "bijectors, got"),
        (lambda: tfr.FlowChain([_LOGIT_64]), TypeError, r"float32, got \('pixel_logit', tf.float6"),
        (lambda: tfr.PixelLogit(0.0), ValueError, "alpha.*got 0.0"),
        (lambda: tfr.PixelLogit(num_values=1), ValueError, "num_values.*got 1"),
        (lambda: _image((8, 8, 3), num_scales=4), ValueError, r"num_scales=4, got \(8, 8, 3\)"),
        (lambda: _image((8, 8, 3), num_scales=0), ValueError, "num_scales.*got 0"),
        (lambda: _image((None, None, 3)), ValueError, "num_scales for images of unknown size, got"),
        (lambda: _image((8, 8)), ValueError, r"image_shape.*got \(8, 8\)"),
        (lambda: _image(normalization="layer"), ValueError, "normalization.*got 'layer'"),
        (lambda: tfr.RealNVPImage.for_dataset("mnist"), ValueError, "cifar10.*got 'mnist'"),
        (lambda: tfr.ConvResNet(4, num_filters=0), ValueError, "num_filters.*got 0"),
        (lambda: tfr.ShallowConv(0), ValueError, "output_channels.*got 0"),
        (lambda: tfr.FlowModel(tf.identity), TypeError, "a tfd.Distribution, such as"),
        (lambda: tfr.FlowModel(tfd.Normal(0.0, 1.0)), ValueError, r"event_shape=\[\]"),
        (lambda: tfr.FlowModel(_BATCH_OF_2), ValueError, r"batch_shape=\[2\]"),
        (lambda: tfr.InvertibleConv1x1(0), ValueError, "num_channels of at least 1, got 0"),
        (lambda: tfr.ActNorm(event_ndims=2), ValueError, "event_ndims of 1 or 3, got 2"),
        *(
            (lambda order=order: tfr.ChannelMask(permutation=order), ValueError, "permutation of 0")
            for order in ([0, 2], [0, 0, 1], [1, 2, 3])
        ),
        *(
            (lambda kind=kind, parity=parity: kind(parity), ValueError, "parity: expected 0 or 1")
            for kind in (tfr.CheckerboardMask, tfr.ChannelMask)
            for parity in (0.5, 2, -1, "0", None, [0, 1])
        ),
        # Transformers.
        (lambda: _SPLINE(1), ValueError, "expected num_bins of at least 2, got 1"),
        (lambda: _SPLINE(bound=0.0), ValueError, "expected a positive bound, got 0.0"),
        (lambda: _SPLINE(4, min_bin_size=0.25), ValueError, "a min_bin_size in .*, got 0.25"),
        (lambda: _MIXTURE(0), ValueError, "expected num_components of at least 1, got 0"),
        (lambda: _MIXTURE(max_log_factor=0.0), ValueError, "positive max_log_factor, got 0.0"),
        (lambda: _image(transformer="cubic"), ValueError, "a transformer, one of .*, got 'cubic'"),
        (lambda: tfr.Coupling(tfr.ChannelMask(), len, "a"), TypeError, "a Transformer, got 'a'"),
        (lambda: tfr.Coupling(_HALF, len, None), TypeError, "`tfr.BijectorCoupling`, got None"),
        (lambda: BijectorCoupling(_BOARD, len), ValueError, "without kept positions.*Checkerboard"),
        # Vectors.
        (lambda: _vector(0), ValueError, "event_size of at least 1, got 0"),
        (lambda: _vector(num_couplings=0), ValueError, "num_couplings of at least 1, got 0"),
        (lambda: _vector(num_blocks=-1), ValueError, "num_blocks of at least 0, got -1"),
        (lambda: _vector(mixing="random"), ValueError, "a mixing, one of .*got 'random'"),
        (lambda: _vector(activation=tf.nn.relu), TypeError, "the name of an activation, got <"),
        (lambda: _vector(activation="swoosh"), ValueError, "swoosh"),
        (lambda: _vector(conditional_event_shape=[4, 4, 1]), ValueError, r"\[K\] of vectors, got"),
        (lambda: _MOMENTS([0.0, 1.0], [1.0]), ValueError, "vectors of equal length"),
        (lambda: _MOMENTS([0.0], [0.0]), ValueError, "positive standard deviations"),
        (lambda: _MOMENTS([np.nan], [1.0]), ValueError, "finite means"),
        *(
            (lambda data=data: _MOMENTS.of(data), ValueError, r"expected finite data \[N, D\]")
            for data in (np.zeros([0, 3]), np.zeros([3]), np.full([2, 2], np.inf))
        ),
        # Conditions.
        (lambda: _image(num_classes=3, conditional_event_shape=[3]), ValueError, _EITHER),
        (lambda: _image(condition_dropout=0.1), ValueError, "only with a condition, got 0.1"),
        (lambda: _image(num_classes=3, condition_dropout=1), ValueError, r"\[0, 1\), got 1"),
        (lambda: _image(num_classes=-1), ValueError, "num_classes of at least 1, got -1"),
        (lambda: _image(conditional_event_shape=[3, 4]), ValueError, r"K\], got \(3, 4\)"),
        (lambda: _image(num_classes=3, network_fn=ft.convolution), ValueError, _NO_CONDITION),
        *(
            (
                lambda shape=shape: tfr.ConvResNet(2, conditional_event_shape=shape),
                (TypeError, ValueError),
                r"expected a conditional_event_shape \[K\] or \[H, W, K\], got",
            )
            for shape in [(), (2, 3), (3, 4, None), (0,), "x", 3, (1.5,)]
        ),
        # Networks and whole flows.
        *(
            (lambda make=make, n=n: make(n), ValueError, "attention.*: .*num_heads of at least 1")
            for make in (SelfAttention, lambda n: tfr.ConvResNet(2, num_heads=n))
            for n in (-1, 1.5)
        ),
        (lambda: tfr.VisionTransformer(6, 2, 8, num_heads=3), ValueError, r"heads, got \(8, 3\)"),
        (lambda: _NOISE(_SHAPE, num_values=1), ValueError, "num_values of at least 2, got 1"),
        *(
            (lambda shape=shape: _jet(shape), ValueError, "known height and width divisible by 4")
            for shape in [(6, 4, 2), (None, 4, 2), (4, 6, 2)]
        ),
        (lambda: _jet(num_couplings=0), ValueError, r"expected at least one mask, got \[\]"),
    ],
)
def test_constructors(construct, error, match):
    with pytest.raises(error, match=match):
        construct()


def test_odd_channels_to_factor_out():
    with pytest.raises(ValueError, match=r"expected an even number of channels, got \(4, 4, 3\)"):
        tfr.FactorOut(tfb.Scale(2.0)).inverse(tf.zeros([1, 4, 4, 3]))


@pytest.mark.parametrize("make", [tfr.BatchNormalization, tfr.ActNorm, tfr.InvertibleConv1x1])
def test_channels_of_another_number(make):
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

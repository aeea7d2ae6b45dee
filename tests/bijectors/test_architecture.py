import dataclasses
import inspect
import pathlib

import flow_testing as ft
import keras
import numpy as np
import pytest
import tensorflow as tf

import tfp_realnvp as tfr
from tfp_realnvp.bijectors import architecture, options
from tfp_realnvp.bijectors.multi_scale import shallow_conv
from tfp_realnvp.networks import ConditionEmbedding

pytestmark = pytest.mark.quick

_SHAPE = (4, 4, 1)


def _image(**kwargs):
    return tfr.RealNVPImage(_SHAPE, 1, num_filters=2, **kwargs)


def _vector(**kwargs):
    return tfr.RealNVPVector(2, num_couplings=1, num_filters=2, **kwargs)


def _dense(*, output_channels, **_):
    return lambda x: tf.tile(x, [1, output_channels])


def _shift(*, output_channels, **_):
    return lambda x: tf.tile(x[..., :1], [1, 1, 1, output_channels])


def _one(**kwargs):
    return tfr.RealNVPVector(1, num_couplings=1, num_filters=2, **kwargs)


def _jet(**kwargs):
    return tfr.RealNVPImage.jet(_SHAPE, patch_size=2, num_blocks=1, **kwargs)


def _noise(**kwargs):
    return tfr.VariationalDequantization(_SHAPE, num_couplings=1, num_filters=2, **kwargs)


def _affine(**kwargs):
    return tfr.AffineCoupling(tfr.ChannelMask(), lambda x: x, **kwargs)


def _conditional(size):
    network = tfr.ShallowConv(2, 2, conditional_event_shape=[3])
    return tfr.AffineCoupling(tfr.ChannelMask(), network, conditional_event_shape=[size])


def _shared(make, name):
    variables = getattr(make(num_channels=2), name)
    return make(num_channels=3, **{name: variables})


@pytest.mark.parametrize(
    ("make", "option"),
    [
        (lambda: _image(use_scale=False, transformer="logistic_mixture"), "use_scale"),
        (lambda: _image(use_scale=False, transformer=tfr.Additive), "use_scale"),
        (lambda: _vector(use_scale=False, transformer="rational_quadratic_spline"), "use_scale"),
        (lambda: _image(num_blocks=8, network_fn=shallow_conv), "num_blocks"),
        (lambda: tfr.RealNVPImage.compact(_SHAPE, num_blocks=8), "num_blocks"),
        (lambda: _vector(num_blocks=1, network_fn=_dense), "num_blocks"),
        (lambda: _vector(activation="swish", network_fn=_dense), "activation"),
        (lambda: _image(momentum=0.5, normalization="actnorm"), "momentum"),
        (lambda: _vector(momentum=0.5), "momentum"),
        (lambda: _image(embedding_size=8), "embedding_size"),
        (lambda: _image(embedding_size=8, conditional_event_shape=[4, 4, 1]), "embedding_size"),
        (lambda: _vector(condition_dropout=0.1), "condition_dropout"),
        (lambda: _image(patch_size=2), "patch_size"),
        (lambda: _image(scale_pixels=True), "scale_pixels only with alpha=None, got True"),
        (lambda: _image(split_prior=True), "split_prior only with several scales, got True"),
        (lambda: _image(num_channel_couplings=2), "num_channel_couplings only with several"),
        (lambda: _image(filter_growth=2.0), "filter_growth only with several scales, got 2.0"),
        (lambda: _image(attention=2), "attention only with several scales, or with masks, got 2"),
        (lambda: _image(alpha=None, num_values=17), "num_values only with an alpha or scale_pix"),
        (lambda: _image(alpha=None, num_values=256), "num_values only with an alpha or scale_pix"),
        (lambda: _image(momentum=0.5, normalization=None), "momentum only with normalization='bat"),
        (lambda: tfr.RealNVPImage.compact(_SHAPE, momentum=0.5), "momentum only with norm"),
        (lambda: tfr.RealNVPImage.jet((8, 8, 1), momentum=0.5), "momentum only with norm"),
        (lambda: _image(use_scale=True, transformer="additive"), "use_scale only without a trans"),
        (lambda: _image(masks=[tfr.ChannelMask()], attention=0), "attention of at least 1 with m"),
        (lambda: _image(masks=[tfr.ChannelMask()], filter_growth=1.5), "filter_growth only with"),
        (lambda: tfr.RealNVPImage.compact((15, 15, 1), split_prior=True), "split_prior only with"),
        (lambda: _image(network_fn=_shift, recompute=True), "recompute only with networks that"),
        (lambda: _one(mixing="permutation"), "mixing only with several elements, or 'lu', got 'p"),
        (lambda: _jet(width=8, num_filters=8), "either width or num_filters, got 8 and 8"),
        (lambda: _jet(num_heads=2, attention=2), "either num_heads or attention, got 2 and 2"),
        (lambda: _jet(num_couplings=2, masks=[tfr.ChannelMask()]), "either num_couplings or mas"),
        (lambda: _noise(alpha=0.05), "no alpha, the condition is .* got 0.05"),
        (lambda: _noise(num_classes=3), "no num_classes, the condition is .* got 3"),
        (lambda: _noise(condition_dropout=0.1), "no condition_dropout, .* got 0.1"),
        (lambda: _noise(split_prior=True), "split_prior only with several scales"),
        (lambda: _affine(use_scale=False, scale=0.5), "a scale only with use_scale=True, got 0.5"),
        (lambda: _affine(conditional_event_shape=[3]), "an argument `conditional_input`"),
        (lambda: _conditional(4), r"conditional_event_shape of the network, \(3,\), got \(4,\)"),
        (
            lambda: _shared(tfr.BatchNormalization, "moving"),
            "moving of 3 channels.* got 2",
        ),
        (lambda: _shared(tfr.ActNorm, "learned"), "expected learned of 3 channels.*, got 2"),
        (lambda: _shared(tfr.InvertibleConv1x1, "factors"), r"factors of float32.*\[3, 3\]"),
        (lambda: ConditionEmbedding([4, 4, 1], size=8), "size only of the embedding of labels"),
        (lambda: tfr.DenseResNet(2, checkerboard_parity=0), "no checkerboard_parity, a DenseRes"),
        (lambda: tfr.VisionTransformer(2, checkerboard_parity=1), "no checkerboard_parity, a Vis"),
        (lambda: tfr.FlowChain([tfr.PixelLogit()], recompute=True), "recompute only with networks"),
        (lambda: _image(masks=[tfr.ChannelMask()], num_couplings=2), "num_couplings"),
        (lambda: tfr.RealNVPImage.jet(_SHAPE, patch_size=2, split_prior=True), "split_prior"),
    ],
)
def test_an_option_that_does_not_apply_is_an_error(make, option):
    with pytest.raises(ValueError, match=option):
        make()


@pytest.mark.parametrize(
    "make",
    [
        lambda: _image(split_prior=False, num_channel_couplings=0, attention=0, patch_size=1),
        lambda: tfr.RealNVPImage(_SHAPE, 2, num_filters=2, split_prior=True, attention=1),
        lambda: tfr.RealNVPImage.compact((15, 15, 1), num_filters=2, num_couplings=1),
        lambda: tfr.RealNVPImage.compact(_SHAPE, num_scales=1, num_filters=2, num_couplings=1),
        lambda: _image(alpha=None, scale_pixels=True, num_values=17),
        lambda: _jet(num_couplings=1, num_filters=8, attention=2, normalization="actnorm"),
        lambda: _image(masks=[tfr.ChannelMask(num_first=0)], attention=0, network_fn=_shift),
        lambda: _one(mixing="lu"),
        lambda: _noise(alpha=None, scale_pixels=False, num_scales=2, split_prior=True),
    ],
)
def test_an_option_that_says_what_is_the_case_is_taken(make):
    assert make() is not None


def test_a_copy_leaves_out_options_that_its_own_make_useless():
    flow = ft.randomize(_image(num_values=16))
    copy = flow.copy(alpha=None)
    assert (flow.get_config()["num_values"], copy.get_config()["num_values"]) == (16, None)
    x = ft.normal([2, *_SHAPE])
    logits = tfr.PixelLogit(0.05, 16).inverse(flow.forward(x))
    np.testing.assert_allclose(copy.forward(x), logits, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="num_values only with an alpha or scale_pixels, got 17"):
        flow.copy(alpha=None, num_values=17)


def test_masks_have_heads_by_default_and_only_transformers_need_them():
    flow = tfr.RealNVPImage(_SHAPE, num_filters=8, masks=[tfr.ChannelMask(num_first=0)])
    assert flow.get_config()["attention"] == 8
    assert (
        _image(masks=[tfr.ChannelMask(num_first=0)], network_fn=_shift).get_config()["attention"]
        == 0
    )


def test_the_table_of_the_options_page_is_that_of_the_checks():
    page = pathlib.Path(__file__).parents[2] / "docs" / "options.md"
    flows = {
        "RealNVPImage": architecture.ImageArchitecture.options,
        "RealNVPVector": architecture.VectorArchitecture.options,
    }
    assert options.markdown_table(flows) in page.read_text()
    for name, table in flows.items():
        arguments = set(inspect.signature(getattr(tfr, name)).parameters)
        others = {"flow", "dtype", "validate_args", "name"}
        assert {option.name for option in table} == arguments - others


def test_additive_couplings_by_either_name():
    flows = []
    for kwargs in ({"use_scale": False}, {"transformer": "additive"}):
        keras.utils.set_random_seed(0)
        flows.append(ft.randomize(_image(**kwargs)))
    by_flag, by_name = flows
    assert by_flag.architecture == by_name.architecture
    x = ft.pixels([3, *_SHAPE])
    for ours, theirs in zip(
        by_flag.inverse_and_log_det(x), by_name.inverse_and_log_det(x), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("make", [_image, _vector])
def test_every_option_is_compared_before_networks_are_shared(make):
    flow = make()
    assert make(flow=flow.flow).architecture == flow.architecture
    with pytest.raises(ValueError, match=r"num_couplings.*5"):
        type(flow)(**{**flow.get_config(), "num_couplings": 5, "flow": flow.flow})
    names = {field.name for field in dataclasses.fields(flow.architecture)}
    not_compared = {"alpha", "num_values", "scale_pixels", "standardization", "recompute"}
    not_compared |= {"validate_args", "name"}
    # Said in other words: `transformer`, `condition`.
    renamed = {"use_scale", "conditional_event_shape", "num_classes", "condition_dropout"}
    assert {*flow.parameters} - names - not_compared - renamed == {"flow"}


def test_equal_options_in_other_words():
    flow = _image(conditional_event_shape=[3])
    again = _image(conditional_event_shape=(3,), embedding_size=64, flow=flow.flow)
    assert again.architecture == flow.architecture
    assert hash(again.architecture) == hash(flow.architecture)

"""Options of whole flows: what has no effect is an error, what does not exist as well."""

import inspect
import math

import flow_testing as ft
import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_probability import bijectors as tfb

import tfp_realnvp as tfr

pytestmark = pytest.mark.quick

_SHAPE = (4, 4, 1)


def _image(**kwargs):
    return tfr.RealNVPImage(_SHAPE, 1, num_filters=2, **kwargs)


def _vector(**kwargs):
    return tfr.RealNVPVector(2, num_couplings=1, num_filters=2, **kwargs)


def _dense(*, output_channels, **_):
    return lambda x: tf.tile(x, [1, output_channels])


def _one(**kwargs):
    return tfr.RealNVPVector(1, num_couplings=1, num_filters=2, **kwargs)


def _layer(**kwargs):
    return tfr.coupling_layer(ft.shallow_conv, 2, **kwargs)


def _multi_scale(num_scales=2, **kwargs):
    return tfr.multi_scale(_SHAPE, num_scales, _layer(), **kwargs)


def _noise(**kwargs):
    return tfr.VariationalDequantization(_SHAPE, num_couplings=1, num_filters=2, **kwargs)


def _noise_of(**kwargs):
    bijector = _multi_scale(1, conditional_event_shape=_SHAPE)
    return tfr.VariationalDequantization(_SHAPE, bijector=bijector, **kwargs)


def _affine(**kwargs):
    return tfr.AffineCoupling(tfr.ChannelMask(), lambda x: x, **kwargs)


def _conditional(size):
    network = tfr.ShallowConv(2, 2, conditional_event_shape=[3])
    return tfr.AffineCoupling(tfr.ChannelMask(), network, conditional_event_shape=[size])


@pytest.mark.parametrize(
    ("make", "option"),
    [
        (lambda: _image(num_blocks=8, network_fn=ft.shallow_conv), "num_blocks"),
        (lambda: _vector(num_blocks=1, network_fn=_dense), "num_blocks"),
        (lambda: _vector(activation="swish", network_fn=_dense), "activation"),
        (lambda: _image(embedding_size=8), "embedding_size"),
        (lambda: _vector(condition_dropout=0.1), "condition_dropout"),
        (lambda: _image(embedding_size=8, conditional_event_shape=[4, 4, 2]), "labels or vectors"),
        (lambda: _image(filter_growth=9.0), "filter_growth only with several scales, got 9.0"),
        (lambda: _noise_of(num_scales=2), "num_scales only without a bijector, got 2"),
        (lambda: _noise_of(recompute=True), "recompute only without a bijector, got True"),
        (lambda: _image(split_prior=True), "split_prior only with several scales, got True"),
        (lambda: _image(num_channel_couplings=2), "num_channel_couplings only with several"),
        (lambda: _image(attention=2), "attention only with several scales, got 2"),
        (lambda: tfr.RealNVPImage.compact(_SHAPE, num_blocks=8), "num_blocks only with the def"),
        (lambda: _layer(momentum=0.5), "momentum only with normalization='batch', got 0.5"),
        (lambda: _multi_scale(1, prior=_layer()), "prior only with several scales"),
        (lambda: _image(alpha=None, num_values=17), "num_values only with an alpha, got"),
        (lambda: _one(mixing="permutation"), "event_size of at least 2 for .*, got 1"),
        (lambda: _affine(use_scale=False, scale=0.5), "a scale only with use_scale=True, got 0.5"),
        (lambda: _affine(conditional_event_shape=[3]), "an argument `conditional_input`"),
        (lambda: _conditional(4), r"conditional_event_shape of the network, \(3,\), got \(4,\)"),
        (lambda: tfr.DenseResNet(2, checkerboard_parity=0), "parity, which a DenseResNet does"),
        (lambda: tfr.FlowChain([_affine()], recompute=True), "recompute only with networks that"),
    ],
)
def test_an_option_that_does_not_apply_is_an_error(make, option):
    with pytest.raises(ValueError, match=option):
        make()


@pytest.mark.parametrize(
    "make",
    [
        lambda: _image(split_prior=False, attention=0),
        lambda: tfr.RealNVPImage(_SHAPE, 2, num_filters=2, split_prior=True, attention=1),
        lambda: tfr.RealNVPImage.compact(_SHAPE, num_scales=1, num_filters=2, num_couplings=1),
        lambda: _one(mixing="lu"),
    ],
)
def test_an_option_that_says_what_is_the_case_is_taken(make):
    assert make() is not None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: _image(masks=[tfr.ChannelMask()]), "unexpected keyword argument 'masks'"),
        (lambda: _image(use_scale=False), "unexpected keyword argument 'use_scale'"),
        (lambda: _vector(momentum=0.5), "unexpected keyword argument 'momentum'"),
        (lambda: tfr.RealNVPImage.jet(_SHAPE, split_prior=1), "unexpected .*nt 'split_prior'"),
        (lambda: _multi_scale(num_classes=3, num_heads=2), "unexpected .* argument 'num_heads'"),
        (lambda: _noise(alpha=0.05), "unexpected keyword argument 'alpha'"),
        (lambda: _vector(hidden_layers=[64]), "RealNVPVector got .*'hidden_layers'.*num_filters"),
        (lambda: _vector(num_coupling=8), "'num_coupling', did you mean 'num_couplings'"),
        (lambda: tfr.FlowModel(None, dequantise=1), "FlowModel got .*, did you mean 'dequantize'"),
        (lambda: _image(num_class=8), "RealNVPImage got .*'num_class', did you mean 'num_classes'"),
        (lambda: tfr.RealNVPImage.compact(_SHAPE, nfilters=8), "compact got .*'num_filters'"),
        (lambda: tfr.RealNVPImage.jet(_SHAPE, depth=8), r"\.jet got .*'depth'\. It takes .*width"),
    ],
)
def test_an_unknown_option_names_those_that_exist(make, message):
    with pytest.raises(TypeError, match=message):
        make()


def test_signatures_name_the_arguments():
    classes = [each for each in map(tfr.__dict__.get, tfr.__all__) if inspect.isclass(each)]
    hidden = [each for each in classes if "*args" in str(inspect.signature(each))]
    assert len(classes) > 30 and hidden == [tfr.ClassMixture]  # as in TFP's mixtures


def test_the_models_are_compositions_of_the_same_functions():
    """A composition that is written by hand has the weights and the results of `compact`."""
    keras.utils.set_random_seed(0)
    compact = tfr.RealNVPImage.compact((8, 8, 1), 2, num_filters=4, num_couplings=1, attention=2)
    keras.utils.set_random_seed(0)
    widths = {"num_filters": 4, "filter_growth": 1.25, "attention": 2}
    layer = tfr.coupling_layer(ft.shallow_conv, **widths, normalization="actnorm", mixing="lu")
    prior = tfr.coupling_layer(ft.shallow_conv, **widths)
    pixels = tfr.PixelLogit(0.05)
    composed = tfr.multi_scale((8, 8, 1), 2, layer, num_couplings=1, prior=prior, pixels=pixels)
    assert len(composed.variables) == len(compact.variables)
    x = ft.pixels([2, 8, 8, 1])
    ft.assert_equal(*[ft.randomize(flow).inverse_and_log_det(x) for flow in (compact, composed)])
    assert isinstance(compact, tfr.RealNVPImage)


def test_options_of_a_layer_reach_its_parts():
    options = {"momentum": 0.5, "attention": 3, "filter_growth": 1.5, "normalization": "batch"}
    [coupling, norm] = _layer(**options)(tfr.ChannelMask(), (None, None, 4), "layer", halvings=2)
    network = coupling.network
    assert norm.parameters["momentum"] == 0.5
    assert (network.num_heads, network.num_filters) == (3, round(2 * 1.5**2))


class _Square(tfr.RealNVPImage):
    """A user's model, whose constructor has other arguments."""

    def __init__(self, side=4):
        super().__init__((side, side, 1), num_scales=1, num_blocks=0, num_filters=4)


class _Pairs(tfr.RealNVPVector):
    def __init__(self):
        super().__init__(2, num_couplings=2, num_filters=4)


@pytest.mark.parametrize("make", [_Square, _Pairs])
def test_a_subclass_with_its_own_constructor(make):
    flow = ft.randomize(make())
    assert isinstance(flow, tfr.RealNVPImage if make is _Square else tfr.RealNVPVector)
    copy = flow.copy(validate_args=True)
    assert type(copy) is make and copy.validate_args and not flow.validate_args
    x = ft.pixels([3, 4, 4, 1]) if make is _Square else ft.normal([3, 2])
    np.testing.assert_array_equal(copy.inverse(x), flow.inverse(tf.identity(x)))
    assert {v.ref() for v in copy.variables} == {v.ref() for v in flow.variables}


@pytest.mark.parametrize(
    ("make", "name", "value"),
    [
        (_vector, "event_size", 4),
        (_vector, "dtype", tf.float64),
        (_image, "image_shape", (8, 8, 1)),
        (_image, "num_scales", 2),
        (_image, "num_couplings", 3),
    ],
)
def test_a_copy_replaces_no_shape_and_no_option_of_its_parts(make, name, value):
    flow = make()
    names = "bijectors, name, recompute, validate_args"
    with pytest.raises(TypeError, match=rf"{flow.name}.copy got .*'{name}'. It takes {names}\."):
        flow.copy(**{name: value})


def test_each_layer_has_a_permutation_of_its_own():
    layer = tfr.coupling_layer(ft.shallow_conv, 2, mixing="permutation")

    def orders(flow):
        return [tuple(p.permutation.numpy()) for p in flow.submodules if isinstance(p, tfb.Permute)]

    for make in (
        lambda: tfr.multi_scale((8, 8, 4), 2, layer, num_couplings=8, prior=layer),
        lambda: tfr.patch_flow((4, 4, 8), 1, [tfr.ChannelMask(i % 2) for i in range(20)], layer),
    ):
        found = orders(make())
        assert found == orders(make())  # in each process
        by_size = {}
        for order in found:
            by_size.setdefault(len(order), []).append(order)
        for size, group in by_size.items():
            assert len(set(group)) > 0.7 * min(len(group), math.factorial(size)), (size, group)

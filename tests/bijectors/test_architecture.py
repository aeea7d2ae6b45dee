import dataclasses

import flow_testing as ft
import keras
import numpy as np
import pytest
import tensorflow as tf

import tfp_realnvp as tfr
from tfp_realnvp.bijectors.multi_scale import shallow_conv

_SHAPE = (4, 4, 1)


def _image(**kwargs):
    return tfr.RealNVPImage(_SHAPE, 1, num_filters=2, **kwargs)


def _vector(**kwargs):
    return tfr.RealNVPVector(2, num_couplings=1, num_filters=2, **kwargs)


def _dense(*, output_channels, **_):
    return lambda x: tf.tile(x, [1, output_channels])


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
        (lambda: _image(scale_pixels=True), "alpha=None with scale_pixels"),
        (lambda: _image(masks=[tfr.ChannelMask()], num_couplings=2), "num_couplings"),
        (lambda: tfr.RealNVPImage.jet(_SHAPE, patch_size=2, split_prior=True), "split_prior"),
    ],
)
def test_an_option_that_does_not_apply_is_an_error(make, option):
    with pytest.raises(ValueError, match=option):
        make()


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
        type(flow)(**{**flow.config, "num_couplings": 5, "flow": flow.flow})
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

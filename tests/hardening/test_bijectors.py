"""Fuzz: compositions of bijectors, nested in any way, round trip with log dets that agree."""

import flow_testing as ft
import keras
import pytest
import tensorflow as tf
from hardening.bijector_checks import assert_bijective
from hardening.effort import cases
from hypothesis import given
from hypothesis import strategies as st
from tensorflow_probability import bijectors as tfb

import tfp_realnvp as tfr

pytestmark = pytest.mark.full


SEED = st.integers(0, 2**31 - 1)


@st.composite
def couplings(draw, channels, dtype):
    """Draws a function that makes a coupling, as `bijectors` does."""
    masks = [tfr.CheckerboardMask, tfr.ChannelMask] if channels % 2 == 0 else [tfr.CheckerboardMask]
    mask = draw(st.sampled_from(masks))(draw(st.sampled_from([0, 1])))
    changed = mask.changed_channels(channels)
    use_scale = draw(st.booleans())
    outputs = 2 * changed if use_scale else changed
    network = draw(
        st.sampled_from(
            [
                lambda: tfr.ShallowConv(outputs, 3, dtype=dtype.name),
                lambda: tfr.ConvResNet(outputs, 0, 3, dtype=dtype.name),
                lambda: keras.layers.Conv2D(outputs, 3, padding="same", dtype=dtype.name),
                lambda: lambda x: tf.sin(tf.tile(x, [1, 1, 1, outputs // x.shape[-1]])),
            ]
        )
    )
    return lambda: tfr.AffineCoupling(mask, network(), use_scale=use_scale, dtype=dtype)


@st.composite
def bijectors(draw, channels, dtype, depth=2):
    """Draws a function that makes a bijector of images with `channels`, which keeps their shape.

    A function: Keras draws seeds for initial weights, which hypothesis does not allow meanwhile.
    """
    kinds = ["coupling", "batch", "actnorm", "scale"]
    if depth:
        kinds += ["chain", "tfp_chain", "invert", "squeezed"]
        kinds += ["factor_out"] if channels % 2 == 0 else []
    kind = draw(st.sampled_from(kinds))
    if kind == "coupling":
        return draw(couplings(channels, dtype))
    if kind == "batch":
        return lambda: tfr.BatchNormalization(num_channels=channels, dtype=dtype)
    if kind == "actnorm":
        return lambda: tfr.ActNorm(num_channels=channels, dtype=dtype)
    if kind == "scale":
        factor = draw(st.sampled_from([-1.5, 0.7]))
        return lambda: tfb.Scale(tf.constant(factor, dtype))
    if kind == "squeezed":
        order = draw(st.sampled_from(["plain", "factor_out"]))
        inner = draw(bijectors(4 * channels, dtype, depth - 1))
        squeeze = tfr.Squeeze(order=order, dtype=dtype)
        return lambda: tfr.FlowChain([tfb.Invert(squeeze), inner(), squeeze], dtype=dtype)
    if kind == "factor_out":
        inner = draw(bijectors(channels // 2, dtype, depth - 1))
        return lambda: tfr.FactorOut(inner(), dtype=dtype)
    if kind == "invert":
        inner = draw(bijectors(channels, dtype, depth - 1))
        return lambda: tfb.Invert(inner())
    parts = draw(st.lists(bijectors(channels, dtype, depth - 1), max_size=3))
    if kind == "tfp_chain" and parts:
        return lambda: tfb.Chain([part() for part in parts])
    recompute = draw(st.booleans())
    return lambda: tfr.FlowChain([part() for part in parts], recompute=recompute, dtype=dtype)


@cases(quick=30, full=300)
@given(
    data=st.data(),
    channels=st.integers(1, 4),
    dtype=st.sampled_from([tf.float32, tf.float64]),
    is_pixels=st.booleans(),
    batch=st.lists(st.integers(1, 3), max_size=2),
    sides=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    seed=SEED,
)
def test_compositions(data, channels, dtype, is_pixels, batch, sides, seed):
    bijector = data.draw(bijectors(channels, dtype))()
    if is_pixels:
        bijector = tfr.FlowChain([tfr.PixelLogit(dtype=dtype), bijector], dtype=dtype)
    # Two levels of squeezing at most.
    shape = [*batch, 4 * sides[0], 4 * sides[1], channels]
    values = ft.pixels(shape, dtype, seed) if is_pixels else ft.normal(shape, dtype, seed)
    # A first call makes what is not built.
    bijector.inverse(values)
    ft.randomize(bijector, seed)
    assert_bijective(bijector, values, resolution=3e4)

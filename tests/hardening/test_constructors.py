"""Fuzz: whatever a constructor is given, it builds something valid or says what was expected."""

import flow_testing as ft
import numpy as np
import pytest
import tensorflow as tf
from hardening.bijector_checks import assert_bijective, built_or_refused
from hardening.effort import cases
from hypothesis import given
from hypothesis import strategies as st

import tfp_realnvp as tfr

pytestmark = pytest.mark.full

# No numbers that are large sizes: those are refused by the memory of a machine.
ODD = st.one_of(
    st.none(),
    st.text(max_size=3),
    st.integers(-3, 3),
    st.floats(max_value=8),
    st.lists(st.integers(0, 2), max_size=3),
    st.sampled_from([np.nan, np.inf, -0.0, 1e-300, True, np.float32(2.0), np.int64(1), b"x"]),
    st.sampled_from([(), (2,), {}, tf.float32, tfr.CheckerboardMask()]),
)
HUGE = st.sampled_from([10**30, 1e300, np.inf])
DTYPE = st.sampled_from([tf.float32, tf.float64, "float32", np.float64])


def mostly(valid):
    """Draws valid values in nine of ten cases, so that all arguments meet, or `ODD` ones."""
    return st.integers(0, 9).flatmap(lambda die: valid if die else ODD)


def arguments(**strategies):
    """Returns dictionaries with some of these arguments, mostly valid."""
    optional = {name: mostly(valid) for name, valid in strategies.items()}
    return st.fixed_dictionaries({}, optional=optional)


SEED = st.integers(0, 2**31 - 1)
SIZE = st.one_of(st.sampled_from([2, 4, 4, 8, 6, None]), st.integers(1, 9))


SMALL_SHAPE = st.lists(st.integers(1, 3), min_size=1, max_size=3)


def condition_of(flow, number, dtype):
    """Returns the keyword arguments with a condition for each image, if the flow takes one."""
    embedding = flow.condition_embedding
    if embedding is None:
        return {}
    if embedding.spec.num_classes is not None:
        return {"conditional_input": np.arange(number) % embedding.spec.num_classes}
    return {"conditional_input": ft.normal([number, *embedding.spec.event_shape], dtype)}


@cases(quick=25, full=200)
@given(
    image_shape=st.one_of(st.tuples(SIZE, SIZE, st.integers(1, 3)), ODD),
    options=arguments(
        num_scales=st.one_of(st.integers(1, 3), st.none(), HUGE),
        num_blocks=st.integers(0, 1),
        num_filters=st.integers(1, 4),
        num_couplings=st.integers(1, 2),
        num_channel_couplings=st.one_of(st.none(), st.integers(0, 2)),
        normalization=st.sampled_from(["batch", "actnorm", None]),
        transformer=st.sampled_from(["affine", "additive"]),
        attention=st.integers(0, 2),
        recompute=st.booleans(),
        alpha=st.one_of(st.none(), st.floats(1e-6, 0.45)),
        num_values=st.sampled_from([2, 16, 256, 65536]),
        dtype=DTYPE,
        validate_args=st.booleans(),
    ),
    condition=st.just({})
    | arguments(num_classes=st.integers(1, 3), condition_dropout=st.floats(0, 0.9))
    | arguments(conditional_event_shape=SMALL_SHAPE, embedding_size=st.integers(1, 3)),
    compact=st.booleans(),
    seed=SEED,
)
def test_image_flows(image_shape, options, condition, compact, seed):
    options = {"num_filters": 3, "num_couplings": 1, **options, **condition}
    # Options without effect are an error.
    if compact:
        for name in ("num_blocks", "normalization"):
            options.pop(name, None)
    else:
        options.setdefault("num_blocks", 0)
        if options.get("num_scales") == 1:
            for name in ("num_channel_couplings", "attention"):
                options.pop(name, None)
    make = tfr.RealNVPImage.compact if compact else tfr.RealNVPImage
    flow = built_or_refused(lambda: make(image_shape, **options))
    if flow is not None:
        ft.randomize(flow, seed)
        height, width, channels = flow.image_shape
        multiple = 2 ** (flow.num_scales - 1)
        shape = (2, height or 2 * multiple, width or multiple, channels)
        data = ft.pixels(shape, flow.dtype, seed) * (flow.num_values / 256)
        assert_bijective(flow, data, resolution=3e4, **condition_of(flow, 2, flow.dtype))

"""Fuzz: whatever a constructor is given, it builds something valid or says what was expected."""

import dataclasses
from typing import Any

import flow_testing as ft
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from hardening.bijector_checks import assert_bijective, built_or_refused
from hardening.effort import cases
from hypothesis import given
from hypothesis import strategies as st

import tfp_realnvp as tfr

pytestmark = pytest.mark.full

tfb, tfd = tfp.bijectors, tfp.distributions

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


@dataclasses.dataclass(frozen=True)
class Odd:
    """A value that an argument may refuse."""

    value: Any


def mostly(valid):
    """Draws valid values in nine of ten cases, so that all arguments meet, or `Odd` ones."""
    return st.integers(0, 9).flatmap(lambda die: valid if die else ODD.map(Odd))


def plain(drawn):
    """Returns what was drawn, a value or a dictionary, and whether all of it is valid."""
    if isinstance(drawn, Odd):
        return drawn.value, False
    if isinstance(drawn, dict):
        values = {key: plain(value) for key, value in drawn.items()}
        return {key: value for key, (value, _) in values.items()}, all(
            v for _, v in values.values()
        )
    return drawn, True


def arguments(**strategies):
    """Returns dictionaries with some of these arguments, mostly valid."""
    optional = {name: mostly(valid) for name, valid in strategies.items()}
    return st.fixed_dictionaries({}, optional=optional)


def assert_valid(bijector, shape, seed, num_values=None, **given):
    data = ft.normal(shape, bijector.dtype, seed)
    if num_values is not None:
        data = ft.pixels(shape, bijector.dtype, seed) * (num_values / 256)
    assert_bijective(bijector, data, resolution=3e4, **given)


SEED = st.integers(0, 2**31 - 1)
NORMALIZATION = st.sampled_from(["batch", "actnorm", None])
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
        normalization=NORMALIZATION,
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
    options, _ = plain({**options, **condition})
    options.setdefault("num_filters", 3)
    options.setdefault("num_couplings", 1)
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
        condition = condition_of(flow, 2, flow.dtype)
        assert_valid(flow, shape, seed, flow.num_values, **condition)


@cases(quick=40, full=200)
@given(
    options=arguments(
        alpha=st.floats(0, 0.5), num_values=st.integers(2, 300) | HUGE, dtype=DTYPE, name=st.text()
    ),
    seed=SEED,
)
def test_pixel_logit(options, seed):
    options, is_valid = plain(options)
    is_valid = (
        is_valid
        and "name" not in options
        and 1e-6 < options.get("alpha", 0.1) < 0.49
        and options.get("num_values", 2) <= 300
    )
    bijector = built_or_refused(lambda: tfr.PixelLogit(**options), is_valid)
    if bijector is not None:
        num_values = bijector.parameters["num_values"]
        assert_valid(bijector, (2, 3, 2, 1), seed, num_values)
        ends = tf.constant([0.0, num_values * (1 - 2.0**-20)], bijector.dtype)
        assert np.isfinite(bijector.inverse(ends[:, None, None, None])).all()


@cases(quick=40, full=200)
@given(
    options=arguments(
        block_size=st.integers(2, 4) | HUGE,
        order=st.sampled_from(["plain", "factor_out"]),
        dtype=DTYPE,
    ),
    size=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    seed=SEED,
)
def test_squeeze(options, size, seed):
    options, is_valid = plain(options)
    is_valid = is_valid and options.get("block_size", 2) < 5
    bijector = built_or_refused(lambda: tfr.Squeeze(**options), is_valid)
    if bijector is not None and bijector.block_size < 5:
        k = bijector.block_size
        assert_valid(bijector, (2, *size, 3 * k**2), seed)
        assert_valid(tfb.Invert(bijector), (2, k * size[0], k * size[1], 3), seed)


@cases(quick=40, full=200)
@given(
    make=st.sampled_from([tfr.BatchNormalization, tfr.ActNorm]),
    options=arguments(
        num_channels=st.integers(1, 4),
        epsilon=st.floats(1e-9, 1.0),
        momentum=st.floats(0, 0.99),
        statistics=st.sampled_from(["running", "batch"]),
        moving=st.none(),
        learned=st.none(),
        dtype=DTYPE,
    ),
    seed=SEED,
)
def test_normalizations(make, options, seed):
    foreign = {tfr.ActNorm: ("momentum", "statistics", "moving")}.get(make, ("learned",))
    options = {key: value for key, value in options.items() if key not in foreign}
    options, is_valid = plain(options)
    bijector = built_or_refused(lambda: make(**options), is_valid)
    if bijector is not None:
        shape = (3, 2, 2, int(bijector.parameters["num_channels"] or 2))
        bijector.inverse(ft.normal(shape, bijector.dtype, seed), training=True)
        assert_valid(bijector, shape, seed)


@cases(quick=25, full=200)
@given(
    mask=mostly(st.sampled_from([tfr.CheckerboardMask, tfr.ChannelMask])),
    parity=mostly(st.sampled_from([0, 1])),
    options=arguments(use_scale=st.booleans(), scale=st.floats(-1, 1), dtype=DTYPE),
    network=mostly(st.just(lambda x: tf.concat([x, tf.sin(3 * x)], axis=-1))),
    channels=st.integers(1, 4),
    seed=SEED,
)
def test_couplings(mask, parity, options, network, channels, seed):
    drawn = {"mask": mask, "parity": parity, "network": network, "options": options}
    drawn, is_valid = plain(drawn)
    mask, options = drawn["mask"], drawn["options"]
    if mask in (tfr.CheckerboardMask, tfr.ChannelMask):
        mask = built_or_refused(lambda make=mask: make(drawn["parity"]), is_valid)
    is_valid &= "scale" not in options or options.get("use_scale") is not False
    coupling = built_or_refused(
        lambda: tfr.AffineCoupling(mask, drawn["network"], **options), is_valid
    )
    if coupling is not None:
        x = ft.normal((2, 3, 2, channels), coupling.dtype, seed)
        # A mask of odd channels, a network of too many: said at the call.
        is_valid &= isinstance(mask, tfr.CheckerboardMask) and options.get("use_scale", True)
        if built_or_refused(lambda: coupling.inverse(x), is_valid) is not None:
            assert_valid(coupling, x.shape, seed)


@cases(quick=25, full=200)
@given(
    parts=mostly(
        st.lists(
            mostly(st.sampled_from([tfr.PixelLogit(), tfb.Scale(2.0), tfb.Invert(tfb.Exp())])),
            max_size=3,
        )
    ),
    options=arguments(recompute=st.booleans(), validate_args=st.booleans(), dtype=DTYPE),
)
def test_chains(parts, options):
    parts, parts_are_valid = plain(parts)
    options, is_valid = plain(options)
    if parts_are_valid:
        parts, are_valid = zip(*map(plain, parts), strict=True) if parts else ((), ())
        # The parts are of float32.
        is_float32 = "dtype" not in options or options["dtype"] in (tf.float32, "float32")
        # Only networks are computed again.
        is_valid = is_valid and all(are_valid) and is_float32 and not options.get("recompute")
    chain = built_or_refused(lambda: tfr.FlowChain(parts, **options), is_valid and parts_are_valid)
    if chain is not None:
        assert chain.bijectors == tuple(parts)
        assert all(part.dtype in (None, chain.dtype) for part in parts)


@cases(quick=25, full=200)
@given(
    layer=st.sampled_from([tfr.ConvResNet, tfr.ShallowConv]),
    options=arguments(
        output_channels=st.integers(-1, 3),
        num_blocks=st.integers(-1, 1),
        num_filters=st.integers(-1, 3),
        checkerboard_parity=st.sampled_from([None, 0, 1, 2]),
        conditional_event_shape=st.none() | SMALL_SHAPE,
        output_scale=st.floats(0, 1),
        momentum=st.floats(-0.1, 1.1),
        epsilon=st.floats(-0.1, 1),
    ),
    shape=st.tuples(*[st.integers(1, 3)] * 4),
)
def test_networks(layer, options, shape):
    names = {
        tfr.ConvResNet: "output_channels num_blocks num_filters checkerboard_parity "
        "conditional_event_shape output_scale momentum epsilon",
        tfr.ShallowConv: "output_channels num_filters checkerboard_parity conditional_event_shape",
    }[layer].split()
    defaults = {"output_channels": 2, "num_filters": 2}
    options, is_valid = plain({**defaults, **options})
    options = {key: value for key, value in options.items() if key in names}
    is_valid = is_valid and (
        min(options["output_channels"], options["num_filters"]) > 0
        and options.get("num_blocks", 0) >= 0
        and options.get("checkerboard_parity") != 2
        and len(options.get("conditional_event_shape") or [1]) != 2
        and 0 <= options.get("momentum", 0) < 1
        and options.get("epsilon", 1) > 0
    )

    def build():
        network = layer(**options)
        network.build((None, None, None, shape[-1]))
        return network

    network = built_or_refused(build, is_valid)
    if network is not None:
        inputs, condition = ft.normal(shape), {}
        event = network.conditional_event_shape
        if event is not None:
            # The height and width of the image.
            event = (*shape[1:3], event[-1]) if len(event) == 3 else event
            condition = {"conditional_input": ft.normal([shape[0], *event])}
        outputs = network(inputs, **condition)
        expected = (*shape[:-1], int(options["output_channels"]))
        assert outputs.shape == expected and np.isfinite(outputs).all()


FLOW = ft.flow_distribution((4, 4, 1), num_scales=1, num_blocks=0, num_couplings=1)
MODEL = tfr.FlowModel(FLOW)
MODEL.compile()


# From a name to a constructor or method, its necessary arguments, and others.
TRAINING = {
    "model": (tfr.FlowModel, {"distribution": st.just(FLOW)}, {"seed": SEED}),
    "compile": (
        MODEL.compile,
        {},
        {
            "optimizer": st.builds(
                tfr.FusedAdam, st.floats(1e-6, 1.0), global_clipnorm=st.floats(0.1, 10)
            ),
            "scale_l2": st.floats(0, 1),
        },
    ),
    "optimizer": (
        tfr.FusedAdam,
        {},
        {
            "beta_1": st.floats(0, 0.99),
            "beta_2": st.floats(0, 0.99),
            "epsilon": st.floats(1e-9, 1e-2),
            "global_clipnorm": st.floats(0.1, 10),
        },
    ),
    "budget": (
        tfr.LearningRateBudget,
        {"steps": st.integers(1, 9)},
        {"peak": st.floats(1e-6, 1), "hold": st.floats(0, 0.99)},
    ),
    "budget_of_seconds": (
        tfr.LearningRateBudget,
        {"seconds": st.floats(0.1, 9)},
        {"warmup_steps": st.integers(1, 9), "used_seconds": st.floats(0, 9)},
    ),
    "checkpoint": (
        tfr.TrainingCheckpoint,
        {"model": st.just(MODEL)},
        {
            "budget": st.none() | st.builds(tfr.LearningRateBudget, steps=st.integers(1, 9)),
            "monitor": st.sampled_from(["loss", "val_loss"]),
            "save_seconds": st.none() | st.floats(0.1, 9),
            "patience": st.none() | st.integers(1, 9),
        },
    ),
}


@cases(quick=30, full=150)
@given(data=st.data())
@pytest.mark.parametrize("name", TRAINING)
def test_training(name, data, tmp_path_factory):
    construct, necessary, others = TRAINING[name]
    necessary = st.fixed_dictionaries({k: mostly(valid) for k, valid in necessary.items()})
    options, is_valid = plain({**data.draw(necessary), **data.draw(arguments(**others))})
    if name == "checkpoint":
        options["folder"] = tmp_path_factory.mktemp("folder")
    built_or_refused(lambda: construct(**options), is_valid)


@cases(quick=40, full=200)
@given(
    images=st.lists(st.integers(0, 255), max_size=6).map(np.uint8),
    seed=mostly(st.tuples(SEED, SEED) | st.tuples(SEED, SEED, SEED)),
    dtype=mostly(DTYPE),
    num_values=mostly(st.integers(1, 256)),
)
def test_pixels(images, seed, dtype, num_values):
    (seed, is_seed), (dtype, is_dtype) = plain(seed), plain(dtype)
    num_values, is_number = plain(num_values)
    noisy = built_or_refused(
        lambda: tfr.dequantize(images, seed, dtype), is_seed and is_dtype and len(seed) == 2
    )
    if noisy is None:
        return
    np.testing.assert_array_equal(np.floor(noisy), images)
    gray = built_or_refused(lambda: tfr.to_uint8(noisy, num_values), is_number)
    if gray is not None:
        np.testing.assert_array_equal(gray, np.clip(images, 0, num_values - 1))

"""One set of checks that every bijector goes through."""

import dataclasses
import functools
from collections.abc import Callable

import flow_testing as ft
import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_probability import bijectors as tfb
from tensorflow_probability import distributions as tfd

import tfp_realnvp as tfr

pytestmark = pytest.mark.core


@dataclasses.dataclass(frozen=True)
class Case:
    """A constructor, `make(dtype)`, and the shape of its latents."""

    make: Callable
    latent_shape: tuple[int, ...]
    # Height and width of latents of another size have to be multiples of this; 0: there is none.
    multiple: int = 1
    # Whether data are pixel values in [0, 256).
    is_pixels: bool = False
    # From a dtype to a condition without leading dimensions: all images have the same.
    condition: Callable | None = None


def _coupling(mask, **kwargs):
    return Case(lambda dtype: ft.coupling(mask, 4, dtype, **kwargs), (4, 2, 4))


def _part(kind, latent_shape, *args, multiple=1, is_pixels=False, **kwargs):
    make = lambda dtype: kind(*args, dtype=dtype, **kwargs)  # noqa: E731
    return Case(make, latent_shape, multiple, is_pixels)


def _image(shape=(4, 4, 3), **kwargs):
    # Only the default network has blocks.
    blocks = {} if kwargs.get("network_fn") else {"num_blocks": 1}
    kwargs = {"num_scales": 1, "num_couplings": 1, "num_filters": 4, **blocks, **kwargs}
    make = lambda dtype: tfr.RealNVPImage(shape, dtype=dtype, **kwargs)  # noqa: E731
    return Case(make, shape, 2 ** (kwargs["num_scales"] - 1), is_pixels="alpha" not in kwargs)


def _conditional(kind, network="user", **kwargs):
    """A `RealNVPImage` under a condition; a user's network of one convolution is the least."""
    options = {"normalization": None, **ft.CONDITIONS[kind], **ft.NETWORKS[network], **kwargs}
    case = _image((4, 4, 1), **options)
    return dataclasses.replace(case, condition=lambda dtype: ft.condition(kind, (), dtype))


def _vector(dtype):
    return ft.normal([2], dtype)


def _label(dtype):
    return tf.constant(3)


def _jet(dtype):
    masks = [tfr.SpatialMask("checkerboard", parity=1), tfr.SpatialMask("horizontal_stripes")]
    masks = [tfr.ChannelMask(permutation=[2, 0, 3, 1]), *masks]
    options = {"recompute": True, "dtype": dtype, **ft.CONDITIONS["labels"]}
    return ft.jet((4, 4, 1), masks, **options)


def _vector_coupling(dtype):
    transformer = tfr.LogisticMixture(num_components=3)
    network = tfr.DenseResNet(2 * transformer.num_parameters, 1, 4, dtype=dtype.name)
    network.build((None, 1))
    mask = tfr.ChannelMask(num_first=1)
    return tfr.Coupling(mask, network, transformer, event_ndims=1, dtype=dtype)


def _vectors(size, condition=None, **kwargs):
    """A `RealNVPVector`."""
    kwargs = {"num_couplings": 2, "num_blocks": 1, "num_filters": 4, **kwargs}
    make = lambda dtype: tfr.RealNVPVector(size, dtype=dtype, **kwargs)  # noqa: E731
    return Case(make, (size,), condition=condition)


def _function(dtype):
    """A `BijectorCoupling`."""
    kept = keras.Input([2], dtype=dtype.name)
    outputs = [keras.layers.Dense(3, dtype=dtype.name)(kept) for _ in range(2)]
    function = keras.Model(kept, outputs)
    return tfr.real_nvp_coupling(num_masked=-2, shift_and_log_scale_fn=function, dtype=dtype)


def _spline(dtype):
    transformer = tfr.RationalQuadraticSpline(num_bins=4, bound=2.0)
    outputs = 4 * transformer.num_parameters
    network = ft.network(4, outputs, dtype.name, checkerboard_parity=1)
    return tfr.Coupling(tfr.CheckerboardMask(1), network, transformer, dtype=dtype)


def _attention(dtype):
    network = ft.network(4, 8, dtype.name, checkerboard_parity=1, num_heads=2)
    return tfr.AffineCoupling(tfr.CheckerboardMask(1), network, dtype=dtype)


def _flow_chain(dtype):
    parts = [tfr.PixelLogit(dtype=dtype), tfb.Scale(tf.constant(0.7, dtype))]
    parts += [ft.coupling(tfr.CheckerboardMask(0), 1, dtype)]
    parts += [tfr.BatchNormalization(num_channels=1, dtype=dtype)]
    parts += [tfb.Invert(tfr.Squeeze(dtype=dtype)), ft.coupling(tfr.ChannelMask(0), 4, dtype)]
    return tfr.FlowChain(parts, dtype=dtype)


def _tfp_chain(dtype):
    board, halves = (ft.coupling(m(1), 2, dtype) for m in (tfr.CheckerboardMask, tfr.ChannelMask))
    return tfb.Chain([tfb.Softplus(), board, tfb.Invert(halves)])


def _factor_out(dtype):
    norm = tfr.BatchNormalization(num_channels=2, dtype=dtype)
    inner = tfr.FlowChain([ft.coupling(tfr.CheckerboardMask(0), 2, dtype), norm], dtype=dtype)
    return tfr.FactorOut(inner, dtype=dtype)


_ATTENTION = {"attention": 2, "split_prior": True, "normalization": None}
CASES = {
    "checkerboard1_affine": _coupling(tfr.CheckerboardMask(1)),
    "channel1_affine": _coupling(tfr.ChannelMask(1)),
    "channel1_additive": _coupling(tfr.ChannelMask(1), use_scale=False),
    "coupling_spline": Case(_spline, (4, 2, 4)),
    "coupling_attention": Case(_attention, (4, 2, 4)),
    "invertible_conv1x1": _part(tfr.InvertibleConv1x1, (4, 2, 3), num_channels=3),
    "batch_normalization": _part(tfr.BatchNormalization, (4, 2, 3), num_channels=3),
    "act_norm": _part(tfr.ActNorm, (4, 2, 3), num_channels=3),
    "squeeze_factor_out": _part(tfr.Squeeze, (4, 2, 3), order="factor_out", multiple=2),
    "squeeze_block3": _part(tfr.Squeeze, (6, 3, 2), 3, order="factor_out", multiple=3),
    "squeeze_inverted": Case(
        lambda dtype: tfb.Invert(tfr.Squeeze(order="factor_out", dtype=dtype)), (2, 1, 8)
    ),
    "factor_out": Case(_factor_out, (4, 2, 4)),
    "flow_chain": Case(_flow_chain, (2, 3, 4), is_pixels=True),
    "flow_chain_empty": _part(tfr.FlowChain, (2, 3, 1), []),
    "tfp_chain": Case(_tfp_chain, (4, 2, 2)),
    "pixel_logit": _part(tfr.PixelLogit, (4, 2, 3), is_pixels=True),
    "image_2_scales": _image(num_scales=2, num_blocks=0, num_couplings=3),
    # The least of a network: what takes the time here is tracing and compiling.
    "image_3_scales": _image((8, 8, 1), num_scales=3, network_fn=ft.convolution),
    "image_no_logit": _image(alpha=None, network_fn=ft.convolution),
    "image_additive": _image(num_scales=2, transformer="additive", network_fn=ft.convolution),
    "image_actnorm": _image(num_scales=2, normalization="actnorm", network_fn=ft.shallow_conv),
    # Attention in all networks but that of the first coupling.
    "image_attention": _image((4, 4, 1), num_scales=2, num_blocks=0, **_ATTENTION),
    "image_recompute": _image((4, 4, 1), recompute=True),
    "vector_coupling": Case(_vector_coupling, (3,)),
    "vector_function": Case(_function, (5,)),
    "standardization": _part(tfr.Standardization, (3,), [1.0, -2.0, 0.5], [0.3, 2.0, 1.0]),
    "vector": _vectors(3),
    "vector_of_1": _vectors(1, transformer=lambda: tfr.RationalQuadraticSpline(4)),
    "vector_permuted": _vectors(4, mixing="permutation", normalization="batch"),
    "vector_additive": _vectors(5, transformer="additive", mixing=None, normalization=None),
    "vector_given_label": _vectors(3, condition=_label, num_classes=5, embedding_size=6),
    "vector_given_vector": _vectors(
        2, condition=_vector, conditional_event_shape=[2], embedding_size=6, recompute=True
    ),
    "image_given_label": _conditional("labels", "resnet"),
    "image_given_vector": _conditional("vectors", "shallow", condition_dropout=0.1),
    "image_given_image": _conditional("images", "shallow", recompute=True),
    "image_jet": Case(_jet, (4, 4, 1), multiple=0, condition=_label),
}

each_case = pytest.mark.parametrize("name", CASES)
# Tracing and compiling take most of the time. These are made of parts that others have as well:
# they are tested for values, log dets and gradients.
_LIKE_OTHERS = {
    *("squeeze_block3", "vector_additive", "image_2_scales", "image_no_logit", "image_additive"),
    *("image_attention", "image_given_image"),
}
_DISTINCT = [name for name in CASES if name not in _LIKE_OTHERS]
each_distinct_case = pytest.mark.parametrize("name", _DISTINCT)
# Traced or compiled whole flows take most of the time, and their parts are cases of their own.
_WHOLE = {
    name
    for name in _DISTINCT
    if name.startswith(("image", "vector_", "flow_chain"))
    and name not in ("image_given_vector", "vector_coupling", "vector_function", "flow_chain_empty")
}
# `test_recompute.py` traces and compiles the first; each of the others is one of two of a kind.
_TRACED_ELSEWHERE = {"image_recompute", "vector", "vector_permuted", "vector_given_label"}
_TRACED = [*(name for name in _DISTINCT if name not in _WHOLE)]
_TRACED += ft.full(*sorted(_WHOLE - _TRACED_ELSEWHERE))
each_traced_case = pytest.mark.parametrize("name", _TRACED)


@functools.cache
def _bijector(name):
    """A bijector with random variables, which no test may write to."""
    return ft.randomize(CASES[name].make(tf.float64), seed=1)


@functools.cache
def _given(name, dtype=tf.float64):
    """Returns the keyword arguments of all calls: the condition, if there is one."""
    make = CASES[name].condition
    return {"conditional_input": make(dtype)} if make else {}


def _ndims(name):
    """Rank of an event: 3 for images, 1 for vectors."""
    return len(CASES[name].latent_shape)


def _latents(name, batch=(3,), seed=0, more=(0, 0)):
    # A new tensor each time: bijectors know the results for tensors that they have seen.
    return tf.identity(_computed_latents(name, batch, seed, more))


@functools.cache
def _computed_latents(name, batch, seed, more):
    shape = [*batch, *CASES[name].latent_shape]
    if any(more):
        shape[-3] += more[0]
        shape[-2] += more[1]
    if CASES[name].is_pixels:
        # Latents of images: others can be so far out that the sigmoid's end has no inverse.
        data = ft.pixels(_bijector(name).forward_event_shape(shape), tf.float64, seed)
        return _bijector(name).inverse(data, **_given(name))
    return ft.normal(shape, tf.float64, seed)


def _data(name, batch=(3,), seed=0):
    return tf.identity(_computed_data(name, batch, seed))


@functools.cache
def _computed_data(name, batch, seed):
    return _bijector(name).forward(_latents(name, batch, seed), **_given(name))


def _all_results(bijector, x, y, **given):
    """All four hooks, at latents and data that do not come from one another."""
    options = {"event_ndims": bijector.forward_min_event_ndims, **given}
    forward = bijector.forward(x, **given), bijector.forward_log_det_jacobian(x, **options)
    return *forward, bijector.inverse(y, **given), bijector.inverse_log_det_jacobian(y, **options)


@functools.cache
def _eager_results(name):
    """`_all_results` at `_latents(name)` and `_data(name, seed=1)`."""
    return _all_results(_bijector(name), _latents(name), _data(name, seed=1), **_given(name))


@each_case
def test_round_trips(name):
    given, bijector, latents, y = _given(name), _bijector(name), _latents(name), _data(name)
    assert np.isfinite(y).all()
    x = bijector.inverse(y, **given)
    np.testing.assert_allclose(x, latents, rtol=1e-9, atol=1e-9)
    again = bijector.forward(tf.identity(x), **given)
    assert x.dtype == again.dtype == tf.float64
    np.testing.assert_allclose(again, y, rtol=1e-9, atol=1e-9)
    # Random weights make no identity.
    if name != "flow_chain_empty":
        assert y.shape != x.shape or np.abs(y - x).max() > 0.1


each_direction = pytest.mark.parametrize("direction", ["forward", "inverse"])


@each_direction
@each_case
def test_log_det_is_that_of_the_jacobian(name, direction):
    bijector, given = _bijector(name), _given(name)
    value = _latents(name, batch=()) if direction == "forward" else _data(name, batch=())
    function = functools.partial(getattr(bijector, direction), **given)
    log_det_of = getattr(bijector, f"{direction}_log_det_jacobian")
    actual = log_det_of(value, event_ndims=_ndims(name), **given)
    np.testing.assert_allclose(actual, ft.jacobian_log_det(function, value), rtol=1e-9, atol=1e-11)


@each_case
@each_direction
def test_gradients_of_all_trainable_variables(name, direction):
    bijector, given = _bijector(name), _given(name)
    value = _latents(name) if direction == "forward" else _data(name)
    with tf.GradientTape() as tape:
        tape.watch(value)
        result = getattr(bijector, direction)(value, **given)
        log_det = getattr(bijector, f"{direction}_log_det_jacobian")(
            value, event_ndims=_ndims(name), **given
        )
        # Random weights: a plain sum could hide gradients that cancel.
        loss = tf.reduce_sum(result * ft.normal(result.shape, tf.float64, seed=5))
        loss += tf.reduce_sum(log_det)
    variables = [value, *bijector.trainable_variables]
    for variable, gradient in zip(variables, tape.gradient(loss, variables), strict=True):
        assert gradient is not None and np.isfinite(gradient).all(), variable


# Without a batch are the tests of Jacobians, and of one dimension all others.
@each_distinct_case
def test_leading_shapes_and_event_ndims(name):
    batch, ndims, given = (2, 3), _ndims(name), _given(name)
    bijector, x = _bijector(name), _latents(name, batch=batch)
    assert bijector.forward_min_event_ndims == bijector.inverse_min_event_ndims == ndims
    assert bijector.forward_event_ndims(ndims) == bijector.inverse_event_ndims(ndims) == ndims
    y = bijector.forward(x, **given)
    assert y.shape[:-ndims] == batch
    assert bijector.inverse(tf.identity(y), **given).shape == x.shape
    fldj = bijector.forward_log_det_jacobian(x, event_ndims=ndims, **given)
    ildj = bijector.inverse_log_det_jacobian(tf.identity(y), event_ndims=ndims, **given)
    assert fldj.shape == ildj.shape == batch
    # More event dimensions: the log det is the sum over them.
    actual = bijector.forward_log_det_jacobian(x, event_ndims=ndims + 1, **given)
    np.testing.assert_allclose(actual, tf.reduce_sum(fldj, axis=-1), rtol=1e-12)
    # Each image on its own gives the same as all at once.
    flat = bijector.forward(tf.reshape(x, [-1, *CASES[name].latent_shape]), **given)
    np.testing.assert_allclose(tf.reshape(flat, y.shape), y, rtol=1e-12, atol=1e-12)


@each_case
def test_float32_agrees_with_float64(name):
    double, single = _bijector(name), CASES[name].make(tf.float32)
    # Names sort the variables alike in both.
    for to, value in zip(single.variables, double.variables, strict=True):
        assert to.name.split("/")[-1] == value.name.split("/")[-1]
        to.assign(tf.cast(value, to.dtype))
    x, y = _latents(name), _data(name, seed=1)
    singles = tf.cast(x, tf.float32), tf.cast(y, tf.float32)
    actual = _all_results(single, *singles, **_given(name, tf.float32))
    assert {result.dtype for result in actual} == {tf.float32}
    ft.assert_close(actual, _eager_results(name), rtol=1e-4, atol=1e-3)


@each_traced_case
def test_xla_equals_eager(name):
    compiled = ft.MODES["xla"](functools.partial(_all_results, _bijector(name), **_given(name)))
    actual = compiled(_latents(name), _data(name, seed=1))
    ft.assert_close(actual, _eager_results(name), rtol=1e-9, atol=1e-9)


@each_traced_case
def test_unknown_batch_height_and_width(name):
    case, given, bijector = CASES[name], _given(name), _bijector(name)
    x, y = _latents(name), _data(name, seed=1)
    unknown = [None] * _ndims(name)
    specs = [tf.TensorSpec([*unknown, value.shape[-1]], value.dtype) for value in (x, y)]
    function = functools.partial(_all_results, bijector, **given)
    function = tf.function(function, input_signature=specs, autograph=False)
    ft.assert_close(function(x, y), _eager_results(name), rtol=1e-10, atol=1e-10)
    # The same trace serves another size.
    more = (2 * case.multiple, case.multiple) if _ndims(name) == 3 else (0, 0)
    x = _latents(name, batch=(2,), more=more)
    y = tf.identity(bijector.forward(x, **given))
    ft.assert_close(function(x, y), _all_results(bijector, x, y, **given), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("shape", [None, "rank"])
@pytest.mark.parametrize("name", ["image_actnorm", "vector_given_label"])
def test_log_prob_of_unknown_rank_and_size(name, shape):
    bijector, x = _bijector(name), _data(name, batch=(5,))
    base = ft.standard_normal(CASES[name].latent_shape, tf.float64)
    given = _given(name) and {"conditional_input": [[0], [4]]}
    log_prob = tfd.TransformedDistribution(base, bijector).log_prob
    signature = [tf.TensorSpec(shape and [None] * x.shape.rank, tf.float64)]
    for call in (
        functools.partial(log_prob, bijector_kwargs=given),
        functools.partial(bijector.inverse, **given),
    ):
        traced = tf.function(call, input_signature=signature, autograph=False)
        for events in (x, x[:3]) if shape else (x, x[0], x[tf.newaxis, :1]):
            np.testing.assert_allclose(traced(events), call(events), rtol=1e-9, atol=1e-9)
        with pytest.raises(tf.errors.InvalidArgumentError):
            traced(tf.concat([x, x], axis=-1))


# Each transformer on its own: `test_transformers.py`.
@pytest.mark.parametrize(
    ("name", "recompute"),
    [
        ("tfp_chain", False),
        ("image_given_vector", False),
        ("vector_coupling", True),
        ("vector_of_1", True),
        pytest.param("flow_chain", True, marks=pytest.mark.full),
    ],
)
def test_vectorized_map_and_batch_jacobian(name, recompute):
    ndims, given, bijector = _ndims(name), _given(name), _bijector(name)
    # The chain shares the networks.
    chain = tfr.FlowChain([bijector], recompute=recompute, event_ndims=ndims, dtype=tf.float64)
    for method, events in (
        (chain.forward_and_log_det, _latents(name, batch=(2,))),
        (chain.inverse_and_log_det, _data(name, batch=(2,))),
    ):
        ft.assert_vectorizes(functools.partial(method, **given), events)


@each_distinct_case
def test_copies_and_equality(name):
    bijector = _bijector(name)
    same, other = bijector.copy(), CASES[name].make(tf.float64)
    assert same == bijector and hash(same) == hash(bijector)
    assert (other != bijector) == bool(bijector.variables)
    assert CASES[name].make(tf.float32) != bijector
    copy = bijector.copy(name="copied", validate_args=True)
    assert copy.name == "copied"
    assert copy.validate_args and not bijector.validate_args
    assert {v.ref() for v in copy.variables} == {v.ref() for v in bijector.variables}
    actual = _all_results(copy, _latents(name), _data(name, seed=1), **_given(name))
    ft.assert_close(actual, _eager_results(name), rtol=1e-12)


# The assertions in a graph; a whole image flow has them from these parts.
@pytest.mark.parametrize(
    "name", [name for name in CASES if not name.startswith("image") and name not in _LIKE_OTHERS]
)
def test_validate_args_in_a_function(name):
    bijector = _bijector(name).copy(validate_args=True)
    function = ft.MODES["function"](functools.partial(_all_results, bijector, **_given(name)))
    traced = function(_latents(name), _data(name, seed=1))
    ft.assert_close(traced, _eager_results(name), rtol=1e-10, atol=1e-10)


@each_case
def test_event_shapes(name):
    bijector = _bijector(name)
    for batch in ([], [7, 5]):
        x_shape, y_shape = [*batch, *CASES[name].latent_shape], [*batch, *_data(name).shape[1:]]
        assert bijector.forward_event_shape(x_shape) == y_shape
        assert bijector.inverse_event_shape(y_shape) == x_shape
        assert bijector.forward_event_shape_tensor(x_shape).numpy().tolist() == y_shape
        assert bijector.inverse_event_shape_tensor(y_shape).numpy().tolist() == x_shape
    # The height and width are unknown, or the rank is.
    unknown = [None] * (_ndims(name) - 1)
    x_shape, y_shape = [*unknown, x_shape[-1]], [*unknown, y_shape[-1]]
    assert bijector.forward_event_shape(x_shape).as_list() == y_shape
    assert bijector.inverse_event_shape(y_shape).as_list() == x_shape
    assert bijector.forward_event_shape(tf.TensorShape(None)).rank is None
    # No bijector is a batch of several.
    for ndims in ({"x_event_ndims": _ndims(name)}, {"y_event_ndims": _ndims(name)}):
        assert bijector.experimental_batch_shape(**ndims) == []
        assert bijector.experimental_batch_shape_tensor(**ndims).shape == [0]


@each_case
def test_variables_are_complete(name):
    bijector, trainable, frozen = _bijector(name), [], []
    for part in (bijector, *bijector.submodules):
        for layer in getattr(part, "layers", ()):
            trainable += [variable.value for variable in layer.trainable_variables]
            frozen += [variable.value for variable in layer.non_trainable_variables]
    assert {v.ref() for v in bijector.trainable_variables} == {v.ref() for v in trainable}
    assert {v.ref() for v in bijector.variables} == {v.ref() for v in trainable + frozen}
    # Nor is any listed twice.
    assert len(bijector.variables) == len(trainable + frozen)
    assert bijector.variables or not name.startswith(("check", "channel", "coup", "image", "ve"))


@each_distinct_case
def test_distribution(name):
    bijector, case, given = _bijector(name), CASES[name], _given(name)
    options = {"bijector_kwargs": given} if given else {}
    base = tfd.Sample(tfd.Normal(tf.zeros([], tf.float64), 0.3), case.latent_shape)
    flow = tfd.TransformedDistribution(base, bijector)
    y = flow.sample([2, 3], seed=(0, 1), **options)
    assert y.shape == [2, 3, *flow.event_shape]
    assert flow.event_shape_tensor().numpy().tolist() == flow.event_shape.as_list()
    y = tf.identity(y)
    expected = base.log_prob(bijector.inverse(tf.identity(y), **given))
    expected += bijector.inverse_log_det_jacobian(tf.identity(y), event_ndims=_ndims(name), **given)
    np.testing.assert_allclose(flow.log_prob(y, **options), expected, rtol=1e-10)
    sample, log_prob = flow.experimental_sample_and_log_prob(3, seed=(0, 1), **options)
    np.testing.assert_allclose(flow.log_prob(tf.identity(sample), **options), log_prob, rtol=1e-8)


_EXPORTED = {
    each for each in vars(tfr).values() if isinstance(each, type) and issubclass(each, tfb.Bijector)
}


def test_cases_cover_the_package():
    parts = [part for name in CASES for part in (_bijector(name), *_bijector(name).submodules)]
    assert {c for part in parts for c in type(part).__mro__} >= _EXPORTED


def test_parameter_properties():
    # TFP asks these for every bijector that is sliced, batched or made trainable.
    assert all(kind.parameter_properties(dtype=tf.float64) is not None for kind in _EXPORTED)

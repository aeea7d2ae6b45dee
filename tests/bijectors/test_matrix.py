"""One set of checks that every bijector goes through."""

import dataclasses
import functools
from collections.abc import Callable

import flow_testing as ft
import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_realnvp as tfr

pytestmark = pytest.mark.core

tfb = tfp.bijectors
tfd = tfp.distributions


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


def _shallow(dtype):
    """The network of the compact model, away from its start at zero when randomized."""

    def network_fn(*, mask, output_channels, name, **_):
        parity = mask.parity if isinstance(mask, tfr.CheckerboardMask) else None
        return tfr.ShallowConv(
            output_channels, 4, checkerboard_parity=parity, dtype=dtype.name, name=name
        )

    return network_fn


def _coupling(mask, **kwargs):
    return Case(lambda dtype: ft.coupling(mask, 4, dtype, **kwargs), (4, 2, 4))


def _part(kind, latent_shape, *args, multiple=1, is_pixels=False, **kwargs):
    make = lambda dtype: kind(*args, dtype=dtype, **kwargs)  # noqa: E731
    return Case(make, latent_shape, multiple, is_pixels)


def _one_convolution(dtype):
    """Makes the least of a network: what takes the time here is tracing and compiling."""
    return functools.partial(ft.convolution, dtype=dtype.name)


def _image(shape=(4, 4, 3), networks=None, **kwargs):
    # Only the default network has blocks.
    blocks = {} if networks or kwargs.get("network_fn") else {"num_blocks": 1}
    kwargs = {"num_scales": 1, "num_couplings": 1, "num_filters": 4, **blocks, **kwargs}

    def make(dtype):
        network_fn = {"network_fn": networks(dtype)} if networks else {}
        return tfr.RealNVPImage(shape, dtype=dtype, **{**network_fn, **kwargs})

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
    """A `Coupling` without a transformer."""
    kept = keras.Input([2], dtype=dtype.name)
    outputs = [keras.layers.Dense(3, dtype=dtype.name)(kept) for _ in range(2)]
    function = keras.Model(kept, outputs)
    return tfr.real_nvp_coupling(num_masked=-2, shift_and_log_scale_fn=function, dtype=dtype)


def _conditional_network(dtype):
    network = ft.ConditionedNetwork(4, dtype=dtype.name)
    network.build((None, None, None, 2))
    return tfr.AffineCoupling(tfr.ChannelMask(1), network, dtype=dtype)


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
    "image_3_scales": _image((8, 8, 1), num_scales=3, networks=_one_convolution),
    "image_no_logit": _image(alpha=None, networks=_one_convolution),
    "image_additive": _image(num_scales=2, transformer="additive", networks=_one_convolution),
    "image_actnorm": _image(num_scales=2, normalization="actnorm", networks=_shallow),
    # Attention in all networks but that of the first coupling.
    "image_attention": _image((4, 4, 1), num_scales=2, num_blocks=0, **_ATTENTION),
    "image_recompute": _image((4, 4, 1), recompute=True),
    # With a batch dimension: what is not declared reaches the network as it is.
    "coupling_given_what_its_network_takes": Case(
        _conditional_network, (4, 2, 4), condition=lambda dtype: _vector(dtype)[tf.newaxis]
    ),
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
    *("image_attention", "image_given_image", "coupling_given_what_its_network_takes"),
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
each_traced_case = pytest.mark.parametrize(
    "name", [*(name for name in _DISTINCT if name not in _WHOLE), *ft.full(*sorted(_WHOLE))]
)


def _bijector(name, dtype=tf.float64):
    """A bijector with random variables, which no test may write to."""
    return _made_bijector(name, dtype)


@functools.cache
def _made_bijector(name, dtype):
    return ft.randomize(CASES[name].make(dtype), seed=1)


@functools.cache
def _given(name, dtype=tf.float64):
    """Returns the keyword arguments of all calls: the condition, if there is one."""
    make = CASES[name].condition
    return {"conditional_input": make(dtype)} if make else {}


def _ndims(name):
    """Rank of an event: 3 for images, 1 for vectors."""
    return len(CASES[name].latent_shape)


def _latents(name, dtype=tf.float64, batch=(3,), seed=0, more=(0, 0)):
    # A new tensor each time: bijectors know the results for tensors that they have seen.
    return tf.identity(_computed_latents(name, dtype, batch, seed, more))


@functools.cache
def _computed_latents(name, dtype, batch, seed, more=(0, 0)):
    shape = [*batch, *CASES[name].latent_shape]
    if any(more):
        shape[-3] += more[0]
        shape[-2] += more[1]
    if CASES[name].is_pixels:
        # Latents of images: others can be so far out that the sigmoid's end has no inverse.
        shape = _bijector(name, dtype).forward_event_shape(shape)
        data = ft.pixels(shape, dtype, seed)
        return _bijector(name, dtype).inverse(data, **_given(name, dtype))
    return ft.normal(shape, dtype, seed)


def _data(name, dtype=tf.float64, batch=(3,), seed=0):
    return tf.identity(_computed_data(name, dtype, batch, seed))


@functools.cache
def _computed_data(name, dtype, batch, seed):
    latents = _latents(name, dtype, batch, seed)
    return _bijector(name, dtype).forward(latents, **_given(name, dtype))


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
    given = _given(name)
    bijector = _bijector(name)
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
        what = getattr(variable, "name", "the input") if variable is not value else "the input"
        assert gradient is not None, what
        assert np.isfinite(gradient).all(), what


# Without a batch are the tests of Jacobians, and of one dimension all others.
@each_distinct_case
def test_leading_shapes(name):
    batch, given = (2, 3), _given(name)
    bijector, x = _bijector(name), _latents(name, batch=batch)
    y = bijector.forward(x, **given)
    assert y.shape[: -_ndims(name)] == batch
    assert bijector.inverse(tf.identity(y), **given).shape == x.shape
    options = {"event_ndims": _ndims(name), **given}
    assert bijector.forward_log_det_jacobian(x, **options).shape == batch
    assert bijector.inverse_log_det_jacobian(tf.identity(y), **options).shape == batch
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
    given = _given(name)
    bijector, x, y = _bijector(name), _latents(name), _data(name, seed=1)
    compiled = tf.function(
        lambda x, y: _all_results(bijector, x, y, **given), jit_compile=True, autograph=False
    )
    ft.assert_close(compiled(x, y), _eager_results(name), rtol=1e-9, atol=1e-9)


@each_traced_case
def test_unknown_batch_height_and_width(name):
    given = _given(name)
    case, bijector = CASES[name], _bijector(name)

    def unknown(value):
        return tf.TensorSpec([*[None] * _ndims(name), value.shape[-1]], value.dtype)

    x, y = _latents(name), _data(name, seed=1)
    function = lambda x, y: _all_results(bijector, x, y, **given)  # noqa: E731
    function = tf.function(function, input_signature=[unknown(x), unknown(y)], autograph=False)
    ft.assert_close(function(x, y), _eager_results(name), rtol=1e-10, atol=1e-10)
    # The same trace serves another size.
    more = (2 * case.multiple, case.multiple) if _ndims(name) == 3 else (0, 0)
    x = _latents(name, batch=(2,), more=more)
    y = tf.identity(bijector.forward(x, **given))
    ft.assert_close(function(x, y), _all_results(bijector, x, y, **given), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("shape", [None, "rank"])
@pytest.mark.parametrize(
    "make",
    [
        lambda: (ft.flow_distribution((4, 4, 2), num_scales=1), ft.pixels([5, 4, 4, 2]), {}),
        lambda: (
            ft.vector_distribution(3, num_filters=4, num_classes=5),
            ft.normal([5, 3]),
            {"conditional_input": [[0], [4]]},
        ),
    ],
    ids=["image", "vector_given_label"],
)
def test_log_prob_of_unknown_rank_and_size(make, shape):
    flow, x, options = make()
    shape = shape and [None] * x.shape.rank
    log_prob_fn = functools.partial(flow.log_prob, bijector_kwargs=options)
    traced = functools.partial(tf.function, input_signature=[tf.TensorSpec(shape)], autograph=False)
    log_prob = traced(log_prob_fn)
    inverse = traced(functools.partial(flow.bijector.inverse, **options))
    for events in (x, x[:2]) if shape else (x, x[0], x[tf.newaxis, :1]):
        if options and events.shape[0] == 2:
            continue
        np.testing.assert_allclose(log_prob(events), log_prob_fn(events), rtol=1e-5)
        latents = flow.bijector.inverse(events, **options)
        np.testing.assert_allclose(inverse(events), latents, rtol=1e-5, atol=1e-5)
    with pytest.raises(tf.errors.InvalidArgumentError):
        log_prob(tf.concat([x, x], axis=-1))


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
    given = _given(name)
    bijector = _bijector(name)
    same, other = bijector.copy(), CASES[name].make(tf.float64)
    assert same == bijector and hash(same) == hash(bijector)
    assert (other != bijector) == bool(bijector.variables)
    assert CASES[name].make(tf.float32) != bijector
    copy = bijector.copy(name="copied", validate_args=True)
    assert copy.name == "copied"
    assert copy.validate_args and not bijector.validate_args
    assert {v.ref() for v in copy.variables} == {v.ref() for v in bijector.variables}
    x, y = _latents(name), _data(name, seed=1)
    ft.assert_close(_all_results(copy, x, y, **given), _eager_results(name), rtol=1e-12)


# The assertions in a graph; a whole image flow has them from these parts.
@pytest.mark.parametrize(
    "name", [name for name in CASES if not name.startswith("image") and name not in _LIKE_OTHERS]
)
def test_validate_args_in_a_function(name):
    given = _given(name)
    bijector, x, y = _bijector(name).copy(validate_args=True), _latents(name), _data(name, seed=1)
    function = tf.function(lambda x, y: _all_results(bijector, x, y, **given), autograph=False)
    traced = function(x, y)
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


@each_distinct_case
def test_event_ndims(name):
    given = _given(name)
    bijector = _bijector(name)
    ndims = _ndims(name)
    assert bijector.forward_min_event_ndims == bijector.inverse_min_event_ndims == ndims
    assert bijector.forward_event_ndims(ndims) == bijector.inverse_event_ndims(ndims) == ndims
    # More event dimensions: the log det is the sum over them.
    x = _latents(name, batch=(2, 3))
    expected = tf.reduce_sum(
        bijector.forward_log_det_jacobian(x, event_ndims=ndims, **given), axis=-1
    )
    actual = bijector.forward_log_det_jacobian(x, event_ndims=ndims + 1, **given)
    np.testing.assert_allclose(actual, expected, rtol=1e-12)


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

"""A condition reaches every network, broadcasts with the images, and is never mistaken."""

import functools

import flow_testing as ft
import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_probability import bijectors as tfb
from tensorflow_probability import distributions as tfd

import tfp_realnvp as tfr

_SHAPE = (4, 4, 2)
each_kind = pytest.mark.parametrize("kind", ft.CONDITIONS)
each_network = pytest.mark.parametrize("network", ft.NETWORKS)


def _flow(kind, network="shallow", **kwargs):
    return ft.conditional_flow(kind, network, _SHAPE, **kwargs)


@pytest.mark.parametrize(
    ("kind", "network"),
    [
        *((kind, network) for kind in ("labels", "images") for network in ft.NETWORKS),
        ("vectors", "resnet"),
    ],
)
def test_it_reaches_every_network(kind, network):
    flow, condition = _flow(kind, network, num_scales=2), ft.condition(kind, [3])
    variables = list(flow.trainable_variables)
    with tf.GradientTape() as tape:
        if kind != "labels":
            tape.watch(condition)
            variables.append(condition)
        z, ildj = flow.inverse_and_log_det(ft.pixels([3, *_SHAPE]), conditional_input=condition)
        loss = tf.reduce_sum(z * ft.normal(z.shape, seed=5)) + tf.reduce_sum(ildj)
    for variable, gradient in zip(variables, tape.gradient(loss, variables), strict=True):
        gradient = tf.convert_to_tensor(gradient)
        assert np.isfinite(gradient).all() and np.abs(gradient).max() > 1e-6, variable
        if variable is condition:
            # Each image has its own.
            assert all(np.abs(each).max() > 1e-6 for each in gradient)


# The zero start.


@functools.cache
def _start(name, kind):
    """Returns the results of an untrained flow, with or without a condition."""
    options = {} if kind is None else {**ft.CONDITIONS[kind], "condition_dropout": 0.1}
    given = {} if kind is None else {"conditional_input": ft.condition(kind, [3])}
    make = tfr.RealNVPImage.compact
    if name == "RealNVPImage":
        make = functools.partial(tfr.RealNVPImage, num_blocks=1)
    keras.utils.set_random_seed(0)
    flow = make(_SHAPE, num_scales=2, num_couplings=1, num_filters=4, **options)
    # Statistics and weights that are not those of the start.
    training = flow.inverse_and_log_det(ft.pixels([3, *_SHAPE]), training=True, **given)
    return [*training, *flow.forward_and_log_det(ft.normal([3, *_SHAPE]), **given)]


@pytest.mark.parametrize("name", ["RealNVPImage", "compact"])
@each_kind
def test_it_starts_as_the_flow_without_condition(kind, name):
    for one, other in zip(_start(name, None), _start(name, kind), strict=True):
        if one.shape.rank == 4:
            np.testing.assert_array_equal(one, other)
        else:
            # That of the logits is added last, not first.
            np.testing.assert_allclose(one, other, rtol=1e-6)


# Leading shapes.


def _coupling(**kwargs):
    network = ft.network(2, 4, checkerboard_parity=0, **kwargs)
    return ft.randomize(tfr.AffineCoupling(tfr.CheckerboardMask(0), network))


def _given_vectors(kind="vectors"):
    return _coupling(conditional_event_shape=[3])


def _factor_out(kind):
    network = ft.network(1, 2, conditional_event_shape=[3])
    inner = tfr.AffineCoupling(tfr.CheckerboardMask(0), network)
    return ft.randomize(tfr.FlowChain([tfr.FactorOut(inner), tfr.BatchNormalization()]))


_BROADCAST = {
    **{kind: (kind, _flow) for kind in ("labels", "images")},
    "coupling_given_vectors": ("vectors", _given_vectors),
    "factor_out": ("vectors", _factor_out),
}


@functools.cache
def _broadcast_flow(name):
    kind, make = _BROADCAST[name]
    return make(kind)


@pytest.mark.parametrize("hook", ["forward", "inverse"])
@pytest.mark.parametrize(
    ("condition_batch", "batch"),
    [((), (5,)), ((3, 1), (5,)), ((3,), ())],
    ids=str,
)
@pytest.mark.parametrize("name", _BROADCAST)
def test_leading_shapes_broadcast(name, condition_batch, batch, hook):
    kind, _ = _BROADCAST[name]
    flow, condition = _broadcast_flow(name), ft.condition(kind, condition_batch)
    value = (ft.normal if hook == "forward" else ft.pixels)([*batch, *_SHAPE]) / 50
    given = {"conditional_input": condition}
    result, log_det = getattr(flow, f"{hook}_and_log_det")(value, **given)
    expected_batch = np.broadcast_shapes(condition_batch, batch)
    assert result.shape == (*expected_batch, *_SHAPE) and log_det.shape == expected_batch
    # The hooks, which know the result.
    np.testing.assert_array_equal(getattr(flow, hook)(value, **given), result)
    other = getattr(flow, f"{hook}_log_det_jacobian")(value, event_ndims=3, **given)
    np.testing.assert_array_equal(other, log_det)
    # As many conditions as images.
    event = condition.shape[len(condition_batch) :]
    conditions = np.broadcast_to(condition, (*expected_batch, *event)).reshape([-1, *event])
    values = np.broadcast_to(value, result.shape).reshape([-1, *_SHAPE])
    one, one_log_det = getattr(flow, f"{hook}_and_log_det")(
        tf.constant(values), conditional_input=tf.constant(conditions)
    )
    np.testing.assert_allclose(one, tf.reshape(result, one.shape), rtol=1e-3, atol=1e-3)
    expected = tf.reshape(log_det, one_log_det.shape)
    np.testing.assert_allclose(one_log_det, expected, rtol=1e-4, atol=1e-4)


@each_kind
def test_leading_shapes_in_a_function(kind):
    # Nothing is known but ranks, and the same trace serves other sizes.
    flow, one = _flow(kind), ft.condition(kind)
    specs = tf.TensorSpec([None] * 3 + [2]), tf.TensorSpec([None, None, *one.shape], one.dtype)
    both = tf.function(lambda x, c: flow.inverse_and_log_det(x, conditional_input=c), specs)
    # Images as conditions have the size of the data.
    last = (1, 4, 4) if kind == "images" else (1, 8, 4)
    for shape, batch in (((5, 4, 4), (3, 1)), ((5, 4, 4), (1, 5)), (last, (2, 2))):
        x, condition = ft.pixels([*shape, 2]), ft.condition(kind, batch)
        expected = flow.inverse_and_log_det(x, conditional_input=condition)
        ft.assert_close(both(x, condition), expected, rtol=1e-4, atol=1e-4)


def test_images_of_another_size_than_the_data():
    flow = _flow("images", conditional_event_shape=(None, None, 2))
    with pytest.raises(ValueError, match=r"got \(2, 4\); `tf.image.resize\(condition, \[4, 4\]"):
        flow.inverse(ft.pixels([3, *_SHAPE]), conditional_input=ft.normal([3, 2, 4, 2]))


# By name, and inverted.


@pytest.mark.parametrize(
    "wrap",
    [
        lambda flow: tfb.Chain([tfb.Chain([flow], name="inner"), tfb.Scale(0.5)]),
        lambda flow: tfb.Chain([tfb.Invert(tfb.Invert(flow))]),
        lambda flow: tfr.FlowChain([tfb.Invert(tfb.Chain([tfb.Scale(2.0), tfb.Invert(flow)]))]),
        lambda flow: tfr.FlowChain([tfb.Chain([tfb.Scale(2.0), flow])], recompute=True),
    ],
    ids=["chains", "chain_of_invert", "inverted", "chain_in_flow"],
)
def test_nested(wrap):
    flow = _flow("labels", "user", name="flow")
    bijector = wrap(flow)
    given = tfr.condition(tfd.TransformedDistribution(ft.standard_normal(_SHAPE), bijector), 3)
    other = tfr.condition(given.distribution, 1)
    x, log_prob = given.experimental_sample_and_log_prob(5, seed=(0, 1))
    np.testing.assert_allclose(given.log_prob(tf.identity(x)), log_prob, rtol=1e-4)
    assert np.abs(other.log_prob(tf.identity(x)) - log_prob).min() > 1e-3
    refs = {variable.ref() for variable in bijector.trainable_variables}
    assert refs == {variable.ref() for variable in flow.trainable_variables}
    table = flow.condition_embedding.table.value
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(given.log_prob(x))
    assert np.abs(tf.convert_to_tensor(tape.gradient(loss, table))).max() > 0


# The cache.


_FORMS = {
    "number": lambda label: label,
    "numpy_number": np.int64,
    "list": lambda label: [label],
    "array": lambda label: np.array([label]),
    "tensor": lambda label: tf.constant([label]),
}


@pytest.mark.parametrize("form", _FORMS)
def test_the_same_condition_is_one_pass(form):
    network_fn, layers = ft.counting(ft.resnet)
    flow = ft.conditional_flow("labels", image_shape=_SHAPE, network_fn=network_fn)
    x, results = ft.pixels([2, *_SHAPE]), []
    for condition in (_FORMS[form](label) for label in (3, 1, 1)):
        given = {"conditional_input": condition}
        # TFP's cache has a result for as long as the caller holds it.
        results.append((flow.inverse(x, **given), flow.inverse_log_det_jacobian(x, **given)))
    assert [layer.count for layer in layers] == [3 if form == "tensor" else 2] * 2
    for pair, label in zip(results, (3, 1, 1), strict=True):
        expected = flow.inverse_and_log_det(x, conditional_input=label)
        ft.assert_close(pair, expected, rtol=1e-4, atol=1e-5)
    assert np.abs(results[0][1] - results[1][1]).min() > 1e-4


def test_an_array_that_changes():
    flow, x = _flow("labels"), ft.pixels([2, *_SHAPE])
    labels, results = np.zeros(2, int), []
    for label in range(3):
        labels[:] = label
        results.append(flow.inverse_and_log_det(x, conditional_input=labels)[1])
        hook = flow.inverse_log_det_jacobian(x, event_ndims=3, conditional_input=labels)
        np.testing.assert_allclose(hook, results[-1], rtol=1e-5)
    assert np.abs(results[0] - results[1]).min() > 1e-4


@pytest.mark.parametrize("mode", ["eager", "function"])
def test_a_variable_as_condition(mode):
    flow, x = _flow("vectors"), ft.pixels([2, *_SHAPE])
    condition, delta = tf.Variable(ft.condition("vectors")), tf.constant(0.5)

    def call():
        before = flow.inverse(x, conditional_input=condition)
        condition.assign_add(tf.fill([3], delta))
        return before, flow.inverse(x, conditional_input=condition)

    start = tf.identity(condition)
    results = (tf.function(call) if mode == "function" else call)()
    for result, value in zip(results, (start, start + delta), strict=True):
        expected = flow.inverse(tf.identity(x), conditional_input=value)
        np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)
    assert np.abs(results[0] - results[1]).max() > 1e-3


def test_the_gradient_of_a_condition_through_a_frozen_flow():
    # Also after a call that no tape saw.
    flow, condition = _given_vectors(), ft.condition("vectors")
    flow.network.trainable = False
    frozen = flow.copy(scale=keras.Variable(0.5, trainable=False))
    assert not frozen.trainable_variables
    x = ft.normal([2, *_SHAPE])
    held = frozen.inverse_log_det_jacobian(x, conditional_input=condition)
    with tf.GradientTape() as tape:
        tape.watch(condition)
        ildj = frozen.inverse_log_det_jacobian(x, conditional_input=condition)
    assert np.abs(tape.gradient(ildj, condition)).max() > 0
    np.testing.assert_array_equal(held, ildj)


# Copies.


def test_a_copy_shares_the_embedding():
    flow = _flow("labels", condition_dropout=0.1)
    copy = flow.copy(bijectors=flow.bijectors[1:], validate_args=True)
    assert copy.condition_embedding is flow.condition_embedding
    assert {v.ref() for v in copy.variables} == {v.ref() for v in flow.variables}
    logits = ft.normal([2, *_SHAPE])
    expected = flow.inverse(tfr.PixelLogit().forward(logits), conditional_input=3)
    np.testing.assert_allclose(copy.inverse(logits, conditional_input=3), expected, atol=1e-4)


# No condition.


@each_kind
def test_no_condition(kind):
    flow, x = _flow(kind, "resnet", condition_dropout=0.1), ft.pixels([3, *_SHAPE])
    condition = ft.condition(kind, [3]).numpy()
    nothing = condition.copy()
    # One NaN is enough.
    nothing.reshape(3, -1)[:, -1] = -1 if kind == "labels" else np.nan
    expected = flow.inverse_and_log_det(x)
    given = flow.inverse_and_log_det(x, conditional_input=condition)
    assert np.abs(given[1] - expected[1]).min() > 1e-4
    without = flow.inverse_and_log_det(x, conditional_input=nothing)
    # Of one image of three.
    condition[1] = nothing[1]
    mixed = flow.inverse_and_log_det(x, conditional_input=condition)
    ft.assert_close(without, expected, rtol=1e-5, atol=1e-5)
    for index, results in enumerate((given, expected, given)):
        actual = [part[index] for part in mixed]
        ft.assert_close(actual, [part[index] for part in results], rtol=1e-4, atol=1e-4)
    samples = flow.forward(tf.identity(expected[0]))
    np.testing.assert_allclose(samples, x, atol=1e-2)


# Half precision.


@each_network
def test_mixed_bfloat16(network):
    # What does not depend on a condition: `test_flow_model.py`.
    single, flow = (
        _flow("labels", network, network_dtype=policy) for policy in ("float32", "mixed_bfloat16")
    )
    assert flow.condition_embedding.compute_dtype == "float32"
    ft.assign(flow.variables, single.variables)
    x, given = ft.pixels([3, *_SHAPE]), {"conditional_input": [3, 1, 0]}
    (z, ildj), expected = (each.inverse_and_log_det(x, **given) for each in (flow, single))
    assert z.dtype == ildj.dtype == tf.float32
    np.testing.assert_allclose(z, expected[0], atol=0.1)
    np.testing.assert_allclose(ildj, expected[1], atol=0.3)


# Errors.


@pytest.mark.parametrize(
    ("make", "condition", "match"),
    [
        *(
            (lambda kind=kind: _flow(kind), None, r"real_nvp_image: .*conditional_input.*got None")
            for kind in ft.CONDITIONS
        ),
        (lambda: _flow("labels"), [3, 5], r"real_nvp_image: .*labels in \[0, 5\).*got \[5\]"),
        (lambda: _flow("vectors"), [[1.0, 2.0]], r"vectors \[..., 3\], got float\d\d .*\(1, 2\)"),
        (lambda: _flow("images"), np.zeros([2, 2, 2]), r"images \[..., 4, 4, 2\], got"),
        (lambda: _flow("labels"), [1, 2, 3], r"batch shapes that broadcast, got shapes .*"),
        (lambda: _flow("vectors"), np.zeros([3, 3]), r"\(2, 4, 4, 2\) with 3 and \(3, 3\) with 1"),
        (lambda: _coupling(conditional_event_shape=[3]), None, r"\[..., 3\], got None"),
        (lambda: _coupling(conditional_event_shape=[3]), np.zeros([4]), r"3\], got .*\(4,\)"),
        (lambda: _coupling(conditional_event_shape=[None, None, 2]), np.zeros([4, 4, 3]), "any, 2"),
    ],
)
def test_conditions_that_do_not_fit(make, condition, match):
    with pytest.raises(ValueError, match=match):
        make().inverse(ft.pixels([2, *_SHAPE]), conditional_input=condition)

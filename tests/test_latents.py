from unittest import mock

import flow_testing as ft
import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_realnvp as tfr
from tfp_realnvp import latents
from tfp_realnvp.networks import ConditionEmbedding

tfd = tfp.distributions

_SHAPE = (8, 8, 1)
_IMAGES = ft.grey_levels(4, _SHAPE)


@pytest.fixture(scope="module")
def flow():
    keras.utils.set_random_seed(0)
    # Random weights: a flow close to the identity would hide errors.
    return ft.image_flow(_SHAPE, num_scales=3, num_blocks=0, num_couplings=1)


@pytest.fixture(scope="module")
def encoded(flow):
    return latents.encode(flow, _IMAGES)


def _same(actual, expected, tolerance=0.05):
    """Compares pixels with a tolerance of 0.05 gray levels."""
    assert np.shape(actual) == np.shape(expected)
    np.testing.assert_allclose(actual, expected, atol=tolerance)


# encode, decode, reconstruct


def test_encode_is_inverse_and_decode_forward(flow, encoded):
    values = tf.constant(_IMAGES + np.float32(0.5))
    np.testing.assert_allclose(encoded, flow.inverse(values), atol=1e-5)
    _same(latents.decode(flow, encoded), flow.forward(tf.constant(encoded)), 1e-3)
    np.testing.assert_array_equal(tfr.to_uint8(latents.decode(flow, encoded)), _IMAGES)


def test_batches_and_leading_shapes(flow, encoded):
    np.testing.assert_allclose(latents.encode(flow, _IMAGES, batch_size=3), encoded, atol=1e-4)
    np.testing.assert_allclose(latents.encode(flow, _IMAGES[0]), encoded[0], atol=1e-4)
    twice = latents.encode(flow, _IMAGES.reshape(2, 2, *_SHAPE))
    np.testing.assert_allclose(twice.reshape(encoded.shape), encoded, atol=1e-4)
    assert latents.encode(flow, _IMAGES[:0]).shape == (0, *_SHAPE)


def test_reconstruct(flow):
    images, error = latents.reconstruct(flow, _IMAGES)
    assert 0 < error < 0.05
    assert error == pytest.approx(np.abs(images - (_IMAGES + 0.5)).max(), rel=1e-4)
    continuous = ft.pixels([2, *_SHAPE]).numpy()
    _same(latents.reconstruct(flow, continuous).images, continuous)


_ONES = np.ones([1, *_SHAPE])
_INFINITE = np.where(np.arange(64) == 9, np.inf, 0.0).reshape(_SHAPE)


@pytest.mark.parametrize(
    ("name", "arguments", "options", "match"),
    [
        ("encode", [_IMAGES[..., 0]], {}, r"height, width, 1\].*got shape \(4, 8, 8\)"),
        ("encode", [_IMAGES[:, :6]], {}, r"divisible by 4, .*got shape \(6, 8, 1\)"),
        ("encode", [_ONES * np.nan], {}, r"expected finite images .* got values in \[nan, nan\]"),
        (
            "encode",
            [_ONES * 1000000.5],
            {},
            r"in the range of the model, got values in \[1000000.5",
        ),
        ("decode", [_INFINITE], {}, r"finite latents .* got values in \[0.0, inf\]"),
        ("manifold", [ft.grey_levels(5, _SHAPE)], {}, r"\[4, H, W, C\], got \(5, 8, 8, 1\)"),
        ("levels_of_representation", [_IMAGES], {"mode": "keep"}, "got 'keep'"),
        ("extrapolate", [(10, 16, 1)], {}, r"divisible by 4, .*got shape \(10, 16, 1\)"),
        ("sample_latents", [2], {"temperature": -1.0}, "a finite temperature of at least 0"),
        ("sample_latents", [2], {"temperature": np.nan}, "a finite temperature of at least 0"),
        ("sample_latents", [2], {"truncation": 0.0}, "expected a positive truncation"),
    ],
)
def test_bad_arguments(flow, name, arguments, options, match):
    with pytest.raises(ValueError, match=match):
        first = _SHAPE if name == "sample_latents" else flow
        getattr(latents, name)(first, *arguments, **options)


def test_objects_that_are_not_flows():
    with pytest.raises(TypeError, match=r"expected an ImageFlow or VectorFlow, .*, got Exp"):
        latents.encode(tfp.bijectors.Exp(), _IMAGES)
    with pytest.raises(TypeError, match="expected an ImageFlow"):
        base = ft.standard_normal(_SHAPE)
        latents.decode(tfd.TransformedDistribution(base, tfp.bijectors.Exp()), _IMAGES)


# manifold


def test_the_manifold_is_equation_19(flow, encoded):
    z1, z2, z3, z4 = encoded
    phi, phi_prime = 2 * np.pi * np.array([2, 1]) / 3
    z = np.cos(phi) * (np.cos(phi_prime) * z1 + np.sin(phi_prime) * z2) + np.sin(phi) * (
        np.cos(phi_prime) * z3 + np.sin(phi_prime) * z4
    )
    _same(latents.manifold(flow, _IMAGES, num_angles=3)[2, 1], latents.decode(flow, z))


# interpolate


@pytest.mark.parametrize("sign", [1, -1])
def test_interpolation_between_latents_without_one_arc(flow, encoded, sign):
    opposite = latents.decode(flow, sign * encoded[0])
    steps = latents.interpolate(flow, _IMAGES[0] + 0.5, opposite, 3)
    assert np.isfinite(steps).all()
    _same(steps[[0, 2]], np.stack([_IMAGES[0] + 0.5, opposite]))
    if sign == 1:
        _same(steps[1], steps[0])


def test_ends_of_an_interpolation_broadcast(flow):
    steps = latents.interpolate(flow, _IMAGES[0], _IMAGES[:2], 3)
    _same(steps[1], latents.interpolate(flow, _IMAGES[0], _IMAGES[1], 3))


# levels of representation


@pytest.mark.parametrize("mode", ["redraw", "zero"])
def test_levels_keep_the_coarse_latents(flow, encoded, mode):
    levels = latents.levels_of_representation(flow, _IMAGES, mode=mode, seed=3)
    assert levels.shape == (4, 3, *_SHAPE)
    _same(levels[:, 2], _IMAGES + 0.5)
    original = flow.split_latents(tf.constant(encoded))
    replaced = [None, None]
    for column in range(3):
        found = flow.split_latents(tf.constant(latents.encode(flow, levels[:, column])))
        for scale in range(3):
            difference = np.abs(found[scale] - original[scale])
            if scale >= 2 - column:
                np.testing.assert_allclose(difference, 0, atol=2e-3)
                continue
            assert np.median(difference) > 0.1
            if mode == "zero":
                np.testing.assert_allclose(found[scale], 0, atol=2e-3)
            elif replaced[scale] is not None:
                np.testing.assert_allclose(found[scale], replaced[scale], atol=2e-3)
            replaced[scale] = found[scale]


def test_levels_sample_from_the_base(flow):
    base = tfd.Sample(tfd.Normal(0.7, 1.0), _SHAPE)
    by_base = latents.levels_of_representation(flow, _IMAGES, base, seed=1)
    distribution = tfd.TransformedDistribution(base, flow)
    actual = latents.levels_of_representation(distribution, _IMAGES, seed=1)
    np.testing.assert_array_equal(actual, by_base)
    found = latents.encode(flow, by_base[:, 0])
    finest = flow.split_latents(tf.constant(found))[0].numpy()
    drawn = flow.split_latents(base.sample(4, seed=(1, 0)))[0]
    np.testing.assert_allclose(finest, drawn, atol=2e-3)


# sampling


def test_latents_are_normal_and_depend_on_the_seed():
    z = latents.sample_latents((16, 16, 3), 20, seed=3)
    assert z.shape == (20, 16, 16, 3)
    assert z.dtype == np.float32
    assert abs(z.mean()) < 0.05
    assert z.std() == pytest.approx(1, abs=0.05)
    np.testing.assert_array_equal(z, latents.sample_latents((16, 16, 3), 20, seed=3))
    np.testing.assert_array_equal(z, latents.sample_latents((16, 16, 3), 20, seed=(3, 0)))
    assert np.abs(z - latents.sample_latents((16, 16, 3), 20, seed=4)).max() > 1


def test_truncation():
    z = latents.sample_latents((16, 16, 3), 20, seed=1, truncation=1.0, dtype=tf.float64)
    assert z.dtype == np.float64
    assert 0.99 < np.abs(z).max() <= 1
    # Truncated to one standard deviation: sqrt(1 - 2 φ(1) / (2 Φ(1) - 1)).
    assert z.std() == pytest.approx(0.5396, abs=0.02)
    options = {"temperature": 0.5, "truncation": 1.0, "dtype": tf.float64}
    half = latents.sample_latents((16, 16, 3), 20, seed=1, **options)
    np.testing.assert_allclose(half, z / 2)


@pytest.mark.parametrize("temperature", [1.0, 0.25, 0.0])
def test_extrapolate(flow, temperature):
    shape = (32, 16, 1)
    images = latents.extrapolate(flow, shape, 2, seed=5, temperature=temperature)
    z = temperature * latents.sample_latents(shape, 2, seed=5)
    _same(images, latents.decode(flow, z))
    np.testing.assert_allclose(latents.encode(flow, images), z, atol=5e-3)


# statistics


def test_statistics_are_those_of_numpy(flow, encoded):
    scales = latents.latent_statistics(flow, _IMAGES, batch_size=3)
    by_scale = flow.split_latents(tf.constant(encoded))
    assert [scale.shape for scale in scales] == [(4, 4, 2), (2, 2, 4), (2, 2, 4)]
    for scale, z in zip(scales, by_scale, strict=True):
        z = z.numpy().astype(np.float64).ravel()
        assert scale.mean == pytest.approx(z.mean(), abs=1e-4)
        assert scale.std == pytest.approx(np.sqrt(np.mean(z**2) - z.mean() ** 2), rel=1e-4)
        moments = [np.mean((z - z.mean()) ** k) for k in (2, 3, 4)]
        assert scale.skewness == pytest.approx(moments[1] / moments[0] ** 1.5, abs=1e-3)
        assert scale.excess_kurtosis == pytest.approx(moments[2] / moments[0] ** 2 - 3, abs=1e-3)
        assert scale.largest == pytest.approx(np.abs(z).max(), rel=1e-4)


# conditions


_KINDS = {
    "labels": {"num_classes": 3},
    "vectors": {"conditional_event_shape": [5]},
    "images": {"conditional_event_shape": [8, 8, 2]},
}
_VECTORS = ft.normal([4, 5]).numpy()
each_kind = pytest.mark.parametrize("kind", _KINDS)
# Of images, and of vectors.
_CASES = [*((_IMAGES, kind) for kind in _KINDS), (_VECTORS, "labels"), (_VECTORS, "vectors")]


def _ids(value):
    return f"{value.ndim - 1}d" if isinstance(value, np.ndarray) else str(value)


each_case = pytest.mark.parametrize(("events", "kind"), _CASES, ids=_ids)


def _conditions(kind):
    """Four conditions."""
    if kind == "labels":
        return np.array([2, 0, 1, 0])
    return ft.normal([4, *_KINDS[kind]["conditional_event_shape"]], seed=1).numpy()


def _embedded(flow, conditions):
    return flow.condition_embedding(flow.condition_embedding.spec.as_tensor(conditions)).numpy()


def _decode_embedded(flow, z, conditions, embedded):
    """Decodes as if the embedding of each condition was the one that is given."""

    def call(self, condition):
        return tf.constant(np.broadcast_to(embedded, [*condition.shape[:1], *embedded.shape[1:]]))

    # A graph would not see the method.
    tf.config.run_functions_eagerly(True)
    with mock.patch.object(ConditionEmbedding, "call", call):
        decoded = latents.decode(flow, z, conditional_input=conditions)
    tf.config.run_functions_eagerly(False)
    return decoded


@pytest.fixture(scope="module")
def flows():
    """Conditional flows with random weights."""
    keras.utils.set_random_seed(0)
    kinds = {**_KINDS, "dropout": {"num_classes": 3, "condition_dropout": 0.1}}
    options = {"num_scales": 2, "num_blocks": 0, "num_couplings": 1}
    return {kind: ft.image_flow(_SHAPE, **options, **kwargs) for kind, kwargs in kinds.items()}


@pytest.fixture
def case(flows, events, kind):
    """Returns a flow, conditions, the continuous values of the events, and a tolerance of them."""
    conditions = None if kind is None else _conditions(kind)
    if events is _IMAGES:
        return flows[kind], conditions, _IMAGES + np.float32(0.5), 0.05
    return ft.vector_flow(5, num_blocks=1, **_KINDS.get(kind, {})), conditions, _VECTORS, 1e-4


@pytest.mark.parametrize(("events", "kind"), [*_CASES, (_VECTORS, None)], ids=_ids)
def test_events_and_conditions_are_cut_together(case, events, kind):
    flow, conditions, values, tolerance = case
    options = {} if conditions is None else {"conditional_input": conditions}
    encoded = latents.encode(flow, events, batch_size=3, **options)
    np.testing.assert_allclose(encoded, flow.inverse(tf.constant(values), **options), atol=1e-5)
    _same(latents.decode(flow, encoded, batch_size=3, **options), values, tolerance)
    again, error = latents.reconstruct(flow, events, batch_size=3, **options)
    assert 0 < error < tolerance
    _same(again, values, tolerance)
    one = {name: condition[0] for name, condition in options.items()}
    np.testing.assert_allclose(latents.encode(flow, events[0], **one), encoded[0], atol=1e-5)
    distribution = tfd.TransformedDistribution(ft.standard_normal(events.shape[1:]), flow)
    np.testing.assert_allclose(latents.encode(distribution, events, **options), encoded, atol=1e-5)
    if conditions is not None:
        other = latents.encode(flow, events, conditional_input=np.roll(conditions, 1, axis=0))
        assert np.abs(other - encoded).max() > 0.01


def test_vectors_of_other_dtypes():
    # Integers are no gray levels.
    flow = ft.vector_flow(5, num_blocks=1)
    for vectors in (np.arange(20).reshape(4, 5), _VECTORS.astype(np.float64)):
        expected = latents.encode(flow, vectors.astype(np.float32))
        np.testing.assert_allclose(latents.encode(flow, vectors), expected)


@each_kind
def test_conditions_broadcast_with_images(flows, kind):
    flow, conditions = flows[kind], _conditions(kind)
    by_condition = latents.encode(
        flow, _IMAGES[:2], batch_size=3, conditional_input=conditions[:, np.newaxis]
    )
    assert by_condition.shape == (4, 2, *_SHAPE)
    for index, condition in enumerate(conditions):
        one = latents.encode(flow, _IMAGES[:2], conditional_input=condition)
        np.testing.assert_allclose(by_condition[index], one, atol=1e-5)
    of_one_image = latents.encode(flow, _IMAGES[0], conditional_input=conditions)
    np.testing.assert_allclose(of_one_image, by_condition[:, 0], atol=1e-5)


@each_kind
def test_a_conditioned_distribution(flows, kind):
    conditions = _conditions(kind)
    flow = tfd.TransformedDistribution(ft.standard_normal(_SHAPE), flows[kind])
    conditioned = tfr.condition(flow, conditions)
    options = {"conditional_input": conditions}
    z = latents.encode(conditioned, _IMAGES)
    np.testing.assert_array_equal(z, latents.encode(flow, _IMAGES, **options))
    _same(latents.decode(conditioned, z), _IMAGES + 0.5)
    grid = latents.manifold(conditioned, _IMAGES)
    np.testing.assert_array_equal(grid, latents.manifold(flow, _IMAGES, **options))
    levels = latents.levels_of_representation(conditioned, _IMAGES, mode="zero")
    by_options = latents.levels_of_representation(flow, _IMAGES, mode="zero", **options)
    np.testing.assert_array_equal(levels, by_options)
    _same(levels[:, 1], _IMAGES + 0.5)
    found = latents.encode(conditioned, levels[:, 0])
    fine, coarse = flows[kind].split_latents(tf.constant(found))
    np.testing.assert_allclose(fine, 0, atol=2e-3)
    np.testing.assert_allclose(coarse, flows[kind].split_latents(tf.constant(z))[1], atol=2e-3)
    ends = latents.interpolate(conditioned, _IMAGES, _IMAGES[::-1], 2)
    _same(ends[:, 0], _IMAGES + 0.5)
    with pytest.raises(ValueError, match=r"only if `tfr.condition`"):
        latents.encode(conditioned, _IMAGES, **options)


def test_no_condition(flows):
    flow = flows["dropout"]
    nothing = latents.encode(flow, _IMAGES)
    minus_one = latents.encode(flow, _IMAGES, conditional_input=-1)
    np.testing.assert_allclose(minus_one, nothing, atol=1e-5)
    some = latents.encode(flow, _IMAGES, conditional_input=[-1, 2, -1, 2])
    np.testing.assert_allclose(some[::2], nothing[::2], atol=1e-5)
    assert np.abs(some[1::2] - nothing[1::2]).max() > 0.01


@pytest.mark.parametrize(
    ("kind", "condition", "message"),
    [
        ("labels", None, r"integer labels in \[0, 3\), .*got None"),
        ("labels", [0, 1, 2], r"broadcast .* shape \(4,\) .* shape \(3,\)"),
        ("images", np.zeros([4, 8, 8, 3]), r"images \[..., 8, 8, 2\], got float64"),
    ],
)
def test_bad_conditions(flows, kind, condition, message):
    with pytest.raises(ValueError, match=message):
        latents.encode(flows[kind], _IMAGES, conditional_input=condition)
    with pytest.raises(ValueError, match=message):
        latents.decode(flows[kind], np.zeros([4, *_SHAPE]), conditional_input=condition)


def test_flows_without_a_condition(flow):
    with pytest.raises(ValueError, match="only for a flow with num_classes"):
        latents.encode(flow, _IMAGES, conditional_input=[0, 1, 2, 1])
    with pytest.raises(ValueError, match="only for a flow with num_classes"):
        latents.swap_condition(flow, _IMAGES, 0, 1)


@each_case
def test_swap_condition(case, events, kind):
    flow, conditions, values, tolerance = case
    swapped = latents.swap_condition(flow, events, conditions, conditions[::-1], batch_size=3)
    z = latents.encode(flow, events, conditional_input=conditions)
    decoded = latents.decode(flow, z, conditional_input=conditions[::-1])
    _same(swapped, decoded, tolerance)
    assert np.abs(swapped - values).max() > 20 * tolerance
    # Back to the events, and each event under each condition.
    back = latents.swap_condition(flow, swapped, conditions[::-1], conditions)
    _same(back, values, tolerance)
    by_condition = latents.swap_condition(flow, events, conditions, conditions[:, np.newaxis])
    _same(by_condition[np.arange(4), np.arange(4)], values, tolerance)
    _same(by_condition[np.arange(4)[::-1], np.arange(4)], swapped, tolerance)


@each_case
def test_interpolation_under_conditions(case, events, kind):
    flow, conditions, values, tolerance = case
    pair, first, second = (events[:2], events[2:]), conditions[:2], conditions[2:]
    options = {"conditional_input": first, "second_conditional_input": second}
    steps = latents.interpolate(flow, *pair, 3, **options)
    _same(steps[:, 0], values[:2], tolerance)
    _same(steps[:, 2], values[2:], tolerance)
    linear = latents.interpolate(flow, *pair, 3, spherical=False, **options)
    z1 = latents.encode(flow, pair[0], conditional_input=first)
    z2 = latents.encode(flow, pair[1], conditional_input=second)
    embedded = _embedded(flow, conditions)
    middle = (embedded[:2] + embedded[2:]) / 2
    _same(linear[:, 1], _decode_embedded(flow, (z1 + z2) / 2, first, middle), tolerance)
    # One condition for both.
    same = latents.interpolate(flow, *pair, 3, spherical=False, conditional_input=first)
    _same(same[:, 2], values[2:], tolerance)
    z2 = latents.encode(flow, pair[1], conditional_input=first)
    decoded = latents.decode(flow, (z1 + z2) / 2, conditional_input=first)
    _same(same[:, 1], decoded, tolerance)


def test_interpolations_under_conditions_share_one_graph():
    network_fn, layers = ft.counting(ft.resnet)
    flow = ft.conditional_flow("labels", image_shape=_SHAPE, network_fn=network_fn)
    latents.interpolate(flow, *_IMAGES[:2], conditional_input=1, second_conditional_input=2)
    latents.manifold(flow, _IMAGES, conditional_input=[0, 1, 2, 3])
    counts = [layer.count for layer in layers]
    latents.interpolate(flow, *_IMAGES[1:3], conditional_input=0, second_conditional_input=3)
    latents.manifold(flow, _IMAGES[::-1], conditional_input=2)
    assert counts == [layer.count for layer in layers] and all(counts)


@each_case
def test_manifolds_under_conditions(case, events, kind):
    flow, conditions, values, tolerance = case
    grid = latents.manifold(flow, events, 8, conditional_input=conditions)
    corners = np.stack([grid[0, 0], grid[0, 2], grid[2, 0], grid[2, 2]])
    _same(corners, values, tolerance)
    # Between the first two events the weights are 1 / √2, and their squares 1/2.
    z = latents.encode(flow, events, conditional_input=conditions)
    middle = _embedded(flow, conditions)[:2].mean(axis=0, keepdims=True)
    z_middle = (z[:1] + z[1:2]) / np.sqrt(2)
    decoded = _decode_embedded(flow, z_middle, conditions[:1], middle)
    _same(grid[0, 1], decoded[0], tolerance)
    one = latents.manifold(flow, events, 4, conditional_input=conditions[1])
    z = latents.encode(flow, events, conditional_input=conditions[1])
    decoded = latents.decode(flow, -z[1], conditional_input=conditions[1])
    _same(one[2, 1], decoded, tolerance)


def test_levels_sample_from_a_conditional_base(flow):
    means = tf.stack([tf.zeros(_SHAPE), tf.fill(_SHAPE, 3.0)])
    distribution = tfd.TransformedDistribution(ft.class_base(means, stddev=0.1), flow)
    labels = [0, 1, 0, 1]
    levels = latents.levels_of_representation(distribution, _IMAGES, conditional_input=labels)
    _same(levels[:, -1], _IMAGES + 0.5)
    finest = flow.split_latents(tf.constant(latents.encode(flow, levels[:, 0])))[0]
    np.testing.assert_allclose(np.mean(finest, axis=(1, 2, 3)), 3.0 * np.array(labels), atol=0.1)
    # Encoding and decoding have no part in it.
    encoded = latents.encode(distribution, _IMAGES, conditional_input=labels)
    np.testing.assert_array_equal(encoded, latents.encode(flow, _IMAGES))


@pytest.mark.parametrize("kind", ["labels", "vectors"])
def test_extrapolation_under_conditions(flows, kind):
    flow, conditions = flows[kind], _conditions(kind)
    images = latents.extrapolate(flow, (16, 8, 1), 4, conditional_input=conditions)
    z = latents.sample_latents((16, 8, 1), 4)
    _same(images, flow.forward(tf.constant(z), conditional_input=conditions), 0.01)
    same = latents.extrapolate(flow, (16, 8, 1), 4, conditional_input=conditions[0])
    assert np.abs(same[0] - images[0]).max() < 0.01 < np.abs(same[1] - images[1]).max()


# vectors


@pytest.mark.parametrize("spherical", [True, False])
def test_vectors_are_interpolated(spherical):
    flow = ft.vector_flow(5, num_blocks=1)
    steps = latents.interpolate(flow, _VECTORS[:2], _VECTORS[2:], 3, spherical=spherical)
    assert steps.shape == (2, 3, 5)
    np.testing.assert_allclose(steps[:, 0], _VECTORS[:2], atol=1e-4)
    np.testing.assert_allclose(steps[:, 2], _VECTORS[2:], atol=1e-4)
    z1, z2 = latents.encode(flow, _VECTORS[:2]), latents.encode(flow, _VECTORS[2:])
    z = (z1 + z2) / 2
    if spherical:
        # The middle of an arc: the sum of both ends, divided by 2 cos(ω / 2).
        norms = np.linalg.norm(z1, axis=-1) * np.linalg.norm(z2, axis=-1)
        z /= np.sqrt((1 + np.sum(z1 * z2, -1) / norms) / 2)[:, np.newaxis]
    np.testing.assert_allclose(steps[:, 1], latents.decode(flow, z), atol=1e-4)


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (_VECTORS[:, :4], r"expected vectors \[..., 5\], got shape \(4, 4\)"),
        (np.float32(1), r"expected vectors \[..., 5\], got shape \(\)"),
        (_VECTORS * np.inf, r"expected finite vectors .* got values in \[-inf, inf\]"),
    ],
    ids=["size", "rank", "infinite"],
)
def test_bad_vectors(vectors, message):
    flow = tfr.RealNVPVector(5, num_couplings=1, num_filters=4)
    with pytest.raises(ValueError, match=message):
        latents.encode(flow, vectors)


def test_scales_are_those_of_images():
    flow = tfr.RealNVPVector(5, num_couplings=1, num_filters=4)
    for name in ("latent_statistics", "levels_of_representation", "extrapolate"):
        with pytest.raises(TypeError, match=r"expected an ImageFlow, .*, got RealNVPVector"):
            getattr(latents, name)(flow, [5] if name == "extrapolate" else _VECTORS)

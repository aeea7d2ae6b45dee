import math

import flow_testing as ft
import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_probability import distributions as tfd

import tfp_realnvp as tfr
from tfp_realnvp import evaluation
from tfp_realnvp.evaluation.summaries import calibration_error

pytestmark = [pytest.mark.eager, pytest.mark.usefixtures("no_graph_optimizer")]

_SHAPE = (8, 8, 1)
_IMAGES = ft.grey_levels(11, _SHAPE)
_DIMS = math.prod(_SHAPE)


@pytest.fixture(scope="module")
def flow():
    keras.utils.set_random_seed(0)
    return ft.flow_distribution(_SHAPE, num_couplings=1)


def _by_hand(distribution, images, num_samples, seed):
    """Log densities [K, N], with an independent implementation of the noise."""
    draws = [ft.with_event_noise(images, seed, draw) for draw in range(num_samples)]
    return np.asarray([distribution.log_prob(values).numpy() for values in draws], np.float64)


@pytest.mark.graph
def test_a_model_is_traced_once_and_its_new_weights_count():
    flow, traces = ft.flow_distribution(_SHAPE, num_couplings=1), []
    log_prob = flow.log_prob
    flow.log_prob = lambda *args, **kwargs: traces.append(1) or log_prob(*args, **kwargs)
    model = tfr.FlowModel(flow)
    images = _IMAGES[:4]

    def scores():
        result = evaluation.bits_per_dim(model, images, num_samples=2)
        return [result.importance_weighted, *tfr.log_prob(model, images, num_samples=2)]

    before = scores()
    # Any number of images and noise samples, seed, batch size and form of the data.
    evaluation.bits_per_dim(model, images[:3], seed=1, batch_size=2)
    tfr.log_prob(model, tf.data.Dataset.from_tensors(images))
    tfr.log_prob(flow, images[0:1])
    assert scores() == before and len(traces) == 1
    for variable in model.trainable_variables:
        variable.assign(1.1 * variable)
    after = scores()
    assert len(traces) == 1
    assert np.abs(np.subtract(after, before)).min() > 1e-3
    expected = _by_hand(flow, images, 2, 0)
    expected = np.logaddexp.reduce(expected, axis=0) - np.log(2)
    np.testing.assert_allclose(after[1:], expected, rtol=1e-5)


def test_draws_against_numpy(flow):
    result = evaluation.bits_per_dim(flow, _IMAGES, num_samples=3, seed=2, batch_size=4)
    log_prob = _by_hand(flow, _IMAGES, 3, 2)
    scale = -_DIMS * math.log(2)
    average = log_prob.mean(axis=0) / scale
    tighter = (np.logaddexp.reduce(log_prob, axis=0) - np.log(3)) / scale
    assert result.mean == pytest.approx(average.mean(), abs=1e-5)
    assert result.standard_error == pytest.approx(average.std(ddof=1) / math.sqrt(11), rel=1e-3)
    assert result.importance_weighted == pytest.approx(tighter.mean(), abs=1e-5)
    error = tighter.std(ddof=1) / math.sqrt(11)
    assert result.importance_weighted_error == pytest.approx(error, rel=1e-3)
    assert result.importance_weighted < result.mean - 3e-5
    assert (result.num_events, result.num_samples, result.unit) == (11, 3, "bits/dim")
    # `FlowModel.evaluate` scores with the first sample of the noise of its seed.
    model = ft.compiled(flow, seed=2)
    by_model = model.evaluate(_IMAGES, batch_size=4, verbose=0, return_dict=True)
    assert by_model["bits_per_dim"] == pytest.approx(log_prob[0].mean() / scale, abs=1e-4)


def test_datasets():
    # Any density with image events.
    flow = tfd.Sample(tfd.Normal(128.0, 60.0), _SHAPE)
    labels, forms = np.arange(len(_IMAGES)), [tf.constant(_IMAGES), _IMAGES + np.float32(0.5)]
    for elements in (_IMAGES, (_IMAGES, labels), {"image": _IMAGES, "label": labels}):
        forms.append(ft.dataset(elements))
    expected = evaluation.bits_per_dim(flow, _IMAGES, num_samples=2, batch_size=4)
    for data in forms:
        assert evaluation.bits_per_dim(flow, data, num_samples=2, batch_size=4) == expected


def test_double():
    flow = ft.flow_distribution(_SHAPE, num_couplings=1, dtype=tf.float64)
    result = evaluation.bits_per_dim(flow, _IMAGES[:3])
    values = ft.with_event_noise(_IMAGES[:3], dtype=np.float64)
    by_hand = -np.mean(flow.log_prob(values)) / (_DIMS * math.log(2))
    assert result.mean == pytest.approx(by_hand, rel=1e-12)


_TIMES = 1.7e9 + ft.normal([11, 2], tf.float64).numpy()  # seconds, which float32 cannot tell apart


@pytest.fixture(scope="module")
def times_flow():
    """A flow of times given one of two labels, in float64."""
    means = tf.constant([[0.0, 0.0], [0.5, -1.0]], tf.float64)
    uniform = tfd.Categorical(logits=tf.zeros(2, tf.float64))
    one = tf.ones([], tf.float64)
    base = tfr.ClassMixture(uniform, tfd.Independent(tfd.Normal(means, one), 1))
    bijector = tfr.Standardization([1.7e9] * 2, [1.0] * 2, dtype=tf.float64)
    return tfd.TransformedDistribution(base, bijector)


@pytest.mark.parametrize(
    "form",
    [np.asarray, tf.constant, np.ndarray.tolist, lambda x: {"image": x}, lambda x: (x, None)],
)
def test_data_keep_the_dtype_of_the_distribution(times_flow, form):
    expected = times_flow.log_prob(_TIMES)
    assert np.ptp(expected) > 1
    for model in (times_flow, tfr.FlowModel(times_flow)):
        log_prob = tfr.log_prob(model, form(_TIMES))
        assert log_prob.dtype == np.float64
        np.testing.assert_allclose(log_prob, expected, rtol=1e-12)
    result = evaluation.log_likelihood(times_flow, form(_TIMES))
    assert result.mean == pytest.approx(np.mean(expected), rel=1e-12)


def test_classes_of_data_in_the_dtype_of_the_distribution(times_flow):
    by_class = [tfr.condition(times_flow, label).log_prob(_TIMES) for label in (0, 1)]
    expected = np.stack(by_class, axis=-1) + np.log(0.5)
    for values in (_TIMES, tf.constant(_TIMES), _TIMES.tolist()):
        log_joint = tfr.class_log_joint(times_flow, values)
        assert log_joint.dtype == tf.float64
        np.testing.assert_allclose(log_joint, expected, rtol=1e-12)
    labels = expected.argmax(-1)
    assert 0 < labels.sum() < 11
    assert evaluation.classification(times_flow, _TIMES, labels).accuracy == 1


def _uniform(high=256.0):
    return tfd.Sample(tfd.Uniform(0.0, high), _SHAPE)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (_IMAGES[:0], r"expected images .*, at least one, got shape \(0, 8, 8, 1\)"),
        (_IMAGES[:, :4], r"expected images \[batch, 8, 8, 1\], got shape \(11, 4, 8, 1\)"),
        (_IMAGES / 255, r"Leave out `Rescaling\(1 / 255\)`"),
        (3 * np.sin(_IMAGES), "pass dequantize=False to FlowModel"),
        (_IMAGES + np.int64(256), r"expected gray levels 0 to \d+, .* got values from 2\d\d to"),
        (tf.data.Dataset.from_tensors(_IMAGES).repeat(), "finite dataset"),
        (tf.data.Dataset.from_tensors({"y": _IMAGES}), "'image' .images. or 'x'"),
    ],
    ids=["none", "shape", "fractions", "features", "levels", "infinite", "key"],
)
def test_bad_images(flow, images, message):
    with pytest.raises(ValueError, match=message):
        evaluation.bits_per_dim(flow, images)


# Conditions.


_LABELS = np.arange(11) % 3
_CONDITIONS = {
    "labels": ({"num_classes": 3}, _LABELS),
    "vectors": ({"conditional_event_shape": [4]}, ft.normal([11, 4]).numpy()),
    "images": ({"conditional_event_shape": [8, 8, 2]}, ft.normal([11, 8, 8, 2]).numpy()),
}


def _conditional(**kwargs):
    return ft.flow_distribution(_SHAPE, num_scales=1, num_blocks=0, num_couplings=1, **kwargs)


@pytest.mark.parametrize("kind", _CONDITIONS)
def test_bits_per_dim_under_conditions(kind):
    declared, conditions = _CONDITIONS[kind]
    flow = _conditional(**declared)
    options = {"num_samples": 2, "seed": 5, "batch_size": 4}
    result = evaluation.bits_per_dim(flow, (_IMAGES, conditions), **options)
    log_prob, other = (
        _by_hand(tfr.condition(flow, each), _IMAGES, 2, 5)
        for each in (conditions, conditions[::-1])
    )
    by_hand = -np.mean(log_prob) / (_DIMS * math.log(2))
    tolerance = 1e-5
    assert result.mean == pytest.approx(by_hand, abs=tolerance)
    # The conditions matter.
    assert np.abs(other - log_prob)[-1].max() > 100 * tolerance * _DIMS * math.log(2)


def _normal_of_class():
    """p(x | y) = N(means[y], 20²) for two classes."""
    means = tf.constant([50.0, 80.0])[:, None, None, None] + tf.zeros([2, 2, 1])
    return ft.class_base(means, stddev=20.0)


def test_bits_per_dim_of_a_conditional_base():
    images = ft.grey_levels(6, (2, 2, 1))
    labels = np.array([0, 1, 1, 0, 1, 0])
    result = evaluation.bits_per_dim(_normal_of_class(), (images, labels))
    values = ft.with_event_noise(images)
    z = (values - np.where(labels, 80, 50)[:, None, None, None]) / 20
    by_hand = np.mean(z**2 / 2 + np.log(20 * np.sqrt(2 * np.pi))) / math.log(2)
    assert result.mean == pytest.approx(by_hand, rel=1e-5)
    swapped = {"image": images, "label": 1 - labels}
    assert evaluation.bits_per_dim(_normal_of_class(), swapped) != result
    data = ft.dataset({**swapped, "conditional_input": labels}, 6)
    assert evaluation.bits_per_dim(_normal_of_class(), data) == result
    with pytest.raises(ValueError, match="expected a conditional_input, got None"):
        evaluation.bits_per_dim(_normal_of_class(), images)


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (_IMAGES, {}, r"events and conditions, integer labels in \[0, 3\), .*, got events only"),
        ((_IMAGES, _LABELS + 1), {}, r"integer labels in \[0, 3\), .*got \[3\]"),
        ((_IMAGES, _LABELS[:5]), {}, r"one condition for each of 11 events, got 5"),
        ((_IMAGES, _LABELS), {"num_samples": 0}, "at least 1"),
        ((_IMAGES, _LABELS), {"batch_size": 0}, "at least 1"),
    ],
)
def test_bad_conditions_and_options(images, options, message):
    with pytest.raises(ValueError, match=message):
        evaluation.bits_per_dim(_conditional(num_classes=3), images, **options)


@pytest.mark.parametrize("function", [tfr.log_prob, tfr.log_prob_map])
def test_unknown_options(flow, function):
    message = rf"{function.__name__} got an unexpected keyword argument 'seed'. It takes batch_size"
    with pytest.raises(TypeError, match=message):
        function(flow, _IMAGES, seed=0)


# Nats.


_VECTORS = ft.normal([11, 5]).numpy()
_VECTOR_CONDITIONS = {
    "none": ({}, None),
    "labels": ({"num_classes": 3}, _LABELS),
    "vectors": ({"conditional_event_shape": [4]}, ft.normal([11, 4], seed=1).numpy()),
}


def _vector_flow(**kwargs):
    return ft.vector_distribution(5, num_blocks=1, **kwargs)


@pytest.mark.parametrize("kind", _VECTOR_CONDITIONS)
def test_log_likelihood_of_vectors(kind):
    declared, conditions = _VECTOR_CONDITIONS[kind]
    flow = _vector_flow(**declared)
    one = flow if conditions is None else tfr.condition(flow, conditions)
    log_prob = one.log_prob(_VECTORS).numpy().astype(np.float64)
    data = _VECTORS if conditions is None else (_VECTORS, conditions)
    result = evaluation.log_likelihood(flow, data, batch_size=4)
    assert result.mean == pytest.approx(log_prob.mean(), rel=1e-5)
    error = log_prob.std(ddof=1) / math.sqrt(11)
    assert result.standard_error == pytest.approx(error, rel=1e-4)
    assert (result.num_events, result.num_samples) == (11, 1)
    # A single noise sample, or no noise, gives no tighter bound.
    assert result.importance_weighted == pytest.approx(result.mean, rel=1e-12)
    assert result.unit == "nats"
    dataset = ft.dataset(data)
    assert evaluation.log_likelihood(flow, dataset) == result
    model = ft.compiled(flow)
    loss = model.evaluate(_VECTORS, conditions, batch_size=4, verbose=0, return_dict=True)["loss"]
    assert result.mean == pytest.approx(-loss, rel=1e-5)


@pytest.mark.graph
def test_log_likelihood_of_integer_vectors():
    # p(u) = 2u on [0, 1): the integer 0 has probability 1, whose log is 0.
    density = tfd.Sample(tfd.Beta(2.0, 1.0), [3])
    zero = np.zeros([1, 3], int)
    result = evaluation.log_likelihood(density, zero, num_samples=1_000, dequantize=True)
    assert result.mean == pytest.approx(3 * (math.log(2) - 1), abs=0.15)
    assert result.importance_weighted == pytest.approx(0, abs=0.1)
    with pytest.raises(ValueError, match=r"num_samples=1 unless dequantize=True .* got 2"):
        evaluation.log_likelihood(density, zero + 0.5, num_samples=2)


def test_log_likelihood_with_a_dequantizer():
    # p = q: each noise sample gives the probability 1.
    density = tfd.Independent(tfd.Beta(tf.ones([1, 1, 1]), 1.5), 3)
    zeros = np.zeros([20, 1, 1, 1], np.uint8)
    result = evaluation.log_likelihood(density, zeros, num_samples=3, dequantizer=_Noise())
    assert result.mean == pytest.approx(0, abs=1e-5)
    assert result.importance_weighted == pytest.approx(0, abs=1e-5)
    with pytest.raises(ValueError, match="expected a dequantizer only with dequantize=True"):
        evaluation.log_likelihood(density, zeros, dequantize=False, dequantizer=_Noise())


def test_options_in_place_of_those_of_a_model(flow):
    images = _IMAGES[:6]
    noise = tfr.VariationalDequantization(_SHAPE, num_couplings=1, num_filters=4)
    ft.randomize(noise)
    uniform, learned = tfr.FlowModel(flow, seed=1), tfr.FlowModel(flow, dequantizer=noise, seed=1)
    scores = {}
    for model, options, expected in (
        (uniform, {"seed": 1}, uniform),
        (uniform, {"seed": 2}, tfr.FlowModel(flow, seed=2)),
        (uniform, {"seed": 1, "dequantizer": noise}, learned),
        (learned, {"seed": 1}, learned),
    ):
        mean = evaluation.bits_per_dim(model, images, **options).mean
        log_probs = expected.predict(images, verbose=0)
        np.testing.assert_allclose(mean, -log_probs.mean() / _DIMS / math.log(2), rtol=1e-5)
        scores[round(mean, 7)] = options
    assert len(scores) == 3
    values = images + np.float32(0.5)
    for model in (uniform, learned):
        result = evaluation.log_likelihood(model, values, dequantize=False)
        np.testing.assert_allclose(result.mean, np.mean(flow.log_prob(values)), rtol=1e-5)
    with pytest.raises(ValueError, match="a dequantizer only with dequantize=True"):
        continuous = tfr.FlowModel(flow, dequantize=False)
        evaluation.log_likelihood(continuous, values, dequantizer=noise)


def test_bits_per_dim_are_of_images():
    assert math.isnan(evaluation.bits_per_dim(_uniform(), _IMAGES[:1]).standard_error)
    images = np.zeros([5, *_SHAPE], np.uint8)
    images[3, 2, 2] = 200
    with pytest.raises(ValueError, match=r"of event 3, got array\(\[-inf, -inf\]\)"):
        evaluation.bits_per_dim(_uniform(100.0), images, num_samples=2, batch_size=2)
    with pytest.raises(ValueError, match=r"expected images \(log_likelihood evaluates vectors"):
        evaluation.bits_per_dim(_vector_flow(), _VECTORS)
    with pytest.raises(ValueError, match=r"over images .* or vectors \[size\]"):
        evaluation.log_likelihood(tfd.Normal(0.0, 1.0), _VECTORS)
    with pytest.raises(ValueError, match=r"finite log densities of event 0, got array\(\[-inf\]\)"):
        evaluation.log_likelihood(_vector_flow(), _VECTORS * 1e30)


# Classification.


def test_classification_by_hand():
    # Two classes, N(50, 20²) and N(80, 20²) for each of four pixels.
    images = np.random.default_rng(0).integers(30, 110, [50, 2, 2, 1], dtype=np.uint8)
    noise = np.random.default_rng(1).normal(0, 9, 50)
    labels = (images.mean(axis=(1, 2, 3)) + noise > 65).astype(int)
    result = evaluation.classification(_normal_of_class(), images, labels, [0.5, 0.5], seed=7)
    values = ft.with_event_noise(images, 7).reshape(50, 4).astype(np.float64)
    # log p(1 | x) - log p(0 | x) = sum of (x - 65) 30 / 20².
    odds = np.exp(np.sum((values - 65) * 30 / 400, axis=-1))
    of_label = np.where(labels, odds / (1 + odds), 1 / (1 + odds))
    assert result.num_events == 50
    predicted = (odds > 1).astype(int)
    np.testing.assert_array_equal(
        result.confusion_matrix,
        [[np.sum((labels == row) & (predicted == column)) for column in (0, 1)] for row in (0, 1)],
    )
    assert 0.6 < result.accuracy < 1
    assert result.accuracy == np.mean(of_label > 0.5)
    assert result.log_loss == pytest.approx(-np.mean(np.log(of_label)), rel=1e-4)
    expected = calibration_error(np.maximum(of_label, 1 - of_label), of_label > 0.5)
    assert result.expected_calibration_error == pytest.approx(expected, abs=1e-5)
    data = ft.dataset((images, labels), 50)
    assert evaluation.classification(_normal_of_class(), data, prior=[0.5] * 2, seed=7) == result


def test_the_prior_counts():
    images, labels = np.full([4, 2, 2, 1], 65, np.uint8), np.zeros([4], int)
    distribution = _normal_of_class()
    certain = evaluation.classification(distribution, images, labels, [1.0, 0.0], num_samples=2)
    assert certain.log_loss == pytest.approx(0, abs=1e-6)
    wrong = evaluation.classification(distribution, images, labels, [0.0, 1.0])
    assert wrong.log_loss == math.inf
    assert (wrong.accuracy, wrong.expected_calibration_error, wrong.num_events) == (0, 1, 4)
    assert wrong.confusion_matrix == ((0, 4), (0, 0))


@pytest.mark.graph
def test_draws_of_noise_are_weighed_by_their_density():
    # p(x | 0) is concentrated on u < 1/2, p(x | 1) is uniform on [0, 1).
    densities = tfr.ConditionalBase(
        lambda label: tfd.Sample(tfd.Beta(1.0, tf.where(tf.equal(label, 0), 3.0, 1.0)), [1, 1, 1]),
        event_shape=[1, 1, 1],
    )
    zero, labels = np.zeros([1, 1, 1, 1], np.uint8), np.zeros([1], int)

    def log_loss(num_samples, seed=0, dequantizer=None):
        options = {"num_samples": num_samples, "seed": seed, "dequantizer": dequantizer}
        return evaluation.classification(densities, zero, labels, [0.5, 0.5], **options).log_loss

    # Both classes give the integer the probability 1.
    assert log_loss(2_000) == pytest.approx(math.log(2), abs=0.04)
    assert np.mean([log_loss(1, seed) for seed in range(8)]) > math.log(2) + 0.1
    # The same with other noise.
    assert log_loss(2_000, dequantizer=_Noise()) == pytest.approx(math.log(2), abs=0.04)


class _Noise(tfr.VariationalDequantization):
    """Noise of the density 3/2 sqrt(1 - u)."""

    def __init__(self):
        tf.Module.__init__(self)

    def add_noise(self, images, noise_fn, training=False):
        levels = tf.cast(images, tf.float32)
        u = 1 - (1 - noise_fn(levels)) ** (2 / 3)
        log_q = tf.math.log(1.5 * tf.sqrt(1 - u))
        return levels + u, tf.reduce_sum(log_q, axis=[1, 2, 3])


def test_bad_labels(flow):
    with pytest.raises(ValueError, match="RealNVPVector take labels with `num_classes=K`"):
        evaluation.classification(flow, _IMAGES, _LABELS)
    base, images = _normal_of_class(), ft.grey_levels(11, (2, 2, 1))
    for labels, match in [(_LABELS, "got \\[2\\]"), (_LABELS / 1, r"got float\d\d")]:
        with pytest.raises(ValueError, match=rf"integer labels in \[0, 2\), {match}"):
            evaluation.classification(base, images, labels, [0.5, 0.5])
    for data in (_IMAGES, (_IMAGES, np.full(11, -1))):
        with pytest.raises(ValueError, match=r"integer labels in \[0, 3\), got \[-1\]"):
            evaluation.classification(_conditional(num_classes=3, condition_dropout=0.1), data)


# 15 bins: 0.62 and 0.66 are in (9/15, 10/15], 0.68 in the next.
@pytest.mark.parametrize(
    ("confidence", "is_correct", "error"),
    [
        ([0.62, 0.66, 0.68], [1, 0, 1], (2 * abs(0.5 - 0.64) + 0.32) / 3),
        # A bin includes its upper end: 0.6 is in (8/15, 9/15], with 0.55.
        ([0.6, 0.55], [1, 0], abs(0.5 - 0.575)),
        ([1.0, 1.0, 1.0, 1.0], [1, 1, 1, 0], 0.25),
        ([0.5] * 8, [1, 0] * 4, 0.0),
    ],
)
def test_expected_calibration_error(confidence, is_correct, error):
    found = calibration_error(np.array(confidence), np.array(is_correct))
    assert found == pytest.approx(error, abs=1e-12)


# What a `FlowModel` says about its data.


def test_continuous_values(flow):
    values = ft.pixels([5, *_SHAPE]).numpy()
    expected = flow.log_prob(values).numpy().mean()
    bits = evaluation.bits_per_dim(tfr.FlowModel(flow, dequantize=False), values).mean
    assert bits == pytest.approx(-expected / (_DIMS * math.log(2)), rel=1e-5)


@pytest.mark.graph
def test_scores_do_not_depend_on_the_place_of_an_image():
    # In any order and batch.
    model, images = tfr.FlowModel(_conditional(num_classes=10)), ft.grey_levels(40, _SHAPE)
    labels = np.arange(40) % 10
    expected = tfr.log_prob(model, images, labels)
    for order, batch_size in ((np.arange(40)[::-1], 40), (np.arange(40), 7)):
        scores = tfr.log_prob(model, images[order], labels[order], batch_size=batch_size)
        np.testing.assert_allclose(scores, expected[order], rtol=0, atol=1e-3)
    alone = [tfr.log_prob(model, images[i : i + 1], labels[i : i + 1])[0] for i in range(5)]
    np.testing.assert_allclose(alone, expected[:5], rtol=0, atol=1e-3)
    log_probs = tfr.class_log_probs(model, images, num_samples=2)
    reverse = tfr.class_log_probs(model, images[::-1], num_samples=2)[::-1]
    np.testing.assert_allclose(log_probs, reverse, rtol=0, atol=2e-3)
    # More samples are a tighter bound, on average.
    bound = tfr.log_prob(model, images, labels, num_samples=8)
    assert bound.mean() > expected.mean()


@pytest.mark.parametrize("num_samples", [1, 3])
def test_class_log_probs_of_gray_levels(num_samples):
    flow, prior = _conditional(num_classes=3), np.array([0.5, 0.2, 0.3])
    classes = [_by_hand(tfr.condition(flow, k), _IMAGES, num_samples, 5) for k in range(3)]
    log_joint = np.logaddexp.reduce(np.stack(classes, axis=-1), axis=0) + np.log(prior)
    expected = log_joint - np.logaddexp.reduce(log_joint, axis=-1, keepdims=True)
    options = {"num_samples": num_samples, "seed": 5}
    actual = tfr.class_log_probs(flow, _IMAGES, prior, **options)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)
    # Any leading dimensions.
    single = tfr.class_log_probs(flow, _IMAGES[0], prior, **options)
    np.testing.assert_allclose(single, expected[0], rtol=1e-4, atol=1e-4)
    # One noise sample is the default.
    by_default = tfr.class_log_probs(flow, _IMAGES, prior, seed=5)
    is_same = np.allclose(by_default, expected, rtol=1e-4, atol=1e-4)
    assert is_same == (num_samples == 1)
    with pytest.raises(ValueError, match="no fractions"):
        tfr.class_log_probs(flow, _IMAGES / 255, num_samples=1)


@pytest.mark.parametrize("form", ["tuple", "dictionary", "dataset"])
def test_weights_are_no_data_of_an_evaluation(form):
    data = {"image": _VECTORS, "label": _LABELS, "sample_weight": np.ones(11)}
    if form == "tuple":
        data = tuple(data.values())
    elif form == "dataset":
        data = ft.dataset(tuple(data.values()))
    flow = _vector_flow(num_classes=3)
    for evaluate in (evaluation.log_likelihood, evaluation.classification):
        with pytest.raises(ValueError, match=r"without sample weights; `FlowModel\.evaluate`"):
            evaluate(flow, data)
    assert tfr.log_prob(flow, data).shape == (11,)  # a score of one event has no weight

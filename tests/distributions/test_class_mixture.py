"""A base with a component for each class, and flows that are trained on few labels with it."""

import re
import sys
import warnings

import flow_testing as ft
import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_probability import distributions as tfd

import tfp_realnvp as tfr

pytestmark = [
    pytest.mark.eager,
    pytest.mark.filterwarnings("ignore:.*labeled events are classified"),
]

_IMAGES, _VECTORS = (4, 4, 1), (3,)
_PROBS = [0.5, 0.3, 0.2]
_LABELS = [0, 2, -1, 1]
each_shape = pytest.mark.parametrize("shape", [_IMAGES, _VECTORS], ids=str)


def _mixture(shape=_VECTORS, dtype=tf.float32, distance=1.0):
    means = tf.Variable(distance * ft.normal([3, *shape], dtype), name="means")
    components = tfd.Independent(tfd.Normal(means, tf.constant(0.5, dtype)), len(shape))
    return tfr.ClassMixture(tfd.Categorical(probs=tf.constant(_PROBS, dtype)), components)


def _flow(shape):
    if shape == _IMAGES:
        flow = ft.image_flow(shape, num_scales=1, num_couplings=1, normalization=None)
    else:
        flow = tfr.RealNVPVector(3, num_couplings=2, num_blocks=0, num_filters=4)
    return tfd.TransformedDistribution(_mixture(shape), flow)


def _of_zeros(size, optimizer=None, **options):
    """Returns a model of points of classes, whose means are zero."""
    components = tfd.Independent(tfd.Normal(tf.Variable(tf.zeros([size, 2])), 1.0), 1)
    base = tfr.ClassMixture(tfd.Categorical(logits=tf.zeros(size)), components)
    bijector = tfr.RealNVPVector(2, num_couplings=2, num_filters=8, **options)
    return ft.compiled(tfd.TransformedDistribution(base, bijector), optimizer)


def _joint(mixture, z):
    """log p(z, y) of all classes, from one component at a time."""
    means = mixture.components_distribution.distribution.loc
    axes = list(range(-mixture.event_shape.rank, 0))
    log_probs = [
        tf.reduce_sum(tfd.Normal(mean, tf.constant(0.5, z.dtype)).log_prob(z), axis=axes)
        for mean in tf.unstack(means)
    ]
    return np.stack(log_probs, axis=-1) + np.log(_PROBS)


@each_shape
def test_log_prob(shape):
    mixture, z = _mixture(shape, tf.float64), ft.normal([4, *shape], tf.float64, seed=1)
    joint = _joint(mixture, z)
    marginal = np.logaddexp.reduce(joint, axis=-1)
    expected = np.where(np.less(_LABELS, 0), marginal, (joint - np.log(_PROBS))[range(4), _LABELS])
    np.testing.assert_allclose(mixture.log_prob(z, conditional_input=_LABELS), expected, rtol=1e-9)
    for missing in (None, -1, [-1] * 4):
        log_prob = mixture.log_prob(z, conditional_input=missing)
        np.testing.assert_allclose(log_prob, marginal, rtol=1e-9)


@each_shape
def test_samples(shape):
    # Means so far apart that the class of a sample is certain.
    mixture = _mixture(shape, distance=20.0)
    labels = tf.constant([0, 2, 1, -1])
    z = mixture.sample([500, 4], seed=(0, 1), conditional_input=labels)
    assert z.shape == (500, 4, *shape)
    classes = _joint(mixture, z).argmax(axis=-1)
    assert (classes[:, :3] == [0, 2, 1]).all()
    for unknown in (classes[:, 3], _joint(mixture, mixture.sample(500, seed=3)).argmax(axis=-1)):
        frequency = np.bincount(unknown, minlength=3) / 500
        np.testing.assert_allclose(frequency, _PROBS, atol=4 * np.sqrt(0.25 / 500))


@pytest.mark.graph
def test_few_labels_in_fit():
    # One step of gradient descent, on labeled and unlabeled rows.
    flow, rate = _flow(_VECTORS), 1e-3
    prior = tf.Variable(np.log(_PROBS), dtype=tf.float32)
    components = flow.distribution.components_distribution
    flow = flow.copy(distribution=tfr.ClassMixture(tfd.Categorical(logits=prior), components))
    model = ft.compiled(flow, keras.optimizers.SGD(rate), dequantize=False, scale_l2=0.0)
    x = ft.normal([4, *_VECTORS]).numpy()
    flow.log_prob(x, bijector_kwargs={"training": True})  # ActNorm takes its moments.
    means = flow.distribution.loc
    with tf.GradientTape() as tape:
        z, ildj = flow.bijector.inverse_and_log_det(tf.constant(x), training=True)
        joint = flow.distribution.components_distribution.log_prob(tf.expand_dims(z, 1))
        known = tf.gather(joint, [0, 2, 0, 1], batch_dims=1)
        log_prior = tf.math.log_softmax(prior)
        unknown = tf.reduce_logsumexp(joint + log_prior, axis=-1)
        log_prob = tf.where(np.less(_LABELS, 0), unknown, known) + ildj
        loss = -tf.reduce_mean(log_prob)
        # A tenth of the mean log p(y | x) of the three labels is added.
        gain = tf.gather(known - unknown, [0, 1, 3]) + tf.gather(log_prior, [0, 2, 1])
        objective = loss - 0.1 * tf.reduce_mean(gain)
    of_means, of_prior = tape.gradient(objective, [means, prior])
    expected, before = means - rate * of_means, prior.numpy()
    history = model.fit(x, np.array(_LABELS), batch_size=4, shuffle=False, verbose=0).history
    np.testing.assert_allclose(history["loss"], [loss], rtol=1e-5)
    np.testing.assert_allclose(means, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose((before - prior) / rate, of_prior, atol=1e-3)
    expected = tfr.condition(flow, _LABELS).log_prob(x)
    np.testing.assert_allclose(tfr.log_prob(model, x, _LABELS), expected, rtol=1e-4)
    np.testing.assert_allclose(tfr.log_prob(model, x), flow.log_prob(x), rtol=1e-4)


def _equal_means(shape):
    """Returns a model whose class means are zero, and the means."""
    flow = _flow(shape)
    means = flow.distribution.loc
    means.assign(tf.zeros_like(means))
    model = ft.compiled(flow, keras.optimizers.SGD(1e-30), dequantize=False)
    return model, means


@pytest.mark.parametrize(("shape", "kind"), [(_IMAGES, "dataset"), (_VECTORS, "budget")])
def test_equal_means_move_apart(shape, kind, monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.spatial.distance", None)  # SciPy is not required.
    model, means = _equal_means(shape)
    x = (ft.pixels if shape == _IMAGES else ft.normal)([6, *shape]).numpy()
    labels = np.array([0, -1, 2, 2, -1, 0])
    data, options, seen = (x, labels), {"batch_size": 6, "epochs": 8}, []

    def record(epoch, logs):
        seen.append((means.numpy(), model.distribution.bijector.inverse(x).numpy()))

    options["callbacks"] = [keras.callbacks.LambdaCallback(on_epoch_end=record)]
    if kind == "dataset":
        data, options["batch_size"] = (tf.data.Dataset.from_tensor_slices(data).batch(6),), None
    if kind == "budget":
        options["callbacks"] += [tfr.LearningRateBudget(steps=8, peak=1e-30)]
        options["epochs"] = 1_000
    model.fit(*data, verbose=0, **options)
    first, z = seen[0]
    np.testing.assert_allclose(first, 0, atol=1e-20)  # That step sets the normalizations.
    centers = np.zeros([3, *shape], np.float32)
    centers[[0, 2]] = z[[0, 5]].mean(0), z[[2, 3]].mean(0)
    centers[[0, 2]] -= centers[[0, 2]].mean(0)
    # The standard deviation of a component is 0.5.
    factor = max(1.0, 6 * 0.5 / np.linalg.norm(centers[0] - centers[2]))
    for epoch, share in [(1, 0.25), (2, 0.5), (4, 1.0), (7, 1.0)]:
        expected = centers * (1 + share * (factor - 1))
        np.testing.assert_allclose(seen[epoch][0], expected, rtol=1e-4, atol=1e-4)
    model.fit(*data, verbose=0, **{**options, "epochs": 1, "callbacks": []})
    np.testing.assert_allclose(means, seen[-1][0], atol=1e-20)  # They differ.


@pytest.mark.graph
def test_classes_of_few_labels():
    rng = np.random.default_rng(0)
    classes = np.arange(300) % 3
    x = np.array([[0.0, 0.0], [4.0, 0.0], [2.0, 3.0]])[classes] + rng.normal(0.0, 0.5, [300, 2])
    labels = np.where(np.arange(300) < 6, classes, -1)
    model = _of_zeros(3)
    model.fit(x, labels, epochs=15, verbose=0)
    accuracy = (tfr.class_log_probs(model, x).numpy().argmax(-1) == classes).mean()
    assert accuracy > 0.97


def test_warning_of_misclassified_labels():
    model = ft.compiled(_flow(_VECTORS), keras.optimizers.SGD(0.0))
    x = ft.normal([5, 3]).numpy()
    model.fit(x, np.full(5, -1), verbose=0)  # sets the normalizations
    labels = tfr.class_log_probs(model, x).numpy().argmax(-1)
    labels[4] = -1
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*labeled events")
        model.fit(x, labels, verbose=0)
    labels[:2] = (labels[:2] + 1) % 3
    with pytest.warns(UserWarning, match="2 of 4 labeled events are classified as another"):
        model.fit(x, labels, verbose=0)


_SORTED = np.repeat([0, 1, 2], [1_200, 60, 60])


@pytest.mark.graph
@pytest.mark.parametrize("kind", ["array", "dataset"])
def test_labels_of_sorted_rows(kind):
    # The first 1,000 labeled rows are of one class.
    rng = np.random.default_rng(0)
    x = np.array([[0.0, 0.0], [3.0, 0.0], [1.5, 2.0]])[_SORTED]
    x = (x + rng.normal(0.0, 0.5, x.shape)).astype(np.float32)
    model = _of_zeros(3, keras.optimizers.SGD(0.0))
    data, options = (x, _SORTED), {"batch_size": 220, "shuffle": False}
    if kind == "dataset":
        data, options = (tf.data.Dataset.from_tensor_slices(data).batch(220),), {}
    model.fit(*data, epochs=4, verbose=0, **options)
    means = model.distribution.distribution.loc.numpy()
    z = model.distribution.bijector.inverse(x).numpy()
    centers = np.stack([z[label == _SORTED].mean(axis=0) for label in range(3)])
    # Each class is nearest to its mean, and the means are 6 standard deviations apart or more.
    distances = np.linalg.norm(means[:, np.newaxis] - means, axis=-1)
    assert distances.sum() / 6 >= 6 - 1e-3
    centers -= centers.mean(axis=0)
    cosines = np.sum(means * centers, axis=1) / np.linalg.norm(centers, axis=1)
    assert (cosines / np.linalg.norm(means, axis=1)).min() > 0.95


def test_labels_of_endless_datasets_and_of_events_that_count():
    model, means = _equal_means(_VECTORS)
    x, labels = ft.normal([6, 3]).numpy(), np.array([0, -1, 2, 2, 1, 1])
    weights = np.array([1.0, 1.0, 1.0, 1.0, 1.0, 0.0])
    data = tf.data.Dataset.from_tensor_slices((x, labels, weights)).batch(6).repeat()
    model.fit(data, steps_per_epoch=4, verbose=0)
    z = model.distribution.bijector.inverse(x).numpy()
    expected = z[4] - (z[0] + (z[2] + z[3]) / 2 + z[4]) / 3
    cosine = np.vdot(means[1], expected) / np.linalg.norm(means[1]) / np.linalg.norm(expected)
    assert cosine > 1 - 1e-5


def test_first_means_by_weight():
    model, means = _equal_means(_VECTORS)
    x, labels = ft.normal([5, 3]).numpy(), np.array([0, 2, 2, 1, 1])
    x[4] *= 100
    weights = np.array([1.0, 1.0, 3.0, 1.0, 1e-9], np.float32)
    model.fit(x, labels, sample_weight=weights, epochs=4, shuffle=False, verbose=0)
    z = model.distribution.bijector.inverse(x).numpy()
    centers = np.stack([z[0], z[3], (z[1] + 3 * z[2]) / 4])
    centers -= centers.mean(axis=0)
    cosines = np.sum(means * centers, axis=1) / np.linalg.norm(centers, axis=1)
    np.testing.assert_allclose(cosines / np.linalg.norm(means, axis=1), 1, atol=1e-5)


def test_word_of_classes_without_labels():
    model, _ = _equal_means(_VECTORS)
    x = ft.normal([6, 3]).numpy()
    with pytest.warns(UserWarning, match=r"no labeled events of the classes \[0, 2\]"):
        model.fit(x, [-1, 1, 1, -1, 1, 1], verbose=0)


def test_warning_where_all_rows_or_the_first_1000_have_a_label():
    options = {"batch_size": 201, "shuffle": False, "verbose": 0}
    for num_unlabeled in (0, 5):
        model = ft.compiled(_flow(_VECTORS), keras.optimizers.SGD(0.0))
        x = ft.normal([1_005, 3]).numpy()
        model.fit(x, np.full(1_005, -1), **options)  # sets the normalizations
        labels = (tfr.class_log_probs(model, x).numpy().argmax(-1) + 1) % 3
        labels[1_005 - num_unlabeled :] = -1
        with pytest.warns(UserWarning, match="labeled events are classified as another"):
            model.fit(x, labels, **options)


def test_warning_of_means_of_the_users_own():
    # The labels are learned, but the means were of other classes: so can be rows without a label.
    x = np.random.default_rng(0).normal([[0.0, 0.0]] * 50 + [[5.0, 0.0]] * 50, 0.3)
    x, labels = x.astype(np.float32), np.full(100, -1)
    labels[[0, 99]] = 0, 1
    for sign, is_warned in ((-1.0, True), (1.0, False)):
        model = _of_zeros(2, keras.optimizers.SGD(0.0), mixing=None)
        means = model.distribution.distribution.loc
        means.assign([[-sign, 0.0], [sign, 0.0]])
        swap = keras.callbacks.LambdaCallback(
            on_train_end=lambda logs, means=means: means.assign([[-1.0, 0.0], [1.0, 0.0]])
        )
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model.fit(x, labels, batch_size=50, callbacks=[swap], verbose=0)
        messages = [str(w.message) for w in caught if "labeled events" in str(w.message)]
        assert bool(messages) == is_warned, messages
        if is_warned:
            expected = r"0 of 2 .* \(2 with the initial class means.*zeros"
            assert re.search(expected, messages[0])


def test_errors():
    flow = _flow(_VECTORS)
    with pytest.raises(ValueError, match=r"integer labels in \[0, 3\) or -1, got \[-2, 3\]"):
        tfr.condition(flow, [-2, 0, 3])
    components = tfd.MultivariateNormalDiag(tf.zeros([2, 3, 4]))
    mixture = tfr.ClassMixture(tfd.Categorical(logits=tf.zeros(3)), components)
    with pytest.raises(ValueError, match=r"expected .* batch_shape \[num_classes\], got"):
        mixture.log_prob(tf.zeros(4))
    model, _ = _equal_means(_VECTORS)
    with pytest.raises(ValueError, match=r"expected labels .* all class means .* are equal"):
        model.fit(ft.normal([4, 3]).numpy(), np.full(4, -1))
    # A flow whose networks take the label has no density without one.
    flow = ft.vector_distribution(3, num_classes=3)
    with pytest.raises(ValueError, match=r"integer labels in \[0, 3\), got \[-1\]"):
        tfr.condition(flow, [0, -1])

"""A flow with clusters: its density is the sum over clusters, and `fit` needs no labels."""

import flow_testing as ft
import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_probability import distributions as tfd

import tfp_realnvp as tfr

pytestmark = pytest.mark.eager

_SHAPE = (4, 4, 1)


def _images(number=24, seed=0):
    """Returns images around one of three levels."""
    rng = np.random.default_rng(seed)
    levels = np.array([20, 120, 220])[np.arange(number) % 3]
    return (levels[:, None, None, None] + rng.integers(0, 20, [number, *_SHAPE])).astype(np.uint8)


_LABELS = np.arange(24) % 2


def _mixture(num_clusters=3, labels=None, network="shallow", dropout=0.1, dtype=tf.float32, **kw):
    """Returns a mixture with random weights, and centers of random frequencies."""
    clusters = tfr.Clusters.of(_images(), labels, num_clusters=num_clusters)
    shares = np.random.default_rng(1).uniform(0.2, 1, [clusters.num_classes or 1, num_clusters])
    clusters.frequencies.assign((shares / shares.sum(axis=1, keepdims=True)).reshape(-1))
    options = {"num_classes": clusters.num_clusters, "condition_dropout": dropout, "dtype": dtype}
    bijector = ft.image_flow(_SHAPE, num_scales=1, **options, **ft.NETWORKS[network])
    flow = tfd.TransformedDistribution(ft.standard_normal(_SHAPE, dtype), bijector)
    return tfr.ClusterMixture(flow, clusters, **kw)


def _by_cluster(mixture, x):
    """Returns log w_k + log p(x | k), [B, K]."""
    flow, number = mixture.components_distribution, mixture.clusters.num_clusters
    log_probs = [
        flow.log_prob(x, bijector_kwargs={"conditional_input": tf.fill([len(x)], k)})
        for k in range(number)
    ]
    return np.stack(log_probs, axis=1) + np.log(mixture.clusters.frequencies.numpy())


# Clusters.


def test_clusters_of_images():
    images = _images()
    clusters = tfr.Clusters.of(images, num_clusters=3)
    found = clusters.nearest(images + 0.5).numpy()
    assert len(set(found[:3])) == 3
    np.testing.assert_array_equal(found, np.tile(found[:3], 8))
    np.testing.assert_allclose(clusters.frequencies.numpy(), [1 / 3] * 3, rtol=1e-6)
    for k in range(3):
        expected = images[found == k].mean(axis=0) + 0.5
        np.testing.assert_allclose(clusters.centers.numpy()[k], expected, rtol=1e-5)
    assert clusters.nearest(images[:0]).shape == (0,)
    assert clusters.nearest(images[:0], number=2).shape == (0, 2)


def test_clusters_within_classes():
    images = _images()
    clusters = tfr.Clusters.of(images, _LABELS, num_clusters=3)
    assert clusters.num_clusters == 6 and clusters.num_per_class == 3
    found = clusters.nearest(images + 0.5, _LABELS).numpy()
    np.testing.assert_array_equal(found // 3, _LABELS)
    np.testing.assert_allclose(clusters.frequencies.numpy().reshape(2, 3).sum(axis=1), 1, rtol=1e-6)
    distances = ((images[:, None] + 0.5 - clusters.centers.numpy()) ** 2).sum(axis=(2, 3, 4))
    order = np.argsort(distances.reshape(24, 2, 3)[np.arange(24), _LABELS], axis=1)
    nearest = clusters.nearest(images + 0.5, _LABELS, number=2).numpy()
    np.testing.assert_array_equal(nearest, order[:, :2] + 3 * _LABELS[:, None])


def test_nearest_center_of_far_data():
    rng = np.random.default_rng(0)
    # In float32, a square of 1e4 is exact only to 8.
    events = rng.choice([1e4, -1e4], [200, 1]) + rng.normal(0, 3, [200, 4])
    clusters, events = tfr.Clusters.of(events, num_clusters=20), events.astype(np.float32)
    distances = np.square(events[:, None] - clusters.centers.numpy().astype(np.float64)).sum(-1)
    np.testing.assert_array_equal(clusters.nearest(events), distances.argmin(axis=1))


def test_number_of_clusters():
    rng = np.random.default_rng(0)
    assert tfr.Clusters.of(rng.normal(size=[250, 2])).num_clusters == 10
    assert tfr.Clusters.of(rng.normal(size=[5, 2])).num_clusters == 1
    labels = np.arange(260) % 2
    assert tfr.Clusters.of(rng.normal(size=[260, 2]), labels).num_clusters == 2 * 5


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"events": np.full([3, 2], np.nan)}, "finite images or vectors"),
        ({"events": np.zeros(3)}, "finite images or vectors"),
        ({"events": np.zeros([0, 2]), "labels": []}, "finite images or vectors"),
        ({"events": np.zeros([3, 2]), "labels": [0, 1]}, "3 non-negative integer labels"),
        ({"events": np.zeros([3, 2]), "labels": [0, -1, 1]}, "3 non-negative integer labels"),
        ({"events": np.zeros([3, 2]), "labels": [0.5, 0, 1]}, "3 non-negative integer labels"),
        ({"events": np.zeros([3, 2]), "num_clusters": 4}, "num_clusters=4 events.*got 3"),
        ({"events": np.zeros([3, 2]), "num_clusters": 0}, "num_clusters of at least 1"),
        ({"events": np.zeros([3, 2]), "labels": [0, 2, 2]}, "num_clusters=1 events.*got 0"),
    ],
)
def test_errors_of_clusters(arguments, match):
    with pytest.raises(ValueError, match=match):
        tfr.Clusters.of(**arguments)


def test_scikit_learn_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.cluster", None)
    with pytest.raises(ImportError, match=r"Clusters.of needs scikit-learn.*pip install"):
        tfr.Clusters.of(_images())


# Densities and samples.


@pytest.mark.graph
@pytest.mark.parametrize("dtype", [tf.float32, tf.float64])
def test_log_prob_is_the_sum_over_clusters(dtype, monkeypatch):
    mixture = _mixture(dtype=dtype)
    x = ft.pixels([5, *_SHAPE], dtype)
    by_cluster = _by_cluster(mixture, x)
    assert np.ptp(by_cluster, axis=1).min() > 0.1
    expected = np.logaddexp.reduce(by_cluster, axis=1)
    np.testing.assert_allclose(mixture.log_prob(x), expected, rtol=1e-5)
    # In parts, the last of which is not full.
    monkeypatch.setattr("tfp_realnvp.distributions.clusters._MAX_POSITIONS", 4 * 16)
    np.testing.assert_allclose(mixture.log_prob(x), expected, rtol=1e-5)
    np.testing.assert_allclose(tf.function(mixture.log_prob)(x), expected, rtol=1e-5)


@pytest.mark.graph
def test_leading_shapes():
    mixture = _mixture()
    x = ft.pixels([2, 3, *_SHAPE])
    expected = mixture.log_prob(tf.reshape(x, [6, *_SHAPE]))
    np.testing.assert_allclose(mixture.log_prob(x), np.reshape(expected, [2, 3]), rtol=1e-5)
    np.testing.assert_allclose(mixture.log_prob(x[0, 0]), expected[0], rtol=1e-5)
    assert mixture.log_prob(x[:0]).shape == (0, 3) and mixture.log_prob(x[0, :0]).shape == (0,)
    unknown = tf.function(mixture.log_prob, [tf.TensorSpec([None, *_SHAPE])])
    np.testing.assert_allclose(unknown(x[0]), expected[:3], rtol=1e-5)
    assert unknown(x[0, :0]).shape == (0,)


def test_bounds_of_the_nearest_clusters():
    mixture = _mixture()
    x = tf.constant(_images() + 0.5, tf.float32)
    by_cluster = _by_cluster(mixture, x)
    order = mixture.clusters.nearest(x, number=3).numpy()
    before = np.full(len(x), -np.inf)
    for n in (1, 2, 3):
        expected = np.logaddexp.reduce(np.take_along_axis(by_cluster, order[:, :n], 1), axis=1)
        bound = mixture.copy(num_terms=n).log_prob(x)
        np.testing.assert_allclose(bound, expected, rtol=1e-5)
        # A cluster can add less than float32 resolves.
        assert np.all(bound >= before) and np.mean(bound) > np.mean(before)
        before = bound
    np.testing.assert_allclose(before, mixture.log_prob(x), rtol=1e-5)


def test_classes():
    mixture = _mixture(labels=_LABELS)
    x = ft.pixels([4, *_SHAPE])
    by_class = np.logaddexp.reduce(_by_cluster(mixture, x).reshape(4, 2, 3), axis=2)
    labels = np.array([1, 0, 1, 1])
    actual = mixture.log_prob(x, conditional_input=labels)
    np.testing.assert_allclose(actual, by_class[np.arange(4), labels], rtol=1e-5)
    log_probs = tfr.class_log_probs(mixture, x)
    np.testing.assert_allclose(log_probs, tf.nn.log_softmax(by_class), atol=1e-3)
    with pytest.raises(ValueError, match=r"integer labels in \[0, 2\), got None"):
        mixture.log_prob(x)
    conditioned = tfr.condition(mixture, [0, 1])
    assert conditioned.sample(3).shape == (3, 2, *_SHAPE)
    actual = conditioned.log_prob(x[:2])
    np.testing.assert_allclose(actual, by_class[[0, 1], [0, 1]], rtol=1e-5)


@pytest.mark.parametrize("labels", [None, _LABELS])
def test_samples_are_of_clusters_by_their_frequencies(labels):
    mixture = _mixture(labels=labels)
    clusters, number = mixture.clusters, 3_000
    condition = None if labels is None else tf.ones([], tf.int32)
    _, drawn = mixture.draw_clusters([number], tf.constant([0, 1]), condition)
    first = 0 if labels is None else 3
    shares = np.bincount(drawn, minlength=clusters.num_clusters) / number
    expected = clusters.frequencies.numpy() * (np.arange(clusters.num_clusters) >= first)
    np.testing.assert_allclose(shares, expected, atol=0.04)
    options = {} if labels is None else {"conditional_input": tf.ones([5], tf.int32)}
    seed = tf.constant([3, 4])
    of_latents, drawn = mixture.draw_clusters([5], seed, condition)
    expected = mixture.components_distribution.sample(
        5, seed=of_latents, bijector_kwargs={"conditional_input": drawn}
    )
    np.testing.assert_allclose(mixture.sample(5, seed=seed, **options), expected, rtol=1e-5)


def test_model_sample():
    model = tfr.FlowModel(_mixture())
    expected = model.distribution.sample(4, seed=tf.constant([3, 0]))
    np.testing.assert_allclose(model.sample(4, 3), expected, rtol=1e-4, atol=1e-3)
    guided = model.sample(4, 3, guidance=0.5)
    assert np.abs(guided - expected).max() > 0.1
    assert np.abs(model.sample(4, 3, temperature=0.5) - expected).max() > 0.1
    labeled = tfr.FlowModel(_mixture(labels=_LABELS))
    options = {"seed": tf.constant([3, 0]), "conditional_input": tf.constant([0, 1, 1, 0])}
    expected = labeled.distribution.sample(4, **options)
    actual = labeled.sample(4, 3, conditional_input=[0, 1, 1, 0])
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-3)
    with pytest.raises(ValueError, match=r"condition_dropout=0.1"):
        tfr.FlowModel(_mixture(dropout=None)).sample(4, guidance=0.1)


def test_errors():
    mixture = _mixture()
    flow, clusters = mixture.components_distribution, mixture.clusters
    with pytest.raises(TypeError, match="expected Clusters, got 3"):
        tfr.ClusterMixture(flow, 3)
    with pytest.raises(ValueError, match="num_classes=num_clusters=3, got None"):
        tfr.ClusterMixture(ft.flow_distribution(_SHAPE), clusters)
    with pytest.raises(ValueError, match="num_classes=num_clusters=2"):
        tfr.ClusterMixture(flow, tfr.Clusters(_SHAPE, 2))
    with pytest.raises(ValueError, match="events of shape"):
        tfr.ClusterMixture(flow, tfr.Clusters((2, 2, 1), 3))
    with pytest.raises(ValueError, match="num_terms of at most 3, got 4"):
        tfr.ClusterMixture(flow, clusters, num_terms=4)
    with pytest.raises(ValueError, match="multiple of num_classes=2, got 3"):
        tfr.Clusters(_SHAPE, 3, 2)
    # Options that have no effect.
    for call in (mixture.sample, lambda **options: mixture.log_prob(_images(2) + 0.5, **options)):
        with pytest.raises(ValueError, match="conditional_input only if the clusters have classes"):
            call(conditional_input=1)
        with pytest.raises(TypeError, match="unexpected keyword argument 'guidance'"):
            call(guidance=0.1)
    with pytest.raises(TypeError, match="unexpected keyword argument 'guidance'"):
        tfr.condition(_mixture(labels=_LABELS), 1).sample(guidance=0.1)


# Training and scoring.


def _model(labels=None, **kwargs):
    keras.utils.set_random_seed(0)
    return ft.compiled(_mixture(labels=labels, **kwargs))


@pytest.mark.graph
@pytest.mark.parametrize("labels", [None, _LABELS])
def test_fit_and_scores(labels):
    model, images = _model(labels), _images()
    data = (images,) if labels is None else (images, labels)
    centers = model.distribution.clusters.centers.numpy()
    before = tfr.log_prob(model, *data).mean()
    history = model.fit(*data, batch_size=8, epochs=3, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    after = tfr.log_prob(model, *data)
    assert after.mean() > before + 1
    np.testing.assert_array_equal(model.distribution.clusters.centers.numpy(), centers)
    loss, _ = model.evaluate(*data, verbose=0)
    np.testing.assert_allclose(loss, -after.mean(), rtol=1e-5)
    x = images if labels is None else (images, labels)
    np.testing.assert_allclose(model.predict(x, verbose=0), after, rtol=1e-5)
    value = ft.with_event_noise(images)
    options = {} if labels is None else {"conditional_input": labels}
    expected = model.distribution.log_prob(value, **options)
    np.testing.assert_allclose(after, expected, rtol=1e-4)


def test_the_training_loss_is_the_bound_of_the_nearest_cluster():
    model, images = _model(dropout=0.0), _images()
    model.compile(keras.optimizers.SGD(0.0))
    loss = model.fit(images, batch_size=24, epochs=1, verbose=0).history["loss"][0]
    bound = model.distribution.copy(num_terms=1)
    # A training step has other noise.
    expected = -np.mean([tfr.log_prob(tfr.FlowModel(bound, seed=s), images) for s in range(8)])
    assert abs(loss - expected) < 0.05 * abs(expected)


@pytest.mark.parametrize("network", ["shallow", "resnet"])
def test_it_trains_within_a_mixture_as_alone(network):
    images, weights = _images(), np.linspace(0, 1, 24)
    histories = []
    for wrap in (lambda d: d, lambda d: tfd.Mixture(tfd.Categorical(probs=[1.0]), [d])):
        keras.utils.set_random_seed(0)
        model = ft.compiled(wrap(_mixture(dropout=0.0, network=network)))
        data = {"sample_weight": weights, "batch_size": 8, "shuffle": False, "verbose": 0}
        histories.append([*model.fit(images, epochs=2, **data).history["loss"]])
        histories[-1].append(model.evaluate(images, verbose=0)[0])
    np.testing.assert_allclose(*histories, rtol=1e-4)


def test_fit_validates_with_four_clusters_and_evaluate_with_all():
    images, mixture = _images(), _mixture(num_clusters=6)
    model = tfr.FlowModel(mixture)
    model.compile(keras.optimizers.SGD(0.0))
    for _ in range(2):
        history = model.fit(images, validation_data=(images,), verbose=0).history
        bound = -tfr.log_prob(mixture.copy(num_terms=4), images).mean()
        np.testing.assert_allclose(history["val_loss"], bound, rtol=1e-5)
        loss, _ = model.evaluate(images, verbose=0)
        np.testing.assert_allclose(loss, -tfr.log_prob(mixture, images).mean(), rtol=1e-5)
        assert bound > loss + 1e-3


def test_dropped_clusters_train_the_flow_without_a_condition():
    model = _model(dropout=0.5)
    embedding = model.distribution.components_distribution.bijector.condition_embedding
    before = embedding.no_condition.numpy()
    model.fit(_images(), batch_size=8, epochs=1, verbose=0)
    assert np.abs(embedding.no_condition.numpy() - before).max() > 1e-4


def test_labels_for_a_mixture_without_classes():
    with pytest.raises(ValueError, match="events without labels"):
        _model().fit(_images(), _LABELS, verbose=0)
    with pytest.raises(ValueError, match=r"integer labels.*got events only"):
        _model(_LABELS).fit(_images(), verbose=0)


def test_learned_noise():
    noise = tfr.VariationalDequantization(_SHAPE, num_filters=4)
    model = ft.compiled(_mixture(), dequantizer=noise)
    model.fit(_images(), batch_size=8, epochs=1, verbose=0)
    result = tfr.evaluation.bits_per_dim(model, _images(), num_samples=2)
    assert np.isfinite(result.mean)


# Saving.


@pytest.mark.parametrize("labels", [None, _LABELS])
def test_saved(labels, tmp_path):
    model, options = _model(labels), {} if labels is None else {"conditional_input": 1}
    data = (_images(),) if labels is None else (_images(), labels)
    for how in ("from_preset", "load_model"):
        loaded = ft.reloaded(how, model, tmp_path)
        log_probs, expected = (tfr.log_prob(m, *data) for m in (loaded, model))
        np.testing.assert_allclose(log_probs, expected, rtol=1e-6)
        samples, expected = (m.sample(3, 1, guidance=0.2, **options) for m in (loaded, model))
        np.testing.assert_allclose(samples, expected)
        assert loaded.distribution.clusters.num_classes == model.distribution.clusters.num_classes


# Latents and maps.


@pytest.mark.parametrize("labels", [None, _LABELS])
def test_latents_are_those_of_the_nearest_cluster(labels):
    mixture, images = _mixture(labels=labels), _images()
    flow = mixture.components_distribution
    clusters = mixture.clusters.nearest(images + 0.5, labels)
    expected = tfr.latents.encode(flow, images, conditional_input=clusters)
    for given in (mixture, tfr.FlowModel(mixture)):
        z = tfr.latents.encode(given, images, conditional_input=labels)
        np.testing.assert_allclose(z, expected, rtol=1e-4, atol=1e-4)
    assert tfr.latents.reconstruct(mixture, images, conditional_input=labels).largest_error < 0.1
    with pytest.raises(TypeError, match=r"components_distribution.*clusters.nearest"):
        tfr.latents.decode(mixture, z)
    decoded = tfr.latents.decode(flow, z, conditional_input=clusters)
    np.testing.assert_allclose(decoded, images + 0.5, atol=0.1)


@pytest.mark.parametrize("labels", [None, _LABELS])
def test_functions_of_latents_use_the_nearest_clusters(labels):
    mixture, x = _mixture(labels=labels), _images(4)
    labels = None if labels is None else labels[:4]
    first, second = [None, None] if labels is None else labels[:2]
    clusters = mixture.clusters.nearest(x + 0.5, labels)
    in_first_class = mixture.clusters.nearest(x + 0.5, None if labels is None else [first] * 4)
    latents = tfr.latents
    for function, arguments, given, of_flow in [
        (latents.interpolate, x[:2], [first, second], clusters[:2]),
        (latents.interpolate, x[:2], [first], [clusters[0], in_first_class[1]]),
        (latents.manifold, [x], [labels], [clusters]),
        (latents.levels_of_representation, [x], [labels], [clusters]),
        (latents.latent_statistics, [x], [labels], [clusters]),
    ]:
        names = "conditional_input", "second_conditional_input"
        actual = function(mixture, *arguments, **dict(zip(names, given, strict=False)))
        flow = mixture.components_distribution
        expected = function(flow, *arguments, **dict(zip(names, of_flow, strict=False)))
        if function is latents.latent_statistics:
            actual, expected = ([scale.skewness for scale in each] for each in (actual, expected))
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-3)


def test_latents_of_classes():
    mixture, images = _mixture(labels=_LABELS), _images(3)
    z = tfr.latents.encode(mixture, images, conditional_input=[[0], [1]])
    assert z.shape == (2, 3, *_SHAPE)
    for label in (0, 1):
        expected = tfr.latents.encode(mixture, images, conditional_input=[label] * 3)
        np.testing.assert_allclose(z[label], expected, rtol=1e-4, atol=1e-4)
    conditioned = tfr.latents.encode(tfr.condition(mixture, 1), images)
    np.testing.assert_allclose(conditioned, z[1], rtol=1e-4, atol=1e-4)
    swapped = tfr.latents.swap_condition(mixture, images, 0, 1)
    flow, nearest = mixture.components_distribution, mixture.clusters.nearest
    clusters = [nearest(images + 0.5, [label] * 3) for label in (0, 1)]
    expected = tfr.latents.swap_condition(flow, images, *clusters)
    np.testing.assert_allclose(swapped, expected, rtol=1e-4, atol=1e-3)
    with pytest.raises(ValueError, match=r"events of shape \(4, 4, 1\), got \(3, 4, 4\)"):
        tfr.latents.encode(mixture, images[..., 0], conditional_input=0)
    with pytest.raises(ValueError, match="integer labels"):
        tfr.latents.encode(mixture, images)
    with pytest.raises(ValueError, match="ClusterMixture without classes"):
        tfr.latents.encode(_mixture(), images, conditional_input=0)


@pytest.mark.parametrize("labels", [None, _LABELS])
def test_maps_are_those_of_the_nearest_cluster(labels):
    mixture, images = _mixture(labels=labels), _images()
    data = (images,) if labels is None else (images, labels)
    clusters = mixture.clusters.nearest(ft.with_event_noise(images), labels)
    expected = tfr.log_prob_map(mixture.components_distribution, images, clusters)
    actual = tfr.log_prob_map(mixture, *data)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-3)


def test_duplicates_among_events():
    events = np.repeat(ft.grey_levels(3), 4, axis=0)
    with pytest.raises(ValueError, match=r"at least num_clusters=5 distinct events .*, got 3"):
        tfr.Clusters.of(events, num_clusters=5)
    assert tfr.Clusters.of(events, num_clusters=3).frequencies.numpy().min() > 0

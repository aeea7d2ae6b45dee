"""SavedModels of flows with clusters, and of guidance."""

import flow_testing as ft
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_probability import distributions as tfd

import tfp_realnvp as tfr

_SHAPE = (4, 4, 1)
_IMAGES = ft.grey_levels(24)
_LABELS = np.arange(24) % 2


def _served(distribution, tmp_path):
    tfr.export_saved_model(distribution, tmp_path / "1")
    return tf.saved_model.load(str(tmp_path / "1"))


@pytest.mark.parametrize("labels", [None, _LABELS])
def test_a_mixture(labels, tmp_path):
    clusters = tfr.Clusters.of(_IMAGES, labels, num_clusters=3)
    options = {"num_classes": clusters.num_clusters, "condition_dropout": 0.1, "num_scales": 1}
    bijector = ft.image_flow(_SHAPE, normalization=None, **options, **ft.NETWORKS["user"])
    flow = tfd.TransformedDistribution(ft.standard_normal(_SHAPE), bijector)
    model = tfr.FlowModel(tfr.ClusterMixture(flow, clusters))
    served = _served(model, tmp_path)
    condition = [] if labels is None else [tf.constant(labels, tf.int32)]
    data = (_IMAGES, *condition)
    images, values = tf.constant(_IMAGES), tf.constant(_IMAGES + 0.5, tf.float32)

    log_prob = served.log_prob_uint8(images, 0, *condition)["log_prob"]
    np.testing.assert_allclose(log_prob, tfr.log_prob(model, *data), rtol=1e-4)
    bits = served.bits_per_dim_uint8(images, 0, *condition)["bits_per_dim"]
    np.testing.assert_allclose(bits, tfr.bits_per_dim(log_prob, 16), rtol=1e-5)

    encoded = served.encode(values, *condition)
    expected = tfr.latents.encode(model, _IMAGES, conditional_input=labels)
    np.testing.assert_allclose(encoded["latents"], expected, rtol=1e-4, atol=1e-4)
    nearest = clusters.nearest(_IMAGES + 0.5, labels)
    np.testing.assert_array_equal(encoded["clusters"], nearest)
    decoded = served.decode(encoded["latents"], encoded["clusters"])["images"]
    np.testing.assert_allclose(decoded, values, atol=0.1)
    restored = served.reconstruct_uint8(images, 0, *condition)["images"]
    np.testing.assert_array_equal(restored, images)

    condition = [] if labels is None else [tf.constant([1, 0, 1], tf.int32)]
    options = {} if labels is None else {"conditional_input": [1, 0, 1]}
    for guidance in (0.0, 0.5):
        samples = served.sample(3, 7, 0.9, guidance, *condition)["images"]
        expected = model.sample(3, 7, temperature=0.9, guidance=guidance, **options)
        np.testing.assert_allclose(samples, expected, rtol=1e-3, atol=1e-2)
    levels = served.sample_uint8(3, 7, 0.9, 0.5, *condition)["images"]
    np.testing.assert_array_equal(levels, tfr.to_uint8(samples))
    assert hasattr(served, "classify") == (labels is not None)
    if labels is not None:
        log_probs = served.classify(values)["log_probs"]
        expected = tfr.class_log_probs(model.distribution, values)
        np.testing.assert_allclose(log_probs, expected, atol=1e-3)
        with pytest.raises(tf.errors.InvalidArgumentError, match=r"integer labels in \[0, 2\)"):
            served.log_prob(values[:1], tf.constant([2]))
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"integer labels in \[0, "):
        served.decode(encoded["latents"][:1], tf.constant([6]))


def test_guidance_of_a_flow_with_labels(tmp_path):
    options = {"condition_dropout": 0.1, "normalization": None}
    model = tfr.FlowModel(ft.conditional_distribution("labels", "user", **options))
    served = _served(model, tmp_path)
    label = tf.constant([2])
    plain = model.sample(3, 7, conditional_input=2)
    for guidance in (0.0, 0.5):
        samples = served.sample(3, 7, 1.0, guidance, label)["images"]
        expected = model.sample(3, 7, guidance=guidance, conditional_input=2)
        np.testing.assert_allclose(samples, expected, rtol=1e-3, atol=1e-2)
    assert np.abs(samples - plain).max() > 0.1
    for guidance in (np.nan, -0.5, np.inf):
        for sample in (served.sample, served.sample_uint8):
            message = "expected a finite guidance of at least 0"
            with pytest.raises(tf.errors.InvalidArgumentError, match=message):
                sample(3, 7, 1.0, guidance, label)

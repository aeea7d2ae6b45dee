"""Classification by Bayes' rule."""

import flow_testing as ft
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_probability import distributions as tfd

import tfp_realnvp as tfr

_SHAPE = (4, 4, 1)
_PRIOR = [0.1, 0.2, 0.3, 0.25, 0.15]


def _flow():
    return ft.conditional_distribution("labels", "shallow", dtype=tf.float64)


def _base():
    return ft.class_base(tf.Variable(ft.normal([5, *_SHAPE], tf.float64)))


def _mixture():
    means = tf.Variable(ft.normal([5, *_SHAPE], tf.float64))
    prior = tfd.Categorical(probs=tf.constant(_PRIOR, tf.float64))
    return tfr.ClassMixture(prior, tfd.Independent(tfd.Normal(means, 1.0), 3))


_DISTRIBUTIONS = {"flow": _flow, "base": _base, "mixture": _mixture}
each_distribution = pytest.mark.parametrize("name", _DISTRIBUTIONS)


def _by_a_loop(distribution, x, prior):
    joint = []
    for label, probability in enumerate(prior):
        log_prob = tfr.condition(distribution, label).log_prob(tf.identity(x))
        joint.append(log_prob.numpy() + np.log(probability))
    joint = np.stack(joint, axis=-1)
    return joint - np.logaddexp.reduce(joint, axis=-1, keepdims=True)


@each_distribution
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)], ids=str)
def test_bayes(name, batch):
    distribution = _DISTRIBUTIONS[name]()
    x = (ft.pixels if name == "flow" else ft.normal)([*batch, *_SHAPE], tf.float64)
    log_probs = tfr.class_log_probs(distribution, x, prior=_PRIOR)
    assert log_probs.shape == (*batch, 5)
    expected = _by_a_loop(distribution, x, _PRIOR)
    np.testing.assert_allclose(log_probs, expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(tf.reduce_sum(tf.exp(log_probs), axis=-1), np.ones(batch), rtol=1e-9)


def test_priors():
    flow, x = _flow(), ft.pixels([3, *_SHAPE], tf.float64)
    expected = tfr.class_log_probs(flow, x, prior=np.full(5, 0.2))
    np.testing.assert_array_equal(tfr.class_log_probs(flow, x), expected)
    certain = tfr.class_log_probs(flow, x, prior=[0, 0, 1, 0, 0])
    np.testing.assert_allclose(tf.exp(certain), np.eye(5)[[2, 2, 2]], atol=1e-12)


def test_one_call_for_all_classes():
    network_fn, layers = ft.counting(ft.resnet)
    flow = ft.conditional_distribution("labels", network_fn=network_fn)
    tfr.class_log_probs(flow, ft.pixels([3, *_SHAPE]))
    assert [layer.count for layer in layers] == [1, 1]


@pytest.mark.parametrize("jit_compile", [False, True])
def test_in_a_function_of_unknown_batch(jit_compile):
    flow, x = _flow(), ft.pixels([3, *_SHAPE], tf.float64)
    specs = [tf.TensorSpec([None, *_SHAPE], tf.float64)]
    function = lambda x: tfr.class_log_probs(flow, x, _PRIOR)  # noqa: E731
    function = tf.function(function, input_signature=specs, jit_compile=jit_compile)
    np.testing.assert_allclose(function(x), tfr.class_log_probs(flow, x, _PRIOR), rtol=1e-8)


@pytest.mark.parametrize(
    ("make", "prior", "match"),
    [
        (_base, None, "expected a distribution with num_classes, or a prior of the classes, got"),
        (lambda: ft.conditional_distribution("vectors"), None, "expected a distribution with num_"),
        (_flow, [0.5, 0.5], "a prior of 5 probabilities that sum to one, got array"),
        (_flow, [0.6, 0.6, -0.2, 0, 0], "a prior of 5 probabilities that sum to one, got"),
    ],
)
def test_errors(make, prior, match):
    with pytest.raises(ValueError, match=match):
        tfr.class_log_probs(make(), tf.zeros([1, *_SHAPE], tf.float64), prior)


def test_seeds_are_int32():
    images = ft.grey_levels(1, _SHAPE)
    with pytest.raises(ValueError, match="class_log_joint: expected an int32 seed, got 2147483648"):
        tfr.class_log_joint(_flow(), images, num_samples=1, seed=2**31)
    with pytest.raises(ValueError, match="expected an int32 seed, got 1099511627776"):
        tfr.class_log_probs(_flow(), ft.pixels([1, *_SHAPE], tf.float64), seed=2**40)


def test_vectors_of_integers_are_numbers_and_images_are_not():
    components = tfd.Independent(tfd.Normal(ft.normal([3, 2]), 1.0), 1)
    mixture = tfr.ClassMixture(tfd.Categorical(logits=tf.zeros(3)), components)
    vectors = np.array([[1, -2], [3, 0]])
    expected = tfr.class_log_probs(mixture, vectors.astype(np.float32))
    np.testing.assert_array_equal(tfr.class_log_probs(mixture, vectors), expected)
    levels = ft.grey_levels(1, _SHAPE)
    flow = _flow()
    expected = tfr.class_log_probs(flow, levels, num_samples=1)
    np.testing.assert_array_equal(tfr.class_log_probs(flow, levels), expected)

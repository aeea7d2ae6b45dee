"""What takes a distribution takes its `FlowModel` as well."""

import flow_testing as ft
import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_probability import distributions as tfd

import tfp_realnvp as tfr
from tfp_realnvp import evaluation, latents

pytestmark = pytest.mark.eager

_SHAPE = (4, 4, 1)
_IMAGES, _LABELS = ft.grey_levels(4, _SHAPE), np.arange(4)


@pytest.fixture(scope="module")
def model():
    """A model with labels, and a base that is not the standard normal."""
    flow = ft.conditional_flow("labels", "shallow")
    base = tfd.Sample(tfd.Laplace(0.1, 0.8), _SHAPE)
    return tfr.FlowModel(tfd.TransformedDistribution(base, flow))


_PAIRS, _KNOWN = (_IMAGES[:2], _IMAGES[2:]), np.eye(4, dtype=bool)[..., None]
_COMPLETION = {"num_samples": 16, "num_burnin_steps": 2, "num_leapfrog_steps": 1}
_COMPLETION["conditional_input"] = _LABELS
_FUNCTIONS = {
    "bits_per_dim": lambda m: evaluation.bits_per_dim(m, (_IMAGES, _LABELS)),
    "log_likelihood": lambda m: evaluation.log_likelihood(m, (_IMAGES, _LABELS)),
    "classification": lambda m: evaluation.classification(m, _IMAGES, _LABELS),
    "class_log_probs": lambda m: tfr.class_log_probs(m, _IMAGES, num_samples=2),
    "class_log_joint": lambda m: tfr.class_log_joint(m, _IMAGES, num_samples=2),
    "condition": lambda m: tfr.condition(m, 3).log_prob(ft.pixels([2, *_SHAPE])),
    "log_prob": lambda m: tfr.log_prob(m, _IMAGES, _LABELS),
    "log_prob_map": lambda m: tfr.log_prob_map(m, _IMAGES, _LABELS),
    "encode": lambda m: latents.encode(m, _IMAGES, conditional_input=_LABELS),
    "decode": lambda m: latents.decode(m, ft.normal([4, *_SHAPE]), conditional_input=_LABELS),
    "reconstruct": lambda m: latents.reconstruct(m, _IMAGES, conditional_input=_LABELS).images,
    "interpolate": lambda m: latents.interpolate(m, *_PAIRS, 3, conditional_input=_LABELS[:2]),
    "swap_condition": lambda m: latents.swap_condition(m, _IMAGES, _LABELS, _LABELS[::-1]),
    "levels": lambda m: latents.levels_of_representation(m, _IMAGES, conditional_input=_LABELS),
    "manifold": lambda m: latents.manifold(m, _IMAGES, conditional_input=_LABELS),
    "extrapolate": lambda m: latents.extrapolate(m, (8, 8, 1), 1, conditional_input=_LABELS[:1]),
    "latent_statistics": lambda m: latents.latent_statistics(m, _IMAGES, conditional_input=_LABELS),
    "complete": lambda m: latents.complete(m, _IMAGES, _KNOWN, **_COMPLETION).samples,
}


@pytest.mark.parametrize("name", _FUNCTIONS)
def test_a_model_is_as_its_distribution(model, name):
    actual, expected = _FUNCTIONS[name](model), _FUNCTIONS[name](model.distribution)
    ft.assert_equal(tf.nest.flatten(actual), tf.nest.flatten(expected))


@pytest.mark.parametrize("name", _FUNCTIONS)
@pytest.mark.parametrize("value", [keras.Sequential(), None])
def test_what_is_no_model(name, value):
    with pytest.raises(TypeError, match="FlowModel"):
        _FUNCTIONS[name](value)


def test_vectors_of_integers():
    base = ft.standard_normal([2])
    vectors = np.arange(6).reshape(3, 2)
    model = tfr.FlowModel(tfd.TransformedDistribution(base, ft.randomize(tfr.RealNVPVector(2))))
    plain = evaluation.log_likelihood(model, vectors)
    assert plain == evaluation.log_likelihood(model.distribution, vectors)
    noisy = tfr.FlowModel(model.distribution, dequantize=True)
    expected = evaluation.log_likelihood(model.distribution, vectors, dequantize=True)
    assert evaluation.log_likelihood(noisy, vectors) == expected != plain

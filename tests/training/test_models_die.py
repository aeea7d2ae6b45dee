"""A model that nothing refers to is freed, whatever was traced with it."""

import gc
import weakref

import flow_testing as ft
import keras
import pytest
import tensorflow as tf
from tensorflow_probability import bijectors as tfb
from tensorflow_probability import distributions as tfd

import tfp_realnvp as tfr

_SHAPE = (4, 4, 1)

_WRAPS = {"flow": lambda flow: flow, "invert": lambda flow: tfb.Invert(tfb.Invert(flow))}


@pytest.fixture(autouse=True)
def _older_objects_are_not_scanned():
    # To scan the objects of earlier tests for garbage takes seconds.
    gc.freeze()
    yield
    gc.unfreeze()


def _distribution(recompute, wrap="flow"):
    parts = [tfr.PixelLogit(), ft.coupling(tfr.CheckerboardMask(0), 1)]
    parts.append(tfr.BatchNormalization(num_channels=1))
    flow = tfr.FlowChain(parts, recompute=recompute)
    return tfd.TransformedDistribution(ft.standard_normal(_SHAPE), _WRAPS[wrap](ft.randomize(flow)))


def _references(distribution):
    """Returns weak references to the distribution and what it consists of, by name."""
    flows = [part for part in distribution.submodules if isinstance(part, tfr.FlowBijector)]
    couplings = [part for part in flows if isinstance(part, tfr.AffineCoupling)]
    return {
        "the distribution": weakref.ref(distribution),
        **{f"the bijector {part.name}": weakref.ref(part) for part in flows},
        "the network": weakref.ref(couplings[0].network),
        "a variable": weakref.ref(couplings[0].scale),
    }


def _assert_freed(references):
    keras.backend.clear_session()
    gc.collect()
    alive = [name for name, reference in references.items() if reference() is not None]
    assert not alive


def _gradient(distribution):
    with tf.GradientTape() as tape:
        loss = -tf.reduce_mean(distribution.log_prob(ft.pixels([2, *_SHAPE])))
    return tape.gradient(loss, distribution.trainable_variables)


# Gradients include what a density leaves behind.
_USES = {
    "eager gradient": _gradient,
    "gradient": lambda distribution: tf.function(lambda: _gradient(distribution))(),
    "sample": lambda distribution: tf.function(lambda: distribution.sample(2, seed=(0, 1)))(),
}


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recompute"])
@pytest.mark.parametrize(
    ("wrap", "use"), [*(("flow", use) for use in _USES), ("invert", "gradient")]
)
def test_after_calls(wrap, use, recompute):
    distribution = _distribution(recompute, wrap)
    references = _references(distribution)
    _USES[use](distribution)
    del distribution
    _assert_freed(references)


@pytest.mark.parametrize(
    ("method", "recompute", "jit_compile"),
    [
        *[("predict", True, False), ("evaluate", False, False), ("fit", True, False)],
        *ft.full(("predict", False, True), ("fit", False, True), ("fit", True, True)),
    ],
)
def test_after_keras(method, recompute, jit_compile):
    model = ft.compiled(_distribution(recompute), jit_compile=jit_compile)
    references = _references(model.distribution)
    references |= {"model": weakref.ref(model), "optimizer": weakref.ref(model.optimizer)}
    getattr(model, method)(ft.grey_levels(4), batch_size=4, verbose=0)
    del model
    _assert_freed(references)


def test_after_scores_latents_and_fit_with_labels():
    model = ft.compiled(ft.conditional_distribution("labels", "user", condition_dropout=0.1))
    embedding = model.distribution.bijector.condition_embedding
    references = _references(model.distribution)
    references |= {"model": weakref.ref(model), "embedding": weakref.ref(embedding)}
    labels = ft.condition("labels", [4]).numpy()
    given = {"bijector_kwargs": {"conditional_input": labels}}
    model.distribution.log_prob(ft.pixels([4, *_SHAPE]), **given)
    tfr.log_prob(model, ft.grey_levels(4), labels)
    tfr.class_log_probs(model, ft.grey_levels(1), num_samples=1)
    tfr.log_prob_map(model, ft.grey_levels(4), labels)
    tfr.latents.interpolate(model, *ft.grey_levels(2), 3, conditional_input=2)
    model.fit(ft.grey_levels(4), labels, batch_size=4, verbose=0)
    del model, embedding
    _assert_freed(references)

import numpy as np
import pytest
import tensorflow as tf

from tfp_realnvp.networks import BatchNorm
from tfp_realnvp.networks.normed_conv import convolve_normed

# By rows, by TensorFlow's fused kernel, and by moments.
_KINDS = [("float32", 6), ("float32", 16), ("float64", 16)]


def _norm(dtype, channels):
    norm = BatchNorm(dtype=dtype)
    norm.build((None, None, None, channels))
    rng = np.random.default_rng(0)
    norm.offset.assign(rng.normal(size=channels))
    norm.moving_mean.assign(rng.normal(size=channels))
    norm.moving_variance.assign(rng.uniform(0.5, 2.0, size=channels))
    return norm


def _run(dtype, channels, traced, use_bias, **options):
    norm = _norm(dtype, channels)
    rng = np.random.default_rng(1)
    x, kernel, bias = (
        tf.constant(rng.normal(size=shape), dtype)
        for shape in ([5, 4, 6, channels], [3, 3, channels, 7], [7])
    )
    sources = [x, kernel, bias] if use_bias else [x, kernel]

    def gradients():
        with tf.GradientTape() as tape:
            tape.watch(sources)
            y = convolve_normed(norm, *sources, training=True, **options)
            loss = tf.reduce_sum(tf.sin(y))
        return [y, *tape.gradient(loss, [*sources, norm.offset.value])]

    results = (tf.function(gradients) if traced else gradients)()
    return [*results, norm.moving_mean.value, norm.moving_variance.value]


@pytest.mark.parametrize(("dtype", "channels"), _KINDS)
@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("use_bias", [False, True])
def test_normalising_again_changes_nothing(dtype, channels, traced, use_bias):
    plain = _run(dtype, channels, traced, use_bias)
    again = _run(dtype, channels, traced, use_bias, renormalize=True)
    tolerance = 1e-10 if dtype == "float64" else 1e-4
    before = _norm(dtype, channels)
    assert np.abs(plain[-1] - before.moving_variance).max() > 1e-3
    for ours, theirs in zip(again, plain, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)


def test_without_a_norm():
    x = tf.constant([[[[-1.0, 2.0]]]])
    y = convolve_normed(None, x, tf.ones([1, 1, 2, 1]), training=True, renormalize=True)
    assert y.numpy().tolist() == [[[[2.0]]]]


def test_the_gradient_keeps_the_inputs_only():
    def graph_of(renormalize):
        norm, kernel = _norm("float32", 16), tf.ones([3, 3, 16, 2])

        @tf.function
        def value_and_gradient(x):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = convolve_normed(norm, x, kernel, training=True, renormalize=renormalize)
            return y, tape.gradient(y, x)

        graph = value_and_gradient.get_concrete_function(tf.TensorSpec([2, 4, 4, 16])).graph
        return [_needed_for(output.op) for output in graph.outputs]

    def both(value, gradient, kind):
        return {name for name in value & gradient if name[1] == kind}

    value, gradient = graph_of(False)
    assert len(both(value, gradient, "FusedBatchNormV3")) == 1
    value, gradient = graph_of(True)
    # Another normalisation than that of the value, and no convolution but of the gradient.
    assert both(value, gradient, "FusedBatchNormV3") == set()
    assert len([kind for _, kind in gradient if kind == "FusedBatchNormV3"]) == 1
    assert "Conv2D" not in {kind for _, kind in gradient}


def _needed_for(operation):
    found, waiting = {}, [operation]
    while waiting:
        each = waiting.pop()
        if each.name not in found:
            found[each.name] = each.type
            waiting += [tensor.op for tensor in each.inputs]
    return set(found.items())

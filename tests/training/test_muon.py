"""Steps of Muon, compared with those of singular value decompositions in NumPy."""

import flow_testing as ft
import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_probability import distributions as tfd

import tfp_realnvp as tfr
from tfp_realnvp.training import muon

# Two of the same shape as matrices, so that they are a group.
_KERNELS = {
    "kernel": (4, 6),
    "input_kernel": (2, 2, 1, 6),
    "output_kernel": (3, 3, 2, 4),
    "block_kernels": (2, 5, 5),
    "skip_kernels": (2, 3, 3, 1, 2),
}
# The last one is the input kernel of a network without inputs.
_OTHERS = {"bias": (6,), "table": (4, 6), "kernels": (2, 2, 3, 3), "condition_kernel": (3, 4, 6)}
_OTHERS["input_kernel"] = (0, 6)


def _values(seed, shapes, dtype="float32"):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape).astype(dtype) for shape in shapes.values()]


def _trained(optimizer, shapes, gradients, mode="function", make=keras.Variable):
    dtype = gradients[0][0].dtype.name
    values = zip(shapes, _values(0, shapes, dtype), strict=True)
    variables = [make(value, dtype=dtype, name=name) for name, value in values]
    return ft.optimized(optimizer, variables, gradients, mode)


def _direction(matrices):
    """Returns the singular vectors with the singular values of five Newton-Schulz steps."""
    u, s, v = np.linalg.svd(matrices, full_matrices=False)
    s = s / np.linalg.norm(s, axis=-1, keepdims=True)
    for _ in range(5):
        s = 3.4445 * s - 4.775 * s**3 + 2.0315 * s**5
    return (u * s[..., None, :]) @ v


@pytest.mark.parametrize(
    ("mode", "dtype"), [("eager", "float32"), ("function", "float64"), ("xla", "float32")]
)
def test_kernels(mode, dtype):
    gradients = [_values(seed, _KERNELS, dtype) for seed in (1, 2, 3)]
    actual = _trained(tfr.Muon(0.125, 0.75, weight_decay=0.5), _KERNELS, gradients, mode)
    expected = _values(0, _KERNELS, "float64")
    for i, (name, shape) in enumerate(_KERNELS.items()):
        stack = shape[0] if name.endswith("s") else 1
        m = 0.0
        for each in gradients:
            g = each[i].astype("float64")
            m = 0.75 * m + 0.25 * g
            average = (0.75 * m + 0.25 * g).reshape(stack, -1, shape[-1])
            step = 0.2 * np.sqrt(max(average.shape[1:])) * _direction(average)
            expected[i] -= 0.125 * (step.reshape(shape) + 0.5 * expected[i])
        assert np.abs(actual[i] - _values(0, _KERNELS)[i]).max() > 1e-2
        tolerance = 1e-4 if dtype == "float32" else 1e-9
        np.testing.assert_allclose(actual[i], expected[i], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("shape", [(24, 24), (24, 36), (24, 37), (200, 24)])
def test_singular_values_of_different_orders(shape):
    left, right = (np.linalg.qr(np.random.default_rng(n).normal(size=(n, 24)))[0] for n in shape)
    gradient = (left * np.logspace(0, -5, 24)) @ right.T
    optimizer = tfr.Muon(1.0, momentum=0.0, weight_decay=0.0)
    [kernel] = _trained(optimizer, {"kernel": shape}, [[gradient.astype("float32")]])
    step = _values(0, {"kernel": shape})[0] - kernel
    expected = 0.2 * np.sqrt(max(shape)) * _direction(gradient)
    assert np.abs(step - expected).max() < 1e-3 * np.abs(expected).max()


@pytest.mark.parametrize("make", [keras.Variable, tf.Variable])
def test_other_variables_are_those_of_adam(make):
    gradients = [_values(seed, _OTHERS) for seed in (1, 2)]
    results = [
        _trained(optimizer(0.1), _OTHERS, gradients, make=make)
        for optimizer in (tfr.Muon, tfr.FusedAdam)
    ]
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_gradient_that_is_not_finite_is_not_hidden_and_does_not_spread():
    shapes = {"kernel": (3, 2), "input_kernel": (3, 2)}
    gradients = _values(1, shapes)
    gradients[0][1, 1] = np.nan
    first, second = _trained(tfr.Muon(0.1), shapes, [gradients])
    assert np.isnan(first).all() and np.isfinite(second).all()


@pytest.mark.parametrize(
    ("flow", "names"),
    [
        (
            lambda: tfr.RealNVPImage((8, 8, 1), num_filters=4, num_blocks=1),
            "input_kernel block_kernels skip_kernels output_kernel",
        ),
        (
            lambda: tfr.RealNVPImage.compact((8, 8, 1), num_filters=4, num_classes=3, attention=2),
            "kernel",
        ),
        (
            lambda: tfr.RealNVPVector(4, num_filters=4, num_blocks=1),
            "input_kernel block_kernels output_kernel",
        ),
        (
            lambda: tfr.RealNVPImage.jet((8, 8, 1), num_couplings=16, width=4, num_heads=2),
            "input_kernel output_kernel qkv_kernels head_kernels mlp1_kernels mlp2_kernels",
        ),
    ],
    ids=["paper", "compact", "vector", "jet"],
)
def test_kernels_of_flows(flow, names):
    variables = [v for v in flow().trainable_variables if len(v.shape) > 1 and muon._sides(v)]
    assert {v.name.split(":")[0].split("/")[-1] for v in variables} == set(names.split())


def test_fit():
    """Steps have the length that they are to have, which those of Adam have not."""
    rate = 1e-2
    flow = ft.randomize(tfr.RealNVPVector(4, num_filters=8, num_couplings=2))
    model = tfr.FlowModel(tfd.TransformedDistribution(ft.standard_normal([4]), flow))
    model.compile(tfr.Muon(rate, weight_decay=0.0))
    before = {v.path: v.numpy() for v in model.trainable_variables}
    model.fit(ft.normal([64, 4]), batch_size=64, verbose=0)
    kernels = [v for v in model.trainable_variables if muon._sides(v)]
    lengths = [np.sqrt(np.mean((v - before[v.path]) ** 2)) / (0.2 * rate) for v in kernels]
    assert len(lengths) == 6 and 0.3 < min(lengths) and max(lengths) < 1.21

"""Packed gradients, applied under a condition."""

import flow_testing as ft
import keras
import numpy as np
import pytest
import tensorflow as tf

import tfp_realnvp as tfr
from tfp_realnvp.training import fused_adam
from tfp_realnvp.training.packing import apply_if, packing_of

pytestmark = [pytest.mark.quick, pytest.mark.core]


def _values(seed):
    """Returns a scalar, a vector and a matrix."""
    rng = np.random.default_rng(seed)
    return [rng.normal(size=[2] * rank).astype("float32") for rank in range(3)]


_OPTIMIZERS = {
    "sgd": lambda: keras.optimizers.SGD(0.1, momentum=0.9),
    "adam": lambda: keras.optimizers.Adam(0.1, global_clipnorm=1.0),
    "fused_adam": lambda: tfr.FusedAdam(0.1, global_clipnorm=1.0),
    "ema": lambda: tfr.FusedAdam(0.1, use_ema=True, weight_decay=0.1),
}


def _applied(name, mode, conditions, gradients):
    """Returns all variables before, and after each of the conditional steps."""
    variables = [keras.Variable(value) for value in _values(0)]
    optimizer = _OPTIMIZERS[name]()
    optimizer.build(variables)
    packing = packing_of(optimizer, variables)
    step = ft.MODES[mode](
        lambda condition, gradients: apply_if(
            condition, optimizer, gradients, packing.pack(gradients), packing, variables
        )
    )

    states = [ft.values([*variables, *optimizer.variables])]
    for condition, each in zip(conditions, gradients, strict=True):
        step(tf.constant(condition), [tf.constant(gradient) for gradient in each])
        states.append(ft.values([*variables, *optimizer.variables]))
    return states


@pytest.mark.parametrize(
    ("name", "mode"),
    [*((name, "function") for name in _OPTIMIZERS), ("ema", "eager"), ("fused_adam", "xla")],
)
def test_apply_if(name, mode):
    nan = [np.full_like(value, np.nan) for value in _values(2)]
    first, unchanged, unchanged_by_nan, third = _applied(
        name, mode, [True, False, False, True], [_values(1), _values(2), nan, _values(3)]
    )[1:]
    ft.assert_equal((unchanged, unchanged_by_nan), (first, first))
    # As if the steps in between had not been.
    expected = _applied(name, mode, [True, True], [_values(1), _values(3)])
    for states, value in ((first, expected[1]), (third, expected[2])):
        ft.assert_close(states, value, rtol=1e-6)
    assert all(np.isfinite(after).all() for after in first)
    assert np.abs(expected[0][1] - first[1]).min() > 1e-3


@pytest.mark.parametrize("mode", ft.MODES)
def test_apply_if_to_large_variables(mode, monkeypatch):
    monkeypatch.setattr(fused_adam, "_LARGE", 2)
    test_apply_if("fused_adam", mode)

"""The network of vectors."""

import flow_testing as ft
import numpy as np
import pytest

import tfp_realnvp as tfr

pytestmark = [pytest.mark.quick, pytest.mark.core]


@pytest.mark.parametrize("size", [1, 8])
def test_starts_at_zero_with_functions_that_are_not_odd(size):
    network = tfr.DenseResNet(2, 1, 64, activation="tanh")
    network.build((None, size))
    x = ft.normal([9, size])
    np.testing.assert_array_equal(network(x), np.zeros([9, 2]))
    # The outputs are random sums of the functions that the last layer starts with.
    network.output_kernel.assign(ft.normal([64, 2]) / 8)
    odd, even = ((network(x) + sign * network(-x)).numpy() / 2 for sign in (-1, 1))
    assert np.std(even) > 0.05 * np.std(odd)
    assert np.std(network.input_bias) == pytest.approx(size**-0.5, rel=0.3)

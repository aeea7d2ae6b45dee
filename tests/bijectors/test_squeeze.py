import flow_testing as ft
import numpy as np
import pytest

import tfp_realnvp as tfr

pytestmark = pytest.mark.quick


def _by_index(image, k, subpixels):
    """Squeezes [H, W, C] one number at a time."""
    height, width, channels = image.shape
    result = np.zeros([height // k, width // k, k * k * channels], image.dtype)
    for row, column, channel in np.ndindex(result.shape):
        block_row, block_column = subpixels[channel // channels]
        source = row * k + block_row, column * k + block_column, channel % channels
        result[row, column, channel] = image[source]
    return result


_ORDERS = {
    (2, "plain"): [(0, 0), (0, 1), (1, 0), (1, 1)],
    (2, "factor_out"): [(0, 0), (1, 1), (0, 1), (1, 0)],
    (3, "plain"): [(i, j) for i in range(3) for j in range(3)],
    (3, "factor_out"): [
        *[(0, 0), (0, 2), (1, 1), (2, 0), (2, 2)],
        *[(0, 1), (1, 0), (1, 2), (2, 1)],
    ],
}


@pytest.mark.parametrize(("k", "order"), _ORDERS)
def test_the_order_by_index(k, order):
    image = ft.normal([2 * k, 3 * k, 3])
    expected = _by_index(image.numpy(), k, _ORDERS[k, order])
    squeeze = tfr.Squeeze(k, order)
    np.testing.assert_array_equal(squeeze.forward(image), expected)
    np.testing.assert_array_equal(squeeze.inverse(expected), image)

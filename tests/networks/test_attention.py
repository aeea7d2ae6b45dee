import math

import flow_testing as ft
import numpy as np
import pytest
import tensorflow as tf

from tfp_realnvp.networks.attention import SelfAttention

pytestmark = [pytest.mark.quick, pytest.mark.core]


def _layer(num_heads=2, filters=5, dtype="float64"):
    layer = SelfAttention(num_heads, dtype=dtype)
    layer.build((None, None, None, filters))
    return ft.randomize(layer)


def _by_definition(layer, image):
    """Returns the output for one image [H, W, F], head by head and position by position."""
    (queries, keys, values), slopes, output = (np.asarray(v) for v in layer.variables)
    positions = list(np.ndindex(*image.shape[:2]))
    centered = image - image.mean(-1, keepdims=True)
    normalized = centered / np.sqrt(image.var(-1, keepdims=True) + 1e-4)
    result = image.copy()
    for head in range(layer.num_heads):
        for i in positions:
            logits = []
            for j in positions:
                product = (normalized[i] @ queries[:, head]) @ (normalized[j] @ keys[:, head])
                distance = math.dist(i, j)
                logits.append(product / math.sqrt(queries.shape[-1]) - slopes[head] * distance)
            weights = np.exp(logits) / np.exp(logits).sum()
            mixed = sum(
                w * (normalized[j] @ values[:, head])
                for w, j in zip(weights, positions, strict=True)
            )
            result[i] += mixed @ output[head]
    return result


@pytest.mark.parametrize(("num_heads", "filters"), [(1, 4), (2, 5), (3, 2)])
def test_against_the_definition(num_heads, filters):
    layer = _layer(num_heads, filters)
    x = ft.normal([2, 3, 2, filters], tf.float64)
    y = layer(x)
    for image, actual in zip(x.numpy(), y, strict=True):
        np.testing.assert_allclose(actual, _by_definition(layer, image), rtol=1e-10, atol=1e-12)
    assert np.abs(y - x).max() > 1e-2

import re

import flow_testing as ft
import numpy as np
import pytest
import tensorflow as tf

from tfp_realnvp.networks import ConditionEmbedding

pytestmark = [pytest.mark.quick, pytest.mark.core]

_KINDS = {
    "labels": {"num_classes": 5, "size": 4},
    "vectors": {"conditional_event_shape": [3], "size": 4},
    "images": {"conditional_event_shape": [4, 4, 2]},
}


def _embedding(kind, **kwargs):
    embedding = ConditionEmbedding(**_KINDS[kind], **kwargs)
    embedding.build()
    return ft.randomize(embedding)


def test_labels_are_rows_of_a_table():
    embedding = _embedding("labels")
    for labels in (3, [3, 0], np.array([[4], [1]], np.uint8), tf.constant([2], tf.int64)):
        condition = embedding.spec.as_tensor(labels, "test")
        expected = embedding.table.numpy()[np.asarray(labels)]
        np.testing.assert_array_equal(embedding(condition), expected)


def test_vectors_by_hand():
    embedding, condition = _embedding("vectors", dtype="float64"), ft.normal([2, 3], tf.float64)
    kernel1, bias1, kernel2, bias2 = (variable.numpy() for variable in embedding.variables)
    expected = tf.nn.swish(condition @ kernel1 + bias1) @ kernel2 + bias2
    np.testing.assert_allclose(embedding(condition), expected, rtol=1e-12)


# Others, by the bijectors that take them: `tests/bijectors/test_conditions.py`.
@pytest.mark.parametrize(
    ("kind", "value", "match"),
    [
        ("labels", None, r"integer labels in \[0, 5\), got None"),
        ("labels", [0, -1, 7], r"got \[-1, 7\]"),
        ("labels", 2**32, r"got \[4294967296\]"),
        ("labels", 1.0, r"got float\d\d of shape \(\)"),
        ("labels", ["cat"], r"got values that are not numbers of shape \(1,\); `np\.unique"),
        ("labels", np.zeros([3], bool), r"got bool of shape \(3,\); .*int\)` converts bools"),
        ("vectors", np.zeros([3], object), r"got values that are not .*`frame\.astype\(float\)"),
        ("images", np.zeros([2, 8, 8, 2]), r"images \[..., 4, 4, 2\], got .* \(2, 8, 8, 2\)"),
    ],
)
def test_conditions_that_are_not_as_declared(kind, value, match):
    with pytest.raises(ValueError, match=f"owner: expected a conditional_input of .*{match}"):
        _embedding(kind).spec.as_tensor(value, "owner")


def test_labels_with_dropout():
    embedding = _embedding("labels", dropout=0.1)
    assert int(embedding.spec.as_tensor(-1, "owner")) == -1
    with pytest.raises(ValueError, match=r"labels in \[0, 5\) or -1, got \[-2\]"):
        embedding.spec.as_tensor(-2, "owner")
    labels = np.array([2.0, np.nan])
    with pytest.raises(ValueError, match="or -1, got float64 of shape") as error:
        embedding.spec.as_tensor(labels, "owner")
    call = re.findall("`(.*?)` converts whole floats", str(error.value))[0]
    assert eval(call, {"labels": labels, "np": np}).tolist() == [2, -1]


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize(("dropout", "lowest"), [(None, 0), (0.1, -1)])
def test_labels_out_of_range_are_nan_in_a_graph(dropout, lowest, jit_compile):
    embedding, labels = _embedding("labels", dropout=dropout), np.arange(-3, 7)
    call = tf.function(
        lambda labels: embedding(embedding.spec.as_tensor(labels)), jit_compile=jit_compile
    )
    embedded = call(tf.constant(labels)).numpy()
    np.testing.assert_array_equal(embedded[3:8], embedding.table)
    is_nan = np.isnan(embedded).all(axis=-1)
    np.testing.assert_array_equal(is_nan, (labels < lowest) | (labels >= 5))


def test_an_embedding_is_constructed_frozen():
    embedding = _embedding("vectors", trainable=False)
    assert embedding.variables and not any(v.trainable for v in embedding.variables)

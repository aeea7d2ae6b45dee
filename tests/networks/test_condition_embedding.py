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
    "images_of_any_size": {"conditional_event_shape": (None, None, 2)},
}
each_kind = pytest.mark.parametrize("kind", _KINDS)


def _embedding(kind, **kwargs):
    embedding = ConditionEmbedding(**_KINDS[kind], **kwargs)
    embedding.build()
    return ft.randomize(embedding)


def _condition(kind, batch, dtype=tf.float32):
    return ft.condition("images" if "images" in kind else kind, batch, dtype)


@each_kind
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)], ids=str)
@pytest.mark.parametrize("dropout", [None, 0.3])
def test_shapes(kind, batch, dropout):
    embedding, condition = _embedding(kind, dropout=dropout), _condition(kind, batch)
    condition = embedding.spec.as_tensor(condition, "test")
    embedded = embedding(condition)
    event = (4, 4, 2) if "images" in kind else (4,)
    assert embedded.shape == (*batch, *event)
    assert tf.TensorShape(embedding.embedded_shape).is_compatible_with(event)
    # Each condition on its own gives the same.
    for index in np.ndindex(batch):
        np.testing.assert_allclose(embedding(condition[index]), embedded[index], rtol=1e-5)


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


@each_kind
def test_no_condition(kind):
    embedding, condition = _embedding(kind, dropout=0.3), _condition(kind, (3,)).numpy()
    # Only the first of three is a condition: one NaN is enough.
    condition[1:].reshape(2, -1)[:, -1] = -1 if kind == "labels" else np.nan
    with tf.GradientTape() as tape:
        embedded = embedding(embedding.spec.as_tensor(condition, "test"))
        loss = tf.reduce_sum(embedded**2)
    given = embedding.spec.as_tensor(condition[0], "test")
    np.testing.assert_allclose(embedded[0], embedding(given), rtol=1e-6)
    no_condition = tf.reshape(embedding.no_condition, [1] * (embedded.shape.rank - 2) + [-1])
    left_out = embedding.spec.without(given[tf.newaxis], tf.constant([True]))
    none = embedding.spec.as_tensor(None, "owner")[tf.newaxis]
    for nothing in (embedded[1:], embedding(left_out), embedding(none)):
        np.testing.assert_array_equal(nothing, np.broadcast_to(no_condition, nothing.shape))
    new = ConditionEmbedding(**_KINDS[kind], dropout=0.0)
    new.build()
    assert not np.any(new.no_condition)
    assert not hasattr(_embedding(kind), "no_condition")
    variables = [variable.value for variable in embedding.trainable_variables]
    for gradient in tape.gradient(loss, variables):
        gradient = tf.convert_to_tensor(gradient)
        assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0


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

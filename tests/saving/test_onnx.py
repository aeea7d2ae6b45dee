"""ONNX models, run by onnxruntime, against the distribution that they were exported from."""

import logging
import sys

import flow_testing as ft
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_realnvp as tfr
from tfp_realnvp import pixels

pytestmark = pytest.mark.core

pytest.importorskip("tf2onnx")
onnxruntime = pytest.importorskip("onnxruntime")

tfd, tfb = tfp.distributions, tfp.bijectors

SHAPE = (4, 4, 1)
NAMES = ["log_prob", "encode", "decode"]


def compact():
    options = {"num_scales": 1, "num_couplings": 1, "num_filters": 4}
    bijector = tfr.RealNVPImage.compact(SHAPE, num_classes=5, **options)
    return tfd.TransformedDistribution(ft.standard_normal(SHAPE), ft.randomize(bijector))


def vectors():
    base = tfd.StudentT(tf.Variable([2.0, 4.0, 8.0]), 0.0, 1.0)
    bijector = ft.vector_flow(3, num_blocks=1, transformer="rational_quadratic_spline")
    return tfd.TransformedDistribution(tfd.Independent(base, 1), bijector)


FLOWS = {
    "paper": lambda: ft.flow_distribution(SHAPE, num_blocks=0),
    "labels": compact,
    # Continuous images, and images as conditions.
    "images": lambda: ft.conditional_distribution("images", "shallow", alpha=None),
    "vectors": vectors,
}


def run(folder, name, *inputs):
    """Runs a model with inputs in their order; returns its output, or a list of outputs."""
    session = onnxruntime.InferenceSession(folder / f"{name}.onnx")
    feeds = zip(session.get_inputs(), inputs, strict=True)
    outputs = session.run(None, {spec.name: np.asarray(value) for spec, value in feeds})
    return outputs if len(outputs) > 1 else outputs[0]


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=[pytest.mark.full] * (name != "labels")) for name in FLOWS],
)
def exported(request, tmp_path_factory):
    """A distribution, the folder of its models, their inputs, the events, and conditions."""
    flow = FLOWS[request.param]()
    folder = tmp_path_factory.mktemp("export") / "models"
    tfr.FlowModel(flow).export(folder, format="onnx")
    noise = np.random.default_rng(0).random([3, *SHAPE], np.float32)
    if request.param in ("images", "vectors"):
        inputs = [ft.normal([3, *flow.event_shape])]
    else:
        inputs = [ft.grey_levels(3, SHAPE), noise]
    kind = request.param if request.param in ("labels", "images") else None
    conditions = [] if kind is None else [ft.condition(kind, [3])]
    return flow, folder, inputs, sum(np.float32(inputs)), conditions


def test_densities_and_latents_equal_those_of_the_distribution(exported):
    flow, folder, inputs, events, conditions = exported
    options = {"conditional_input": conditions[0]} if conditions else {}
    expected = flow.log_prob(events, bijector_kwargs=options)
    log_prob = run(folder, "log_prob", *inputs, *conditions)
    np.testing.assert_allclose(log_prob, expected, rtol=1e-4)
    latents = run(folder, "encode", *inputs, *conditions)
    expected = flow.bijector.inverse(events, **options)
    np.testing.assert_allclose(latents, expected, rtol=1e-4, atol=1e-4)
    decoded = run(folder, "decode", latents, *conditions)
    np.testing.assert_allclose(decoded, events, rtol=1e-4, atol=1e-3)
    # The batch size is free.
    one = run(folder, "log_prob", *(value[:1] for value in (*inputs, *conditions)))
    np.testing.assert_allclose(one, log_prob[:1], rtol=1e-4)


def test_inputs_and_outputs(exported):
    flow, folder, inputs, _, conditions = exported
    assert sorted(path.name for path in folder.iterdir()) == sorted(f"{n}.onnx" for n in NAMES)
    events = "x" if flow.event_shape.rank == 1 else "images"
    given = ["conditional_input"] if conditions else []
    expected = {
        "log_prob": ([events, *["noise"] * (len(inputs) - 1), *given], "log_prob"),
        "encode": ([events, *["noise"] * (len(inputs) - 1), *given], "latents"),
        "decode": (["latents", *given], events),
    }
    for name in NAMES:
        session = onnxruntime.InferenceSession(folder / f"{name}.onnx")
        assert [spec.name for spec in session.get_inputs()] == expected[name][0]
        assert [spec.name for spec in session.get_outputs()] == [expected[name][1]]
        assert {spec.shape[0] for spec in session.get_inputs()} == {"batch"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tfb.ScaleMatvecTriL([[1.0, 0.0], [2.0, 3.0]]), r"log_prob\. .*TriangularSolve"),
        (
            lambda: tfr.RealNVPVector(2, 1, num_filters=2, network_dtype="mixed_bfloat16"),
            r'log_prob\. Construct the flow with network_dtype="float32"\. .*bfloat16',
        ),
    ],
)
def test_an_operation_that_cannot_be_converted_leaves_the_old_folder(tmp_path, make, message):
    (tmp_path / "models").mkdir()
    flow = tfd.TransformedDistribution(ft.standard_normal([2]), make())
    with pytest.raises(ValueError, match=rf"export_onnx: tf2onnx cannot convert {message}"):
        tfr.export_onnx(flow, tmp_path / "models")
    assert [path.name for path in tmp_path.iterdir()] == ["models"]
    assert list((tmp_path / "models").iterdir()) == []


def test_errors(tmp_path, monkeypatch):
    with pytest.raises(TypeError, match=r"export_onnx: expected a tfd\.TransformedDistribution"):
        tfr.export_onnx(tfd.Normal(0.0, 1.0), tmp_path / "models")
    monkeypatch.setitem(sys.modules, "tf2onnx", None)
    flow = tfd.TransformedDistribution(ft.standard_normal([2]), tfb.Scale(2.0))
    with pytest.raises(ImportError, match=r"export_onnx needs tf2onnx.*`pip install tf2onnx`"):
        tfr.export_onnx(flow, tmp_path / "models")
    assert list(tmp_path.iterdir()) == []


def test_normal_quantiles(tmp_path):
    bijector = tfb.Inline(
        forward_fn=lambda x: 0.5 * (1 + tf.math.erf(x / np.sqrt(2))),
        inverse_fn=tf.math.ndtri,
        inverse_log_det_jacobian_fn=lambda p: 0.5 * tf.square(tf.math.ndtri(p)),
        forward_min_event_ndims=0,
    )
    flow = tfd.TransformedDistribution(ft.standard_normal([1]), bijector)
    tfr.export_onnx(flow, tmp_path / "models")
    edges = np.geomspace(1e-7, 1e-2, 50)
    p = np.concatenate([edges, np.linspace(0.01, 0.99, 99), 1 - edges])[:, np.newaxis]
    latents = run(tmp_path / "models", "encode", p.astype(np.float32))
    expected = flow.bijector.inverse(p.astype(np.float32))
    np.testing.assert_allclose(latents, expected, rtol=2e-6, atol=1e-6)


@pytest.mark.full
def test_learned_noise(tmp_path):
    noise = ft.randomize(tfr.VariationalDequantization(SHAPE, num_couplings=1, num_filters=4))
    flow = ft.conditional_distribution("labels", "shallow", normalization="actnorm")
    model = tfr.FlowModel(flow, dequantizer=noise, seed=3)
    model.export(tmp_path / "models", format="onnx")
    images, labels = ft.grey_levels(3, SHAPE), ft.condition("labels", [3])
    # Without the rounding of a sum, which normal quantiles magnify.
    inputs = images, pixels.event_noise(tf.constant(images, tf.float32), seed=3), labels
    expected = tfr.log_prob(model, images, labels)
    assert np.abs(expected - tfr.log_prob(model.distribution, images, labels)).min() > 0.1
    np.testing.assert_allclose(run(tmp_path / "models", "log_prob", *inputs), expected, rtol=1e-5)
    latents = run(tmp_path / "models", "encode", *inputs)
    decoded = run(tmp_path / "models", "decode", latents, labels)
    np.testing.assert_array_equal(tfr.to_uint8(decoded), images)


@pytest.mark.full
@pytest.mark.parametrize("labels", [None, np.arange(24, dtype=np.int32) % 2])
def test_a_mixture_of_clusters(labels, tmp_path):
    images = ft.grey_levels(24, SHAPE)
    clusters = tfr.Clusters.of(images, labels, num_clusters=3)
    options = {"num_scales": 1, "num_classes": clusters.num_clusters, **ft.NETWORKS["shallow"]}
    bijector = ft.image_flow(SHAPE, **options)
    flow = tfd.TransformedDistribution(ft.standard_normal(SHAPE), bijector)
    mixture, folder = tfr.ClusterMixture(flow, clusters), tmp_path / "models"
    tfr.export_onnx(mixture, folder)
    noise = np.random.default_rng(0).random(images.shape, np.float32)
    inputs, events = [images, noise], images + noise
    given = {} if labels is None else {"conditional_input": labels}
    log_prob = run(folder, "log_prob", *inputs, *given.values())
    np.testing.assert_allclose(log_prob, mixture.log_prob(events, **given), rtol=1e-4)
    latents, nearest = run(folder, "encode", *inputs, *given.values())
    np.testing.assert_array_equal(nearest, clusters.nearest(events, labels))
    np.testing.assert_allclose(run(folder, "decode", latents, nearest), events, atol=0.1)


def test_an_export_keeps_the_level_of_logging(tmp_path):
    logging.disable(logging.INFO)
    try:
        tfr.export_onnx(ft.vector_distribution(2), tmp_path / "models", verbose=False)
        assert logging.root.manager.disable == logging.INFO
    finally:
        logging.disable(logging.NOTSET)

"""Signatures of a SavedModel against the distribution that it was exported from."""

import collections
import subprocess
import sys

import flow_testing as ft
import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_realnvp as tfr
from tfp_realnvp.saving import saved_model

pytestmark = pytest.mark.core

tfd, tfb = tfp.distributions, tfp.bijectors

SHAPE = (4, 4, 1)
SMALL = {"num_couplings": 1, "num_filters": 4}
# In a process that can import TensorFlow only. TensorFlow imports Keras: it is removed, and any
# further import of it fails.
SERVE = """
import sys

sys.modules.update(dict.fromkeys(["tensorflow_probability", "tf_keras", "tfp_realnvp"]))
import numpy as np
import tensorflow as tf
for name in [name for name in sys.modules if name.split(".")[0] == "keras"]:
    sys.modules[name] = None

folder = sys.argv[1]
served = tf.saved_model.load(f"{folder}/1")
results = []
with np.load(f"{folder}/images.npz") as inputs:
    for images in inputs.values():
        log_prob = served.signatures["log_prob"](images=tf.constant(images))["log_prob"]
        results.append(log_prob.numpy())
results.append(served.sample(2, 3, 0.8)["images"].numpy())
np.savez(f"{folder}/results.npz", *results)
for name in ("keras", "tf_keras", "tensorflow_probability", "tfp_realnvp"):
    assert sys.modules[name] is None
"""

NAMES = ["log_prob", "bits_per_dim", "encode", "decode", "sample", "reconstruct"]


@pytest.fixture(scope="module")
def flow():
    return ft.flow_distribution(SHAPE, num_values=100, num_couplings=1, network_fn=ft.convolution)


@pytest.fixture(scope="module")
def served(flow, tmp_path_factory):
    return export(tfr.FlowModel(flow), tmp_path_factory.mktemp("export"))


def export(flow, folder, **options):
    """Exports a flow to a folder; returns what is loaded from it."""
    tfr.export_saved_model(flow, folder / "1", **options)
    return tf.saved_model.load(folder / "1")


def standard_log_prob(flow, images):
    """Returns the log density of images of any size."""
    latents, ildj = flow.bijector.inverse_and_log_det(images)
    base = tfd.Sample(tfd.Normal(0.0, 1.0), images.shape[1:])
    return base.log_prob(latents) + ildj


def test_signatures(served):
    assert set(served.signatures) == {*NAMES, *(f"{name}_uint8" for name in NAMES)}
    inputs = served.signatures["sample"].structured_input_signature[1]
    expected = {"num_samples": "int32", "seed": "int32", "temperature": "float32"}
    assert {name: spec.dtype.name for name, spec in inputs.items()} == expected
    assert served.signatures["log_prob"].inputs[0].shape.as_list() == [None, None, None, 1]


@pytest.mark.parametrize("shape", [(3, 4, 4, 1), (1, 4, 4, 1), (2, 8, 6, 1)])
def test_densities_and_latents_equal_those_of_the_distribution(flow, served, shape):
    images = ft.pixels(shape) * 0.39
    log_prob = standard_log_prob(flow, images)
    close = {"rtol": 1e-5, "atol": 1e-4}

    np.testing.assert_allclose(served.log_prob(images)["log_prob"], log_prob, **close)
    bits = -log_prob / (np.prod(shape[1:]) * np.log(2))
    np.testing.assert_allclose(served.bits_per_dim(images)["bits_per_dim"], bits, **close)
    latents = served.signatures["encode"](images=images)["latents"]
    np.testing.assert_allclose(latents, flow.bijector.inverse(images), **close)
    decoded = served.decode(latents=latents)["images"]
    np.testing.assert_allclose(decoded, flow.bijector.forward(latents), rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(served.reconstruct(images)["images"], images, atol=1e-2)


@pytest.mark.usefixtures("only_log_prob")
def test_oneDNN_adds_only_what_nothing_else_uses(tmp_path):
    # TensorFlow's kernel copies such a summand by way of an attribute that all threads share.
    flow = ft.flow_distribution(SHAPE, num_scales=1, num_blocks=2)
    tfr.export_saved_model(flow, tmp_path / "1", image_shape=SHAPE)
    v1, event = tf.compat.v1, ft.pixels([1, *SHAPE]).numpy()
    with tf.Graph().as_default(), v1.Session() as session:
        meta_graph = v1.saved_model.load(session, ["serve"], str(tmp_path / "1"))
        signature = meta_graph.signature_def["log_prob"]
        (images,), (log_prob,) = signature.inputs.values(), signature.outputs.values()
        options = v1.RunOptions(output_partition_graphs=True)
        metadata = v1.RunMetadata()
        session.run(log_prob.name, {images.name: event}, options, metadata)
    nodes = [node for graph in metadata.partition_graphs for node in graph.node]
    assert any("Conv2D" in node.op for node in nodes)
    uses = collections.Counter(name for node in nodes for name in node.input)
    for node in nodes:
        if "FusedConv2D" in node.op and b"Add" in node.attr["fused_ops"].list.s:
            summand = node.input[3]
            assert uses[summand] == 1, summand


def test_uint8_reconstructions_equal_the_images(served):
    images = ft.grey_levels(8, SHAPE) % 100
    reconstructed = served.reconstruct_uint8(images, seed=0)["images"]
    assert reconstructed.dtype == tf.uint8
    # Rounding down turns a rounding error at the end of the noise's range into a grey level.
    assert np.mean(reconstructed == images) > 0.99
    assert np.abs(np.int32(reconstructed) - np.int32(images)).max() <= 1
    latents = 5 * ft.normal((4, *SHAPE))
    decoded = served.decode_uint8(latents)["images"]
    expected = tfr.to_uint8(served.decode(latents)["images"], 100)
    np.testing.assert_array_equal(decoded, expected)
    assert expected.max() == 99


def test_samples_depend_on_seed_and_temperature(flow, served):
    sample = served.signatures["sample"]
    inputs = {"num_samples": tf.constant(3), "seed": tf.constant(7)}
    images = sample(**inputs, temperature=tf.constant(1.0))["images"]
    expected = flow.sample(3, seed=tf.constant([7, 0]))
    np.testing.assert_allclose(images, expected, rtol=1e-5, atol=1e-3)
    np.testing.assert_array_equal(images, served.sample(3, 7, 1.0)["images"])
    assert np.abs(images - served.sample(3, 8, 1.0)["images"]).max() > 1

    latents = flow.distribution.sample(3, seed=tf.constant([7, 0]))
    cool = served.sample(3, 7, 0.5)["images"]
    expected = flow.bijector.forward(0.5 * latents)
    np.testing.assert_allclose(cool, expected, rtol=1e-5, atol=1e-3)
    levels = tfr.to_uint8(cool, num_values=100)
    np.testing.assert_array_equal(served.sample_uint8(3, 7, 0.5)["images"], levels)
    named = served.sample_uint8(num_samples=3, seed=7, temperature=0.5)["images"]
    np.testing.assert_array_equal(named, levels)


def test_invalid_inputs_raise(served):
    error = tf.errors.InvalidArgumentError
    with pytest.raises(error, match="height and width divisible by 2"):
        served.log_prob(tf.ones([1, 5, 4, 1]))
    with pytest.raises(error, match="height and width divisible by 2"):
        served.decode(tf.ones([1, 4, 5, 1]))
    for value in (-60.0, 160.0, np.nan):
        with pytest.raises(error, match="expected pixel values"):
            served.log_prob(tf.fill([1, *SHAPE], value))
    with pytest.raises(error, match="at least one image"):
        served.log_prob(tf.ones([0, *SHAPE]))
    with pytest.raises(error, match="num_samples of at least 1"):
        served.sample(0, 7, 1.0)
    for temperature in (np.nan, -0.5, np.inf):
        for sample in (served.sample, served.sample_uint8):
            with pytest.raises(error, match="expected a finite temperature of at least 0"):
                sample(2, 7, temperature)
    with pytest.raises((TypeError, ValueError)):
        served.log_prob(tf.ones([1, 4, 4, 3]))


def test_a_tensor_of_another_dtype_is_not_cast(served):
    levels = ft.grey_levels(2, SHAPE) % 100
    for images in (levels / 255, levels.astype(np.int64), np.full(levels.shape, np.nan)):
        with pytest.raises(TypeError, match="Can not cast"):
            served.log_prob_uint8(tf.constant(images), seed=0)
        with pytest.raises(tf.errors.InvalidArgumentError, match="expected to be a uint8 tensor"):
            served.signatures["log_prob_uint8"](images=tf.constant(images), seed=tf.constant(0))


def test_gray_levels_without_noise(served):
    levels = ft.grey_levels(2, SHAPE) % 100
    for name in ("log_prob", "bits_per_dim"):
        for images in (levels, levels.astype(np.float32)):
            with pytest.raises(tf.errors.InvalidArgumentError, match=f"gray levels.*{name}_uint8"):
                getattr(served, name)(images)
        mixed = np.concatenate([levels, levels + 0.5]).astype(np.float32)
        assert np.isfinite(getattr(served, name)(mixed)[name]).all()


def trainable_flow():
    scale = tfp.util.TransformedVariable(np.full(SHAPE, 1.4, np.float32), tfb.Softplus())
    base = tfd.Independent(tfd.Normal(tf.Variable(np.full(SHAPE, 0.2, np.float32)), scale), 3)
    options = {"num_scales": 1, "num_couplings": 1, "alpha": None, "network_fn": ft.convolution}
    return tfd.TransformedDistribution(base, ft.image_flow(SHAPE, **options))


def test_a_trainable_base(tmp_path, capsys):
    flow = trainable_flow()
    # The arguments of `keras.Model.export`, by position.
    tfr.FlowModel(flow).export(tmp_path / "1", "tf_saved_model", True)
    assert f"export_saved_model: wrote {tmp_path / '1'}.\n" in capsys.readouterr().out
    served = tf.saved_model.load(tmp_path / "1")

    # Without `PixelLogit` there are no uint8 signatures; this base has one event shape.
    assert sorted(served.signatures) == sorted(NAMES)
    assert served.signatures["log_prob"].inputs[0].shape.as_list() == [None, *SHAPE]
    images = ft.normal((3, *SHAPE))
    expected = flow.log_prob(images)
    np.testing.assert_allclose(served.log_prob(images)["log_prob"], expected, rtol=1e-5)
    expected = flow.sample(2, seed=tf.constant([5, 0]))
    np.testing.assert_allclose(served.sample(2, 5, 1.0)["images"], expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(tf.errors.InvalidArgumentError, match="expected temperature 1"):
        served.sample(2, 5, 0.9)


@pytest.mark.usefixtures("only_log_prob")
@pytest.mark.parametrize("max_folded_bytes", [0, 2**30])
def test_an_export_has_copies_of_the_weights(tmp_path, monkeypatch, max_folded_bytes):
    monkeypatch.setattr(saved_model, "_MAX_FOLDED_BYTES", max_folded_bytes)
    flow = ft.flow_distribution(SHAPE, num_scales=1, num_couplings=1, network_fn=ft.convolution)
    images = ft.pixels((2, *SHAPE))
    before = flow.log_prob(images)
    tfr.export_saved_model(flow, tmp_path / "1", image_shape=SHAPE)
    for variable in flow.trainable_variables:
        variable.assign_add(tf.ones_like(variable))
    served = tf.saved_model.load(tmp_path / "1")
    np.testing.assert_allclose(served.log_prob(images)["log_prob"], before, rtol=1e-5)
    assert np.abs(flow.log_prob(images) - before).max() > 1
    assert served.signatures["log_prob"].inputs[0].shape.as_list() == [None, *SHAPE]


@pytest.mark.usefixtures("only_log_prob")
def test_gradients_are_served(tmp_path):
    # It embeds by `silu`.
    flow = ft.conditional_distribution("vectors", num_scales=1, num_blocks=0, **SMALL)
    images, conditions = ft.pixels([2, *SHAPE]), ft.condition("vectors", [2])
    traced = tf.function(
        lambda *inputs: flow.log_prob(inputs[0], bijector_kwargs={"conditional_input": inputs[1]}),
        autograph=False,
    )
    served = export(flow, tmp_path)

    def gradients(log_prob):
        with tf.GradientTape() as tape:
            tape.watch([images, conditions])
            value = log_prob(images, conditions)
        return tape.gradient(value, [images, conditions])

    actual = gradients(lambda *inputs: served.log_prob(*inputs)["log_prob"])
    ft.assert_close(actual, gradients(traced), rtol=1e-4, atol=1e-6)


def test_errors(tmp_path):
    with pytest.raises(TypeError, match="expected a FlowModel"):
        tfr.export_saved_model(keras.Sequential(), tmp_path / "saved")
    with pytest.raises(TypeError, match=r"expected a tfd\.TransformedDistribution"):
        tfr.export_saved_model(tfd.Normal(0.0, 1.0), tmp_path / "1")
    base = tfd.Sample(tfd.Normal(0.0, 1.0), [4, 4])
    matrices = tfd.TransformedDistribution(base, tfb.Scale(2.0))
    with pytest.raises(ValueError, match="expected events that are images"):
        tfr.export_saved_model(matrices, tmp_path / "1")
    with pytest.raises(ValueError, match="because the base distribution or the bijector"):
        tfr.export_saved_model(trainable_flow(), tmp_path / "1", image_shape=(8, 8, 1))
    flow = ft.flow_distribution(SHAPE, num_scales=2, num_blocks=0, **SMALL)
    for image_shape, message in [
        ((4, 4, 3), r"height, width, 1\], got"),
        ((7, 8, 1), "divisible by 2, for 2 scales, got"),
        ((8, 8), r"expected an image_shape \(height, width, channels\), got \(8, 8\)"),
        ((8, 0, 1), "expected positive integers in image_shape"),
    ]:
        with pytest.raises(ValueError, match=message):
            tfr.export_saved_model(flow, tmp_path / "1", image_shape=image_shape)
    with pytest.raises(ValueError, match=r"expected an image_shape only for images, got \(2,\)"):
        vectors = tfd.TransformedDistribution(ft.standard_normal([2]), tfb.Scale(2.0))
        tfr.export_saved_model(vectors, tmp_path / "1", image_shape=(2,))
    model = tfr.FlowModel(trainable_flow())
    with pytest.raises(ValueError, match=r"expected a format.*'onnx'.*got 'torch'"):
        model.export(tmp_path / "1", format="torch")
    for options in ({}, {"format": "onnx"}):
        with pytest.raises(ValueError, match=r"expected a folder, such as '.*/1', .*1\.onnx'\."):
            model.export(tmp_path / "1.onnx", **options)
    with pytest.raises(ValueError, match=r"expected no input_signature; image_shape .*, got"):
        model.export(tmp_path / "1", input_signature=[tf.TensorSpec([None, *SHAPE])])
    assert list(tmp_path.iterdir()) == []


def test_the_seed_of_noise_defaults_to_the_seed_of_the_model(flow, tmp_path):
    model = tfr.FlowModel(flow, seed=5)
    served, images = export(model, tmp_path), ft.grey_levels(3) % 100
    log_prob = served.log_prob_uint8(images)["log_prob"].numpy()
    np.testing.assert_allclose(log_prob, tfr.log_prob(model, images), rtol=1e-5)
    assert (served.log_prob_uint8(images, seed=6)["log_prob"].numpy() != log_prob).all()


def test_tensorflow_saves_no_functions_of_a_model(flow, tmp_path):
    with pytest.warns(
        UserWarning, match=r"no functions of a FlowModel.*`model\.export\('folder'\)`"
    ):
        tf.saved_model.save(tfr.FlowModel(flow), tmp_path / "1")


@pytest.mark.parametrize("export", [tfr.export_saved_model, tfr.export_onnx])
def test_a_call_in_a_graph(flow, tmp_path, export):
    message = rf"{export.__name__}: expected a call in eager mode, got one in a `tf\.function`"
    with pytest.raises(RuntimeError, match=message):
        tf.function(lambda: export(flow, tmp_path / "1"), autograph=False)()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("image_shape", [(8, 6, 1), (8, None, 1)])
def test_images_of_another_size_than_the_base(flow, tmp_path, image_shape):
    served = export(flow, tmp_path, image_shape=image_shape)
    images = ft.pixels([2, 8, 6, 1]) * 0.39
    log_prob = served.log_prob(images)["log_prob"]
    np.testing.assert_allclose(log_prob, standard_log_prob(flow, images), rtol=1e-5)
    samples = served.sample(3, 7, 1.0)["images"]
    assert samples.shape == [3, *(size or 4 for size in image_shape)]
    assert len(np.unique(samples)) == np.size(samples)


def test_lines_of_a_long_export(monkeypatch, tmp_path, capsys):
    flow = tfd.TransformedDistribution(ft.standard_normal([2]), tfb.Scale(2.0))
    tfr.export_saved_model(flow, tmp_path / "1")
    assert capsys.readouterr().out == ""  # a short one
    clock = iter(range(0, 1000, 4))
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    tfr.export_saved_model(flow, tmp_path / "1")
    *lines, end = capsys.readouterr().out.splitlines()
    assert lines[0] == "export_saved_model, 8 s: tracing the forward pass"
    assert lines[1] == "export_saved_model, 12 s: tracing log_prob, function 1 of 5"
    assert 3 <= len(lines) < 7  # fewer with time
    assert end == f"export_saved_model: wrote {tmp_path / '1'}."
    tfr.export_saved_model(flow, tmp_path / "1", verbose=False)
    assert capsys.readouterr().out == ""


@pytest.mark.full
def test_tensorflow_serves_it_without_other_packages(tmp_path):
    flow = ft.flow_distribution(SHAPE, num_scales=1, num_blocks=0)
    tfr.export_saved_model(flow, tmp_path / "1")
    batches = [ft.pixels((1, *SHAPE)), ft.pixels((3, *SHAPE)), ft.pixels((2, 8, 4, 1))]
    np.savez(tmp_path / "images.npz", *batches)
    subprocess.run([sys.executable, "-c", SERVE, tmp_path], check=True)
    with np.load(tmp_path / "results.npz") as results:
        *log_probs, samples = results.values()
    for images, log_prob in zip(batches, log_probs, strict=True):
        np.testing.assert_allclose(log_prob, standard_log_prob(flow, images), rtol=1e-5)
    latents = 0.8 * flow.distribution.sample(2, seed=(3, 0))
    np.testing.assert_allclose(samples, flow.bijector.forward(latents), rtol=1e-5, atol=1e-3)


# Conditions.


@pytest.fixture(scope="module")
def conditional(tmp_path_factory):
    """A distribution under images, the same served, images, and their conditions."""
    flow = ft.conditional_distribution("images", "user", normalization="actnorm")
    served = export(flow, tmp_path_factory.mktemp("export"))
    return flow, served, ft.pixels([3, *SHAPE]), ft.condition("images", [3])


def test_a_condition_is_the_last_input(conditional):
    _, served, _, conditions = conditional
    assert set(served.signatures) == {*NAMES, *(f"{name}_uint8" for name in NAMES)}
    for signature in served.signatures.values():
        spec = signature.structured_input_signature[1]["conditional_input"]
        assert spec.dtype == conditions.dtype and spec.shape[1:] == conditions.shape[1:]


def test_densities_and_latents_given_conditions(conditional):
    flow, served, images, conditions = conditional
    given = tfr.condition(flow, conditions)
    log_prob = given.log_prob(images)
    others = tf.roll(conditions, 1, axis=0)
    assert np.abs(served.log_prob(images, others)["log_prob"] - log_prob).min() > 1e-3
    close = {"rtol": 1e-5, "atol": 1e-4}
    np.testing.assert_allclose(served.log_prob(images, conditions)["log_prob"], log_prob, **close)
    latents = served.signatures["encode"](images=images, conditional_input=conditions)["latents"]
    expected = flow.bijector.inverse(images, conditional_input=conditions)
    np.testing.assert_allclose(latents, expected, **close)
    decoded = served.decode(latents, conditions)["images"]
    np.testing.assert_allclose(decoded, images, atol=1e-2)

    levels = ft.grey_levels(3, SHAPE)
    np.testing.assert_array_equal(served.reconstruct_uint8(levels, 1, conditions)["images"], levels)
    expected = given.log_prob(ft.with_event_noise(levels, seed=1))
    log_prob = served.log_prob_uint8(levels, 1, conditions)["log_prob"]
    np.testing.assert_allclose(log_prob, expected, **close)


def test_samples_given_conditions(conditional):
    flow, served, _, conditions = conditional
    options = {"bijector_kwargs": {"conditional_input": conditions}}
    expected = flow.sample(3, seed=tf.constant([7, 0]), **options)
    actual = served.sample(3, 7, 1.0, conditions)["images"]
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-2)
    # One condition is that of all samples.
    one = served.sample(3, 7, 1.0, conditions[:1])["images"]
    repeated = tf.repeat(conditions[:1], 3, axis=0)
    np.testing.assert_allclose(one, served.sample(3, 7, 1.0, repeated)["images"], rtol=1e-5)
    message = "expected as many conditions as num_samples, or one"
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        served.sample(3, 7, 1.0, conditions[:2])


def test_classify_of_a_base_with_classes(tmp_path):
    def number(x):
        return tf.cast(tf.size(x) // 2, x.dtype)

    # The bijector depends on the number of events that it gets: each one once, for all classes.
    functions = lambda x: x + number(x), lambda y: y - number(y), lambda y: tf.zeros([], y.dtype)
    bijector = tfb.Inline(*functions, forward_min_event_ndims=1, is_constant_jacobian=True)
    components = tfd.Independent(tfd.Normal(tf.Variable(ft.normal([4, 2])), 1.0), 1)
    base = tfr.ClassMixture(tfd.Categorical(logits=ft.normal([4], seed=1)), components)
    flow = tfd.TransformedDistribution(base, bijector)
    served, x = export(flow, tmp_path), ft.normal([3, 2], seed=2)
    expected = tfr.class_log_probs(flow, x)
    np.testing.assert_allclose(served.classify(x)["log_probs"], expected, rtol=1e-5, atol=1e-5)
    labels = [2, 0, -1]
    expected = tfr.condition(flow, labels).log_prob(x)
    np.testing.assert_allclose(served.log_prob(x, labels)["log_prob"], expected, rtol=1e-5)


def test_a_condition_that_is_not_declared(tmp_path):
    network = ft.ConditionedNetwork(2)
    network.build((None, None, None, 1))
    bijector = tfr.AffineCoupling(tfr.CheckerboardMask(0), ft.randomize(network))
    flow = tfd.TransformedDistribution(ft.standard_normal(SHAPE), bijector)
    with pytest.raises(ValueError, match="expected a condition that num_classes or"):
        tfr.export_saved_model(flow, tmp_path / "1")


# The noise of a model.


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A model of images given labels with learned noise, the same served, images, and labels."""
    flow = ft.conditional_distribution("labels", "user", normalization="actnorm")
    noise = ft.randomize(tfr.VariationalDequantization(SHAPE, num_couplings=2, num_filters=4))
    model = tfr.FlowModel(flow, dequantizer=noise, seed=3)
    path = tmp_path_factory.mktemp("export") / "1"
    model.export(path)
    return model, tf.saved_model.load(path), ft.grey_levels(4, SHAPE), ft.condition("labels", [4])


def test_a_served_score_is_that_of_the_model(learned):
    model, served, images, labels = learned
    inputs = {"images": images, "seed": model.seed, "conditional_input": labels}
    expected = tfr.log_prob(model, images, labels)
    assert np.abs(expected - tfr.log_prob(model.distribution, images, labels)).min() > 0.1
    log_prob = served.log_prob_uint8(**inputs)["log_prob"]
    np.testing.assert_allclose(log_prob, expected, rtol=1e-5)
    np.testing.assert_allclose(model.predict((images, labels), verbose=0), expected, rtol=1e-5)
    bits = served.bits_per_dim_uint8(**inputs)["bits_per_dim"]
    np.testing.assert_allclose(bits, tfr.bits_per_dim(expected, np.prod(SHAPE)), rtol=1e-5)
    other = served.log_prob_uint8(**{**inputs, "seed": 4})["log_prob"]
    assert np.abs(other - expected).min() > 1e-3
    # The batch of an image does not matter.
    one = served.log_prob_uint8(images[2:3], 3, labels[2:3])["log_prob"]
    np.testing.assert_allclose(one, expected[2:3], rtol=1e-5)


def test_latents_and_classes_have_the_noise_of_the_model(learned):
    model, served, images, labels = learned
    uniform = ft.with_event_noise(images, seed=3) - images
    values, _ = model.data_spec.noise.add_noise(images, lambda _: tf.constant(uniform))
    expected = model.distribution.bijector.inverse(values, conditional_input=labels)
    latents = served.encode_uint8(images, 3, labels)["latents"]
    np.testing.assert_allclose(latents, expected, rtol=1e-3, atol=1e-3)
    reconstructed = served.reconstruct_uint8(images, 3, labels)["images"]
    assert np.mean(reconstructed == images) > 0.99
    expected = tfr.class_log_probs(model, images, num_samples=1, seed=3)
    log_probs = served.classify_uint8(images, seed=3)["log_probs"]
    np.testing.assert_allclose(log_probs, expected, rtol=1e-4, atol=1e-3)


def test_continuous_values_get_no_noise(learned):
    model, served, *_ = learned
    values, labels = ft.pixels([2, 8, 4, 1]), [0, 4]  # of any size, which learned noise has not
    expected = tfr.condition(model.distribution, labels).log_prob(values[:, :4])
    log_prob = served.log_prob(values[:, :4], labels)["log_prob"]
    np.testing.assert_allclose(log_prob, expected, rtol=1e-5)
    assert np.isfinite(served.log_prob(values, labels)["log_prob"]).all()
    assert served.signatures["log_prob_uint8"].inputs[1].shape.as_list() == [None, *SHAPE]


def test_a_model_of_continuous_values_has_no_functions_of_gray_levels(flow, tmp_path):
    tfr.FlowModel(flow, dequantize=False).export(tmp_path / "1", image_shape=SHAPE)
    assert set(tf.saved_model.load(tmp_path / "1").signatures) == set(NAMES)


def test_an_image_shape_other_than_that_of_learned_noise(learned, tmp_path):
    with pytest.raises(ValueError, match=r"expected image_shape \(4, 4, 1\), as in the dequant"):
        learned[0].export(tmp_path / "1", image_shape=(8, 8, 1))

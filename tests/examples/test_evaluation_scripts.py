"""The scripts that evaluate a trained model."""

import functools
import json
import math
import pathlib
import runpy
import sys

import datasets
import flow_testing as ft
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from PIL import Image

import tfp_realnvp as tfr
from tfp_realnvp import evaluation, latents

pytestmark = [pytest.mark.full, pytest.mark.usefixtures("no_graph_optimizer")]

_EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"

_SMALL = {"num_scales": 2, "num_blocks": 0, "num_filters": 4, "num_couplings": 1}


def _write_run(folder, dequantizer=None, image_shape=(8, 8, 1), dataset="digits", **arguments):
    """Writes a preset with random weights; its data are digits unless another dataset is given."""
    condition = arguments.pop("condition", None)
    flow = ft.randomize(tfr.RealNVPImage(image_shape, **{**_SMALL, **arguments}))
    base = ft.standard_normal(image_shape)
    if dequantizer is not None:
        # With larger weights all noise would round to 0 or 1.
        rng = np.random.default_rng(1)
        for variable in dequantizer.trainable_variables:
            variable.assign_add(0.03 * rng.normal(size=variable.shape))
    model = tfr.FlowModel(
        tfp.distributions.TransformedDistribution(base, flow), dequantizer=dequantizer, seed=4
    )
    settings = {"name": str(dataset)}
    if condition is not None:
        settings["condition"] = condition
    model.save_to_preset(folder, card={"data": settings})
    return folder


def _load(folder):
    """Returns the model of a run and the arguments of `datasets.load`."""
    settings = json.loads((folder / "metadata.json").read_text())["card"]["data"]
    return tfr.FlowModel.from_preset(folder), settings


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    images = {name: ft.grey_levels(n, (8, 8, 1)) for name, n in (("train", 6), ("test", 5))}
    np.savez(folder / "images.npz", **images)
    return _write_run(folder, dataset=folder / "images.npz")


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A class-conditional run, trained also without condition."""
    options = {"num_scales": 1, "num_values": 17, "num_classes": 10, "condition_dropout": 0.1}
    return _write_run(tmp_path_factory.mktemp("digits"), condition="label", **options)


@pytest.fixture(scope="module")
def gray(tmp_path_factory):
    """A run of colors given luminance, with learned noise and other additions."""
    folder = tmp_path_factory.mktemp("gray")
    images = {
        name: ft.grey_levels(5, (8, 8, 3), seed) for seed, name in enumerate(["train", "test"])
    }
    np.savez(folder / "images.npz", **images)
    options = {"condition": "gray", "conditional_event_shape": (8, 8, 1), "split_prior": True}
    options |= {"transformer": "rational_quadratic_spline", "invertible_conv": True}
    noise = tfr.VariationalDequantization((8, 8, 3), num_couplings=1, num_filters=4)
    return _write_run(folder, noise, (8, 8, 3), folder / "images.npz", **options)


def _by_hand(distribution, images, seed):
    """Bits/dim by definition, with an independent implementation of the noise."""
    log_prob = distribution.log_prob(ft.with_event_noise(images, seed)).numpy()
    return -log_prob.mean() / (math.prod(images.shape[1:]) * math.log(2))


def test_evaluations_agree(folder, tmp_path, run_script, capsys):
    # evaluate.py, FlowModel.evaluate and log_prob.
    run_script("evaluate", f"--results_dir={folder}", f"--output={tmp_path}", "--num_samples=1")
    printed = capsys.readouterr().out
    assert "| this model | test | 5 |" in printed
    assert (tmp_path / "evaluation.md").read_text() in printed
    results = json.loads((tmp_path / "evaluation.json").read_text())["results"]
    model, settings = _load(folder)
    model.compile()
    images = np.load(settings["name"])
    assert set(results) == {"train", "test"}
    for split, result in results.items():
        by_model = model.evaluate(images[split], batch_size=2, verbose=0, return_dict=True)
        by_hand = _by_hand(model.distribution, images[split], model.seed)
        assert result["mean"] == pytest.approx(by_model["bits_per_dim"], abs=2e-5)
        assert result["mean"] == pytest.approx(by_hand, abs=2e-5)
        assert result["importance_weighted"] == pytest.approx(by_hand, abs=2e-5)
    # The noise agrees, too: another seed gives another result.
    other = _by_hand(model.distribution, images["test"], model.seed + 1)
    assert abs(other - results["test"]["mean"]) > 5e-5


def test_each_configuration_has_a_result_of_the_paper(load_script):
    assert set(load_script("evaluate").PAPER_RESULTS) == set(tfr.PAPER_CONFIGURATIONS)


def test_tables_of_results(load_script):
    script = load_script("evaluate")
    result = evaluation.Evaluation(4.0, 0.01, 3.9, 0.02, 2_000, 8, "bits/dim")
    one = evaluation.Evaluation(8.0, math.nan, 8.0, math.nan, 1, 1, "bits/dim")
    confusion = ((900, 20), (28, 849))
    classes = evaluation.Classification(0.97316, 0.012345, math.inf, 1_797, confusion)
    paper = script.PAPER_RESULTS["imagenet32"]
    lines = script.as_markdown({"validation": result, "one": one}, {"test": classes}, paper)
    assert lines.splitlines()[2:] == [
        "| this model | validation | 2,000 | 4.000 ± 0.010 | 3.900 ± 0.020 (K = 8) |",
        "| this model | one | 1 | 8.000 | 8.000 (K = 1) |",
        "| Real NVP (paper) | train | | 4.26 | |",
        "| Real NVP (paper) | test | | 4.28 | |",
        "| PixelRNN | test | | 3.86 | |",
        "| Conv DRAW | test | | < 4.40 | |",
        "",
        "| split | images | accuracy | expected calibration error | log loss (nats) |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| test | 1,797 | 97.32% | 0.0123 | inf |",
    ]
    assert len(script.as_markdown({"test": result}, {}).splitlines()) == 3
    values = json.loads(json.dumps(script.as_json({"one": one}), allow_nan=False))
    assert values["one"]["importance_weighted"] == 8
    assert values["one"]["standard_error"] is None
    values = json.loads(json.dumps(script.as_json({"test": classes}), allow_nan=False))
    assert values["test"]["log_loss"] is None
    assert values["test"]["confusion_matrix"] == [[900, 20], [28, 849]]


def test_other_weights(folder, tmp_path, run_script):
    model, _ = _load(folder)
    ft.randomize(model.distribution, seed=1)
    path = tmp_path / "other.weights.h5"
    model.save_weights(path)
    options = (f"--weights={path}", f"--output={tmp_path}", "--split=test", "--num_samples=1")
    run_script("evaluate", f"--results_dir={folder}", *options)
    result = json.loads((tmp_path / "evaluation.json").read_text())["results"]["test"]
    images = np.load(folder / "images.npz")["test"]
    by_hand = _by_hand(model.distribution, images, model.seed)
    assert result["mean"] == pytest.approx(by_hand, abs=1e-4)


def test_a_folder_without_a_run(tmp_path, run_script):
    for script in ("evaluate", "sample", "latent_space"):
        with pytest.raises(ValueError, match=r"got no file config\.json"):
            run_script(script, f"--results_dir={tmp_path}")


def _samples(run_script, folder, path, *options):
    run_script("sample", f"--results_dir={folder}", f"--output={path}", "--num_images=40", *options)
    return np.load(path)


def test_samples(folder, tmp_path, run_script):
    path = tmp_path / "samples.npy"
    samples = _samples(run_script, folder, path)
    assert samples.shape == (40, 8, 8, 1) and samples.dtype == np.uint8
    np.testing.assert_array_equal(_samples(run_script, folder, path), samples)
    assert (_samples(run_script, folder, path, "--seed=1") != samples).any()
    cold = _samples(run_script, folder, path, "--temperature=0.3")
    truncated = _samples(run_script, folder, path, "--truncation=0.5")
    for each in (cold, truncated):
        assert np.std(each, axis=0).mean() < 0.7 * np.std(samples, axis=0).mean()
    zero = _samples(run_script, folder, path, "--temperature=0", "--size=8,16")
    assert zero.shape == (40, 8, 16, 1)
    assert (zero == zero[:1]).all()


def test_a_grid_of_samples(folder, tmp_path, run_script):
    path = tmp_path / "samples.png"
    run_script("sample", f"--results_dir={folder}", f"--output={path}", "--num_images=4")
    with Image.open(path) as image:
        assert image.size == (8 * (2 * 9 + 1),) * 2
    with pytest.raises(ValueError, match=r"\*\.npy or \*\.npz, got .*samples\.gif"):
        run_script("sample", f"--results_dir={folder}", "--output=samples.gif")
    with pytest.raises(ValueError, match="divisible by 2"):
        run_script("sample", f"--results_dir={folder}", f"--output={path}", "--size=8,7")


# Conditions.


def test_evaluate_a_model_of_classes(digits, tmp_path, run_script, capsys):
    options = "--split=test --num_batches=3 --batch_size=4 --num_samples=1".split()
    run_script("evaluate", f"--results_dir={digits}", f"--output={tmp_path}", *options)
    printed = capsys.readouterr().out
    assert "| split | images | accuracy | expected calibration error |" in printed
    values = json.loads((tmp_path / "evaluation.json").read_text())
    model, settings = _load(digits)
    batches = datasets.load(**settings).batches("test", 4).take(3)
    images, labels = next(batches.rebatch(12).as_numpy_iterator())
    conditional, without = (
        evaluation.bits_per_dim(model.distribution, data, seed=model.seed, batch_size=4)
        for data in ((images, labels), images)
    )
    found = {name: each["mean"] for name, each in values["results"].items()}
    assert found == {
        "test": pytest.approx(conditional.mean, abs=1e-6),
        "test, no condition": pytest.approx(without.mean, abs=1e-6),
    }
    figures = conditional.mean, conditional.standard_error
    assert figures != pytest.approx((without.mean, without.standard_error), abs=5e-4)
    classes = evaluation.classification(model.distribution, images, labels, seed=model.seed)
    assert values["classification"]["test"] == {
        "accuracy": classes.accuracy,
        "expected_calibration_error": pytest.approx(classes.expected_calibration_error, abs=1e-5),
        "log_loss": pytest.approx(classes.log_loss, rel=1e-4),
        "num_events": 12,
        "confusion_matrix": [list(row) for row in classes.confusion_matrix],
    }


def test_evaluate_a_model_of_colors(gray, tmp_path, run_script, capsys):
    options = (f"--results_dir={gray}", f"--output={tmp_path}", "--split=test", "--num_samples=2")
    run_script("evaluate", *options)
    assert "Bits/dim are bounds, with noise of variational" in capsys.readouterr().out
    values = json.loads((tmp_path / "evaluation.json").read_text())
    assert set(values["results"]) == {"test"}
    assert values["classification"] == {} and values["dequantizer"] == "variational"
    model, settings = _load(gray)
    batches = datasets.load(**settings).batches("test", 2)
    options = {"num_samples": 2, "seed": model.seed}
    learned, uniform = (
        evaluation.bits_per_dim(model.distribution, batches, dequantizer=each, **options)
        for each in (model.dequantizer, None)
    )
    found = values["results"]["test"]
    assert found["mean"] == pytest.approx(learned.mean, abs=1e-5)
    assert found["importance_weighted"] == pytest.approx(learned.importance_weighted, abs=1e-5)
    assert found["importance_weighted"] < found["mean"]
    assert abs(learned.mean - uniform.mean) > 1e-3


def test_samples_of_classes(digits, tmp_path, run_script):
    path = tmp_path / "samples.npy"
    flow = _load(digits)[0].distribution
    samples = _samples(run_script, digits, path, "--num_images=31")
    # A row for each class.
    z = latents.sample_latents((8, 8, 1), (10, 4))
    expected = latents.decode(flow, z, conditional_input=np.arange(10)[:, np.newaxis])
    np.testing.assert_array_equal(samples, tfr.to_uint8(expected.reshape(-1, 8, 8, 1), 17))
    for condition, labels in (("3", 3), ("3,7", [[3], [7]]), ("none", None)):
        samples = _samples(run_script, digits, path, f"--condition={condition}")
        z = latents.sample_latents((8, 8, 1), (2, 20) if condition == "3,7" else 40)
        expected = latents.decode(flow, z, conditional_input=labels)
        np.testing.assert_array_equal(samples, tfr.to_uint8(expected.reshape(-1, 8, 8, 1), 17))


def test_samples_of_colors(gray, tmp_path, run_script):
    path = tmp_path / "samples.npy"
    samples = _samples(run_script, gray, path)
    assert samples.shape == (40, 8, 8, 3)
    model, settings = _load(gray)
    batches = datasets.load(**settings).batches("test", 8)
    _, conditions = next(batches.as_numpy_iterator())
    z = latents.sample_latents((8, 8, 3), (5, 8))
    expected = latents.decode(model.distribution, z, conditional_input=conditions[:, np.newaxis])
    np.testing.assert_array_equal(samples, tfr.to_uint8(expected.reshape(-1, 8, 8, 3)))
    np.save(tmp_path / "conditions.npy", conditions)
    by_file = _samples(run_script, gray, path, f"--condition={tmp_path / 'conditions.npy'}")
    np.testing.assert_array_equal(by_file, samples)


def test_bad_conditions_of_samples(folder, digits, gray, run_script):
    for run, condition, message in (
        (folder, "3", "the model takes none, got '3'"),
        (digits, "three", "Expected labels, an .npy file or `none` as --condition, got 'three'"),
        (digits, "10", r"integer labels in \[0, 10\) or -1.*got \[10\]"),
        (gray, "0.5", r"images \[..., 8, 8, 1\]"),
        (gray, "none", r"images \[..., 8, 8, 1\], got None"),
    ):
        with pytest.raises(ValueError, match=message):
            run_script("sample", f"--results_dir={run}", f"--condition={condition}")


_FIGURES = "interpolation levels_redraw levels_zero manifold reconstructions temperatures"
_LARGER = ["extrapolation_2x", "extrapolation_4x"]
_SWAP = "condition_swap"


@pytest.mark.parametrize(
    ("name", "figures"), [("folder", _LARGER), ("digits", [*_LARGER, _SWAP]), ("gray", [_SWAP])]
)
def test_latent_space(name, figures, tmp_path, run_script, request, capsys):
    run = request.getfixturevalue(name)
    run_script("latent_space", f"--results_dir={run}", f"--output_dir={tmp_path}")
    pictures = {path.stem: Image.open(path).load() for path in tmp_path.glob("*.png")}
    assert set(pictures) == {*_FIGURES.split(), *figures}
    assert (tmp_path / "latents.md").read_text() in capsys.readouterr().out


# serve.py.


@pytest.fixture(scope="module")
def serve():
    """Returns a function that runs serve.py with flags; each SavedModel is loaded once."""
    load = functools.cache(tf.saved_model.load)

    def run(path, *arguments):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["serve.py", str(path), *map(str, arguments)])
            patch.setattr(tf.saved_model, "load", load)
            runpy.run_path(str(_EXAMPLES / "serve.py"), run_name="__main__")

    return run


@pytest.fixture(scope="module")
def exported(digits, tmp_path_factory):
    path = tmp_path_factory.mktemp("served") / "1"
    _load(digits)[0].export(path)
    return path


def test_serve_an_unconditional_model(tmp_path, serve, capsys):
    model, _ = _load(_write_run(tmp_path / "run", num_scales=1))
    path = tmp_path / "1"
    model.export(path)
    images = ft.grey_levels(3, (8, 8, 1))
    np.save(tmp_path / "images.npy", images)
    samples = f"--output={tmp_path / 'samples.npy'}"
    serve(path, f"--images={tmp_path / 'images.npy'}", samples, "--num_samples=3", "--seed=2")
    values = ft.with_event_noise(images, 2)
    bits = -np.mean(model.distribution.log_prob(values)) / (64 * math.log(2))
    assert f"3 images: {bits:.3f} bits/dim" in capsys.readouterr().out
    expected = model.distribution.sample(3, seed=tf.constant([2, 0]))
    np.testing.assert_array_equal(np.load(tmp_path / "samples.npy"), tfr.to_uint8(expected))
    for flag, message in (
        ("condition", "the model takes no condition"),
        ("guidance", "takes none"),
    ):
        with pytest.raises(SystemExit):
            serve(path, f"--{flag}=3")
        assert f"expected no --{flag}: the model" in (error := capsys.readouterr().err)
        assert message in error


def test_serve_samples_of_classes(digits, exported, tmp_path, serve, capsys):
    flow = _load(digits)[0].distribution
    path = tmp_path / "samples.npy"
    for condition, labels in (("3", [3, 3, 3, 3]), ("3,7", [3, 7, 3, 7])):
        serve(exported, f"--output={path}", "--num_samples=4", f"--condition={condition}")
        z = flow.distribution.sample(4, seed=tf.constant([0, 0]))
        expected = flow.bijector.forward(z, conditional_input=labels)
        np.testing.assert_array_equal(np.load(path), tfr.to_uint8(expected, 17))
    plain = np.load(path)
    serve(exported, f"--output={path}", "--num_samples=4", "--condition=3,7", "--guidance=1")
    assert (np.load(path) != plain).any()
    with pytest.raises(SystemExit):
        serve(exported)
    assert "expected a --condition of the samples" in capsys.readouterr().err


def test_serve_a_classifier(digits, exported, tmp_path, serve, capsys):
    flow = _load(digits)[0].distribution
    images = ft.grey_levels(20, (8, 8, 1)) % 17
    values = ft.with_event_noise(images)
    expected = np.argmax(tfr.class_log_probs(flow, values), axis=-1)
    labels = np.where(np.arange(20) < 5, expected, (expected + 1) % 10)
    for name, array in (("images", images), ("labels", labels)):
        np.save(tmp_path / f"{name}.npy", array)
    images_flag = f"--images={tmp_path / 'images.npy'}"
    serve(exported, images_flag, f"--image_conditions={tmp_path / 'labels.npy'}")
    printed = capsys.readouterr().out
    assert f"most probable classes: {expected.tolist()}" in printed
    assert "accuracy: 25.0%" in printed
    bits = -np.mean(tfr.condition(flow, labels).log_prob(values)) / (64 * math.log(2))
    assert f"20 images: {bits:.3f} bits/dim" in printed
    serve(exported, images_flag)
    printed = capsys.readouterr().out
    assert "most probable classes" in printed
    assert "bits/dim" not in printed

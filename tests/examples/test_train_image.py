"""The example of training on images, in short runs."""

import json

import datasets
import flow_testing as ft
import numpy as np
import pytest
from absl import app
from PIL import Image

import tfp_realnvp as tfr
from tfp_realnvp import evaluation

pytestmark = [pytest.mark.full, pytest.mark.usefixtures("no_graph_optimizer")]


def _report(folder):
    return json.loads((folder / "report.json").read_text())


def _evaluated(folder):
    """Returns the model of a preset, and its bits/dim of the test images that the preset names."""
    model = tfr.FlowModel.from_preset(folder)
    settings = json.loads((folder / "metadata.json").read_text())["card"]["data"]
    test = datasets.load(**settings).batches("test", 16)
    return model, evaluation.bits_per_dim(model, test, num_samples=4).mean


def test_digits(tmp_path, run_script):
    run_script("train_image", f"--output_dir={tmp_path}", "--epochs=1")
    report = _report(tmp_path)
    assert report["steps"] == 42
    assert report["importance_weighted"] < report["mean"] < np.log2(17)
    model, bits = _evaluated(tmp_path)
    assert model.dequantizer is not None
    assert bits == pytest.approx(report["mean"], abs=1e-5)
    for name, size in (("samples.png", (584, 584)), ("curve.png", (840, 540))):
        with Image.open(tmp_path / name) as picture:
            assert picture.size == size


@pytest.fixture
def labeled(tmp_path):
    """Returns the flags of runs on images of three classes, and their output folder."""
    labels = np.arange(60) % 3
    images = (
        ft.grey_levels(60, (4, 4, 1)) // 3 + (85 * labels).astype(np.uint8)[:, None, None, None]
    )
    arrays = {"train": images, "test": images[:12]}
    arrays |= {"train_labels": labels, "test_labels": labels[:12]}
    np.savez(tmp_path / "images.npz", **arrays)
    output = tmp_path / "run"
    flags = (f"--dataset={tmp_path / 'images.npz'}", "--condition=label", "--num_filters=4")
    return (*flags, f"--output_dir={output}"), output


def test_labels_and_resumption(labeled, run_script, capsys):
    flags, output = labeled
    run_script("train_image", *flags, "--epochs=1")
    assert _report(output)["steps"] == 3  # batches of 16 of the 54 images that are not held out
    assert "resuming" not in capsys.readouterr().out

    run_script("train_image", *flags, "--epochs=3")
    assert f"resuming {output} after step 3\n" in capsys.readouterr().out
    report = _report(output)
    log = np.genfromtxt(output / "log.csv", delimiter=",", names=True)
    np.testing.assert_array_equal(log["epoch"], [0, 1, 2])
    model, bits = _evaluated(output)
    assert (report["steps"], model.condition_spec.num_classes) == (9, 3)
    assert bits == pytest.approx(report["mean"], abs=1e-5)
    assert 0 <= report["accuracy"] <= 1
    # A row for each class.
    with Image.open(output / "samples.png") as picture:
        assert picture.size == (16 * (8 * 5 + 1), 16 * (3 * 5 + 1))

    # Other flags do not go on with this run.
    with pytest.raises(app.UsageError, match="other flags"):
        run_script("train_image", *flags, "--epochs=4", "--seed=1")
    assert _report(output) == report

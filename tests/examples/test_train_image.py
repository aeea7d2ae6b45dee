"""The example of training on images, in short runs."""

import json

import datasets
import numpy as np
import pytest
from absl import app
from PIL import Image

import tfp_realnvp as tfr
from tfp_realnvp import evaluation

pytestmark = [pytest.mark.full, pytest.mark.usefixtures("no_graph_optimizer", "small_compact")]


def test_labels_and_resumption(labeled_images, tmp_path, run_script, capsys):
    output = tmp_path / "run"
    flags = (f"--dataset={labeled_images}", f"--output_dir={output}")
    flags += ("--condition=label", "--num_filters=4")

    def read(name):
        return json.loads((output / name).read_text())

    run_script("train_image", *flags, "--epochs=1")
    # Batches of 16 of the 54 images that are not held out.
    assert read("report.json")["steps"] == 3
    assert "resuming" not in capsys.readouterr().out

    run_script("train_image", *flags, "--epochs=3")
    assert f"resuming {output} after step 3\n" in capsys.readouterr().out
    report = read("report.json")
    log = np.genfromtxt(output / "log.csv", delimiter=",", names=True)
    np.testing.assert_array_equal(log["epoch"], [0, 1, 2])
    model = tfr.FlowModel.from_preset(output)
    assert (report["steps"], model.data_spec.condition_spec.num_classes) == (9, 3)
    assert report["importance_weighted"] < report["mean"]
    # The preset names its data.
    test = datasets.load(**read("metadata.json")["card"]["data"]).batches("test", 16)
    result = evaluation.bits_per_dim(model, test, num_samples=4)
    assert result.mean == pytest.approx(report["mean"], abs=1e-5)
    assert 0 <= report["accuracy"] <= 1
    # A row for each class.
    for name, size in (("samples.png", (656, 256)), ("curve.png", (840, 540))):
        with Image.open(output / name) as picture:
            assert picture.size == size

    # Other flags do not go on with this run.
    with pytest.raises(app.UsageError, match="other flags"):
        run_script("train_image", *flags, "--epochs=4", "--seed=1")
    assert read("report.json") == report

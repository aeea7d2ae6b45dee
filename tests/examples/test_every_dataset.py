"""Training and evaluation for each kind of dataset, by the scripts."""

import json

import flow_testing as ft
import pytest
import tensorflow_datasets as tfds
from PIL import Image

import tfp_realnvp as tfr

# A false alarm, also of data whose number of batches is unknown.
pytestmark = [
    pytest.mark.full,
    pytest.mark.usefixtures("no_graph_optimizer"),
    pytest.mark.filterwarnings("error:Your input ran out of data"),
    pytest.mark.eager,
]

_TINY = (
    "--num_scales=1 --num_couplings=1 --num_filters=2 --batch_size=4 --num_validation=4"
    " --notensorboard"
).split()


@pytest.fixture(autouse=True)
def _mock_data():
    with tfds.testing.mock_data(num_examples=20):
        yield


def _size(path):
    with Image.open(path) as image:
        image.load()
        return image.size[::-1]


@pytest.mark.parametrize(("name", "height", "width"), [("cifar10", 32, 32), ("folder", 8, 6)])
def test_from_training_to_evaluation(name, height, width, tmp_path, run_script):
    dataset, results = name, tmp_path / "results"
    if name == "folder":
        dataset = tmp_path / name
        dataset.mkdir()
        for number, image in enumerate(ft.grey_levels(60, (height, width, 3))):
            Image.fromarray(image).save(dataset / f"{number}.png")
    # One step.
    flags = (f"--dataset={dataset}", f"--output_dir={results}", "--epochs=1e-9", *_TINY)
    run_script("train_paper", *flags, _MAX_BASELINE_IMAGES=0)
    report = json.loads((results / "report.json").read_text())
    assert report["steps"] == 1
    assert all(0 < bits < 40 for each in report["bits_per_dim"].values() for bits in each.values())
    scale = max(1, 64 // max(height, width))
    for picture in ("samples.png", "reconstructions.png"):
        assert _size(results / picture)[1] == scale * (8 * (width + 1) + 1)

    # Other images of the same shape, too.
    others = [("imagenet32", "validation")] if name == "cifar10" else []
    for other, expected in [(name, "test"), *others]:
        options = [] if other == name else [f"--dataset={other}"]
        options += "--split=evaluation --num_samples=2 --num_batches=2 --batch_size=4".split()
        run_script("evaluate", f"--results_dir={results}", *options)
        evaluation = json.loads((results / "evaluation.json").read_text())
        assert set(evaluation["results"]) == {expected}
        assert evaluation["results"][expected]["num_events"] in (6, 8)
        assert (evaluation["paper"] is not None) == (other in tfr.PAPER_CONFIGURATIONS)

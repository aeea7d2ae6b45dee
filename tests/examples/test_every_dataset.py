"""Training, evaluation and all figures for each dataset, by the scripts."""

import json

import flow_testing as ft
import numpy as np
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

_TINY = ("--num_scales=1", "--num_couplings=1", "--num_filters=2", "--batch_size=4")
_DATASETS = {
    # name: (image shape, evaluation split)
    "cifar10": ((32, 32, 3), "test"),
    "celeb_a": ((64, 64, 3), "validation"),
    "mnist": ((28, 28, 1), "test"),
    "digits": ((8, 8, 1), "test"),
    "folder": ((8, 6, 3), "test"),
    "images.npz": ((8, 8, 1), "test"),
    "images.npy": ((8, 8, 3), "test"),
}
# Datasets that differ only in their images, evaluated with the weights of the first. They have the
# evaluation split "validation", except photos.
_SIMILAR = {
    "cifar10": ["imagenet32", "imagenet_resized/32x32", "photos"],
    "celeb_a": [
        "imagenet64",
        "imagenet_resized/64x64",
        "lsun/tower",
        "lsun/bedroom",
        "lsun/church_outdoor",
    ],
}
# One dataset for each image shape. test_evaluation_scripts.py has 8×8×1.
_LATENT_SPACE = ("cifar10", "celeb_a", "mnist", "folder")


@pytest.fixture(autouse=True)
def _mock_data():
    with tfds.testing.mock_data(num_examples=20):
        yield


def _dataset(name, folder):
    """Returns the value of `--dataset`, and writes the files if it is a path."""
    image_shape, _ = _DATASETS[name]
    images = ft.grey_levels(60, image_shape)
    path = folder / name
    if name == "folder":
        path.mkdir()
        for number, image in enumerate(images):
            Image.fromarray(image).save(path / f"{number}.png")
    elif path.suffix == ".npz":
        np.savez(path, train=images[:40], test=images[40:])
    elif path.suffix == ".npy":
        np.save(path, images)
    else:
        return name
    return path


def _size(path):
    with Image.open(path) as image:
        image.load()
        return image.size[::-1]


@pytest.mark.parametrize("name", _DATASETS)
def test_from_training_to_figures(name, tmp_path, run_script):
    (height, width, _), split = _DATASETS[name]
    results = tmp_path / "results"
    run_script(
        "train_paper",
        f"--dataset={_dataset(name, tmp_path)}",
        f"--output_dir={results}",
        "--epochs=1e-9",  # one step
        *([] if name == "celeb_a" else ["--num_validation=4"]),
        "--notensorboard",
        *_TINY,
        _MAX_BASELINE_IMAGES=0,
    )
    report = json.loads((results / "report.json").read_text())
    assert report["steps"] == 1
    for density, bits in report["bits_per_dim"].items():
        # The tighter bound of a variational dequantizer is of the held-out images only.
        held_out_only = density == "importance-weighted"
        assert set(bits) == ({split} if held_out_only else {"train", split})
        assert all(0 < value < 40 for value in bits.values())
    log = np.genfromtxt(results / "log.csv", delimiter=",", names=True)
    assert log["step"] == 1 and 0 < log["val_bits_per_dim"] < 40
    scale = max(1, 64 // max(height, width))
    for picture in ("samples.png", "reconstructions.png"):
        assert _size(results / picture)[1] == scale * (8 * (width + 1) + 1)
    _size(results / "curve.png")

    for other in (name, *_SIMILAR.get(name, ())):
        run_script(
            "evaluate",
            f"--results_dir={results}",
            *([] if other == name else [f"--dataset={other}"]),
            "--split=evaluation",
            "--num_samples=2",
            "--num_batches=2",
            "--batch_size=4",
        )
        evaluation = json.loads((results / "evaluation.json").read_text())
        expected = split if other in (name, "photos") else "validation"
        assert set(evaluation["results"]) == {expected}
        assert evaluation["results"][expected]["num_events"] in (6, 8)
        assert (evaluation["paper"] is not None) == (other in tfr.PAPER_CONFIGURATIONS)

    if name not in _LATENT_SPACE:
        return
    run_script("latent_space", f"--results_dir={results}", "--seed=1")
    for figure in ("manifold", "interpolation", "levels_redraw", "levels_zero", "temperatures"):
        _size(results / f"{figure}.png")
    for factor in (2, 4):
        _size(results / f"extrapolation_{factor}x.png")
    assert len((results / "latents.md").read_text().splitlines()) == 3

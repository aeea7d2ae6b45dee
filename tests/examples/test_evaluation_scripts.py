"""The scripts that look at a trained model, run as a user runs them."""

import json
import os
import pathlib
import subprocess
import sys

import flow_testing as ft
import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "examples"))

import run_folder

_CONFIG = {
    "seed": 4,
    "bijector": {
        "configuration": "paper",
        "arguments": {
            "image_shape": [8, 8, 1],
            "num_scales": 2,
            "num_blocks": 0,
            "num_filters": 4,
            "num_couplings": 1,
        },
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    np.savez(
        folder / "images.npz", train=ft.grey_levels(6, (8, 8, 1)), test=ft.grey_levels(5, (8, 8, 1))
    )
    config = {**_CONFIG, "dataset": str(folder / "images.npz")}
    model = run_folder.build_model(config)
    ft.randomize(model.distribution)
    run_folder.write_config(folder, config)
    model.save_weights(folder / "final.weights.h5")
    return folder


def _run(script, *flags):
    return subprocess.run(
        [sys.executable, str(pathlib.Path(run_folder.__file__).with_name(script)), *flags],
        capture_output=True,
        text=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"},
    )


def test_evaluate(folder, tmp_path):
    result = _run(
        "evaluate.py",
        f"--results_dir={folder}",
        f"--output={tmp_path}",
        "--num_draws=1",
        "--batch_size=2",
    )
    assert result.returncode == 0, result.stderr
    assert "| this model | test | 5 |" in result.stdout
    table = (tmp_path / "evaluation.md").read_text()
    assert table in result.stdout
    figures = json.loads((tmp_path / "evaluation.json").read_text())["results"]
    model, config = run_folder.load_run(folder)
    model.compile()
    images = np.load(config["dataset"])
    for split in ("train", "test"):
        by_model = model.evaluate(images[split], batch_size=2, verbose=0, return_dict=True)
        assert figures[split]["bits_per_dim"] == pytest.approx(by_model["bits_per_dim"], abs=1e-4)


def test_latent_space(folder, tmp_path):
    result = _run("latent_space.py", f"--results_dir={folder}", f"--output_dir={tmp_path}")
    assert result.returncode == 0, result.stderr
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [
        "extrapolation_2x.png",
        "extrapolation_4x.png",
        "interpolation.png",
        "latents.md",
        "levels_redraw.png",
        "levels_zero.png",
        "manifold.png",
        "reconstructions.png",
        "temperatures.png",
    ]
    for name in names:
        if name.endswith(".png"):
            with Image.open(tmp_path / name) as image:
                image.verify()
    assert (tmp_path / "latents.md").read_text() in result.stdout

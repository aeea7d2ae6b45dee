"""The scripts that evaluate a trained model."""

import json
import math

import flow_testing as ft
import numpy as np
import pytest
import run_folder
import tensorflow as tf
from PIL import Image

_CONFIG = {
    "seed": 4,
    "batch_size": 2,
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


def _by_hand(distribution, images, seed, batch_size):
    """Bits/dim by definition, with an independent implementation of the noise."""
    log_prob = []
    for number, start in enumerate(range(0, len(images), batch_size), start=1):
        batch = images[start : start + batch_size].astype(np.float32)
        noise = tf.random.stateless_uniform(batch.shape, seed=[seed ^ 0x5EED, number])
        log_prob.append(distribution.log_prob(batch + noise).numpy())
    return -np.concatenate(log_prob).mean() / (math.prod(images.shape[1:]) * math.log(2))


def test_evaluations_agree(folder, tmp_path, run_script, capsys):
    # evaluate.py, FlowModel.evaluate and log_prob.
    run_script("evaluate", f"--results_dir={folder}", f"--output={tmp_path}", "--num_draws=1")
    printed = capsys.readouterr().out
    assert "| this model | test | 5 |" in printed
    assert (tmp_path / "evaluation.md").read_text() in printed
    results = json.loads((tmp_path / "evaluation.json").read_text())["results"]
    model, config = run_folder.load_run(folder)
    model.compile()
    images = np.load(config["dataset"])
    assert set(results) == {"train", "test"}
    for split, result in results.items():
        by_model = model.evaluate(images[split], batch_size=2, verbose=0, return_dict=True)
        by_hand = _by_hand(model.distribution, images[split], config["seed"], 2)
        assert result["bits_per_dim"] == pytest.approx(by_model["bits_per_dim"], abs=1e-4)
        assert result["bits_per_dim"] == pytest.approx(by_hand, abs=1e-4)
        assert result["importance_weighted"] == pytest.approx(by_hand, abs=1e-4)
    # The noise agrees, too: another seed gives another result.
    other = _by_hand(model.distribution, images["test"], config["seed"] + 1, 2)
    assert abs(other - results["test"]["bits_per_dim"]) > 1e-4


def test_evaluate_with_a_number_of_batches(folder, tmp_path, run_script):
    run_script(
        "evaluate",
        f"--results_dir={folder}",
        f"--output={tmp_path}",
        "--split=test",
        "--num_batches=2",
        "--num_draws=2",
    )
    result = json.loads((tmp_path / "evaluation.json").read_text())["results"]["test"]
    assert (result["num_images"], result["num_draws"]) == (4, 2)


def test_latent_space(folder, tmp_path, run_script, capsys):
    run_script("latent_space", f"--results_dir={folder}", f"--output_dir={tmp_path}")
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
                image.load()
    assert (tmp_path / "latents.md").read_text() in capsys.readouterr().out


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
    with pytest.raises(ValueError, match=r"\*\.png or \*\.npy, got .*samples\.gif"):
        run_script("sample", f"--results_dir={folder}", "--output=samples.gif")
    with pytest.raises(ValueError, match="divisible by 2"):
        run_script("sample", f"--results_dir={folder}", f"--output={path}", "--size=8,7")

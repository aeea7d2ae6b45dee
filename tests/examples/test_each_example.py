"""Each example runs, as short as it can. What it prints and draws is in the other files."""

import pathlib

import flow_testing as ft
import numpy as np
import pytest

import tfp_realnvp as tfr

pytestmark = pytest.mark.usefixtures("no_graph_optimizer")

_HERE = pathlib.Path(__file__)
_FLOW = "--num_couplings=2 --num_filters=4"
# Names and flags, of all that take seconds: the others run in `make test-all` only.
_RUNS = {
    "defects": "--num_train=20 --num_test=6 --num_textures=50 --num_couplings=2 --epochs=1"
    " --output_dir=out",
    "evaluate": "--results_dir=run --split=test --num_batches=1 --output=out",
    "latent_space": "--results_dir=run --output_dir=out",
    "sample": "--results_dir=run --num_images=4 --output=out/samples.png",
    "simulation_based_inference": f"--num_simulations=500 --epochs=1 {_FLOW} --num_checks=20"
    " --num_bins=4 --temperatures=1",
    "table_outliers": "--table=wine --num_seeds=1 --noranks --num_flows=2 --max_steps=2"
    " --output_dir=out",
    "toy_2d": f"{_FLOW} --num_points=100 --num_steps=2 --batch_size=20 --num_blocks=0"
    " --output_dir=out",
    "train_image": "--dataset=images.npz --num_filters=2 --epochs=1 --output_dir=out",
    "train_table": "--num_folds=2 --num_members=2 --max_steps=2 --num_couplings=1 --output_dir=out",
    "variational_inference": f"--model=conjugate {_FLOW} --num_steps=2 --sample_size=4"
    " --num_samples=50",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Returns a folder with images, and a preset of random weights."""
    folder = tmp_path_factory.mktemp("example")
    levels = ft.grey_levels(30, (4, 4, 1))
    np.savez(folder / "images.npz", train=levels, test=levels[:10])
    flow = ft.flow_distribution((8, 8, 1), num_values=17, num_blocks=0)
    settings = {"name": "digits"}
    tfr.FlowModel(flow).save_to_preset(folder / "run", card={"data": settings})
    (folder / "out").mkdir()
    return folder


@pytest.mark.parametrize("name", _RUNS)
def test_a_run(name, folder, run_script, monkeypatch):
    monkeypatch.chdir(folder)
    before = set((folder / "out").rglob("*"))
    run_script(name, *_RUNS[name].split())
    if "=out" in _RUNS[name]:
        assert set((folder / "out").rglob("*")) > before


@pytest.mark.full
def test_a_custom_training_loop(load_script, capsys):
    load_script("transformed_distribution").main(num_steps=1)
    assert "samples (4, 8, 8, 1)" in capsys.readouterr().out


def test_each_example_is_run():
    texts = [path.read_text() for path in _HERE.parent.glob("test_*.py")]
    for path in (_HERE.parents[2] / "examples").glob("*.py"):
        assert any(f'"{path.stem}"' in text or path.name in text for text in texts), path.name

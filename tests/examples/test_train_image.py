import json

import flow_testing as ft
import numpy as np
import pytest
import run_folder
import run_log
import tensorflow as tf
import tensorflow_datasets as tfds

import tfp_realnvp as tfr

_TINY = (
    "--configuration=paper",
    "--num_scales=1",
    "--num_blocks=0",
    "--num_filters=2",
    "--batch_size=5",
    "--num_validation=10",
)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "images.npz"
    np.savez(path, train=ft.grey_levels(60, (4, 4, 1)), test=ft.grey_levels(10, (4, 4, 1)))
    return path


@pytest.fixture
def train(images, tmp_path, run_script):
    """Returns a function that trains in `tmp_path / folder`."""

    def run(folder, *options):
        output = tmp_path / folder
        run_script("train_image", f"--dataset={images}", f"--output_dir={output}", *_TINY, *options)
        return output

    return run


def _log(folder):
    return np.genfromtxt(folder / "log.csv", delimiter=",", names=True, ndmin=1)


def test_a_run_is_repeated_from_its_folder(train, tmp_path, run_script):
    first = train("first", "--epochs=2", "--log_steps=8", "--seed=5")
    again = tmp_path / "again"
    run_script("train_image", f"--flagfile={first / 'flags.txt'}", f"--output_dir={again}")
    assert run_folder.read_config(again) == run_folder.read_config(first)
    np.testing.assert_array_equal(_log(first)["step"], [8, 16, 20])
    for column in ("bits_per_dim", "val_bits_per_dim"):
        np.testing.assert_allclose(_log(again)[column], _log(first)[column], rtol=1e-5)


def test_the_same_command_again_changes_nothing(train):
    folder = train("run", "--epochs=1", "--log_steps=8")
    names = ("log.csv", "best.weights.h5", "report.json")
    before = {name: (folder / name).read_bytes() for name in names}
    train("run", "--epochs=1", "--log_steps=8")
    assert before == {name: (folder / name).read_bytes() for name in names}


def test_another_configuration_is_refused_and_nothing_overwritten(train):
    folder = train("run", "--epochs=1")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=r"(?s)num_filters: 2 there, 3 here.*seed: 0 there, 1"):
        train("run", "--epochs=1", "--num_filters=3", "--seed=1")
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_early_stop(train):
    # Random images and a large learning rate: it does not get better for long.
    options = ("--epochs=100", "--log_steps=2", "--patience=3", "--learning_rate=0.3")
    folder = train("run", *options)
    values = _log(folder)["val_bits_per_dim"]
    assert len(values) < 500
    assert np.argmin(values) == len(values) - 4
    model, _ = run_folder.load_run(folder)
    config = run_folder.read_config(folder)
    model.compile()
    found = model.evaluate(
        run_folder.load_split(config, "validation").dataset, verbose=0, return_dict=True
    )
    assert found["bits_per_dim"] == pytest.approx(values.min(), abs=1e-5)
    train("run", *options)
    assert len(_log(folder)) == len(values)


def test_a_limit_in_minutes(train):
    folder = train("run", "--limit_minutes=0.02", "--log_steps=5")
    seconds = _log(folder)["seconds"]
    assert (np.diff(seconds) > 0).all()
    assert seconds[-1] >= 1.2
    assert len(seconds) == 1 or seconds[-2] < 1.2


def test_tensorboard(train):
    folder = train("run", "--epochs=1", "--log_steps=5") / "tensorboard"
    tags = {}
    for path in folder.rglob("events.*"):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                tags.setdefault(f"{path.parent.name}/{value.tag}", []).append(event.step)
    assert tags["train/epoch_bits_per_dim"] == tags["validation/epoch_bits_per_dim"] == [0, 1]
    assert tags["samples/samples"] == [0, 1]
    assert tags["train/epoch_learning_rate"] == [0, 1]


@pytest.mark.parametrize("options", [("--xla",), ("--mixed_precision", "--recompute")])
def test_other_ways_to_compute(train, options):
    folder = train("run", "--epochs=0.2", *options)
    config = run_folder.read_config(folder)
    assert config["xla"] == ("--xla" in options)
    assert config["mixed_precision"] == ("--mixed_precision" in options)
    assert config["bijector"]["arguments"].get("recompute", False) == ("--recompute" in options)
    policies = {
        layer.dtype_policy.name
        for precision in (None, False)
        for layer in run_folder.load_run(folder, mixed_precision=precision)[0].networks
    }
    assert policies == {"float32"} | ({"mixed_bfloat16"} if config["mixed_precision"] else set())


@pytest.mark.parametrize("preset", tfr.PAPER_CONFIGURATIONS)
def test_presets(preset, tmp_path, run_script, monkeypatch):
    class Stop(Exception):
        pass

    def stop(config):
        raise Stop

    monkeypatch.setattr(run_folder, "build_model", stop)
    with tfds.testing.mock_data(num_examples=10), pytest.raises(Stop):
        run_script("train_image", f"--preset={preset}", f"--output_dir={tmp_path}")
    config = run_folder.read_config(tmp_path)
    paper = json.loads(json.dumps(tfr.PAPER_CONFIGURATIONS[preset]))
    assert config["dataset"] == preset
    assert (config["batch_size"], config["learning_rate"]) == (64, 1e-3)
    assert config["bijector"]["configuration"] == "paper"
    assert config["bijector"]["arguments"] == {**paper, "num_values": 256}


def test_the_paper_s_model_on_other_data(train, images):
    folder = train("run", "--preset=imagenet32", "--epochs=0.1")
    config = run_folder.read_config(folder)
    assert config["dataset"] == str(images)
    assert config["bijector"]["arguments"] == {
        "image_shape": [4, 4, 1],
        "num_values": 256,
        "num_scales": 1,
        "num_blocks": 0,
        "num_filters": 2,
    }


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (["--dataset=no_such_data"], ValueError, "Unknown data set 'no_such_data'"),
        (["--dataset=absent.npz"], FileNotFoundError, "No file absent.npz"),
        (["--dataset=cifar10", "--data_dir=/nowhere"], FileNotFoundError, "--download"),
    ],
)
def test_bad_data(options, error, message, tmp_path, run_script):
    with pytest.raises(error, match=message):
        run_script("train_image", *options, f"--output_dir={tmp_path / 'run'}")
    assert not (tmp_path / "run").exists()


def test_keep_epochs(tmp_path):
    path = tmp_path / "log.csv"
    run_log.keep_epochs(path, 1)
    assert not path.exists()
    path.write_text("epoch,loss\n0,3.5\n1,2.5\n2,2")
    run_log.keep_epochs(path, 2)
    assert path.read_text() == "epoch,loss\n0,3.5\n1,2.5\n"
    run_log.keep_epochs(path, 0)
    assert path.read_text() == ""

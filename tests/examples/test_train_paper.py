import json
import math
import types

import datasets
import filelock
import flow_testing as ft
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image
from scipy import stats

import tfp_realnvp as tfr
from tfp_realnvp import evaluation

# A false alarm: a run ends where its data or its limit ends.
pytestmark = [
    pytest.mark.full,
    pytest.mark.usefixtures("no_graph_optimizer"),
    pytest.mark.filterwarnings("error:Your input ran out of data"),
]

_TINY = (
    "--configuration=paper --num_scales=1 --num_couplings=1 --num_blocks=0 --num_filters=2"
    " --batch_size=5 --num_validation=10"
).split()


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "images.npz"
    np.savez(path, train=ft.grey_levels(60, (4, 4, 1)), test=ft.grey_levels(10, (4, 4, 1)))
    return path


@pytest.fixture
def train(images, tmp_path, run_script):
    """Returns a function that trains in `tmp_path / folder`, without a report."""

    def run(folder, *options):
        output = tmp_path / folder
        # The networks of compact have no blocks, and a Jet has one scale.
        is_compact, is_jet = (f"--configuration={name}" in options for name in ("compact", "jet"))
        refused = {"--num_blocks=0": is_compact, "--num_scales=1": is_jet}
        tiny = [flag for flag in _TINY if not refused.get(flag)]
        flags = (f"--dataset={images}", f"--output_dir={output}", *tiny, *options)
        no_report = {"bits_per_dim": {"Real NVP": {}}}
        run_script("train_paper", *flags, write_report=lambda *_: no_report)
        return output

    return run


@pytest.fixture(scope="module")
def trained(images, tmp_path_factory, run_script):
    """Returns the folder of a run of 20 steps, and its flags."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    options = (f"--dataset={images}", f"--output_dir={folder}", *_TINY)
    options += ("--epochs=2", "--log_steps=8", "--seed=5")
    run_script("train_paper", *options)
    return folder, options


def _contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _flags(folder):
    return set((folder / "flags.txt").read_text().splitlines())


def _data(folder, split, batch_size=5):
    """Returns a split of the data that a run's preset names."""
    settings = json.loads((folder / "metadata.json").read_text())["card"]["data"]
    return datasets.load(**settings).batches(split, batch_size)


def _log(folder):
    return np.genfromtxt(folder / "log.csv", delimiter=",", names=True, ndmin=1)


def test_the_same_command_changes_nothing(trained, run_script):
    folder, options = trained
    names = ("log.csv", "model.weights.h5", "report.json", "config.json", "flags.txt")
    before = {name: (folder / name).read_bytes() for name in names}
    run_script("train_paper", *options)
    assert before == {name: (folder / name).read_bytes() for name in names}


def test_another_configuration_is_refused(trained, run_script):
    folder, options = trained
    before = _contents(folder)
    with pytest.raises(ValueError, match=r"(?s)--num_filters=2 in .*=3 now.*--seed=5 in .*=1 now"):
        run_script("train_paper", *options, "--num_filters=3", "--seed=1")
    assert before == _contents(folder)


def test_early_stop(train):
    # Random images and a large learning rate: validation soon stops improving.
    options = ("--epochs=100", "--log_steps=2", "--patience=3", "--learning_rate=0.3")
    options += ("--notensorboard",)
    folder = train("run", *options)
    values = _log(folder)["val_bits_per_dim"]
    assert len(values) < 500
    assert np.argmin(values) == len(values) - 4
    model = tfr.FlowModel.from_preset(folder)
    model.compile()
    found = model.evaluate(_data(folder, "validation"), verbose=0, return_dict=True)
    assert found["bits_per_dim"] == pytest.approx(values.min(), abs=1e-5)
    train("run", *options)
    assert len(_log(folder)) == len(values)


def test_tensorboard(trained):
    tags = {}
    for path in (trained[0] / "tensorboard").rglob("events.*"):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                tags.setdefault(f"{path.parent.name}/{value.tag}", []).append(event.step)
    for tag in (
        "train/epoch_bits_per_dim",
        "train/epoch_learning_rate",
        "validation/epoch_bits_per_dim",
        "samples/samples",
    ):
        assert tags[tag] == [0, 1, 2]


def test_mixed_precision_and_recompute(train):
    folder = train("run", "--epochs=0.2", "--mixed_precision", "--recompute", "--notensorboard")
    model = tfr.FlowModel.from_preset(folder)
    assert {layer.dtype_policy.name for layer in model.networks} == {"mixed_bfloat16"}
    assert model.distribution.bijector.parameters["recompute"]


def test_the_preset_of_a_run(trained):
    folder, _ = trained
    np.testing.assert_array_equal(_log(folder)["step"], [8, 16, 20])
    card = json.loads((folder / "metadata.json").read_text())["card"]
    assert card["steps"] == 20 and card["seconds"] >= 0
    assert card["command"].startswith("python examples/train_paper.py --dataset=")
    assert "--output_dir" not in card["command"] and "--seed=5" in card["command"]
    report = json.loads((folder / "report.json").read_text())
    assert card["bits/dim"]["test"] == round(report["bits_per_dim"]["Real NVP"]["test"], 3)
    model = tfr.FlowModel.from_preset(folder)
    model.compile()
    found = model.evaluate(_data(folder, "test", batch_size=64), verbose=0, return_dict=True)
    expected = report["bits_per_dim"]["Real NVP"]["test"]
    assert found["bits_per_dim"] == pytest.approx(expected, abs=1e-5)


def test_more_epochs_go_on(train, capsys):
    options = ("--log_steps=5", "--notensorboard", "--seed=2")
    train("run", "--epochs=1", *options)
    lines = capsys.readouterr().out.splitlines()
    progress = [line for line in lines if line.startswith("5/5 - ")]
    assert len(progress) == 2 and all("minutes_left: " in line for line in progress)
    [tracing] = [line for line in lines if line.startswith("tracing the training step")]
    assert lines.index(tracing) < lines.index(progress[0])
    train("run", "--epochs=1", *options)
    assert "tracing" not in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"--epochs=1.0 in the folder, --epochs=0.5 now"):
        train("run", "--epochs=0.5", *options)
    folder = train("run", "--epochs=1.5", *options)
    np.testing.assert_array_equal(_log(folder)["step"], [5, 10, 15])


def test_more_minutes_go_on(train):
    options = ("--log_steps=5", "--notensorboard")
    folder = train("run", "--limit_minutes=0.01", *options)
    before = _log(folder)
    with pytest.raises(ValueError, match=r"=0.01 in the folder, --limit_minutes=0.005 now"):
        train("run", "--limit_minutes=0.005", *options)
    # Tracing is part of the time.
    minutes = (before["seconds"][-1] + 1) / 60
    train("run", f"--limit_minutes={minutes}", *options)
    after = _log(folder)
    assert after["step"][-1] > before["step"][-1]
    assert after["seconds"][-1] >= 60 * minutes > 60 * 0.01
    assert after["minutes_left"][-1] == 0


class _Stop(Exception):
    pass


def test_labels(labeled_images, tmp_path, run_script):
    folder = tmp_path / "run"
    options = (f"--dataset={labeled_images}", f"--output_dir={folder}", *_TINY)
    options += ("--condition=label", "--condition_dropout=0.2")
    options += ("--epochs=1", "--log_steps=8", "--learning_rate=0.1")
    # Fitting the baselines would take most of the time.
    run_script("train_paper", *options, _MAX_BASELINE_IMAGES=0)
    model = tfr.FlowModel.from_preset(folder)
    assert "--condition=label" in _flags(folder)
    assert (model.data_spec.condition_spec.num_classes, model.data_spec.condition_spec.dropout) == (
        3,
        0.2,
    )

    report = json.loads((folder / "report.json").read_text())
    test = _data(folder, "test", batch_size=10)
    found = evaluation.classification(model.distribution, test, num_samples=4)
    for name, value in report["classification"].items():
        np.testing.assert_allclose(getattr(found, name), value, atol=1e-6)
    assert np.sum(report["classification"]["confusion_matrix"]) == 10
    assert report["no_baselines"] == "50 training images are too many, more than 0"
    model.compile()
    values = []
    for name, dataset in (
        ("Real NVP", test),
        ("without condition", test.map(lambda images, _: images)),
    ):
        values.append(model.evaluate(dataset, verbose=0, return_dict=True)["bits_per_dim"])
        assert report["bits_per_dim"][name]["test"] == pytest.approx(values[-1], abs=1e-5)
    assert abs(values[0] - values[1]) > 1e-3

    # A row for each class; images of 4 pixels are drawn 16 times as large.
    with Image.open(folder / "samples.png") as picture:
        assert picture.size == (16 * (8 * 5 + 1), 16 * (3 * 5 + 1))


# Additions.


def test_averages_and_bounds(images, tmp_path, run_script):
    options = (f"--dataset={images}", f"--output_dir={tmp_path}", *_TINY, "--notensorboard")
    options += ("--dequantizer=variational", "--optimizer=adamw", "--weight_decay=0.1")
    options += ("--average=0.9", "--epochs=1", "--log_steps=8", "--learning_rate=0.1")
    run_script("train_paper", *options, _MAX_BASELINE_IMAGES=0)
    model = tfr.FlowModel.from_preset(tmp_path)
    # The averages, not the weights, were validated and saved.
    model.compile()
    validation = _data(tmp_path, "validation")
    found = model.evaluate(validation, verbose=0, return_dict=True)["bits_per_dim"]
    assert found == pytest.approx(_log(tmp_path)["val_bits_per_dim"].min(), abs=1e-5)
    report = json.loads((tmp_path / "report.json").read_text())["bits_per_dim"]
    assert set(report) == {"Real NVP (bound)", "importance-weighted"}
    test = _data(tmp_path, "test", batch_size=10)
    expected = evaluation.bits_per_dim(
        model.distribution, test, num_samples=4, dequantizer=model.dequantizer, seed=model.seed
    )
    weighted = report["importance-weighted"]["test"]
    assert weighted == pytest.approx(expected.importance_weighted, abs=1e-5)
    bound = model.evaluate(test, verbose=0, return_dict=True)["bits_per_dim"]
    assert report["Real NVP (bound)"]["test"] == pytest.approx(bound, abs=1e-5)
    assert weighted < expected.mean


@pytest.mark.parametrize(
    ("options", "name", "learning_rate", "weight_decay"),
    [
        (("--optimizer=adamax", "--configuration=compact"), "Adamax", 8e-3, None),
        (("--optimizer=adamw", "--configuration=compact"), "AdamW", 4e-3, 4e-3),
        (("--optimizer=muon", "--weight_decay=0.5", "--xla"), "Muon", 1e-3, 0.5),
        (("--configuration=paper", "--noxla"), "FusedAdam", 1e-3, None),
        (("--configuration=compact",), "Muon", 4e-3, 0.3),
        (("--configuration=compact", "--attention=1", "--num_scales=2"), "FusedAdam", 1e-3, None),
    ],
)
def test_optimizers(options, name, learning_rate, weight_decay, train, monkeypatch):
    def compile(model, optimizer, jit_compile):
        assert jit_compile == ("--xla" in options)
        assert type(optimizer).__name__ == name
        assert (optimizer.global_clipnorm, optimizer.use_ema) == (100, False)
        assert optimizer.weight_decay == weight_decay
        assert float(optimizer.learning_rate) == pytest.approx(learning_rate)
        raise _Stop

    monkeypatch.setattr(tfr.FlowModel, "compile", compile)
    with pytest.raises(_Stop):
        train("run", *options)


def test_recipe_of_jet(train, monkeypatch):
    def fit(model, *_, callbacks, **__):
        flow, optimizer = model.distribution.bijector, model.optimizer
        squeezes = [part for part in flow.bijectors if isinstance(part, tfr.Squeeze)]
        assert ([part.parameters["block_size"] for part in squeezes], flow.num_scales) == ([2], 1)
        networks = [part.network for part in flow.submodules if isinstance(part, tfr.Coupling)]
        assert [(n.num_blocks, n.num_filters, n.num_heads) for n in networks] == [(1, 6, 3)] * 5
        assert (optimizer.beta_2, optimizer.global_clipnorm) == (0.95, 1.0)
        assert 3e-4 * optimizer.weight_decay == pytest.approx(1e-5)
        (budget,) = [part for part in callbacks if isinstance(part, tfr.LearningRateBudget)]
        assert (budget.peak, budget.warmup, budget.hold, budget.cosine) == (3e-4, 0.1, 0.1, True)
        raise _Stop

    monkeypatch.setattr(tfr.FlowModel, "fit", fit)
    sizes = ("--num_blocks=1", "--num_filters=6", "--attention=3", "--num_couplings=5")
    with pytest.raises(_Stop):
        train("run", "--configuration=jet", "--patch_size=2", *sizes)


@pytest.fixture
def configure(tmp_path, run_script, monkeypatch):
    """Returns a function that returns the flags of a run and what it would construct."""
    constructed = []

    def construct(name):
        def stop(**arguments):
            constructed.append((name, arguments))
            raise _Stop

        return stop

    paper = construct("paper")
    paper.compact = construct("compact")
    paper.for_dataset = lambda name, **arguments: paper(
        **{**tfr.PAPER_CONFIGURATIONS[name], **arguments}
    )
    monkeypatch.setattr(tfr, "RealNVPImage", paper)

    def run(*options):
        with pytest.raises(_Stop):
            run_script("train_paper", *options, f"--output_dir={tmp_path}")
        return _flags(tmp_path), *constructed.pop()

    return run


def test_a_run_is_repeated_from_its_folder(trained, configure, tmp_path):
    folder, _ = trained
    flags, *_ = configure(f"--flagfile={folder / 'flags.txt'}")
    assert flags ^ _flags(folder) == {f"--output_dir={each}" for each in (tmp_path, folder)}


@pytest.mark.parametrize("preset", tfr.PAPER_CONFIGURATIONS)
def test_presets(preset, configure):
    with tfds.testing.mock_data(num_examples=64):
        flags, configuration, arguments = configure(f"--preset={preset}")
    assert configuration == "paper"
    assert arguments == {**tfr.PAPER_CONFIGURATIONS[preset], "num_values": 256}
    expected = {f"--dataset={preset}", "--batch_size=64", "--learning_rate=0.001", "--epochs=20.0"}
    assert expected | {"--optimizer=adam", "--average=0.0", "--dequantizer=uniform"} <= flags


_ADDED = {"num_scales": 2, "attention": 2, "transformer": "rational_quadratic_spline"}


@pytest.mark.parametrize(
    ("options", "learning_rate", "configuration", "arguments"),
    [
        (["--alpha=0.1"], 4e-3, "compact", {"alpha": 0.1}),
        (["--transformer=additive"], 1e-3, "compact", {"transformer": "additive"}),
        (
            ["--configuration=paper", "--batch_size=5", "--invertible_conv", "--split_prior"]
            + [f"--{name}={value}" for name, value in _ADDED.items()],
            *(1e-3, "paper", {**_ADDED, "invertible_conv": True, "split_prior": True}),
        ),
        (
            ["--preset=imagenet32", "--batch_size=5", "--num_scales=1", "--num_blocks=0"],
            *(1e-3, "paper", {"num_scales": 1, "num_blocks": 0, "num_filters": 32}),
        ),
    ],
)
def test_flags_of_a_model(options, learning_rate, configuration, arguments, images, configure):
    flags, *constructed = configure(f"--dataset={images}", *options)
    arguments = {"image_shape": (4, 4, 1), "num_values": 256, **arguments}
    assert constructed == [configuration, arguments]
    batch_size = 16 if configuration == "compact" else 5
    expected = {"dataset": images, "batch_size": batch_size, "learning_rate": learning_rate}
    assert {f"--{name}={value}" for name, value in expected.items()} <= flags


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dataset=absent.npz"], "No such file .*absent.npz"),
        (["--condition_dropout=0.1"], "Expected --condition_dropout only with --condition."),
        ([], "Expected --dataset or --preset."),
        (["--dataset=digits", "--num_blocks=8"], "only with --configuration=paper or jet"),
        (["--preset=cifar10", "--weight_decay=0.1"], "--weight_decay only with --optimizer=adamw"),
    ],
)
def test_an_error_is_a_message(options, message, tmp_path, run_script):
    options = ("train_paper", *options, f"--output_dir={tmp_path / 'run'}")
    with pytest.raises(SystemExit, match=f"^train_paper.py: .*{message}") as caught:
        run_script(*options, function="run")
    assert "\n" not in str(caught.value)
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        run_script(*options, "--debug", function="run")


def test_two_runs_in_a_folder(trained, run_script, monkeypatch):
    folder, options = trained
    before = _contents(folder)

    def held(lock):
        raise filelock.Timeout(lock.lock_file)

    monkeypatch.setattr(filelock.FileLock, "acquire", held)
    message = "--output_dir: expected a folder in which no other process is training"
    with pytest.raises(SystemExit, match=message):
        run_script("train_paper", *options, function="run")
    assert before == _contents(folder)


# The two simple densities that a report compares a flow with.


@pytest.fixture(scope="module")
def train_paper(load_script):
    return load_script("train_paper")


def _random_images(count, seed=0):
    rng = np.random.default_rng(seed)
    # The random brightness of each image correlates its pixels.
    brightness = rng.integers(128, size=[count, 1, 1, 1])
    return (brightness + rng.integers(128, size=[count, 2, 3, 2])).astype(np.uint8)


def test_gaussian_is_the_multivariate_normal_of_dequantized_pixels(train_paper):
    # More images than one part.
    train, test = _random_images(1500), _random_images(40, seed=1)
    pixels = train.reshape(1500, -1).astype(np.float64)
    covariance = np.cov(pixels, rowvar=False, bias=True) + np.eye(12) / 12
    x = test.reshape(40, -1) + np.random.default_rng(7).random([40, 12])
    log_probs = stats.multivariate_normal(pixels.mean(0) + 0.5, covariance).logpdf(x)
    expected = -log_probs.mean() / (12 * math.log(2))
    bits = train_paper.gaussian_bits_per_dim(train_paper.fit_gaussian(train), test, seed=7)
    np.testing.assert_allclose(bits, expected, rtol=1e-10)


def test_histograms_of_known_counts(train_paper):
    # Two dimensions, three images, four levels: probabilities (3, 2, 1, 1) / 7, (1, 1, 2, 3) / 7.
    train = np.array([[0, 3], [0, 2], [1, 3]], np.uint8).reshape([3, 1, 2, 1])
    test = np.array([[0, 0], [3, 3]], np.uint8).reshape([2, 1, 2, 1])
    expected = -(math.log2(3 / 7) + math.log2(1 / 7) + math.log2(1 / 7) + math.log2(3 / 7)) / 4
    assert train_paper.histogram_bits_per_dim(train, test, 4) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("number", "shape", "reason"),
    [
        (13, (2, 3, 2), None),
        (12, (2, 3, 2), "a Gaussian of 12 dimensions overfits 12 training images"),
        (50_001, (2, 3, 2), "50,001 training images are too many, more than 50,000"),
        (9_999, (64, 64, 3), "images of 12,288 dimensions are too large, more than 3,072"),
    ],
)
def test_a_report_without_baselines_says_why(train_paper, number, shape, reason):
    images = types.SimpleNamespace(num_images=lambda split: number, image_shape=shape)
    assert train_paper.why_no_baselines(images) == reason


def test_mirrored_images_are_fitted_where_training_flips(train_paper):
    images = _random_images(50)
    bits = {}
    for flip in (False, True):
        dataset = types.SimpleNamespace(
            batches=lambda split, batch_size: tf.data.Dataset.from_tensors(images),
            num_images=lambda split: 50,
            **{"evaluation_split": "test", "num_values": 256, "flip": flip},
        )
        bits[flip] = train_paper.baseline_bits(dataset)["Gaussian"]["train"]
    both = np.concatenate([images, images[:, :, ::-1]])
    gaussian = train_paper.fit_gaussian(both)
    assert bits[True] == pytest.approx(train_paper.gaussian_bits_per_dim(gaussian, images))
    assert bits[True] > bits[False] + 1e-3


# Grids of samples have the samples of each condition in its row.


@pytest.fixture
def draw(tmp_path, train_paper):
    """Returns a function that returns data, a flow with random weights, and a grid of samples."""
    path = tmp_path / "images.npz"
    np.savez(path, images=ft.grey_levels(60, (4, 4, 3)), labels=np.arange(60) % 30)

    def drawn(condition, number):
        images = datasets.load(str(path), condition=condition)
        names = ("num_values", "num_classes", "conditional_event_shape")
        arguments = {name: getattr(images, name) for name in names}
        flow = ft.flow_distribution(images.image_shape, num_scales=1, num_blocks=0, **arguments)
        return images, flow, train_paper.sample_grid(flow, images, "test", number, seed=1)

    return drawn


def test_a_grid_without_a_condition(draw):
    _, flow, grid = draw(None, 3)
    samples = tfr.to_uint8(flow.sample(9, seed=(0, 1)))
    np.testing.assert_array_equal(grid.reshape(9, 4, 4, 3), samples)


def test_a_grid_has_a_row_for_each_class(draw):
    images, flow, grid = draw("label", 4)
    assert images.num_classes == 30 and grid.shape == (20, 4, 4, 4, 3)
    samples = tfr.condition(flow, np.arange(20)).sample(4, seed=(0, 1))
    np.testing.assert_array_equal(grid, tfr.to_uint8(samples).swapaxes(0, 1))
    assert (grid[0] != grid[1]).any()


def test_a_grid_has_rows_of_image_conditions(draw):
    images, flow, grid = draw("gray", 5)
    originals, gray = next(images.batches("test", 5).as_numpy_iterator())
    assert grid.shape == (5, 5, 4, 4, 3)
    np.testing.assert_array_equal(grid[:, -1], originals)
    np.testing.assert_allclose(grid[:, 0], 255 * np.repeat(gray, 3, -1), atol=0.5001)
    samples = tfr.to_uint8(tfr.condition(flow, gray).sample(3, seed=(0, 1)))
    np.testing.assert_array_equal(grid[:, 1:4], samples.swapaxes(0, 1))
    assert (samples[0] != samples[1]).any()

"""The scripts that print tables of results, with models that are hardly trained."""

import dataclasses
import re

import numpy as np
import pytest
from absl import app
from PIL import Image

from tfp_realnvp import data

pytestmark = [pytest.mark.full, pytest.mark.usefixtures("no_graph_optimizer")]


def test_complete(printed_by, tmp_path):
    options = "--num_digits=20 --num_samples=200 --epochs=10 --table_epochs=4"
    digits, wines = printed_by("complete", options, tmp_path).split("missing cells")

    def number(text, name):
        (value,) = re.findall(rf"^  {name} +([\d.]+)", text, re.MULTILINE)
        return float(value)

    assert number(digits, "posterior mean") < number(digits, "nearest training image")
    assert number(wines, "posterior mean") < number(wines, "mean of the column")
    assert all(75 < number(text, "90% intervals hold") < 99 for text in (digits, wines))
    Image.open(tmp_path / "digits.png").load()


def test_defects(printed_by, tmp_path):
    options = "--num_train=60 --num_test=12 --num_textures=200 --num_couplings=2 --epochs=4"
    output = printed_by("defects", options, tmp_path)
    rows = re.findall(r"^(\S.*?)  .*?((?:\d\.\d+, \d\.\d+\s*){4})$", output, re.MULTILINE)
    areas = {name: np.array(re.findall(r"\d\.\d+", cells), float) for name, cells in rows}
    assert len(areas) == 4
    # Pixels of missing threads, in spite of the short training.
    assert areas["flow, latents alone"][-1] > 0.7
    Image.open(tmp_path / "defects.png").load()


def test_a_network_of_keras_applications(printed_by, tmp_path):
    options = "--extractor=MobileNetV2 --weights=none --num_train=8 --num_test=3 --num_couplings=2"
    printed = printed_by("defects", f"--epochs=1 {options}", tmp_path)
    assert "Features of an image: (8, 8, 32)" in printed


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["--extractor=model"], app.UsageError, "such as MobileNetV2, got 'model'"),
        (["--extractor=VGG16", "--weights=none"], app.UsageError, "batch normalization, got VGG16"),
        (["--extractor=VGG16", "--weights=a.h5"], SystemExit, "could not be loaded.*--weights"),
    ],
)
def test_extractors_that_cannot_be_used(run_script, arguments, error, message):
    with pytest.raises(error, match=message):
        run_script("defects", "--num_train=2", "--num_test=3", *arguments)


def test_few_labels(printed_by, tmp_path):
    options = "--labels_per_class=5 --num_seeds=1 --epochs=5 --moons_steps=600"
    constants = {"_BATCH_SIZE": 50, "_NUM_COPIES": 5, "_WARMUP": 0.8}
    printed = printed_by("few_labels", options, tmp_path, **constants)
    (moons,) = re.findall(r"^Two moons, 2 labels each: accuracy (\S+)%", printed, re.MULTILINE)
    assert float(moons) > 95  # a straight line has 88%
    rows = dict(re.findall(r"^(\w[\w ,]*\w) +(\d\S+)% ", printed, re.MULTILINE))
    assert list(rows) == ["flow", "network", "network, shifted copies", "logistic regression"]
    assert float(rows["flow"]) > 15  # ten classes
    assert float(rows["logistic regression"]) > 60
    Image.open(tmp_path / "few_labels.png").load()


def test_outliers(printed_by, tmp_path, monkeypatch):
    options = "--num_models=2 --num_couplings=1 --epochs=1"
    load_arrays = data.load_arrays

    def load_few(name):
        arrays = load_arrays(name)
        return dataclasses.replace(arrays, train=arrays.train[:200])

    # Each digit is scored under all clusters.
    monkeypatch.setattr(data, "load_arrays", load_few)
    printed = printed_by("outliers", options, tmp_path, _NUM_BOOTSTRAP=100)
    digits, photos = printed.split("Photographs:")

    def areas(text, name):
        (row,) = re.findall(rf"^{name} .*\(.*", text, re.MULTILINE)
        return [float(area) for area in re.findall(r"(\S+) \(", row)]

    sets = ("inverted", "rotated", "shuffled", "blurred", "constant", "photographs")
    assert min(areas(digits, name)[2] for name in sets) > 0.95
    # The log density of outliers that are simpler than the data is higher.
    for name in ("blurred", "half contrast", "without color", "constant"):
        log_prob, _, groups, png, _ = areas(photos, name)
        assert log_prob < 0.4 and min(groups, png) > 0.5
    assert areas(photos, "constant")[3] > 0.95
    (rates,) = re.findall(r"^false alarms (.*)", digits, re.MULTILINE)
    assert all(float(rate[:-1]) < 5 + 3 * 2.6 for rate in rates.split())
    (rates,) = re.findall(r"^over all splits (.*)", digits, re.MULTILINE)
    rates = re.findall(r"(\S+)% ±", rates)
    assert len(rates) == 4 and all(abs(float(rate) - 5) < 0.4 for rate in rates)
    for name in ("digits.png", "photos.png"):
        Image.open(tmp_path / name).load()


def test_table_outliers(printed_by, tmp_path):
    options = "--table=wine --num_seeds=2 --num_flows=2 --max_steps=1"
    text = printed_by("table_outliers", options, tmp_path)
    (means,) = re.findall(r"^mean of wine (.*)%", text, re.MULTILINE)
    *areas, alarms = map(float, means.split())
    # LOF and SVM are worse without standardized columns.
    assert len(areas) == 8 and areas[-1] > 0.95
    assert max(areas[1], areas[3]) < 0.95
    assert alarms < 25
    Image.open(tmp_path / "table_outliers.png").load()


def test_only_continuous_columns_are_ranked(load_script):
    table = np.random.default_rng(0).normal(size=[100, 3])
    table[:, 1] = np.round(table[:, 1])
    script = load_script("table_outliers")
    assert script.is_continuous(table) == [True, False, True]
    columns, _ = script.by_ranks("passthrough")
    mapped = columns.fit_transform(np.exp(table))
    np.testing.assert_array_equal(mapped[:, 2], np.exp(table[:, 1]))
    continuous, normal = table[:, [0, 2]], mapped[:, :2]
    np.testing.assert_array_equal(normal.argsort(axis=0), continuous.argsort(axis=0))
    np.testing.assert_allclose(
        np.percentile(normal, [16, 50, 84], axis=0)[:, 0], [-1, 0, 1], atol=0.1
    )

"""The script that trains classifiers on few labels, hardly trained."""

import re

import pytest
from PIL import Image

pytestmark = [pytest.mark.full, pytest.mark.usefixtures("no_graph_optimizer")]


def test_few_labels(run_script, capsys, tmp_path):
    run_script(
        "few_labels",
        f"--output_dir={tmp_path}",
        "--labels_per_class=5",
        "--num_seeds=1",
        "--epochs=5",
        "--moons_steps=600",
        _BATCH_SIZE=50,
        _NUM_COPIES=5,
        _WARMUP=0.8,
    )
    printed = capsys.readouterr().out
    (moons,) = re.findall(r"^Two moons, 2 labels each: accuracy (\S+)%", printed, re.MULTILINE)
    assert float(moons) > 95  # a straight line has 88%
    rows = dict(re.findall(r"^(\w[\w ,]*\w) +(\d\S+)% ", printed, re.MULTILINE))
    assert list(rows) == ["flow", "network", "network, shifted copies", "logistic regression"]
    assert float(rows["flow"]) > 15  # ten classes
    assert float(rows["logistic regression"]) > 60
    with Image.open(tmp_path / "few_labels.png") as figure:
        figure.load()

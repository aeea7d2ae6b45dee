"""The script that trains classifiers on few labels, hardly trained."""

import re

from PIL import Image


def test_few_labels(run_script, capsys, tmp_path):
    run_script(
        "few_labels",
        f"--output_dir={tmp_path}",
        "--labels_per_class=5",
        "--num_seeds=1",
        "--epochs=5",
        "--moons_epochs=8",
        _NUM_COUPLINGS=2,
        _BATCH_SIZE=50,
        _NUM_COPIES=5,
        _WARMUP=0.8,
    )
    printed = capsys.readouterr().out
    (moons,) = re.findall(r"^Two moons, 2 labels each: accuracy (\S+)%", printed, re.MULTILINE)
    assert float(moons) > 75
    for name in ("flow", "network", "network, shifted copies", "logistic regression"):
        (accuracy,) = re.findall(rf"^{name} +(\S+)% ", printed, re.MULTILINE)
        assert float(accuracy) > 30  # ten classes
    with Image.open(tmp_path / "few_labels.png") as figure:
        figure.load()

"""The script that compares scores of outliers, with a committee that is hardly trained."""

import re

import pytest
from PIL import Image

pytestmark = [pytest.mark.full, pytest.mark.usefixtures("no_graph_optimizer")]


def test_outliers(run_script, capsys, tmp_path):
    run_script(
        "outliers",
        f"--output_dir={tmp_path}",
        "--num_models=2",
        "--num_couplings=1",
        "--epochs=1",
        _NUM_BOOTSTRAP=100,
    )
    digits, photos = capsys.readouterr().out.split("Photographs:")

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
        with Image.open(tmp_path / name) as figure:
            figure.load()

"""The script that completes digits and a table, with flows that are hardly trained."""

import re

import pytest
from PIL import Image

pytestmark = [pytest.mark.full, pytest.mark.usefixtures("no_graph_optimizer")]


def test_complete(run_script, capsys, tmp_path):
    run_script(
        "complete",
        f"--output_dir={tmp_path}",
        "--num_digits=20",
        "--num_samples=200",
        "--num_burnin_steps=50",
        "--epochs=10",
        "--table_epochs=4",
    )
    digits, wines = capsys.readouterr().out.split("missing cells")

    def number(text, name):
        (value,) = re.findall(rf"^  {name} +([\d.]+)", text, re.MULTILINE)
        return float(value)

    assert number(digits, "posterior mean") < number(digits, "nearest training image")
    assert number(wines, "posterior mean") < number(wines, "mean of the column")
    for text in (digits, wines):
        assert 75 < number(text, "90% intervals hold") < 99
    with Image.open(tmp_path / "digits.png") as figure:
        figure.load()

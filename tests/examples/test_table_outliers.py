"""The script that compares detectors of outliers, with flows that are hardly trained."""

import re

from PIL import Image


def test_table_outliers(run_script, capsys, tmp_path):
    run_script(
        "table_outliers",
        "--table=wine",
        "--num_seeds=2",
        "--num_flows=2",
        "--max_steps=1",
        f"--output_dir={tmp_path}",
    )
    text = capsys.readouterr().out
    (means,) = re.findall(r"^mean of wine (.*)%", text, re.MULTILINE)
    *areas, alarms = map(float, means.split())
    # LOF and SVM are worse without standardized columns.
    assert len(areas) == 8 and areas[-1] > 0.95
    assert max(areas[1], areas[3]) < 0.95
    assert alarms < 25
    with Image.open(tmp_path / "table_outliers.png") as figure:
        figure.load()

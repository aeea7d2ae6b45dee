"""The script that compares detectors of outliers, with flows that are hardly trained."""

import re

import numpy as np
import pytest
from PIL import Image

pytestmark = [pytest.mark.full, pytest.mark.usefixtures("no_graph_optimizer")]


def test_table_outliers(run_script, capsys, tmp_path):
    options = "--table=wine --num_seeds=2 --num_flows=2 --max_steps=1".split()
    run_script("table_outliers", f"--output_dir={tmp_path}", *options)
    text = capsys.readouterr().out
    (means,) = re.findall(r"^mean of wine (.*)%", text, re.MULTILINE)
    *areas, alarms = map(float, means.split())
    # LOF and SVM are worse without standardized columns.
    assert len(areas) == 8 and areas[-1] > 0.95
    assert max(areas[1], areas[3]) < 0.95
    assert alarms < 25
    with Image.open(tmp_path / "table_outliers.png") as figure:
        figure.load()


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

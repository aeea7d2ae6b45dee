"""The benchmark of the defaults."""

import json

import numpy as np
import pytest

from benchmarks import defaults

pytestmark = [pytest.mark.full, pytest.mark.usefixtures("no_graph_optimizer")]


@pytest.mark.parametrize("name", defaults.DATASETS)
def test_splits(name):
    splits = defaults.load(name, 0, 40)
    train, validation, test = splits
    assert {rows.dtype for rows in splits} == {np.dtype(np.float32)}
    assert train.shape[1] == test.shape[1] == validation.shape[1]
    assert len(train) >= len(validation) and len(train) >= len(test)
    # No value of a column occurs often: the density is bounded.
    for column in np.concatenate(splits).T:
        assert len(np.unique(column)) > 0.9 * len(column)
    again, other = defaults.load(name, 0, 40), defaults.load(name, 1, 40)
    np.testing.assert_array_equal(test, again.test)
    assert not np.array_equal(test, other.test)


def test_results_of_passes_and_time():
    rows = [
        defaults.Pass(seconds, validation, test)
        for seconds, validation, test in [(1, -3, -3.5), (2, -1, -1.5), (3, -2, -2.5), (4, 0, -0.5)]
    ]
    assert defaults._summary(rows, passes=3, seconds=3.5) == {
        "CPU seconds of the passes": 3,
        "last, equal passes": -2.5,
        "best, equal passes": -1.5,
        "last, equal time": -0.5,
        "best, equal time": -0.5,
    }
    assert defaults._summary(rows, passes=3, seconds=0.5)["last, equal time"] == -3.5


@pytest.mark.parametrize("name", list(defaults.CONTENDERS))
def test_a_contender(name, tmp_path, capsys):
    if name.startswith("zuko"):
        pytest.importorskip("zuko")
        # Test processes that run side by side share the cores.
        pytest.importorskip("torch").set_num_threads(1)
    options = ["--seeds=1", "--passes=2", "--num_points=40", "--datasets=moons"]
    outcome = defaults.main([*options, f"--contenders={name}", f"--output_dir={tmp_path}"])
    assert json.loads((tmp_path / "results.json").read_text()) == outcome
    [result] = outcome["results"]["moons"][name]
    assert result["CPU seconds of the passes"] > 0  # of the second one
    assert -100 < result["last, equal passes"] < 0
    assert f"| {name} |" in capsys.readouterr().out

"""Densities of tables."""

import json

import numpy as np
import pytest
from scipy import stats
from sklearn.model_selection import KFold

pytestmark = [pytest.mark.full, pytest.mark.usefixtures("no_graph_optimizer")]


def _rows(number, seed=0):
    """Correlated rows of two columns, rounded to 0.01."""
    rng = np.random.default_rng(seed)
    first = rng.normal(5.0, 2.0, number)
    return np.round(np.stack([first, 3 * first + rng.normal(size=number)], axis=1), 2)


@pytest.fixture(scope="module")
def script(load_script):
    return load_script("train_table")


def test_cross_validation(tmp_path, run_script, capsys):
    path = tmp_path / "table.csv"
    np.savetxt(path, _rows(60), delimiter=",", header="a,b", comments="")
    options = "--num_folds=3 --num_members=2 --max_steps=50 --num_couplings=2".split()
    run_script("train_table", f"--dataset={path}", f"--output_dir={tmp_path}", *options)
    results = json.loads((tmp_path / "results.json").read_text())
    results = {each["estimate"]: each for each in results}
    assert len(results) == 4
    # The normal distribution by hand.
    rows, log_probs = _rows(60), np.zeros(60)
    for train, test in KFold(3, shuffle=True, random_state=0).split(rows):
        moments = rows[train].mean(axis=0), np.cov(rows[train].T, ddof=0)
        log_probs[test] = stats.multivariate_normal(*moments).logpdf(rows[test])
    expected = log_probs.mean(), log_probs.std() / np.sqrt(60)
    found = results["normal distribution"]
    assert found["log_likelihood"] == pytest.approx(expected, abs=0.01)
    flow = results["Real NVP"]["log_likelihood"]
    assert found["lead"][0] == pytest.approx(flow[0] - found["log_likelihood"][0])
    assert all(abs(each["log_likelihood"][0] - expected[0]) < 2 for each in results.values())
    table = (tmp_path / "results.md").read_text()
    assert table in capsys.readouterr().out
    assert f"| Real NVP | {flow[0]:.3f} ± {flow[1]:.3f} |  |" in table


# Tables.


def test_embedded_tables(script):
    shapes = {"wine": (178, 13), "breast_cancer": (569, 30), "diabetes": (442, 10)}
    assert {name: script.load_table(name).shape for name in shapes} == shapes


def test_files(tmp_path, script):
    rows = _rows(5)
    np.save(tmp_path / "rows.npy", rows.astype(np.float32))
    np.savetxt(tmp_path / "rows.csv", rows, delimiter=",")
    np.savetxt(tmp_path / "header.csv", rows, delimiter=",", header="a,b", comments="")
    for name in ("rows.npy", "rows.csv", "header.csv"):
        np.testing.assert_allclose(script.load_table(str(tmp_path / name)), rows, rtol=1e-6)


def test_bad_files(tmp_path, script):
    with pytest.raises(FileNotFoundError, match=r"one of wine, .*, or a file, got 'beer'"):
        script.load_table("beer")
    path = tmp_path / "rows.csv"
    path.write_text("1,2\n3,red\n")
    with pytest.raises(ValueError, match=r"got shape \(2, 2\), 1 values not finite"):
        script.load_table(str(path))
    np.save(tmp_path / "rows.npy", np.zeros([3]))
    with pytest.raises(ValueError, match=r"got shape \(3,\)"):
        script.load_table(str(tmp_path / "rows.npy"))

"""Densities of tables."""

import json

import numpy as np
import pytest
import tensorflow_probability as tfp
from sklearn.model_selection import KFold

tfd = tfp.distributions


def _rows(number, seed=0):
    """Correlated rows of two columns, rounded to 0.01."""
    rng = np.random.default_rng(seed)
    first = rng.normal(5.0, 2.0, number)
    return np.round(np.stack([first, 3 * first + rng.normal(size=number)], axis=1), 2)


@pytest.fixture(scope="module")
def script(load_script):
    return load_script("train_table")


@pytest.fixture(scope="module")
def committee(script):
    return script.FlowCommittee(
        2, num_members=2, max_steps=100, num_couplings=2, num_blocks=1, num_filters=8
    )


def test_the_committee_is_a_density(committee, script):
    rows = _rows(60)
    committee.fit(rows)
    # Along the axes of the covariance, since the density is narrow.
    to_white = script.whitening(rows)
    along = np.linspace(-10, 10, 201)
    white = np.stack(np.meshgrid(along, along), axis=-1).reshape(-1, 2)
    matrix = np.linalg.inv(to_white(np.eye(2)) - to_white(np.zeros([1, 2])))
    grid = rows.mean(axis=0) + white @ matrix
    cell = (along[1] - along[0]) ** 2 * abs(np.linalg.det(matrix))
    np.testing.assert_allclose(np.exp(committee.log_prob(grid)).sum() * cell, 1, atol=0.03)


def test_the_committee_starts_anew(committee):
    rows, other = _rows(60), _rows(60, seed=1)
    first = committee.fit(rows, seed=3).log_prob(other)
    committee.fit(other, seed=4)
    np.testing.assert_allclose(committee.fit(rows, seed=3).log_prob(other), first, rtol=1e-4)
    # Rows of the same density are as likely as these, about.
    assert abs(first.mean() - committee.log_prob(rows).mean()) < 1


@pytest.mark.parametrize("name", ["standardizing", "whitening"])
def test_linear_maps(name, script):
    rows = _rows(50)
    to_unit = getattr(script, name)(rows)
    z = to_unit(rows)
    np.testing.assert_allclose(z.mean(axis=0), 0, atol=1e-9)
    np.testing.assert_allclose(z.std(axis=0), 1)
    if name == "whitening":
        np.testing.assert_allclose(np.cov(z.T, ddof=0), np.eye(2), atol=1e-9)
    matrix = to_unit(np.eye(2)) - to_unit(np.zeros([1, 2]))
    assert to_unit.log_det == pytest.approx(np.log(abs(np.linalg.det(matrix))))


def test_cross_validation(tmp_path, run_script, capsys, script):
    path = tmp_path / "table.csv"
    np.savetxt(path, _rows(60), delimiter=",", header="a,b", comments="")
    run_script(
        "train_table",
        f"--dataset={path}",
        "--num_folds=3",
        "--num_members=2",
        "--max_steps=50",
        "--num_couplings=2",
        f"--output_dir={tmp_path}",
    )
    results = {
        each["estimate"]: each for each in json.loads((tmp_path / "results.json").read_text())
    }
    assert len(results) == 4
    # The normal distribution by hand.
    rows, log_probs = script.dequantize(_rows(60), 0), np.zeros(60)
    for train, test in KFold(3, shuffle=True, random_state=0).split(rows):
        cholesky = np.linalg.cholesky(np.cov(rows[train].T, ddof=0))
        normal = tfd.MultivariateNormalTriL(rows[train].mean(axis=0), cholesky)
        log_probs[test] = normal.log_prob(rows[test])
    expected = log_probs.mean(), log_probs.std() / np.sqrt(60)
    found = results["normal distribution"]
    assert found["log_likelihood"] == pytest.approx(expected)
    flow = results["Real NVP"]["log_likelihood"]
    assert found["lead"][0] == pytest.approx(flow[0] - expected[0])
    for each in results.values():
        assert abs(each["log_likelihood"][0] - expected[0]) < 2
    table = (tmp_path / "results.md").read_text()
    assert table in capsys.readouterr().out
    assert f"| Real NVP | {flow[0]:.3f} ± {flow[1]:.3f} |  |" in table


def test_uci(tmp_path, run_script, script):
    (tmp_path / "miniboone").mkdir()
    rows = np.random.default_rng(0).normal(size=[400, 3])
    np.save(tmp_path / "miniboone" / "data.npy", rows)
    arguments = (
        "train_table",
        "--uci=miniboone",
        f"--data_dir={tmp_path}",
        "--limit_minutes=0.02",
        "--num_couplings=2",
        f"--output_dir={tmp_path / 'out'}",
    )
    run_script(*arguments)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    found = {each["estimate"]: each["log_likelihood"] for each in results}
    published = {f"{name}, published" for name in script._PUBLISHED}
    assert set(found) == {"Real NVP", "normal distribution", *published}
    assert found["MAF (10), published"] == [-12.24]
    # That of standard normal rows is -3 (1 + log 2π) / 2.
    assert abs(found["normal distribution"][0] + 4.26) < 0.5
    assert found["Real NVP"][0] > -20
    # The time is used up.
    run_script(*arguments)
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == results


# Tables.


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("wine", (178, 13)),
        ("breast_cancer", (569, 30)),
        ("diabetes", (442, 10)),
        ("digits", (1797, 64)),
    ],
)
def test_embedded_tables(name, shape, script):
    rows = script.load_table(name)
    assert rows.shape == shape and rows.dtype == np.float64
    noisy = script.dequantize(rows, 0)
    widths = script.rounding_widths(rows)
    assert ((noisy >= rows) & (noisy - rows <= widths)).all()
    # No two rows are equal now.
    assert len(np.unique(noisy, axis=0)) == len(rows)


def test_rounding_widths(script):
    rows = [[1.0, 0.25, 3.0, 1 / 3], [20.0, 0.5, 4.5, 2 / 3], [7.0, 0.75, 5.0, 1 / 7]]
    np.testing.assert_allclose(script.rounding_widths(np.array(rows)), [1, 0.01, 1, 1e-9])


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

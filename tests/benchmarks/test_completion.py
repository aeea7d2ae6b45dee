"""Scores of completed digits, beside cases whose scores are known, and the command."""

import functools

import numpy as np
import pytest

import tfp_realnvp as tfr
from benchmarks import completion
from tfp_realnvp.latents import completion as populations


def test_scores_of_equal_samples():
    truth = np.array([[1, 2], [4, 5]])
    samples = np.tile(truth + np.array([[3, 4], [6, 8]]), [6, 1, 1])
    scores = {key: list(values) for key, values in completion.scores(samples, truth).items()}
    assert scores == {"MAE": [3.5, 7], "CRPS": [3.5, 7], "energy score": [5, 10]}


def test_scores_of_different_samples():
    rng = np.random.default_rng(0)
    samples, truth = rng.normal(size=[50, 3, 2]), rng.normal(size=[3, 2])
    scores = completion.scores(samples, truth)
    differences = np.abs(samples[:, None] - samples)
    expected = np.abs(samples - truth).mean((0, 2)) - 0.5 * differences.mean((0, 1, 3))
    np.testing.assert_allclose(scores["CRPS"], expected)
    distances = np.sqrt(np.square(samples[:, None] - samples).sum(-1))
    errors = np.sqrt(np.square(samples - truth).sum(-1))
    expected = errors.mean(0) - 0.5 * distances.mean((0, 1))
    np.testing.assert_allclose(scores["energy score"], expected)


@pytest.mark.full
@pytest.mark.usefixtures("no_graph_optimizer")
@pytest.mark.filterwarnings("ignore:complete")
def test_the_command(capsys, monkeypatch):
    few = {"num_burnin_steps": 2, "num_leapfrog_steps": 1}
    complete = functools.partial(tfr.latents.complete, **few)
    monkeypatch.setattr(tfr.latents, "complete", complete)
    monkeypatch.setattr(populations, "_MIN_PARTICLES", 20)
    monkeypatch.setattr(completion, "_NUM_FLOW_SAMPLES", 2_000)
    options = ["--first=5", "--num_digits=2", "--num_samples=40", "--epochs=2"]
    results = completion.main(options)
    printed = capsys.readouterr().out
    assert len(results) == 3 and "R-hat: median" in printed and printed.count(" - complete: ") == 2
    for scores in results.values():
        assert 0 < scores["CRPS"] < scores["MAE"] * 1.5 < 8
        assert 0 <= scores["recognized"] <= 1

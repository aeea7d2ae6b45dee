"""The scripts of variational inference, Markov chains and simulators, shortened."""

import re

import numpy as np
import pytest
from PIL import Image
from scipy import stats

pytestmark = [pytest.mark.full, pytest.mark.usefixtures("no_graph_optimizer")]


def _numbers(pattern, text):
    """Returns the numbers of the groups of a pattern, of which there must be one match."""
    (match,) = re.findall(pattern, text)
    return [float(number) for number in np.ravel(match)]


@pytest.mark.parametrize("optimizer", ["keras3", "tf_keras"])
def test_evidence_of_a_regression(optimizer, printed_by):
    printed = printed_by(
        "variational_inference",
        f"--model=conjugate --optimizer={optimizer} --num_couplings=2 --num_filters=8"
        " --num_steps=400 --sample_size=16 --learning_rate=0.03 --num_samples=20000",
    )
    (error,) = _numbers(r"exact evidence: .* error (.*) nats", printed)
    bound, _ = _numbers(r"\nevidence lower bound: (\S+) ± (\S+) nats", printed)
    evidence, standard_error = _numbers(r"importance-weighted evidence: (\S+) ± (\S+)", printed)
    assert abs(error) < max(0.02, 3 * standard_error)
    assert evidence - 1 < bound < evidence
    assert printed.count("weights") >= 6


def test_eight_schools_beside_hamiltonian_monte_carlo(printed_by):
    printed = printed_by(
        "variational_inference",
        "--check --num_couplings=2 --num_filters=8 --num_steps=200 --sample_size=16"
        " --learning_rate=0.02 --num_samples=5000 --num_draws=100",
    )
    (error,) = _numbers(r"weighted: means within (\S+) standard", printed)
    assert error < 0.3
    rows = re.findall(r"effects \d(.*)", printed)
    assert len(rows) == 8 and all(row.count("±") == 3 for row in rows)


def test_neutra(printed_by):
    printed = printed_by(
        "neutra",
        "--num_couplings=2 --num_filters=32 --num_steps=500 --sample_size=256 --noxla"
        " --learning_rate=0.01 --num_leapfrog_steps=2,4 --num_chains=64"
        " --num_adaptation_steps=100 --num_draws=100",
    )
    (ratio,) = _numbers(r"NeuTra: (\S+) times the effective sample size", printed)
    assert ratio > 3
    x1, x1_stddev = _numbers(r"NeuTra: best .*\n.*deviation: (\S+) ± (\S+),", printed)
    assert abs(x1) < 3 and abs(x1_stddev - 10) < 2


@pytest.mark.parametrize("name", ["banana", "funnel"])
def test_targets_of_chains(name, load_script):
    density = getattr(load_script("neutra"), name)()
    samples = density.sample(10, seed=(0, 1))
    log_probs = density.unnormalized_log_prob(samples)
    x1, x2 = (np.asarray(part) for part in samples)
    if name == "banana":
        expected = stats.norm.logpdf(x1, 0, 10) + stats.norm.logpdf(x2, 0.03 * (x1**2 - 100))
    else:
        of_x2 = stats.norm.logpdf(x2, 0, np.exp(x1 / 2)[:, None]).sum(axis=1)
        expected = stats.norm.logpdf(x1, 0, 3) + of_x2
    np.testing.assert_allclose(log_probs, expected, rtol=1e-4)


def test_calibration(printed_by, tmp_path):
    path = tmp_path / "ranks.png"
    printed = printed_by(
        "simulation_based_inference",
        "--num_simulations=20000 --epochs=5 --learning_rate=0.01 --num_couplings=3 --num_filters=16"
        f" --num_checks=500 --num_bins=10 --temperatures=1,0.6 --plot={path}",
    )
    divergence, error = _numbers(r"KL divergence .* (\S+) ± (\S+) nats", printed)
    assert divergence < 0.1 + 3 * error
    right, narrow = (
        [float(value) for value in re.findall(r"(?:θ\d|density) ([\d.e+-]+)", line)]
        for line in re.findall(r"temperature .*", printed)
    )
    assert len(right) == len(narrow) == 4
    assert min(right) > 1e-4 and max(narrow) < 1e-8
    Image.open(path).load()


def test_bimodal_posteriors(printed_by):
    printed = printed_by(
        "simulation_based_inference",
        "--simulator=two_moons --num_simulations=1000 --epochs=1 --num_couplings=2 --num_filters=8"
        " --num_checks=100 --num_bins=4 --temperatures=1",
    )
    assert "temperature 1.0: p-values" in printed

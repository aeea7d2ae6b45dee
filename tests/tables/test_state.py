"""A fit owns its answers: nothing that happens in the process changes them."""

import pickle
import subprocess
import sys

import numpy as np
import pytest

import tfp_realnvp as tfr
from tfp_realnvp.tables import simple_densities
from tfp_realnvp.tables import stack as table_stack

_OPTIONS = {"num_flows": 2, "num_couplings": 3, "num_filters": 8, "max_steps": 150, "noise": 0.1}


def _curve(number, seed=0):
    """Four columns on a curve, which flows find."""
    rng = np.random.default_rng(seed)
    t = rng.uniform(-2, 2, number)
    return np.stack([t, t**2, np.sin(3 * t), np.cos(2 * t)], 1) + 0.1 * rng.normal(size=[number, 4])


@pytest.fixture(autouse=True)
def flows_alone(monkeypatch):
    monkeypatch.setattr(simple_densities, "_NUM_COMPONENTS", (1,))
    monkeypatch.setattr(table_stack, "fit_normal_mixtures", lambda *_: [])


def _estimators():
    rows = _curve(300)
    options = {"random_state": 0, "learning_rate": 0.02, **_OPTIONS}
    density = tfr.FlowDensity(**options).fit(rows)
    regressor = tfr.FlowRegressor(transformer="affine", **options).fit(rows[:, :1], rows[:, 2:])
    # Flows that have a share.
    for fit in (density, regressor):
        assert fit.flow_gain_[0] > 0.1
    return {
        "density": lambda fit: fit.score_samples(rows[:20]),
        "regressor": lambda fit: fit.score_samples(rows[:20, :1], rows[:20, 2:]),
    }, {"density": density, "regressor": regressor}


def test_another_fit_and_another_process_change_no_answer(tmp_path):
    calls, fits = _estimators()
    before = {name: calls[name](fit) for name, fit in fits.items()}
    rows = 7 + 3 * _curve(300, seed=1)
    tfr.FlowDensity(random_state=5, **_OPTIONS).fit(rows[:, ::-1])
    tfr.FlowRegressor(transformer="affine", random_state=5, **_OPTIONS).fit(
        rows[:, 1:2], rows[:, :2]
    )
    for name, fit in fits.items():
        np.testing.assert_array_equal(calls[name](fit), before[name])
    (tmp_path / "fits").write_bytes(pickle.dumps(fits))
    np.save(tmp_path / "rows", _curve(300)[:20])
    code = (
        "import pickle, sys, numpy as np\n"
        "fits = pickle.load(open(sys.argv[1] + '/fits', 'rb'))\n"
        "rows = np.load(sys.argv[1] + '/rows.npy')\n"
        "regressed = fits['regressor'].score_samples(rows[:, :1], rows[:, 2:])\n"
        "np.save(sys.argv[1] + '/out', [fits['density'].score_samples(rows), regressed])\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    after = np.load(tmp_path / "out.npy")
    np.testing.assert_allclose(after, [before["density"], before["regressor"]], atol=1e-5)

"""A fit owns its answers: nothing that happens in the process changes them."""

import pickle

import forked
import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning

import tfp_realnvp as tfr
from tfp_realnvp.tables import simple_densities, table_flow
from tfp_realnvp.tables import stack as table_stack
from tfp_realnvp.tables.table import Rows

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


def test_another_fit_and_another_process_change_no_answer(tmp_path):
    rows = _curve(300)
    options = {"random_state": 0, "learning_rate": 0.02, **_OPTIONS}
    density = tfr.FlowDensity(**options).fit(rows)
    regressor = tfr.FlowRegressor(transformer="affine", **options).fit(rows[:, :1], rows[:, 2:])
    # Flows that have a share.
    assert min(density.flow_gain_[0], regressor.flow_gain_[0]) > 0.1

    def answers():
        of_regressor = regressor.score_samples(rows[:20, :1], rows[:20, 2:])
        return [density.score_samples(rows[:20]), of_regressor]

    before = answers()
    others = 7 + 3 * _curve(300, seed=1)
    options = {"random_state": 5, **_OPTIONS}
    tfr.FlowDensity(**options).fit(others[:, ::-1])
    tfr.FlowRegressor(transformer="affine", **options).fit(others[:, 1:2], others[:, :2])
    np.testing.assert_array_equal(answers(), before)
    (tmp_path / "fits").write_bytes(pickle.dumps([density, regressor, rows[:20]]))
    code = (
        "import pickle, numpy as np\n"
        "density, regressor, rows = pickle.load(open('fits', 'rb'))\n"
        "of_regressor = regressor.score_samples(rows[:, :1], rows[:, 2:])\n"
        "np.save('out', [density.score_samples(rows), of_regressor])\n"
    )
    exit_code, output = forked.run(code, tmp_path)
    assert exit_code == 0, output
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), before, atol=1e-5)


def test_a_pickle_does_not_depend_on_the_defaults_of_a_later_version(monkeypatch):
    rows = _curve(300)
    density = tfr.FlowDensity(random_state=0, learning_rate=0.02, **_OPTIONS).fit(rows)
    assert density.flow_gain_[0] > 0.1
    expected, state = density.score_samples(rows), pickle.dumps(density)

    class Later(tfr.RealNVPVector):
        def __init__(self, *args, activation="relu", mixing="permutation", **kwargs):
            super().__init__(*args, activation=activation, mixing=mixing, **kwargs)

    monkeypatch.setattr(table_flow, "RealNVPVector", Later)
    table_flow._functions.cache_clear()
    try:
        loaded = pickle.loads(state)
        np.testing.assert_allclose(loaded.score_samples(rows), expected, atol=1e-5)
    finally:
        table_flow._functions.cache_clear()


def test_a_pickle_of_another_version_warns(monkeypatch):
    density = tfr.FlowDensity(num_flows=0, random_state=0).fit(_curve(50))
    state = density.__getstate__()
    assert state["_versions"]["tfp_realnvp_version"] == tfr.__version__
    for writer, name in (
        ({"tfp_realnvp_version": "0.1.7"}, "0.1.7"),
        ({}, "of an earlier version"),
    ):
        new = tfr.FlowDensity.__new__(tfr.FlowDensity)
        with pytest.warns(UserWarning, match=f"by tfp_realnvp {name}, and this is .* or fit again"):
            new.__setstate__({**state, "_versions": writer})
        np.testing.assert_array_equal(
            new.sample(3, random_state=0), density.sample(3, random_state=0)
        )


@pytest.mark.parametrize("options", [{"num_flows": 0}, {"max_steps": 0}])
def test_flows_can_be_turned_off(options, monkeypatch):
    rows = _curve(300)
    density = tfr.FlowDensity(random_state=0, **{**_OPTIONS, **options}).fit(rows)
    assert not density.history_ and density.flow_gain_ == (0, 0)
    monkeypatch.setattr(table_stack, "_MIN_ROWS_OF_FLOWS", np.inf)
    number = options.get("num_flows", 2) or None  # of folds
    without = clone(density).set_params(num_flows=number, max_steps=100).fit(rows)
    np.testing.assert_array_equal(density.score_samples(rows), without.score_samples(rows))


def test_one_flow_holds_out_a_tenth():
    rows, test = _curve(400), _curve(2_000, seed=1)
    density = tfr.FlowDensity(random_state=0, learning_rate=0.02, **{**_OPTIONS, "num_flows": 1})
    density.fit(rows)
    assert len(density.history_) == 1 and density.flow_gain_[0] > 0.1
    assert density.score(test) > density.score_start_ + 0.1


@pytest.mark.filterwarnings("ignore:flow 1 is left out")
def test_a_first_flow_that_keeps_its_initial_weights_is_the_last():
    sources = np.random.default_rng(0).standard_t(2, [400, 2])
    rows = sources @ [[1.0, 1.0], [-1.0, 1.0]]
    density = tfr.FlowDensity(**_OPTIONS).set_params(learning_rate=1e6)
    for seed in range(4):  # a random rotation of the initial latents is better by chance
        density.set_params(random_state=seed).fit(rows)
        assert density.n_steps_.tolist() == [0] and density.flow_gain_ == (0, 0)


# An interrupt keeps what is finished.


def _interrupt(*_):
    raise KeyboardInterrupt


_THREE = {"random_state": 0, "learning_rate": 0.02, **_OPTIONS, "num_flows": 3}


@pytest.mark.parametrize("number", [1, 2])
def test_an_interrupt_keeps_finished_flows_and_the_best_weights_of_the_next(number, monkeypatch):
    rows, calls, draw = _curve(300), [], Rows.draw
    density = tfr.FlowDensity(**{**_THREE, "max_steps": 300})
    whole = clone(density).fit(rows)
    steps = sum(len(history["step"]) for history in whole.history_[: number - 1])

    def interrupt(*arguments):  # a flow draws batches for the steps before its next validation
        calls.append(arguments)
        if len(calls) == steps + 3:
            raise KeyboardInterrupt
        return draw(*arguments)

    monkeypatch.setattr(Rows, "draw", interrupt)
    message = (
        rf"interrupted after {number - 1} of 3 flows and 100 steps of the next one, with its best"
    )
    with pytest.warns(ConvergenceWarning, match=message) as notes:
        assert density.fit(rows) is density
    assert len(notes) == 1 and notes[0].filename == __file__
    assert density.n_steps_.tolist() == [*whole.n_steps_[: number - 1], 100]
    assert density.history_[-1]["lead"] == whole.history_[number - 1]["lead"][:2]
    # The weights have a share: rows that had no part in the fit are more probable.
    test = _curve(2_000, seed=1)
    assert density.flow_gain_[0] > 0.1
    assert whole.score(test) > density.score(test) > density.score_start_ + 0.1
    assert density.score(test) == pytest.approx(density.score_held_out_, abs=0.3)
    assert np.isfinite(density.sample(100, random_state=0)).all()
    again = pickle.loads(pickle.dumps(density))
    np.testing.assert_array_equal(again.score_samples(test), density.score_samples(test))
    # The next fit is a whole one.
    np.testing.assert_array_equal(density.fit(rows).score_samples(test), whole.score_samples(test))


def test_an_interrupt_after_the_last_flow_keeps_all(monkeypatch):
    rows, result, calls = _curve(300), table_stack.StackFit.result, []
    density = tfr.FlowDensity(**{**_THREE, "num_flows": 2, "max_steps": 50})
    expected = clone(density).fit(rows).score_samples(rows)

    def interrupt(fit):
        calls.append(fit)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return result(fit)

    monkeypatch.setattr(table_stack.StackFit, "result", interrupt)
    with pytest.warns(ConvergenceWarning, match="interrupted after 2 of 2 flows"):
        density.fit(rows)
    np.testing.assert_array_equal(density.score_samples(rows), expected)


@pytest.mark.parametrize("kind", ["density", "classes", "regressor"])
def test_an_interrupt_of_the_first_flow_leaves_the_other_densities(kind, monkeypatch):
    rows, labels = _curve(400), np.arange(400) % 2
    data = (rows[:, :1], rows[:, 2:]) if kind == "regressor" else (rows,)
    data = (rows, labels) if kind == "classes" else data
    estimator = (tfr.FlowRegressor if kind == "regressor" else tfr.FlowDensity)(**_THREE)
    monkeypatch.setattr(table_stack, "fit_table_flow", _interrupt)
    number = 6 if kind == "classes" else 3
    with pytest.warns(ConvergenceWarning, match=f"interrupted after 0 of {number} flows"):
        interrupted = clone(estimator).fit(*data)
    assert interrupted.flow_gain_ == (0, 0) and not interrupted.history_
    monkeypatch.setattr(table_stack, "_MIN_ROWS_OF_FLOWS", np.inf)
    without = clone(estimator).fit(*data)
    arguments = data if kind == "regressor" else data[:1]
    expected = without.score_samples(*arguments)
    np.testing.assert_array_equal(interrupted.score_samples(*arguments), expected)
    assert interrupted.score_held_out_ == without.score_held_out_


def test_a_fit_that_does_not_end_changes_nothing(monkeypatch):
    rows = _curve(60)
    density = tfr.FlowDensity(**_THREE).fit(rows)
    before, new = dict(vars(density)), clone(density)
    monkeypatch.setattr(table_stack, "fit_normal_mixtures", _interrupt)
    for estimator, state in ((density, before), (new, dict(vars(new)))):
        with pytest.raises(KeyboardInterrupt):
            estimator.fit(1_000 * rows)
        with pytest.raises(ValueError, match="expected at least one numeric column"):
            estimator.fit(pd.DataFrame({"a": ["x", "y"]}))
        assert vars(estimator) == state


def test_fits_of_many_architectures_do_not_warn_of_retracing(caplog):
    rows = np.random.default_rng(0).normal(size=[160, 7])
    for size in range(2, 8):
        tfr.FlowDensity(2, num_couplings=1, num_filters=2, max_steps=1).fit(rows[:, :size])
    assert not caplog.messages

"""An answer depends on the object and on what it is given, never on what the process did before.

Calls of several objects follow each other in any order. After each one, every object answers as the
same weights do in a new process, and what had no part in the call has not changed.
"""

import contextlib
import copy
import itertools
import os
import pathlib
import pickle
import shutil
import sys
import tempfile
import warnings

import flow_testing as ft
import hypothesis
import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from hardening import fresh_process as fresh
from hardening.effort import cases, share
from hypothesis import stateful
from hypothesis import strategies as st

import tfp_realnvp as tfr

_PACKAGE = os.path.dirname(tfr.__file__)
PROCESS = fresh.NewProcess(num_questions=share(40, 5))


def assert_same(actual, expected, tolerance=2e-5):
    for name, value in expected.items():
        if value is None or actual[name] is None:
            assert actual[name] is None and value is None, name
            continue
        scale = max(1.0, np.abs(np.nan_to_num(value, posinf=0, neginf=0)).max(initial=0))
        np.testing.assert_allclose(
            actual[name], value, rtol=tolerance, atol=tolerance * scale, err_msg=name
        )


@contextlib.contextmanager
def interrupted(at):
    """Interrupts the process at a call of a function of the package, which is the n-th from 0."""
    calls = itertools.count()

    def profile(frame, event, _):
        if event == "call" and frame.f_code.co_filename.startswith(_PACKAGE) and next(calls) == at:
            sys.setprofile(None)
            raise KeyboardInterrupt

    sys.setprofile(profile)
    try:
        yield
    except KeyboardInterrupt:
        pass
    finally:
        sys.setprofile(None)


class Flow:
    """A distribution, and graphs that have been traced at any time."""

    def __init__(self, kind, distribution):
        self.kind, self.distribution = kind, distribution
        self.graphs, self.step = [], tf.function(fresh.step)

    def __repr__(self):
        return f"<{self.kind}>"

    @property
    def variables(self):
        return list(self.distribution.variables)

    @property
    def weights(self):
        flags = [layer.trainable for layer in fresh.layers_of(self.distribution)]
        return fresh.arrays_of(self.distribution), flags

    def call(self):
        return fresh.answers_of_flow(self.distribution, self.kind)

    def check(self):
        expected = PROCESS.ask(fresh.ask_flow, self.kind, *self.weights)
        answers = self.call()
        assert_same(answers, expected)
        for i, variable in enumerate(self.variables):
            assert variable.trainable == (answers[f"gradient {i}"] is not None), variable.name
        x, options = fresh.events_of(self.kind)
        for graph in self.graphs:
            assert_same({"log_prob": graph(x, **options)}, {"log_prob": expected["log_prob"]})


class Model:
    """A `FlowModel` of a flow, and the learning rate that its `compile` or its user chose."""

    def __init__(self, flow, model, rate=None):
        self.flow, self.model, self.rate = flow, model, rate
        if rate is None:
            self.compile()

    def compile(self, *optimizer, **options):
        self.model.compile(*optimizer, **options)
        self.rate = float(self.model.optimizer.learning_rate)

    def __repr__(self):
        return f"<model of {self.flow}>"

    @property
    def variables(self):
        return [*self.flow.variables, *(v.value for v in self.model.optimizer.variables)]

    def call(self):
        return fresh.answers_of_model(self.model, self.flow.kind)

    def check(self):
        expected = PROCESS.ask(fresh.ask_model, self.flow.kind, *self.flow.weights)
        assert_same(self.call(), expected)
        assert float(self.model.optimizer.learning_rate) == np.float32(self.rate)


class Table:
    """A fitted estimator."""

    variables = ()

    def __init__(self, estimator):
        self.estimator = estimator

    def __repr__(self):
        return f"<{type(self.estimator).__name__}>"

    def call(self):
        return fresh.answers_of_table(self.estimator)

    def check(self):
        expected = PROCESS.ask(fresh.ask_table, pickle.dumps(self.estimator))
        assert_same(self.call(), expected)


class Export:
    """A loaded SavedModel, and what its flow answered when it was exported."""

    variables = ()

    def __init__(self, flow, served):
        self.kind, self.served = flow.kind, served
        self.expected = PROCESS.ask(fresh.ask_flow, flow.kind, *flow.weights)

    def call(self):
        return fresh.answers_of_export(self.served, self.kind)

    def check(self):
        answers = self.call()
        assert_same(answers, {name: self.expected[name] for name in answers})


KINDS = st.sampled_from(list(fresh.BIJECTORS))
SEEDS = st.integers(0, 3)
SEEDS_OF_ROWS = st.integers(0, 1)
BOOLS = st.booleans()
WAYS_TO_LOAD = ["load_model", "from_preset", "load_weights", "deepcopy"]
PLACES = st.one_of(st.integers(0, 100), st.integers(0, 3000))


class Calls(stateful.RuleBasedStateMachine):
    """What a user can do in a process, in any order."""

    flows, models = stateful.Bundle("flows"), stateful.Bundle("models")
    tables, exports = stateful.Bundle("tables"), stateful.Bundle("exports")

    def __init__(self):
        super().__init__()
        self.objects = []
        self.folder = tempfile.mkdtemp()
        warnings.simplefilter("ignore")

    def teardown(self):
        shutil.rmtree(self.folder)

    def path(self, name):
        return os.path.join(tempfile.mkdtemp(dir=self.folder), name)

    def new(self, item):
        self.objects.append(item)
        return item

    @contextlib.contextmanager
    def changes(self, *items):
        """Checks that a call changes no variables but those of some objects."""
        may_change = {id(v) for item in items for v in item.variables}
        others = [v for item in self.objects for v in item.variables if id(v) not in may_change]
        before = [v.numpy() for v in others]
        tables = [t for t in self.objects if isinstance(t, Table) and t not in items]
        pickles = [pickle.dumps(table.estimator) for table in tables]
        yield
        for variable, value in zip(others, before, strict=True):
            np.testing.assert_array_equal(variable.numpy(), value, err_msg=variable.name)
        for table, pickled in zip(tables, pickles, strict=True):
            assert pickle.dumps(table.estimator) == pickled

    @stateful.invariant()
    def answers(self):
        with self.changes():
            for item in self.objects:
                item.check()

    # Flows.

    @stateful.rule(target=flows, kind=KINDS, seed=st.one_of(st.none(), SEEDS))
    def new_flow(self, kind, seed):
        keras.utils.set_random_seed(1)
        flow = Flow(kind, fresh.new_flow(kind))
        if seed is not None:
            flow.call()
            ft.randomize(flow.distribution, seed)
        return self.new(flow)

    @stateful.rule(flow=flows, seed=SEEDS)
    def assign(self, flow, seed):
        with self.changes(flow):
            ft.randomize(flow.distribution, seed)

    @stateful.rule(flow=flows)
    def trace(self, flow):
        distribution = flow.distribution

        def log_prob(x, **options):
            return distribution.log_prob(x, bijector_kwargs=options)

        flow.graphs.append(tf.function(log_prob))

    @stateful.rule(flow=flows, in_graph=BOOLS)
    def train_by_loop(self, flow, in_graph):
        expected = PROCESS.ask(fresh.ask_loop, flow.kind, *flow.weights, in_graph)
        with self.changes(flow):
            step = flow.step if in_graph else fresh.step
            fresh.train_by_loop(flow.distribution, flow.kind, step)
        actual = fresh.arrays_of(flow.distribution)
        assert_same(dict(enumerate(actual)), dict(enumerate(expected)), 1e-4)

    @stateful.rule(flow=flows, index=st.integers(0, 3), in_graph=BOOLS)
    def train_with_a_frozen_layer(self, flow, index, in_graph):
        layers, step = fresh.layers_of(flow.distribution), flow.step
        layer = layers[index % len(layers)]
        layer.trainable, flow.step = False, tf.function(fresh.step)
        self.train_by_loop(flow, in_graph)
        flow.check()
        layer.trainable, flow.step = True, step

    @stateful.rule(target=flows, flow=flows, how=st.sampled_from(["copy", "deepcopy", "method"]))
    def copy(self, flow, how):
        old = flow.distribution.bijector
        with self.changes():
            new = old.copy() if how == "method" else getattr(copy, how)(old)
        if how == "deepcopy":
            assert not {id(v) for v in new.variables} & {id(v) for v in old.variables}
        # A `copy` of the distribution would keep the old bijector, too, as where it came from.
        base = flow.distribution.distribution
        return self.new(Flow(flow.kind, tfp.distributions.TransformedDistribution(base, new)))

    @stateful.rule(target=exports, flow=flows)
    def export(self, flow):
        path = self.path("1")
        with self.changes():
            tfr.export_saved_model(flow.distribution, path)
        return self.new(Export(flow, tf.saved_model.load(path)))

    @stateful.rule(flow=flows)
    def refused_calls(self, flow):
        x, options = fresh.events_of(flow.kind)
        log_prob = flow.distribution.log_prob
        for values, training in ((x[..., :0], False), (tf.cast(x, tf.float64), False), (x, 2)):
            of_bijector = {"training": training, **options}
            with self.changes(), pytest.raises((ValueError, TypeError)):
                log_prob(values, bijector_kwargs=of_bijector)

    # Models.

    @stateful.rule(target=models, kind=KINDS, seed=st.one_of(st.none(), SEEDS))
    def new_model(self, kind, seed):
        return self.model_of(self.new_flow(kind, seed))

    @stateful.rule(target=models, flow=flows)
    def model_of(self, flow):
        with self.changes():
            return self.new(Model(flow, tfr.FlowModel(flow.distribution)))

    @stateful.rule(
        model=models,
        optimizer=st.sampled_from([None, "adam"]),
        options=st.sampled_from([{}, {"run_eagerly": True}, {"steps_per_execution": 2}]),
    )
    def compile(self, model, optimizer, options):
        with self.changes():
            model.compile(optimizer and tfr.FusedAdam(2e-3), **options)

    @stateful.rule(model=models, seed=SEEDS, as_dataset=BOOLS, budget=BOOLS)
    def fit(self, model, seed, as_dataset, budget):
        path = self.path("model.keras")
        with self.changes():
            model.model.save(path)
        with open(path, "rb") as file:
            archive = file.read()
        options = model.flow.kind, seed, as_dataset, budget
        with self.changes(model):
            rates = fresh.fit(model.model, *options)
        weights = fresh.arrays_of(model.flow.distribution)
        expected = PROCESS.ask(fresh.ask_fit, options[0], archive, *options[1:])
        np.testing.assert_allclose(rates, expected["rates"], rtol=1e-6)
        assert_same(dict(enumerate(weights)), dict(enumerate(expected["weights"])), 1e-3)

    @stateful.rule(model=models, as_dataset=BOOLS)
    def refused_fits(self, model, as_dataset):
        errors = (ValueError, tfr.NonFiniteLossError, tf.errors.InvalidArgumentError)
        for fault in ("weights", "range", "nan", "shape", "labels"):
            data, options = _wrong_data(model.flow.kind, fault), {"batch_size": 8}
            if as_dataset:
                data, options = tf.data.Dataset.from_tensor_slices(data).batch(8), {}
            with self.changes(), pytest.raises(errors):
                model.model.fit(data, verbose=0, **options)

    @stateful.rule(model=models, rate=st.sampled_from([1e-3, 4e-3, 1e-2]))
    def set_rate(self, model, rate):
        model.model.optimizer.learning_rate = rate
        model.rate = rate

    @stateful.rule(target=models, model=models, how=st.sampled_from(WAYS_TO_LOAD))
    def load(self, model, how):
        old, flow = model.model, model.flow
        with self.changes():
            if how == "deepcopy":
                new = copy.deepcopy(old)
            else:
                of_kind = lambda: tfr.FlowModel(fresh.new_flow(flow.kind))  # noqa: E731
                new = ft.reloaded(how, old, pathlib.Path(self.path("")), of_kind)
        rate = model.rate if how in ("load_model", "deepcopy") else None
        actual = fresh.arrays_of(new.distribution)
        expected = fresh.arrays_of(flow.distribution)
        assert_same(dict(enumerate(actual)), dict(enumerate(expected)), 0)
        new_flow = self.new(Flow(flow.kind, new.distribution))
        return self.new(Model(new_flow, new, rate))

    @stateful.rule(target=models, model=models, batch=st.integers(0, 1))
    def load_what_a_fit_saves(self, model, batch):
        path = self.path("model.keras")

        class Save(keras.callbacks.Callback):
            # With several steps an execution, not every step begins here.
            def on_train_batch_begin(self, number, logs=None):
                if number <= batch:
                    self.model.save(path)

        with self.changes(model):
            fresh.fit(model.model, model.flow.kind, 0, False, False, [Save()])
        new = keras.models.load_model(path)
        new_flow = self.new(Flow(model.flow.kind, new.distribution))
        return self.new(Model(new_flow, new, model.rate))

    # Interrupts.

    @stateful.rule(item=st.one_of(flows, models, tables, exports), at=PLACES)
    def interrupted_call(self, item, at):
        with self.changes(), interrupted(at):
            item.call()

    @stateful.rule(model=models, at=PLACES, budget=BOOLS)
    def interrupted_fit(self, model, at, budget):
        with self.changes(model), interrupted(at):
            fresh.fit(model.model, model.flow.kind, 0, False, budget)

    @stateful.rule(model=models, at=PLACES)
    def interrupted_save(self, model, at):
        path = self.path("model.keras")
        with self.changes(), interrupted(at):
            model.model.save(path)

    @stateful.rule(table=tables, at=st.integers(0, 10_000), seed=SEEDS_OF_ROWS)
    def interrupted_table_fit(self, table, at, seed):
        before = pickle.dumps(table.estimator)
        rows = fresh.rows_of(seed)
        with self.changes(table), interrupted(at):
            _fit(table.estimator, rows)
            return
        assert pickle.dumps(table.estimator) == before

    # Tables.

    @stateful.rule(target=tables, is_density=BOOLS, seed=SEEDS_OF_ROWS)
    def new_table(self, is_density, seed):
        options = {"num_flows": 2, "max_steps": 150, "num_couplings": 4, "num_filters": 8}
        options |= {"learning_rate": 5e-3, "random_state": 0, "verbose": 0}
        kind = tfr.FlowDensity if is_density else tfr.FlowRegressor
        with self.changes():
            estimator = _fit(kind(**options), fresh.rows_of(seed))
        if estimator.flow_gain_[0] <= 0:  # Without flows, its scores test nothing here.
            return stateful.multiple()
        return self.new(Table(estimator))

    @stateful.rule(table=tables, seed=SEEDS_OF_ROWS)
    def refit(self, table, seed):
        with self.changes(table):
            _fit(table.estimator, fresh.rows_of(seed))

    @stateful.rule(table=tables)
    def refused_table_fits(self, table):
        for fault in ("inf", "weights"):
            rows, weights = fresh.rows_of(0), np.ones(300)
            rows[5, 1] = np.inf if fault == "inf" else 0.0
            weights[5] = -1.0 if fault == "weights" else 1.0
            with self.changes(), pytest.raises(ValueError):
                _fit(table.estimator, rows, weights)

    @stateful.rule(target=tables, table=tables, how=st.sampled_from(["pickle", "deepcopy", "copy"]))
    def copy_table(self, table, how):
        old = table.estimator
        with self.changes():
            new = pickle.loads(pickle.dumps(old)) if how == "pickle" else getattr(copy, how)(old)
        return self.new(Table(new))


def _wrong_data(kind, fault):
    """Returns a dictionary of data that no model of a kind takes."""
    x, y = fresh.training_data(kind, 0)
    x, weights = x.astype(np.float32), np.ones(len(x), np.float32)
    if fault == "range":
        x = x / 255 if kind == "images" else x * 1e30
    elif fault == "nan":
        x[3] = np.nan
    elif fault == "shape":
        x = x[:, :1]
    elif fault == "weights":
        weights[2] = -1
    elif kind == "labels":
        y = y + 1
    else:
        weights[:] = np.nan
    data = {"image": x, "label": y, "sample_weight": weights}
    return {name: value for name, value in data.items() if value is not None}


def _fit(estimator, rows, weights=None):
    x, y = np.split(rows, [1], axis=1)
    if isinstance(estimator, tfr.FlowDensity):
        return estimator.fit(y, sample_weight=weights)
    return estimator.fit(x, y, sample_weight=weights)


TestCalls = pytest.mark.slow(Calls.TestCase)
TestCalls.settings = hypothesis.settings(cases(3, 1_000), stateful_step_count=share(15, 30))

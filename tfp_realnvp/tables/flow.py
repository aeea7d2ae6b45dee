"""Flows of the rows of small tables, whose graphs are shared by all flows of an architecture."""

from __future__ import annotations

import contextlib
import functools
import math
import random
import threading
import time
import warnings
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from scipy.special import stdtr, stdtrit
from scipy.stats import qmc
from sklearn.exceptions import ConvergenceWarning

from tfp_realnvp.flows import RealNVPVector
from tfp_realnvp.internal.batch_dims import slices
from tfp_realnvp.internal.initial_seeds import initial_seeds_from
from tfp_realnvp.internal.kept import call_traced
from tfp_realnvp.tables.simple_densities import StudentT
from tfp_realnvp.tables.table import Rows
from tfp_realnvp.training.diagnosis import NonFiniteLossError
from tfp_realnvp.training.flow_model import FlowModel
from tfp_realnvp.training.fused_adam import FusedAdam

__all__ = ["TableFlow", "fit_table_flow"]

tfd = tfp.distributions

_MIN_ROWS_TO_COMPILE, _MIN_STEPS_TO_COMPILE = 1_000, 200
_FIRST_NOISE, _LAST_NOISE = 0.3, 0.01
_WARM_UP_STEPS = 50
_MIN_STEPS_PER_VALIDATION, _MAX_VALIDATIONS = 50, 40
_VALIDATIONS_PER_LINE = 5
_MAX_HELD_OUT = 2_048
_CHUNK_SIZE = 8_192
_NUM_NODES, _NUM_NODES_OF_ONE = 256, 64
# All flows of a process share models, see `_shared_model`.
_LOCK = threading.RLock()


class TableFlow(NamedTuple):
    """A flow after an affine map, as arrays that can be pickled.

    Attributes:
      start: the affine map.
      architecture: arguments of `RealNVPVector`, as items.
      weights: of the model.
    """

    start: StudentT
    architecture: tuple[tuple[str, Any], ...]
    weights: list[np.ndarray]

    def log_prob(self, rows: np.ndarray) -> np.ndarray:
        """Returns the log density of the events of rows given their conditions, [N].

        It is NaN or -inf for latents out of the range of float32.
        """
        return self._call("log_prob", self.start.latents(rows), rows) + self.start.log_det

    def sample(self, conditions: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
        """Returns events [N, D] given conditions [N, C] from uniform numbers [N, 1 + D]."""
        latents = stdtrit(self.start.df, uniforms[:, 1:])
        return self.start.events(self._call("forward", latents, conditions), conditions)

    def mean_of_events(self, conditions: np.ndarray) -> np.ndarray:
        """Returns the mean of events given conditions, [N, D], by quasi-Monte Carlo."""
        size = len(self.start.mean)
        if size > 1:
            uniforms, weights = qmc.Halton(size, rng=0).random(_NUM_NODES), np.ones(_NUM_NODES)
        else:
            # The midpoint rule, closer in the tails, needs fewer nodes.
            middles = (np.arange(_NUM_NODES_OF_ONE)[:, np.newaxis] + 0.5) / _NUM_NODES_OF_ONE
            uniforms = middles**2 * (3 - 2 * middles)
            weights = (middles * (1 - middles))[:, 0]
        nodes, weights = stdtrit(self.start.df, uniforms), weights / weights.sum()
        means = []
        for (chunk,) in slices(max(1, _CHUNK_SIZE // len(nodes)), conditions):
            latents = np.repeat(nodes, len(chunk), axis=0)
            values = self._call("forward", latents, np.tile(chunk, [len(nodes), 1]))
            means.append(np.tensordot(weights, values.reshape([len(nodes), -1, size]), axes=1))
        return self.start.events(np.concatenate(means), conditions)

    def cdf(self, rows: np.ndarray) -> np.ndarray:
        """Returns the cumulative distribution function at the rows of a single column, [N]."""
        # The map may be a falling one, in all rows or in none: two rows of zeros tell which.
        two_rows = np.zeros([2, rows.shape[1]])
        two_rows[1, -1] = 1.0
        all_rows = np.concatenate([two_rows, rows])
        latents = self._call("inverse", self.start.latents(all_rows), all_rows)[:, 0]
        cdf = stdtr(self.start.df, latents[2:] * np.sign(latents[1] - latents[0]))
        # The start is as good for latents out of the range of float32.
        return np.where(np.isnan(cdf), self.start.cdf(rows), cdf)

    def _call(self, name: str, values: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Returns a method of the flow, of values [N, D] given the conditions of rows."""
        size, conditions = len(self.start.mean), rows[:, : len(self.start.slopes)]
        with _LOCK, np.errstate(over="ignore"):
            model, _ = _shared_model(size, conditions.shape[1], self.start.df, self.architecture)
            weights = _float32(np.concatenate([value.ravel() for value in self.weights]))
            results = [
                call_traced(_evaluate, model, (name,), weights, *map(_float32, chunk)).numpy()
                for chunk in slices(_CHUNK_SIZE, values, conditions)
            ]
        return np.concatenate(results).astype(np.float64)


def fit_table_flow(
    start: StudentT,
    rows: Rows,
    held_out: Rows,
    widths: np.ndarray,
    options: Any,
    rng: np.random.Generator,
    index: int,
) -> tuple[TableFlow, dict[str, Any]]:
    """Returns a flow trained on rows until its log density of held-out ones is highest.

    The best of many validations on a few rows is high by chance: if its lead over the start is not
    more than a standard error, the flow is the start, as it is if a training step is not finite.

    Args:
      start: where the flow starts, but for a random rotation.
      rows, held_out: to learn, and to validate with.
      widths: of the uniform noise of columns, [D].
      options: the arguments of an estimator.
      rng: for rotation, batches and noise.
      index: of the flow among others, for messages.

    Returns the flow, and the history of its validations.
    """
    num_conditions, size = start.slopes.shape
    names = "num_couplings", "num_blocks", "num_filters", "transformer"
    architecture = tuple((name, getattr(options, name)) for name in names)
    # To compile takes as long as thousands of steps.
    is_long = rows.number > _MIN_ROWS_TO_COMPILE and options.max_steps > _MIN_STEPS_TO_COMPILE
    held_out = held_out.thinned(_MAX_HELD_OUT)
    all_steps = np.arange(options.max_steps)
    rates = (1 + np.cos(np.pi * all_steps / options.max_steps)) / 2
    rates *= options.learning_rate * np.minimum(1, (all_steps + 1) / _WARM_UP_STEPS)
    steps_per_validation = max(_MIN_STEPS_PER_VALIDATION, options.max_steps // _MAX_VALIDATIONS)
    before = time.perf_counter()
    history: dict[str, Any] = {"step": [], "noise": [], "lead": [], "lead_error": []}
    with _LOCK:
        model, initial_values = _shared_model(size, num_conditions, start.df, architecture)
        with contextlib.suppress(NonFiniteLossError):  # of a fit that was interrupted
            model.raise_failure()
        for variable, value in initial_values:
            variable.assign(value)
        flow = TableFlow(start.rotated(rng), architecture, model.get_weights())
        best, best_lead, best_error, kept = flow, 0.0, 0.0, -1
        start_log_probs = flow.log_prob(held_out.values)
        for steps in slices(steps_per_validation, all_steps, rates):
            noise = options.noise
            if noise is None:
                part = min(1.0, 1.25 * steps[0][0] / options.max_steps)
                noise = _FIRST_NOISE * (_LAST_NOISE / _FIRST_NOISE) ** part
            batches = rows.draw([len(steps[0]), options.batch_size], rng)
            conditions, events = np.split(batches, [num_conditions], axis=-1)
            events += widths * rng.uniform(-0.5, 0.5, events.shape)
            latents = flow.start.latents(batches)
            # The conditions get it as well, since networks learn few rows by heart.
            conditions, latents = (
                array + noise * rng.normal(size=array.shape) for array in (conditions, latents)
            )
            tensors = map(_float32, (latents, conditions, steps[1]))
            try:
                call_traced(_make_steps, model, (), *tensors, jit_compile=is_long)
                model.raise_failure()
            except NonFiniteLossError as error:
                warnings.warn(
                    f"flow {index + 1} is left out: with learning_rate={options.learning_rate:g} "
                    f"its training diverged at step {error.step}, first in {error.part}. A smaller "
                    "learning_rate may help.",
                    ConvergenceWarning,
                    stacklevel=2,
                )
                best_lead = 0.0
                break
            trained = flow._replace(weights=model.get_weights())
            leads = trained.log_prob(held_out.values) - start_log_probs
            lead, error = held_out.mean_and_error(leads)
            step = int(steps[0][-1]) + 1
            for name, value in zip(history, (step, noise, lead, error), strict=True):
                history[name].append(value)
            number = len(history["step"])
            if number % _VALIDATIONS_PER_LINE == 1:
                left = (time.perf_counter() - before) * (options.max_steps / step - 1)
                options.progress(
                    f"flow {index + 1}, step {step:,} of {options.max_steps:,}: {lead:+.3f} ± "
                    f"{error:.3f} nats a held-out row beside the start, at most {left:.0f} s left "
                    "for this flow"
                )
            if lead > best_lead:
                best, best_lead, best_error, kept = trained, lead, error, number - 1
            elif number - 1 - kept >= options.patience:
                break
    if best_lead <= best_error:
        return flow, {**history, "kept_step": 0, "kept_noise": math.nan}
    kept_values = {f"kept_{name}": history[name][kept] for name in ("step", "noise")}
    return best, history | kept_values


@functools.lru_cache(maxsize=16)
def _shared_model(
    size: int, num_conditions: int, df: float, architecture: tuple[tuple[str, Any], ...]
) -> tuple[FlowModel, list[tuple[Any, np.ndarray]]]:
    """Returns a compiled model, and its variables with their initial values.

    All flows of one architecture in a process set its weights in turn, and share its graphs.
    """
    df, mean, stddev = (tf.constant(value, tf.float32) for value in (df, 0.0, 1.0))
    base = tfd.Sample(tfd.StudentT(df, mean, stddev), [size])
    with initial_seeds_from(random.Random(0)):
        flow = RealNVPVector(
            size,
            normalization=None,
            network_dtype="float32",  # whatever Keras' global policy is
            conditional_event_shape=[num_conditions] if num_conditions else None,
            dtype=tf.float32,
            **dict(architecture),
        )
        model = FlowModel(tfd.TransformedDistribution(base, flow))
        model.compile(FusedAdam(global_clipnorm=10.0))
        model.build_optimizer()
    variables = [*model.variables, *model.optimizer.variables]
    return model, [(variable, variable.numpy()) for variable in variables]


def _float32(array: np.ndarray) -> tf.Tensor:
    return tf.constant(array.astype(np.float32))


def _evaluate(
    model: FlowModel, name: str, weights: tf.Tensor, values: tf.Tensor, conditions: tf.Tensor
) -> tf.Tensor:
    """Returns a method of the model with other weights [P] than its own, without assigning them."""
    options = {"conditional_input": conditions} if conditions.shape[-1] else {}
    parts = tf.split(weights, [math.prod(weight.shape) for weight in model.weights])
    mapping = [(w, tf.reshape(p, w.shape)) for w, p in zip(model.weights, parts, strict=True)]
    with keras.StatelessScope(mapping):
        if name == "log_prob":
            return model.distribution.log_prob(values, bijector_kwargs=options)
        return getattr(model.distribution.bijector, name)(values, **options)


def _make_steps(
    model: FlowModel, events: tf.Tensor, conditions: tf.Tensor, rates: tf.Tensor
) -> list[tf.Tensor]:
    """Makes steps with batches [steps, N, D] and [steps, N, C], at their rates [steps].

    The pipelines of `FlowModel.fit` take longer to set up than a few rows take to train.
    """

    def step(i: tf.Tensor) -> list[tf.Tensor]:
        model.optimizer.learning_rate.assign(rates[i])
        model.train_step((events[i], conditions[i]) if conditions.shape[-1] else events[i])
        return [i + 1]

    return tf.while_loop(lambda i: i < tf.shape(events)[0], step, [0])

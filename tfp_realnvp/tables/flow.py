"""Flows of the rows of small tables, whose graphs are shared by all flows of an architecture."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import random
import threading
import time
import warnings
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from sklearn.exceptions import ConvergenceWarning

from tfp_realnvp.flows import RealNVPVector
from tfp_realnvp.internal.initial_seeds import initial_seeds_from
from tfp_realnvp.tables.student_t import StudentT
from tfp_realnvp.tables.weighted_rows import Rows
from tfp_realnvp.training.diagnosis import NonFiniteLossError
from tfp_realnvp.training.flow_model import FlowModel
from tfp_realnvp.training.fused_adam import FusedAdam

__all__ = ["TableFlow", "TableFlowOptions", "fit_table_flow"]

tfd = tfp.distributions

_MIN_ROWS_TO_COMPILE = 1_000
_NOISE = 0.3, 0.01
_WARM_UP_STEPS = 50
_STEPS_PER_VALIDATION = 50
_VALIDATIONS_PER_LINE = 5
_MAX_HELD_OUT = 2_048
_CHUNK_SIZE = 8_192
# Models are shared by all flows of a process, see `_shared_model`.
_LOCK = threading.RLock()


class TableFlowOptions(NamedTuple):
    """Options of flows and of their training, see `FlowDensity`."""

    num_couplings: int
    num_blocks: int
    num_filters: int
    transformer: Any
    noise: float | None
    max_steps: int
    patience: int
    learning_rate: float
    batch_size: int
    verbose: int

    def noise_of_step(self, step: int) -> float:
        """Returns the standard deviation of the noise."""
        if self.noise is not None:
            return self.noise
        first, last = _NOISE
        return first * (last / first) ** min(1.0, 1.25 * step / self.max_steps)

    def learning_rates(self, steps: np.ndarray) -> np.ndarray:
        """Returns the learning rates of steps."""
        annealed = (1 + np.cos(np.pi * np.minimum(steps / self.max_steps, 1))) / 2
        return self.learning_rate * np.minimum(1, (steps + 1) / _WARM_UP_STEPS) * annealed


@dataclasses.dataclass(frozen=True)
class TableFlow:
    """A flow after an affine map, as arrays that can be pickled.

    Attributes:
      start: the affine map.
      model_key: of the model that the weights belong to.
      weights: of the model.
    """

    start: StudentT
    model_key: _ModelKey
    weights: list[np.ndarray]

    def log_prob(self, rows: np.ndarray) -> np.ndarray:
        """Returns the log density of the events of rows given their conditions, [N]."""
        conditions = rows[:, : self.model_key.num_conditions]
        log_probs = self._by_chunks("log_prob", self.start.latents(rows), conditions)
        # Latents out of the range of float32 are in no part of the flow's mass.
        return np.where(np.isnan(log_probs), -np.inf, log_probs) + self.start.log_det

    def sample(self, conditions: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
        """Returns events [N, D] given conditions [N, C] from uniform numbers [N, 1 + D]."""
        latents = self.start.quantiles(uniforms[:, 1:])
        return self.start.events(self._by_chunks("forward", latents, conditions), conditions)

    def mean_of_events(self, conditions: np.ndarray) -> np.ndarray:
        """Returns the mean of events given conditions, [N, D], by nodes of the latents."""
        latents, weights = self.start.nodes()
        means = np.zeros([len(conditions), latents.shape[1]])
        for latent, weight in zip(latents, weights, strict=True):
            latents = np.broadcast_to(latent, means.shape)
            means += weight * self._by_chunks("forward", latents, conditions)
        return self.start.events(means, conditions)

    def cdf(self, rows: np.ndarray) -> np.ndarray:
        """Returns the cumulative distribution function at the rows of a single column, [N]."""
        # The map may be a falling one, in all rows or in none: two rows of zeros tell which.
        two_rows = np.zeros([2, rows.shape[1]])
        two_rows[1, -1] = 1.0
        all_rows = np.concatenate([two_rows, rows])
        conditions = all_rows[:, : self.model_key.num_conditions]
        latents = self._by_chunks("inverse", self.start.latents(all_rows), conditions)[:, 0]
        cdf = self.start.cdf_of_latents(latents[2:] * np.sign(latents[1] - latents[0]))
        # The start is as good for latents out of the range of float32.
        return np.where(np.isnan(cdf), self.start.cdf(rows), cdf)

    def _by_chunks(self, name: str, *arrays: np.ndarray) -> np.ndarray:
        with _LOCK:
            model = _shared_model(self.model_key)
            model.keras_model.set_weights(self.weights)
            starts = range(0, len(arrays[0]), _CHUNK_SIZE)
            with np.errstate(over="ignore"):
                chunks = [
                    [array[i : i + _CHUNK_SIZE].astype(np.float32) for array in arrays]
                    for i in starts
                ]
            results = [getattr(model, name)(*chunk).numpy() for chunk in chunks]
            return np.concatenate(results).astype(np.float64)


def fit_table_flow(
    start: StudentT,
    rows: Rows,
    held_out: Rows,
    widths: np.ndarray,
    options: TableFlowOptions,
    rng: np.random.Generator,
    index: int,
) -> tuple[TableFlow, dict[str, Any]]:
    """Returns a flow trained on rows until its log density of held-out ones is highest.

    If that is not higher than at the start by more than a standard error, it returns the start: the
    best of many validations on a few rows is high by chance. So it does, with a warning, if a step
    of the training is not finite.

    Args:
      start: where the flow starts, but for a random rotation.
      rows: to learn from.
      held_out: rows to validate with.
      widths: of the uniform noise of columns, [D].
      options: of the flow and the training.
      rng: for rotation, batches and noise.
      index: of the flow among others, for what is printed.

    Returns:
      The flow, and the history of its validations.
    """
    num_conditions, size = start.slopes.shape
    key = _ModelKey(
        size,
        num_conditions,
        start.df,
        # To compile takes as long as thousands of steps.
        jit_compile=rows.number > _MIN_ROWS_TO_COMPILE and options.max_steps > 200,
        num_couplings=options.num_couplings,
        num_blocks=options.num_blocks,
        num_filters=options.num_filters,
        transformer=options.transformer,
    )
    # The rows are in order, so that a part of them is spread evenly.
    held_out = Rows(*(array[:: -(-len(array) // _MAX_HELD_OUT)] for array in held_out))
    num_steps = min(_STEPS_PER_VALIDATION, options.max_steps)
    before = time.perf_counter()
    history: dict[str, Any] = {"step": [], "noise": [], "lead": [], "lead_error": []}
    with _LOCK:
        model = _shared_model(key)
        model.reset()
        best = flow = TableFlow(start.rotated(rng), key, model.keras_model.get_weights())
        start_log_probs = flow.log_prob(held_out.values)
        best_lead, best_error, kept = 0.0, 0.0, (0, math.nan)
        for step in range(0, options.max_steps, num_steps):
            noise = options.noise_of_step(step)
            batches = rows.draw([num_steps, options.batch_size], rng)
            conditions, events = np.split(batches, [num_conditions], axis=-1)
            events += widths * rng.uniform(-0.5, 0.5, events.shape)
            latents = flow.start.latents(batches)
            # The conditions get it as well, since networks learn few rows by heart.
            conditions, latents = (
                (array + noise * rng.normal(size=array.shape)).astype(np.float32)
                for array in (conditions, latents)
            )
            try:
                model.train(
                    latents, conditions, options.learning_rates(step + np.arange(num_steps))
                )
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
            trained = dataclasses.replace(flow, weights=model.keras_model.get_weights())
            lead, error = held_out.mean_and_error(
                trained.log_prob(held_out.values) - start_log_probs
            )
            values = step + num_steps, noise, lead, error
            for name, value in zip(history, values, strict=True):
                history[name].append(value)
            if options.verbose and (step // num_steps) % _VALIDATIONS_PER_LINE == 0:
                seconds = time.perf_counter() - before
                left = seconds * (options.max_steps / (step + num_steps) - 1)
                print(
                    f"flow {index + 1}, step {step + num_steps:,} of "
                    f"{options.max_steps:,}: {lead:+.3f} ± {error:.3f} nats a held-out row beside "
                    f"the start, at most {left:.0f} s left for this flow",
                    flush=True,
                )
            if lead > best_lead:
                best, best_lead, best_error = trained, lead, error
                kept = step + num_steps, noise
            elif len(history["step"]) - kept[0] // num_steps >= options.patience:
                break
    if best_lead <= best_error:
        best, kept = flow, (0, math.nan)
    return best, {**history, "kept_step": kept[0], "kept_noise": kept[1]}


class _ModelKey(NamedTuple):
    """What the graphs of a model depend on."""

    size: int
    num_conditions: int
    df: float
    jit_compile: bool
    num_couplings: int
    num_blocks: int
    num_filters: int
    transformer: Any


class _SharedModel:
    """A compiled model, to which flows of one architecture lend their weights in turn.

    Its tensors go directly to `FlowModel.train_step`, since the pipelines of `FlowModel.fit` take
    longer to set up than a few rows take to train.
    """

    def __init__(self, key: _ModelKey) -> None:
        dtype = tf.float32
        df, mean, stddev = (tf.constant(value, dtype) for value in (key.df, 0.0, 1.0))
        base = tfd.Sample(tfd.StudentT(df, mean, stddev), [key.size])
        flow = RealNVPVector(
            key.size,
            key.num_couplings,
            key.num_blocks,
            key.num_filters,
            transformer=key.transformer,
            normalization=None,
            network_dtype="float32",  # whatever Keras' global policy is
            conditional_event_shape=[key.num_conditions] if key.num_conditions else None,
            dtype=dtype,
        )
        model = FlowModel(tfd.TransformedDistribution(base, flow))
        model.compile(FusedAdam(global_clipnorm=10.0))
        model.build_optimizer()
        self.keras_model = model

        def conditional(conditions: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"conditional_input": conditions} if key.num_conditions else {}

        events_spec = tf.TensorSpec([None, key.size], dtype)
        conditions_spec = tf.TensorSpec([None, key.num_conditions], dtype)

        @tf.function(input_signature=[events_spec, conditions_spec])
        def log_prob(events: tf.Tensor, conditions: tf.Tensor) -> tf.Tensor:
            options = conditional(conditions)
            return model.distribution.log_prob(events, bijector_kwargs=options)

        @tf.function(input_signature=[events_spec, conditions_spec])
        def forward(latents: tf.Tensor, conditions: tf.Tensor) -> tf.Tensor:
            return flow.forward(latents, **conditional(conditions))

        @tf.function(input_signature=[events_spec, conditions_spec])
        def inverse(events: tf.Tensor, conditions: tf.Tensor) -> tf.Tensor:
            return flow.inverse(events, **conditional(conditions))

        batches_specs = [
            tf.TensorSpec([None, None, size], dtype) for size in (key.size, key.num_conditions)
        ]
        rates_spec = tf.TensorSpec([None], tf.float32)
        # AutoGraph is for the loop alone.
        train_step = tf.autograph.experimental.do_not_convert(model.train_step)
        learning_rate = model.optimizer.learning_rate

        @tf.function(input_signature=[*batches_specs, rates_spec], jit_compile=key.jit_compile)
        def make_steps(events: tf.Tensor, conditions: tf.Tensor, rates: tf.Tensor) -> None:
            for i in tf.range(tf.shape(events)[0]):
                learning_rate.assign(rates[i])
                train_step((events[i], conditions[i]) if key.num_conditions else events[i])

        self.log_prob, self.forward, self.inverse = log_prob, forward, inverse
        self._make_steps = make_steps
        variables = [*model.variables, *model.optimizer.variables]
        self._initial_values = [(variable, variable.numpy()) for variable in variables]

    def train(self, events: np.ndarray, conditions: np.ndarray, rates: np.ndarray) -> None:
        """Makes steps with batches [steps, N, D] and [steps, N, C], at their rates [steps].

        Raises:
          NonFiniteLossError: if a step was not finite.
        """
        self._make_steps(events, conditions, rates)
        self.keras_model.raise_failure()

    def reset(self) -> None:
        """Returns weights and optimizer to where they were before any training."""
        with contextlib.suppress(NonFiniteLossError):  # of a fit that was interrupted
            self.keras_model.raise_failure()
        for variable, value in self._initial_values:
            variable.assign(value)


@functools.lru_cache(maxsize=16)
def _shared_model(key: _ModelKey) -> _SharedModel:
    """Returns the model of an architecture, traced once in a process for all flows and clones."""
    with initial_seeds_from(random.Random(0)):
        return _SharedModel(key)

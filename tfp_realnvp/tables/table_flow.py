"""Flows for small tables: pure functions of a vector of weights."""

import functools
import inspect
import math
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from scipy.special import stdtr, stdtrit
from scipy.stats import qmc
from sklearn.exceptions import ConvergenceWarning
from tensorflow_probability import distributions as tfd

from tfp_realnvp.flows import RealNVPVector
from tfp_realnvp.internal.batch_dims import slices
from tfp_realnvp.internal.progress import Progress
from tfp_realnvp.tables.options import Options
from tfp_realnvp.tables.simple_densities import StudentT
from tfp_realnvp.tables.table import Rows

_MIN_ROWS_TO_COMPILE, _MIN_STEPS_TO_COMPILE = 1_000, 200
_FIRST_NOISE, _LAST_NOISE = 0.3, 0.01
_WARM_UP_STEPS, _MIN_STEPS_PER_VALIDATION = 50, 50
_MAX_VALIDATIONS, _VALIDATIONS_PER_LINE = 40, 5
_MAX_HELD_OUT, _CHUNK_SIZE = 2_048, 8_192
_NUM_NODES, _NUM_NODES_OF_ONE = 256, 64
# A process caches the graphs of this many architectures.
_MAX_ARCHITECTURES = 8
_MAX_NORM, _BETA1, _BETA2, _EPSILON = 10.0, 0.9, 0.999, 1e-7


class TableFlow(NamedTuple):
    """A flow composed with an affine map, as arrays that can be pickled.

    Attributes:
      start: the affine map from events to latents.
      options: names and values of all arguments of `RealNVPVector` but the size.
      weights: the weights of the flow, [P], float32.
    """

    start: StudentT
    options: tuple[tuple[str, Any], ...]
    weights: np.ndarray

    def log_prob(self, rows: np.ndarray) -> np.ndarray:
        """Returns the log density of the events of rows given their conditions, [N].

        Latents that overflow float32 give NaN or -inf.
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
            # In one dimension, the midpoint rule with denser nodes in the tails needs fewer nodes.
            middles = (np.arange(_NUM_NODES_OF_ONE) + 0.5) / _NUM_NODES_OF_ONE
            uniforms = (middles**2 * (3 - 2 * middles))[:, np.newaxis]
            weights = middles * (1 - middles)
        nodes, means = stdtrit(self.start.df, uniforms), []
        for (chunk,) in slices(max(1, _CHUNK_SIZE // len(nodes)), conditions):
            latents = np.repeat(nodes, len(chunk), axis=0)
            values = self._call("forward", latents, np.tile(chunk, [len(nodes), 1]))
            values = values.reshape([len(nodes), -1, size])
            means.append(np.average(values, axis=0, weights=weights))
        return self.start.events(np.concatenate(means), conditions)

    def tails(self, rows: np.ndarray) -> np.ndarray:
        """Returns the CDF and the survival function at one-dimensional events, [2, N]."""
        # Latents increase with the event for all conditions, or decrease for all. Two probe rows
        # determine the sign.
        two_rows = np.zeros([2, rows.shape[1]])
        two_rows[1, -1] = 1.0
        all_rows = np.concatenate([two_rows, rows])
        latents = self._call("inverse", self.start.latents(all_rows), all_rows)[:, 0]
        latents = latents[2:] * np.sign(latents[1] - latents[0])
        tails = stdtr(self.start.df, np.stack([latents, -latents]))
        # Latents that overflow float32 are NaN. There, use the tails of the initial density.
        return np.where(np.isnan(latents), self.start.tails(rows), tails)

    def _call(self, name: str, values: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Calls a method of the flow with values [N, D] and the conditions of rows."""
        function = _functions(*self.start.slopes.shape, self.start.df, self.options)[1][name]
        with np.errstate(over="ignore"):
            chunks = slices(_CHUNK_SIZE, values, rows[:, : len(self.start.slopes)])
            results = [function(self.weights, *_float32(*chunk)).numpy() for chunk in chunks]
        return np.concatenate(results).astype(np.float64)


def fit_table_flow(
    start: StudentT,
    split: tuple[Rows, Rows],
    widths: np.ndarray,
    options: Options,
    rng: np.random.Generator,
    progress: Progress,
    index: int,
) -> Iterator[tuple[TableFlow, dict[str, Any]]]:
    """Trains a flow; after each validation on held-out rows, yields the best flow and the history.

    The initial flow is `start` with randomly rotated latents. It is chosen as the best flow if a
    training step is not finite, or if the best validation result improves on it by at most one
    standard error, because the best of many validations on a small number of rows is high by
    chance. `widths`, [D], are the widths of uniform noise for rounded columns, and `index` is the
    number of the flow in messages.
    """
    (num_conditions, size), (rows, held_out) = start.slopes.shape, split
    items = _flow_options(num_conditions, options)
    weights, functions = _functions(num_conditions, size, start.df, items)
    # Compiling a step with XLA takes as long as thousands of steps without XLA.
    is_long = rows.number > _MIN_ROWS_TO_COMPILE and options.max_steps > _MIN_STEPS_TO_COMPILE
    held_out = held_out.thinned(_MAX_HELD_OUT)
    all_steps = np.arange(options.max_steps)
    rates = (1 + np.cos(np.pi * all_steps / options.max_steps)) / 2
    rates *= options.learning_rate * np.minimum(1, (all_steps + 1) / _WARM_UP_STEPS)
    # Adam's bias correction depends on the step alone.
    rates *= np.sqrt(1 - _BETA2 ** (all_steps + 1)) / (1 - _BETA1 ** (all_steps + 1))
    steps_per_validation = max(_MIN_STEPS_PER_VALIDATION, options.max_steps // _MAX_VALIDATIONS)
    before, untimed = time.perf_counter(), 0
    history: dict[str, Any] = {"step": [], "noise": [], "lead": [], "lead_error": []}
    flow = TableFlow(start.rotated(rng), items, weights)
    best = initial = flow, {"kept_step": 0, "kept_noise": math.nan}
    state = [tf.constant(weights), *[tf.zeros(len(weights))] * 2]
    best_lead, kept = 0.0, -1
    start_log_probs = flow.log_prob(held_out.values)
    for number, (steps, some_rates) in enumerate(slices(steps_per_validation, all_steps, rates)):
        part = min(1.0, 1.25 * steps[0] / options.max_steps)
        decreasing = _FIRST_NOISE * (_LAST_NOISE / _FIRST_NOISE) ** part
        noise = decreasing if options.noise is None else options.noise
        batches = rows.draw([len(steps), options.batch_size], rng)
        conditions, events = np.split(batches, [num_conditions], axis=-1)
        events += widths * rng.uniform(-0.5, 0.5, events.shape)
        # Conditions get noise too; otherwise networks memorize the rows of small tables.
        arrays = conditions, flow.start.latents(batches)
        conditions, latents = (a + noise * rng.normal(size=a.shape) for a in arrays)
        tensors = _float32(latents, conditions, some_rates)
        *state, number_made = functions["compiled" if is_long else "train"](*state, *tensors)
        if number_made < len(steps):
            warnings.warn(
                f"flow {index + 1} is left out: with learning_rate={options.learning_rate:g} its "
                f"training diverged at step {steps[0] + int(number_made)}. A smaller "
                "learning_rate may help.",
                ConvergenceWarning,
                stacklevel=2,
            )
            yield flow, history | initial[1]
            return
        trained = flow._replace(weights=state[0].numpy())
        lead, error = held_out.mean_and_error(trained.log_prob(held_out.values) - start_log_probs)
        step = int(steps[-1]) + 1
        for name, value in zip(history, (step, noise, lead, error), strict=True):
            history[name].append(value)
        if number == index == 0:  # the first steps include the time of tracing
            before, untimed = time.perf_counter(), step
        if number % _VALIDATIONS_PER_LINE == 0:
            left = (options.num_flows - index) * options.max_steps - step
            left *= (time.perf_counter() - before) / max(step - untimed, 1)
            of_time = f", at most {left:.0f} s left" if step > untimed else ""
            progress(
                f"flow {index + 1} of {options.num_flows}, step {step:,} of {options.max_steps:,}"
                f"{of_time}: {lead:+.3f} ± {error:.3f} nats per held-out row above the start"
            )
        if lead > best_lead:
            best_lead, kept = lead, number
            best = (trained, {"kept_step": step, "kept_noise": noise}) if lead > error else initial
        yield best[0], history | best[1]
        if number - kept >= options.patience:
            return


def _flow_options(num_conditions: int, options: Options) -> tuple[tuple[str, Any], ...]:
    """Returns all arguments of `RealNVPVector` but the size, those with defaults too.

    The flow in a pickle therefore does not depend on the defaults of the version that loads it.
    """
    parameters = inspect.signature(RealNVPVector.__init__).parameters.values()
    empty = inspect.Parameter.empty
    values = {each.name: each.default for each in parameters if each.default is not empty}
    names = "num_couplings", "num_blocks", "num_filters", "transformer"
    values |= {name: getattr(options, name) for name in names}
    # The dtype of the networks does not depend on Keras' global policy.
    values |= {"activation": "tanh", "normalization": None, "seed": 0}
    values |= {"dtype": "float32", "network_dtype": "float32"}
    values["conditional_event_shape"] = (num_conditions,) if num_conditions else None
    return tuple(values.items())


def _float32(*arrays: Any) -> list[tf.Tensor]:
    return [tf.constant(array.astype(np.float32)) for array in arrays]


@functools.lru_cache(_MAX_ARCHITECTURES)
def _functions(
    num_conditions: int, size: int, df: float, options: tuple[tuple[str, Any], ...]
) -> tuple[np.ndarray, dict[str, Callable[..., Any]]]:
    """Returns the initial weights [P] of an architecture, and functions that take weights.

    A process traces these functions once per architecture. The cached graphs stay valid: weights
    are arguments, and no variable is assigned.
    """
    flow = RealNVPVector(size, **dict(options))
    layers = [layer for part in (flow, *flow.submodules) for layer in getattr(part, "layers", ())]
    variables = [variable for layer in dict.fromkeys(layers) for variable in layer.variables]
    base = tfd.Sample(tfd.StudentT(*map(tf.constant, (float(df), 0.0, 1.0))), [size])
    distribution = tfd.TransformedDistribution(base, flow)

    def call(name: str, weights: tf.Tensor, values: tf.Tensor, conditions: tf.Tensor) -> tf.Tensor:
        given = {"conditional_input": conditions} if num_conditions else {}
        parts = tf.split(weights, [math.prod(variable.shape) for variable in variables])
        pairs = zip(variables, parts, strict=True)
        values_of = [(v, tf.cast(tf.reshape(part, v.shape), v.dtype)) for v, part in pairs]
        with keras.StatelessScope(values_of):
            if name == "log_prob":
                return distribution.log_prob(values, bijector_kwargs=given)
            return getattr(flow, name)(values, **given)

    def train(*arguments: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """Makes one Adam step per batch and learning rate.

        Stops before a nonfinite step. Returns the weights, the moments and the number of steps.
        """
        *start, events, conditions, rates = arguments

        def step(i: tf.Tensor, _: tf.Tensor, *state: tf.Tensor) -> tuple[tf.Tensor, ...]:
            weights, momentum, velocity = state
            with tf.GradientTape() as tape:
                tape.watch(weights)
                loss = -tf.reduce_mean(call("log_prob", weights, events[i], conditions[i]))
            gradient = tape.gradient(loss, weights)
            norm = tf.norm(gradient)
            gradient *= _MAX_NORM / tf.maximum(norm, _MAX_NORM)
            momentum += (gradient - momentum) * (1 - _BETA1)
            velocity += (tf.square(gradient) - velocity) * (1 - _BETA2)
            weights -= rates[i] * momentum / (tf.sqrt(velocity) + _EPSILON)
            new = weights, momentum, velocity
            is_finite = tf.math.is_finite(loss + norm)
            changed = [tf.where(is_finite, *pair) for pair in zip(new, state, strict=True)]
            return i + tf.cast(is_finite, tf.int32), is_finite, *changed

        def goes_on(i: tf.Tensor, is_finite: tf.Tensor, *_: tf.Tensor) -> tf.Tensor:
            return is_finite & (i < tf.shape(events)[0])

        start = [tf.constant(0), tf.constant(True), *start]
        number, _, *state = tf.while_loop(goes_on, step, start)
        return *state, number

    initial = np.concatenate([np.ravel(variable.numpy()) for variable in variables])
    vector = tf.TensorSpec([len(initial)])
    rows = tf.TensorSpec([None, size]), tf.TensorSpec([None, num_conditions])
    batches = tf.TensorSpec([None, None, size]), tf.TensorSpec([None, None, num_conditions])
    of_steps = [*[vector] * 3, *batches, tf.TensorSpec([None])]

    def traced(function: Any, signature: Any, *arguments: str, **options: Any) -> Any:
        # TensorFlow counts the traces of each function object, and warns of more than a few. A
        # `partial` is a new object for each architecture.
        part = functools.partial(function, *arguments)
        return tf.function(part, input_signature=signature, autograph=False, **options)

    functions = {n: traced(call, [vector, *rows], n) for n in ("log_prob", "forward", "inverse")}
    functions["train"] = traced(train, of_steps)
    functions["compiled"] = traced(train, of_steps, jit_compile=True)
    return initial.astype(np.float32), functions

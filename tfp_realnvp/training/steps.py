"""One step of training and one of evaluation, on one batch, without a Keras model."""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from tensorflow_probability import distributions as tfd

from tfp_realnvp import pixels
from tfp_realnvp.bijectors.flow_bijector import surround_with
from tfp_realnvp.distributions import objective, scorer
from tfp_realnvp.distributions.data_spec import Batch, Check, DataSpec, parse
from tfp_realnvp.internal import private_api, replicas, streams, validation
from tfp_realnvp.training.diagnosis import FiniteGuard, FiniteRecord
from tfp_realnvp.training.input_data import checked_events
from tfp_realnvp.training.learning_rate import StepRates
from tfp_realnvp.training.model_parts import ModelParts
from tfp_realnvp.training.packing import apply_if, packing_of


@dataclasses.dataclass(frozen=True)
class CompileOptions:
    """The options of `FlowModel.compile`, which a saved model stores by name; see there."""

    scale_l2: float = 0.0
    global_statistics: bool = True
    anneal: bool = False
    first_step: int = 0

    def __post_init__(self) -> None:
        caller = "FlowModel.compile: expected"
        expected = f"{caller} a scale_l2 of at least 0"
        validation.real(self.scale_l2, lambda x: 0 <= x < np.inf, expected)
        validation.flag(self.global_statistics, f"{caller} a bool as global_statistics")
        validation.flag(self.anneal, f"{caller} a bool as anneal")
        validation.count(self.first_step, "a first_step", 0, "FlowModel.compile")


class StepResult(NamedTuple):
    """What a step has computed on this replica's part of a batch."""

    batch: Batch
    log_prob: tf.Tensor  # of the events, [B]; [2, B] in training with labels of a `ClassMixture`
    total: tf.Tensor  # sum of the weights in the batch of all replicas
    mean: tf.Tensor  # weighted mean of `log_prob` over the batch of all replicas
    loss: tf.Tensor | None  # objective, summed over replicas


# The objective of this replica, a term of the sum over replicas, given a batch and `log_prob`.
Objective = Callable[[Batch, tf.Tensor], tf.Tensor]


@dataclasses.dataclass(frozen=True, eq=False)
class TrainingStep:
    """Makes steps that minimize an objective, unless a value or gradient is not finite.

    #### Example

    A loop without a Keras model, with the objective `-mean(log p)`:

    >>> import keras, numpy as np, tensorflow as tf, tensorflow_probability as tfp
    >>> import tfp_realnvp as tfr
    >>> from tfp_realnvp.distributions.data_spec import DataSpec
    >>> from tfp_realnvp.training.model_parts import ModelParts
    >>> from tfp_realnvp.training.steps import TrainingStep
    >>> tfd = tfp.distributions
    >>> spec = DataSpec(tfd.TransformedDistribution(
    ...     tfd.Sample(tfd.Normal(0., 1.), [2]), tfr.RealNVPVector(2, num_filters=4)))
    >>> spec.build_networks()
    >>> step = TrainingStep(spec, ModelParts(spec), keras.optimizers.SGD(0.01))
    >>> step.optimizer.build(step.parts.trainable_variables)
    >>> rows = np.random.default_rng(0).normal(size=[8, 2]).astype(np.float32)
    >>> losses = [float(step(rows).loss) for _ in range(3)]
    >>> losses[2] < losses[1]
    True
    """

    data_spec: DataSpec
    parts: ModelParts
    optimizer: keras.optimizers.Optimizer | None = None
    options: CompileOptions = CompileOptions()
    rates: StepRates | None = None
    guard: FiniteGuard = dataclasses.field(default_factory=FiniteGuard)

    def __call__(
        self,
        data: Any,
        variables: Sequence[keras.Variable] | None = None,
        objective_fn: Objective | None = None,
    ) -> StepResult:
        """Makes a step with a batch of any form that `FlowModel.fit` takes.

        `variables` are the variables to train, by default all; `objective_fn` is by default the
        result of `loss`, and the losses of layers do not count.
        """
        variables = self.parts.trainable_variables if variables is None else variables
        objective_fn = self.loss if objective_fn is None else objective_fn
        batch, checks = self.data_spec.batch(data)
        record = FiniteRecord(checks)
        part = replicas.part_of_batch(tf.shape(batch.events)[0], batch.weights)
        replicas.assert_not_empty(batch.events, "FlowModel.fit")
        step = tf.cast(private_api.batch_counter(self.optimizer).value, tf.int64)
        statistics = self.parts.statistics
        before = [tf.convert_to_tensor(variable) for variable in statistics]
        with tf.GradientTape() as tape:
            log_prob = self.log_prob(batch, self.draw(), part.first, record)
            loss = objective_fn(batch, log_prob)
            scaled_loss = self.optimizer.scale_loss(loss)
        values = [variable.value for variable in variables]
        gradients = tape.gradient(scaled_loss, values, unconnected_gradients="zero")
        mean = objective.part_of_mean(log_prob, batch.weights, part.total)
        name = self.data_spec.distribution.name
        record.add(f"the log density of {name}, after its bijectors", log_prob)
        packing = packing_of(self.optimizer, variables)
        are_finite = record.are_finite() / replicas.num_replicas()
        shared = [mean, loss, are_finite, *packing.pack(gradients)]
        mean, loss, are_finite, *packed = replicas.sum_over_replicas(shared)
        if not self.options.global_statistics:
            replicas.average(statistics)
        is_applied = self.guard.check(step, record, are_finite, packing, packed, [loss])
        if batch.weights is not None:
            # Skip a batch whose weights are all zero.
            is_applied &= part.total > 0
        with self.scheduled_rate(part.number, is_applied) as is_made:
            apply_if(is_made, self.optimizer, gradients, packed, packing, variables)
        replicas.restore_unless(is_made, statistics, before)
        return StepResult(batch, log_prob, part.total, mean, loss)

    def draw(self) -> tf.Tensor:
        """Returns the number of the current step, an int32, which determines its noise."""
        step = private_api.batch_counter(self.optimizer).value
        return self.options.first_step + tf.cast(step, tf.int32)

    def log_prob(
        self,
        batch: Batch,
        draw: tf.Tensor | int,
        first: tf.Tensor | int = 0,
        record: FiniteRecord | None = None,
    ) -> tf.Tensor:
        """Returns the log densities that the step with number `draw` maximizes, [B] or [2, B].

        These are log p(x) minus log q of the step's noise; see `objective.training_log_prob`. Batch
        statistics are those of the batch, and update moving statistics. `first` is the number of
        events on preceding replicas. `record` gets the results of all bijectors.
        """
        record = FiniteRecord() if record is None else record
        spec = self.data_spec
        seed = tf.stack([spec.seed ^ streams.TRAINING_NOISE, draw])
        noise_fn = functools.partial(pixels.batch_noise, seed=seed, first=first)
        drop = functools.partial(objective.drop_conditions, seed=seed, first=first)
        statistics = replicas.Statistics(self.options.global_statistics, batch.weights)
        with surround_with(statistics=statistics):
            values, log_noise = spec.noise.add_noise(batch.events, noise_fn, training=True)
            record.add("the data", values)
            may_be_missing = getattr(spec.condition_spec, "may_be_missing", False)
            if batch.condition is not None and not may_be_missing:
                record.add("the condition", batch.condition)
            with surround_with(training=True, observer=record.add_bijector):
                options = values, batch.condition, drop
                log_prob = objective.training_log_prob(spec.distribution, *options)
        return log_prob - log_noise

    def loss(
        self, batch: Batch, log_prob: tf.Tensor, layer_losses: Sequence[tf.Tensor] = ()
    ) -> tf.Tensor:
        """Returns this replica's term of the sum of `-mean(log p)`, and of the penalty."""
        total = replicas.part_of_batch(tf.shape(batch.events)[0], batch.weights).total
        arguments = log_prob, batch.condition, batch.weights, total
        mean = objective.training_mean(self.data_spec.distribution, *arguments)
        return self.penalty(layer_losses) / replicas.num_replicas() - mean

    def penalty(self, layer_losses: Sequence[tf.Tensor] = ()) -> tf.Tensor:
        """Returns the sum of the L2 penalty of `compile` and the losses of layers, a scalar."""
        dtype = self.data_spec.distribution.dtype
        # Stack scales of equal shape, so that one operation and its gradient serve all of them.
        groups: dict[Any, list[tf.Tensor]] = {}
        for scale in self.parts.scales:
            groups.setdefault((scale.dtype, tuple(scale.shape)), []).append(scale.value)
        halves = [tf.cast(tf.nn.l2_loss(tf.stack(g)), dtype) for g in groups.values()]
        losses = [tf.reduce_sum(tf.cast(loss, dtype)) for loss in layer_losses]
        if halves:
            losses.append(2 * self.options.scale_l2 * tf.add_n(halves))
        return tf.add_n(losses) if losses else tf.zeros([], dtype)

    def scheduled_rate(
        self, number: tf.Tensor, is_made: tf.Tensor
    ) -> contextlib.AbstractContextManager[tf.Tensor]:
        """Returns a context with the learning rate of the step; see `StepRates.of_step`.

        `number` is the number of events in the batch of all replicas.
        """
        if self.rates is None:
            return contextlib.nullcontext(is_made)
        # With larger batches of vectors, steps are fewer and less noisy and allow higher rates.
        num_rows = number if self.data_spec.event_ndims == 1 else None
        return self.rates.of_step(self.optimizer, is_made, num_rows)


@dataclasses.dataclass(frozen=True, eq=False)
class EvaluationStep:
    """Scores batches with the first noise sample of each event.

    `distribution` is the distribution of `data_spec`, or an approximation.
    """

    data_spec: DataSpec
    distribution: tfd.Distribution

    def log_prob(self, batch: Batch, checks: Sequence[Check]) -> tf.Tensor:
        """Returns log densities [B] of a batch, given the unknown checks of `DataSpec.batch`.

        If a check fails, the graph raises an `InvalidArgumentError`. XLA leaves out assertions, so
        the results are NaN there.
        """
        events, condition, _ = checked_events(batch, checks)
        spec = self.data_spec
        options = self.distribution, spec.noise, None, False
        log_prob = scorer.score(*options, events, spec.seed, condition=condition)
        if not checks:
            return log_prob
        is_valid = tf.reduce_all([check.is_valid for check in checks])
        return tf.where(is_valid, log_prob, tf.constant(math.nan, log_prob.dtype))

    def predict(self, data: Any) -> tf.Tensor:
        """Returns log densities [B] of a batch of any form; they do not depend on weights."""
        return self.log_prob(*self.data_spec.batch(parse(data)._replace(weights=None)))

    def __call__(self, data: Any, objective_fn: Objective | None = None) -> StepResult:
        """Scores a batch of any form that `FlowModel.evaluate` takes, and computes an objective."""
        batch, checks = self.data_spec.batch(data)
        log_prob = self.log_prob(batch, checks)
        total = replicas.part_of_batch(tf.shape(batch.events)[0], batch.weights).total
        terms = [objective.part_of_mean(log_prob, batch.weights, total)]
        terms += [] if objective_fn is None else [objective_fn(batch, log_prob)]
        mean, *loss = replicas.sum_over_replicas(terms)
        return StepResult(batch, log_prob, total, mean, *(loss or [None]))

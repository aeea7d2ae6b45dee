"""The steps of a `FlowModel` on a batch: loss, gradients, update and metrics."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfp_realnvp import pixels
from tfp_realnvp.bijectors import ActNorm
from tfp_realnvp.bijectors.flow_bijector import surround_with
from tfp_realnvp.distributions import ClusterMixture, routing, scorer
from tfp_realnvp.internal import private_api, replicas, validation
from tfp_realnvp.saving.savable_model import SavableModel
from tfp_realnvp.training import few_labels, input_data
from tfp_realnvp.training.diagnosis import FiniteRecord
from tfp_realnvp.training.input_data import Batch
from tfp_realnvp.training.packing import apply_if, packing_of


class FlowSteps(SavableModel):
    """The steps of a `FlowModel`, which `keras.Model.fit`, `evaluate` and `predict` call."""

    # Whether the first batch of `fit` may initialize the normalizations before the first step.
    _may_initialize = False

    # In `FlowModel`, this method would hide the arguments of `__init__` from `inspect.signature`.
    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Raises `TypeError` for unknown keyword arguments."""
        validation.known_keywords(cls, kwargs)
        return super().__new__(cls, *args, **kwargs)

    @tf.autograph.experimental.do_not_convert
    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Makes one step that minimizes `compute_loss`, unless a value or gradient is not finite.

        A subclass can write a step of its own with `unpack_batch`, `training_log_prob` and
        `penalty`; the schedules of the learning rate apply to it.
        """
        batch = self.unpack_batch(data)
        part = replicas.part_of_batch(tf.shape(batch.events)[0], batch.weights)
        replicas.assert_not_empty(batch.events, "FlowModel.fit")
        step = tf.cast(private_api.batch_counter(self.optimizer).value, tf.int64)
        variables = self.trainable_variables
        statistics = self._statistics()
        before = [tf.convert_to_tensor(variable) for variable in statistics]
        record = input_data.record_of_data(self, batch)
        with tf.GradientTape() as tape:
            log_prob = self._training_log_prob(batch, part.first, record)
            loss = self._loss(batch, log_prob, training=True)
            objective = self.optimizer.scale_loss(loss)
        gradients = tape.gradient(
            objective,
            [variable.value for variable in variables],
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
        name = f"the log density of {self.distribution.name}, after its bijectors"
        record.add(name, log_prob)
        packing = packing_of(self.optimizer, variables)
        shared = [loss, record.are_finite() / replicas.num_replicas(), *packing.pack(gradients)]
        total, are_finite, *packed = replicas.sum_over_replicas(shared)
        if not self.global_statistics:
            replicas.average(statistics)
        is_applied = self._guard.check(step, record, are_finite, packing, packed, [total])
        if batch.weights is not None:
            # Skip a batch whose weights are all zero.
            is_applied &= part.total > 0
        with self._scheduled_rate(part) as is_made:
            is_applied &= is_made
            apply_if(is_applied, self.optimizer, gradients, packed, packing, variables)
        replicas.restore_unless(is_applied, statistics, before)
        return self._updated_metrics(batch, log_prob, total, part)

    def unpack_batch(self, data: Any) -> Batch:
        """Returns events, condition and weights of a batch of any form that `fit` takes.

        Args:
          data: images [B, H, W, C] or vectors [B, D], a tuple of events, conditions and weights, or
            a dictionary; what `train_step` gets.

        Returns:
          A named tuple of `events`, tensors as in the data; `condition`, int32 labels or floats of
          the distribution's dtype, or `None`; and `weights`, [B] in the distribution's dtype, or
          `None`.

        Raises:
          ValueError: if shapes or dtypes do not fit the distribution.
        """
        events, weights = input_data.events_and_weights(data, self.distribution)
        return Batch(events, self.condition_of(data), weights)

    def training_log_prob(self, batch: Batch) -> tf.Tensor:
        """Returns the log densities that a training step maximizes, [B], in nats.

        These are log p(x) minus log q of the step's noise. Noise, dropped conditions, batch
        statistics and moving statistics are those of the current step. With labels of a
        `ClassMixture`, returns [2, B]: log densities with and without the labels.
        """
        part = replicas.part_of_batch(tf.shape(batch.events)[0], batch.weights)
        return self._training_log_prob(batch, part.first, FiniteRecord())

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> tf.Tensor:
        """Returns the objective that training minimizes, a scalar; a subclass can override it.

        ```
        -sum_i w_i log p(x_i) / sum_i w_i + scale_l2 * sum(scales²) + sum(model.losses)
        ```

        A subclass adds a term to `super().compute_loss(...)`, or returns another objective. The
        metric `loss` is then the objective, in training and evaluation. With several replicas, each
        replica calls this method with its part of the batch, and the objective is the mean over
        replicas.

        Args:
          x: events of the batch, [B, ...].
          y: their conditions, or `None`.
          y_pred: log densities [B] of `training_log_prob`, or with `training=False` of the events
            with their evaluation noise.
          sample_weight: weights [B], or `None`.
          training: `False` in `evaluate`.
        """
        gain = 0.0
        if y_pred.shape.rank == 2:
            gain = few_labels.label_term(self.distribution, y_pred, y, sample_weight)
            y_pred = y_pred[0]
        total = replicas.part_of_batch(tf.shape(x)[0], sample_weight).total
        gain += _part_of_mean(y_pred, sample_weight, total)
        return self.penalty() - replicas.num_replicas() * gain

    def _loss(self, batch: Batch, log_prob: tf.Tensor, training: bool) -> tf.Tensor:
        """Returns this replica's term of the objective: the terms of all replicas add up."""
        arguments = {"y_pred": log_prob, "sample_weight": batch.weights, "training": training}
        loss = self.compute_loss(batch.events, batch.condition, **arguments)
        return loss / replicas.num_replicas()

    def _training_log_prob(
        self, batch: Batch, first: tf.Tensor | int, record: FiniteRecord
    ) -> tf.Tensor:
        """Returns `training_log_prob`, with the results of all bijectors in `record`.

        `first` is the number of events on preceding replicas.
        """
        step = private_api.batch_counter(self.optimizer).value
        seed = tf.stack([self.seed, tf.cast(step, tf.int32)])
        noise_fn = functools.partial(pixels.batch_noise, seed=seed, first=first)
        flow, spec, condition = self.distribution, self.condition_spec, batch.condition
        statistics = replicas.Statistics(self.global_statistics, batch.weights)
        with surround_with(statistics=statistics):
            values, log_noise = self.noise.add_noise(batch.events, noise_fn, training=True)
            record.add("the data", values)
            if isinstance(self.distribution, ClusterMixture):
                flow = flow.components_distribution
                spec = routing.find_condition_spec(flow)
                condition = self.distribution.clusters.nearest(values, condition)
            condition = input_data.drop_conditions(spec, condition, seed, first)
            if condition is not None and (spec is None or not spec.may_be_missing):
                record.add("the condition", condition)
            if condition is not None and self._has_class_mixture:
                condition = spec.with_and_without(condition)
            observer = record.add_bijector
            with surround_with(condition=condition, training=True, observer=observer):
                log_prob = flow.log_prob(routing.unseen(flow, values)) - log_noise
        if isinstance(self.distribution, ClusterMixture):
            log_frequencies = self.distribution.clusters.log_frequencies(condition)
            log_prob += tf.cast(log_frequencies, log_prob.dtype)
        return log_prob

    def penalty(self) -> tf.Tensor:
        """Returns the sum of the L2 penalty of `compile` and the losses of layers, a scalar."""
        dtype = self.distribution.dtype
        # Stack scales of equal shape, so that one operation and its gradient serve all of them.
        groups: dict[Any, list[tf.Tensor]] = {}
        for scale in self._scales():
            groups.setdefault((scale.dtype, tuple(scale.shape)), []).append(scale.value)
        halves = [tf.cast(tf.nn.l2_loss(tf.stack(g)), dtype) for g in groups.values()]
        losses = [tf.reduce_sum(tf.cast(loss, dtype)) for loss in self.losses]
        if halves:
            losses.append(2 * self.scale_l2 * tf.add_n(halves))
        return tf.add_n(losses) if losses else tf.zeros([], dtype)

    def _scheduled_rate(self, part: replicas.BatchPart) -> Any:
        """Returns a context that sets the optimizer's learning rate for the current step."""
        if self.rate_factors is None:
            return contextlib.nullcontext(True)
        num_rows = part.number if self.event_ndims == 1 else None
        return self.rate_factors.multiply(self.optimizer, num_rows)

    def _statistics(self) -> list[tf.Variable]:
        return [v for part in self._bijectors() for v in part.variables_set_in_training]

    def compute_metrics(
        self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None
    ) -> dict[str, Any]:
        """Returns the values of all metrics; a subclass can update or add metrics.

        Arguments are as in `compute_loss`. `loss` and `bits_per_dim` are already updated.
        """
        return self.get_metrics_result()

    def _updated_metrics(
        self, batch: Batch, log_prob: tf.Tensor, loss: tf.Tensor, part: replicas.BatchPart
    ) -> dict[str, tf.Tensor]:
        """Updates and returns the metrics. `loss` is the objective, summed over replicas."""
        log_prob = log_prob[0] if log_prob.shape.rank == 2 else log_prob
        mean = _part_of_mean(log_prob, batch.weights, part.total)
        [mean] = replicas.sum_over_replicas([mean])
        bits_per_dim = pixels.bits_per_dim(mean, tf.reduce_prod(tf.shape(batch.events)[1:]))
        self._loss_tracker.update_state(loss if self._has_own_loss else -mean, part.total)
        if self.event_ndims == 3:
            self._bits_per_dim.update_state(bits_per_dim, part.total)
        logs = self.compute_metrics(batch.events, batch.condition, log_prob, batch.weights)
        if replicas.num_workers(self.distribute_strategy) == 1:
            return logs
        # With several workers, Keras averages logs over a first axis.
        return {key: tf.expand_dims(value, axis=0) for key, value in logs.items()}

    @property
    def _has_own_loss(self) -> bool:
        return type(self).compute_loss is not FlowSteps.compute_loss

    def raise_failure(self) -> None:
        """Raises an error, only once, if the loss or a gradient of a `train_step` was not finite.

        Call this after `train_step` in your own loop, as `fit` does: a failure skips later steps.

        Raises:
          NonFiniteLossError: names the step and its first computation that was not finite.
        """
        self._guard.raise_failure(self.trainable_variables)

    @tf.autograph.experimental.do_not_convert
    def test_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Updates the metrics with a batch."""
        batch = self.unpack_batch(data)
        log_prob = self._evaluated(batch)
        part = replicas.part_of_batch(tf.shape(batch.events)[0], batch.weights)
        loss = tf.zeros([], log_prob.dtype)
        if self._has_own_loss:
            [loss] = replicas.sum_over_replicas([self._loss(batch, log_prob, training=False)])
        return self._updated_metrics(batch, log_prob, loss, part)

    @tf.autograph.experimental.do_not_convert
    def predict_step(self, data: Any) -> tf.Tensor:
        """Returns log p, [B], of a batch."""
        return self._evaluated(self.unpack_batch(data))

    def _evaluated(self, batch: Batch) -> tf.Tensor:
        """Returns log densities [B] with the first noise sample of each event.

        If the data fail a check, `evaluate` and `predict` raise an error at the end.
        """
        record = input_data.record_of_data(self, batch)
        if record.names:
            shares = record.are_finite() / replicas.num_replicas()
            [are_finite] = replicas.sum_over_replicas([shares])
            self._evaluation_guard.check(tf.constant(0, tf.int64), record, are_finite)
        options = self.distribution, self.noise, None, False
        return scorer.score(*options, batch.events, self.seed, condition=batch.condition)

    def call(self, images: Any, training: bool = False) -> tf.Tensor:
        """Returns log p, [B], in nats, for continuous pixel values [B, H, W, C].

        Args:
          images: [B, H, W, C], or a tuple of images and their conditions.
          training: whether to use and update batch statistics.

        Raises:
          ValueError: if images are gray levels without noise: integers or, in eager mode, only
            whole numbers.
        """
        input_data.check_no_labels(self.distribution, images)
        condition, images = self.condition_of(images), input_data.events_in(images)
        if self.dequantize:
            pixels.check_noise(images, "FlowModel")
        images = tf.cast(images, self.distribution.dtype)
        with surround_with(condition=condition, training=training):
            return self.distribution.log_prob(routing.unseen(self.distribution, images))

    def condition_of(self, data: Any) -> tf.Tensor | None:
        """Returns the condition of a batch, or `None` if the distribution takes no condition."""
        condition = input_data.condition_in(data)
        if condition is not None and not self.takes_condition:
            input_data.warn_of_labels(self.distribution)
            condition = None
        return routing.as_conditions(self.distribution, condition, "FlowModel")

    def _initialize_normalizations(self, data: Any) -> None:
        """Initializes normalizations from the first batch, before a graph is traced.

        Without this call, and with a strategy, the step's graph initializes the normalizations.
        Initializes nothing if the batch fails a check of the data, or its log density is not
        finite: the first step then raises an error that names the cause.
        """
        norms = [part for part in self._bijectors() if isinstance(part, ActNorm)]
        to_set = {id(v) for norm in norms for v in norm.variables_set_in_training}
        if not to_set:
            return
        statistics = self._statistics()
        before = [tf.convert_to_tensor(variable) for variable in statistics]
        is_valid = False
        try:
            batch = self.unpack_batch(data)
            record = input_data.record_of_data(self, batch)
            record.add("the log density", self._training_log_prob(batch, 0, record))
            is_valid = bool(tf.reduce_all(record.are_finite() > 0))
            is_valid &= batch.weights is None or bool(tf.reduce_any(batch.weights > 0))
        finally:
            # Restore even after an error, since some normalizations may already be set.
            for variable, value in zip(statistics, before, strict=True):
                if not (is_valid and id(variable) in to_set):
                    variable.assign(value)

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        # Keras calls this with the first batch to build variables, and still trains on the batch.
        # Our variables exist already, so we use the batch to initialize `ActNorm`.
        may_initialize, self._may_initialize = self._may_initialize, False
        with self.distribute_strategy.scope():
            has_strategy = tf.distribute.has_strategy()
        if not may_initialize or has_strategy or self.run_eagerly:
            return
        if iterator is not None:
            with contextlib.suppress(StopIteration, tf.errors.OutOfRangeError):
                for *_, batches in iterator:
                    data_batch = next(batches)
                    break
        if data_batch is not None:
            input_data.check_training_batch(self, data_batch)
            self._initialize_normalizations(data_batch)


def with_scheduled_rate(train_step: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Applies the schedule of the learning rate within a `train_step`."""

    @functools.wraps(train_step)
    def call(self: FlowSteps, data: Any) -> Any:
        batch = self.unpack_batch(data)
        part = replicas.part_of_batch(tf.shape(batch.events)[0], batch.weights)
        with self._scheduled_rate(part):
            return train_step(self, data)

    return call


def _part_of_mean(log_prob: tf.Tensor, weights: tf.Tensor | None, total: tf.Tensor) -> tf.Tensor:
    """Returns this replica's term of the weighted mean over the batch of all replicas."""
    if weights is None:
        return tf.reduce_sum(log_prob) / tf.cast(total, log_prob.dtype)
    weighted = tf.math.multiply_no_nan(log_prob, weights)
    return tf.math.divide_no_nan(tf.reduce_sum(weighted), total)

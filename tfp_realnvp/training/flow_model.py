"""A distribution as a Keras model: maximum likelihood with `fit`."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from absl import logging

from tfp_realnvp import pixels
from tfp_realnvp.bijectors import ActNorm, FlowBijector
from tfp_realnvp.bijectors.call_context import surround_with
from tfp_realnvp.distributions import (
    ClassMixture,
    ClusterMixture,
    VariationalDequantization,
    routing,
    sampler,
    scorer,
)
from tfp_realnvp.internal import batch_parts, private_api, replicas, validation
from tfp_realnvp.internal.graph_rewrites import few_graph_rewrites
from tfp_realnvp.saving.savable_model import SavableModel
from tfp_realnvp.training import model_variables
from tfp_realnvp.training.diagnosis import FiniteGuard, FiniteRecord, warn_unless_finite
from tfp_realnvp.training.few_labels import LABEL_WEIGHT, ClassSeparation, mean_of_labeled, parts_of
from tfp_realnvp.training.fused_adam import FusedAdam
from tfp_realnvp.training.input_data import (
    arguments_for_keras,
    check_distribution,
    check_no_labels,
    check_training_batch,
    checked_batch,
    drop_conditions,
    events_and_weights,
    record_of_data,
    warn_of_labels,
)
from tfp_realnvp.training.learning_rate import CosineAnnealing, LearningRateBudget, RateFactors
from tfp_realnvp.training.muon import Muon
from tfp_realnvp.training.packing import apply_if, packing_of

__all__ = ["FlowModel"]

tfd = tfp.distributions

# The default peaks of the learning rate, by the number of axes of an event.
_PEAKS = {1: 1e-3, 3: 4e-3}


class _RequireBatch(keras.callbacks.Callback):
    """Raises an error at the end of a prediction without batches, where Keras fails."""

    num_batches = 0

    def on_predict_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self.num_batches += 1

    def on_predict_end(self, logs: dict[str, Any] | None = None) -> None:
        if not self.num_batches:
            raise ValueError("FlowModel.predict: expected data, got an empty dataset.")


def _part_of_mean(log_prob: tf.Tensor, weights: tf.Tensor | None, total: tf.Tensor) -> tf.Tensor:
    """Returns this replica's summand of the weighted mean over the batch."""
    if weights is None:
        return tf.reduce_sum(log_prob) / tf.cast(total, log_prob.dtype)
    weighted = tf.math.multiply_no_nan(log_prob, weights)
    return tf.math.divide_no_nan(tf.reduce_sum(weighted), total)


@keras.saving.register_keras_serializable(package="tfp_realnvp")
class FlowModel(SavableModel):
    r"""Trains a distribution over images or vectors by maximum likelihood, as any Keras model.

    ```
    loss = -sum_i w_i log p(x_i) / sum_i w_i + scale_l2 * sum(scales²) + sum(model.losses)
    x = floor(images) + U[0, 1)
    ```

    with sums over the batch and weights w of the events, 1 by default.

    Images are uint8 or floating gray levels, [B, H, W, C]. Each training step adds new noise to
    them, which `seed` and the step determine. Vectors [B, D] get no noise and have no bits/dim.
    Training changes `model.distribution`, the object that was passed, with a trainable base
    distribution. `model.losses` are the losses of networks, by `add_loss` or as regularizers of
    their weights. The metrics are `loss`, the weighted mean of the negative log-likelihood in nats
    per image without the other terms, and `bits_per_dim`.

    *   `fit`, `evaluate` and `predict` take the data of any `keras.Model`: arrays, tensors, pandas
        frames, `tf.data`, `keras.utils.PyDataset`, generators. A batch is images, a tuple that
        begins with images, or a dictionary with `'image'`; a generator yields tuples, `(images,)`
        without labels. Floats are cast to the distribution's dtype. As in any Keras model,
        `keras.utils.set_random_seed` makes the order of shuffled arrays repeatable.
    *   A distribution that takes a condition gets the second element of a tuple as
        `conditional_input`, or the element `'conditional_input'` or `'label'` of a dictionary:
        `fit(images, labels)`, `predict((images, labels))`. For other distributions, passing labels
        raises an error; labels in a dataset are ignored with a warning. With a `ClassMixture` as
        base, -1 is an unknown label. With the flow's `condition_dropout=p`, each step leaves out
        the condition of a share p of the images.
    *   `fit` and `evaluate` take `sample_weight`, the third element of a tuple, or the element
        `'sample_weight'` of a dictionary; `fit` also takes `class_weight`. An event of weight two
        counts as two equal events in loss, metrics and batch statistics, one of weight zero as
        none.
    *   `predict`, and `evaluate` in its metrics, give log densities in nats, with moving
        statistics. The noise of an image depends on `seed` and its gray levels alone.
    *   `model(x)` is `log_prob(x)` for continuous pixel values, without noise; with a condition
        `model((x, c))`.
    *   Constructed in the scope of a `tf.distribute.MirroredStrategy` or
        `MultiWorkerMirroredStrategy`, with the distribution and the optimizer, it trains on several
        devices or machines as on one with the same batch; see `compile` for batch statistics.

    An optimizer with `use_ema=True` keeps moving averages of the weights. `fit` validates with the
    averages, and at its end replaces the weights by them, as Keras does. Moving statistics of batch
    normalization are not averaged.

    If a loss or gradient is not finite, weights, statistics and optimizer keep the values before
    that step, and `fit` raises a `NonFiniteLossError`.

    #### Example

    >>> import numpy as np, tensorflow_probability as tfp, tfp_realnvp as tfr
    >>> tfd = tfp.distributions
    >>> flow = tfd.TransformedDistribution(
    ...     tfd.Sample(tfd.Normal(0., 1.), [8, 8, 1]),
    ...     tfr.RealNVPImage((8, 8, 1), num_scales=1, num_blocks=1, num_filters=8))
    >>> model = tfr.FlowModel(flow)
    >>> model.compile()
    >>> images = np.random.default_rng(0).integers(0, 256, [64, 8, 8, 1], dtype=np.uint8)
    >>> history = model.fit(images, batch_size=32, epochs=1, verbose=0)
    >>> sorted(history.history)
    ['bits_per_dim', 'loss']
    >>> model.predict(images, verbose=0).shape
    (64,)

    #### References

    Dinh, Sohl-Dickstein, Bengio: Density estimation using Real NVP, section 4.1.
    Theis, van den Oord, Bethge: A note on the evaluation of generative models, section 3.1.
    """

    train_function: Any
    test_function: Any
    predict_function: Any

    def __init__(
        self,
        distribution: tfd.Distribution,
        *,
        dequantize: bool | None = None,
        dequantizer: VariationalDequantization | None = None,
        seed: int = 0,
        name: str | None = None,
    ) -> None:
        """Constructs the model.

        Args:
          distribution: over images [H, W, C] or vectors [D], for example a
            `tfd.TransformedDistribution` with a `RealNVPImage` or `RealNVPVector`.
          dequantize: whether values are integers that need noise, as gray levels do. Defaults to
            `True` for images and to `False` for vectors.
          dequantizer: distribution of the noise, trained with the model; uniform by default. With
            it, `log p(x)` in the loss, the metrics and `predict` is the bound
            `log p(x + u) - log q(u | x)`.
          seed: seed of the noise.
          name: name of the model.

        Raises:
          TypeError: if `distribution` is not a `tfd.Distribution`, or `seed` is not a number.
          ValueError: if its events are neither images nor vectors, or images with channels first;
            it has batch dimensions; or it was not constructed in the scope of the same
            `tf.distribute.Strategy` as this model.
        """
        event_ndims = check_distribution(distribution, dequantize)
        if dequantize is None:
            dequantize = event_ndims == 3
        validation.flag(dequantize, "FlowModel: expected a bool as dequantize")
        when = "with dequantize=True"
        validation.only(dequantizer, "a dequantizer", dequantize, when, "FlowModel")
        seed = validation.integer(seed, -(2**31), "FlowModel: expected an int32 seed", 2**31)
        modules = [distribution] if dequantizer is None else [distribution, dequantizer]
        variables = [variable for module in modules for variable in module.variables]
        replicas.check_scope("the distribution", variables)
        # Keras casts the inputs of `call` to this dtype.
        super().__init__(name=name, dtype=distribution.dtype.name)
        self.distribution = distribution
        self.event_ndims = event_ndims
        self.dequantize = dequantize
        self.dequantizer = dequantizer
        self.seed = seed
        self.takes_condition = routing.takes_condition(distribution)
        self.condition_spec = routing.find_condition_spec(distribution)
        self._has_class_mixture = isinstance(parts_of(distribution)[-1], ClassMixture)
        uniform = pixels.UniformNoise if dequantize else pixels.NoNoise
        self.noise = uniform(distribution.dtype) if dequantizer is None else dequantizer
        parts = [part for module in modules for part in module.submodules]
        bijectors = [part for part in parts if isinstance(part, FlowBijector)]
        model_variables.build_networks(distribution, parts)
        # Keras tracks layers; all other variables are wrapped in one.
        clusters = [part.clusters for part in parts if isinstance(part, ClusterMixture)]
        layers = [*(layer for part in bijectors for layer in part.layers), *clusters]
        self.layers_of_bijectors = layers = list(dict.fromkeys(layers))
        self.other_variables = model_variables.TrackedVariables(layers, modules)
        self._scales = tuple(model_variables.find_scales(layers, bijectors))
        self._gains_from_rewrites = model_variables.gains_from_rewrites(bijectors)
        # Keras tracks lists that are attributes, but nothing that a function returns.
        self._bijectors = lambda: bijectors
        self._guard = FiniteGuard()
        self._bits_per_dim = replicas.ReplicatedMean(name="bits_per_dim")
        self._evaluation_guard = FiniteGuard()
        self.scale_l2 = 0.0
        self.global_statistics = True
        self.rate_factors: RateFactors | None = None
        self.validation_freq: int | list[int] = 1
        self._is_annealed = False
        # Whether Keras hands the first batch of `fit` to the normalizations that it sets.
        self._may_initialize = False
        self._after_fit = contextlib.ExitStack()
        self.built = True

    def compile(
        self,
        optimizer: str | keras.optimizers.Optimizer | None = None,
        *,
        scale_l2: float = 5e-5,
        global_statistics: bool = True,
        **kwargs: Any,
    ) -> None:
        """Configures training.

        Args:
          optimizer: by default `Muon(4e-3)` for images and `FusedAdam(1e-3)` for vectors, with
            gradients clipped to a global norm of 100. In each call of `fit` the learning rate then
            falls from `optimizer.learning_rate` to zero along half a period of a cosine; with
            `initial_epoch` it continues. In a step with B vectors it is also multiplied by
            `sqrt(B / 32)`, from 1 for B ≤ 32 to 4 for B ≥ 512. A `LearningRateBudget` or
            `keras.callbacks.LearningRateScheduler` replaces this schedule. An optimizer of the
            caller has no schedule but its own. The paper uses Adam at a constant rate,
            `FusedAdam(1e-3, global_clipnorm=100.0)`; see `benchmarks/README.md`.
          scale_l2: factor of the sum of squares of all scales, both of weight normalization and of
            tanh in the couplings.
          global_statistics: whether batch statistics average over the batch of all replicas of a
            `tf.distribute.Strategy`, as on one device. With `False` each replica normalizes by its
            part of the batch, without waiting, and moving statistics are averaged after each step.
          **kwargs: as in `keras.Model.compile`, except `loss` and metrics.

        Raises:
          ValueError: if a `loss` or metrics are given, `scale_l2` is negative, networks compute in
            float16, or the optimizer was not constructed in the scope of the model's
            `tf.distribute.Strategy`.
        """
        given = {k: kwargs[k] for k in ("loss", "metrics", "weighted_metrics") if kwargs.get(k)}
        expected = (
            "FlowModel.compile: expected no loss and no metrics: the loss is the negative log "
            "density, and callbacks can compute other metrics"
        )
        validation.require(not given, expected, given)
        if any(layer.compute_dtype == "float16" for layer in self.networks):
            raise ValueError(
                "FlowModel.compile: expected networks in float32, mixed_bfloat16 or float64, got "
                "float16, whose range is too small to train with; see `network_dtype`."
            )
        expected = "FlowModel.compile: expected a scale_l2 of at least 0"
        validation.real(scale_l2, lambda x: 0 <= x < math.inf, expected)
        with self.distribute_strategy.scope():
            self._is_annealed = optimizer is None
            if optimizer is None:
                default = Muon if self.event_ndims == 3 else FusedAdam
                optimizer = default(_PEAKS[self.event_ndims], global_clipnorm=100.0)
            super().compile(optimizer=optimizer, **kwargs)
            replicas.check_scope("the optimizer", [v.value for v in self.optimizer.variables])
            self._loss_tracker = replicas.ReplicatedMean(name="loss")
        if self.jit_compile:
            _advise_no_xla()
        self.scale_l2 = scale_l2
        self.global_statistics = global_statistics

    @property
    def networks(self) -> list[keras.layers.Layer]:
        """The networks of the distribution and of the dequantizer, and embeddings of conditions."""
        of_parts = [
            (p, getattr(p, "network", getattr(p, "embedding", None))) for p in self._bijectors()
        ]
        return list(dict.fromkeys(network for part, network in of_parts if network in part.layers))

    def build_optimizer(self) -> None:
        """Creates the optimizer's variables if they do not exist, as `fit` does at its start."""
        if not self.optimizer.built:
            with self.distribute_strategy.scope():
                self.optimizer.build(self.trainable_variables)

    @contextlib.contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Puts the averages of an optimizer with `use_ema=True` in place of the weights.

        Restores the weights on exit. Does nothing without such an optimizer or before its first
        step.
        """
        optimizer = getattr(self.optimizer, "inner_optimizer", self.optimizer)
        if not getattr(optimizer, "use_ema", False) or not optimizer.iterations.numpy():
            yield
            return
        variables = self.trainable_variables
        weights = [tf.identity(variable.value) for variable in variables]
        try:
            optimizer.finalize_variable_values(variables)
            yield
        finally:
            for variable, value in zip(variables, weights, strict=True):
                variable.value.assign(value)

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """`loss`, and for images `bits_per_dim`."""
        loss = [self._loss_tracker] if self.compiled else []
        return [*loss, self._bits_per_dim] if self.event_ndims == 3 else loss

    # Steps on a batch.

    def call(self, images: Any, training: bool = False) -> tf.Tensor:
        """Returns log p, [B], in nats, for continuous pixel values [B, H, W, C].

        Args:
          images: [B, H, W, C], or a tuple of images and their conditions.
          training: whether to use and update batch statistics.
        """
        check_no_labels(self.distribution, images)
        condition = self.condition_of(images)
        images = tf.cast(batch_parts.events_in(images), self.distribution.dtype)
        return scorer.log_prob_of(self.distribution, images, condition, training)

    @tf.autograph.experimental.do_not_convert
    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Makes one step of maximum likelihood, if loss and gradients are finite."""
        images, weights = events_and_weights(data, self.distribution)
        part = replicas.part_of_batch(tf.shape(images)[0], weights)
        replicas.assert_not_empty(images, "FlowModel.fit")
        step = tf.cast(private_api.batch_counter(self.optimizer).value, tf.int64)
        variables = self.trainable_variables
        statistics = self._statistics()
        before = [tf.convert_to_tensor(variable) for variable in statistics]
        record = record_of_data(self, images, weights, self.condition_of(data))
        with tf.GradientTape() as tape:
            log_prob = self._training_log_prob(data, images, weights, part.first, record)
            label_term = 0.0
            if log_prob.shape.rank == 2:
                log_prob, without_label = tf.unstack(log_prob)
                label_term = LABEL_WEIGHT * mean_of_labeled(log_prob - without_label, weights)
            # The sum over replicas is the mean over the batch, plus the penalty.
            loss = -_part_of_mean(log_prob, weights, part.total)
            penalty = self._penalty(loss.dtype) / replicas.num_replicas()
            objective = self.optimizer.scale_loss(loss + penalty - label_term)
        gradients = tape.gradient(
            objective,
            [variable.value for variable in variables],
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
        name = f"the log density of {self.distribution.name}, after its bijectors"
        record.add(name, log_prob)
        packing = packing_of(self.optimizer, variables)
        loss, are_finite, *packed = replicas.sum_over_replicas(
            [loss, record.are_finite() / replicas.num_replicas(), *packing.pack(gradients)]
        )
        if not self.global_statistics:
            replicas.average(statistics)
        is_applied = self._guard.check(step, record, are_finite, packing, packed, [loss + penalty])
        if weights is not None:
            # A batch whose weights are all zero counts like no batch.
            is_applied &= part.total > 0
        with self._scheduled_rate(part) as is_made:
            is_applied &= is_made
            apply_if(is_applied, self.optimizer, gradients, packed, packing, variables)
        replicas.restore_unless(is_applied, statistics, before)
        return self._updated_metrics(loss, images, part)

    def _training_log_prob(
        self,
        data: Any,
        images: tf.Tensor,
        weights: tf.Tensor | None,
        first: tf.Tensor | int,
        record: FiniteRecord,
    ) -> tf.Tensor:
        """Returns log p - log q of each event, [B], with the noise of the next step.

        With labels of a `ClassMixture` the result is [2, B]: with and without the labels. Before
        the first event, other replicas have `first` events. `record` gets the parts of the pass.
        """
        step = private_api.batch_counter(self.optimizer).value
        seed = tf.stack([self.seed, tf.cast(step, tf.int32)])
        noise_fn = functools.partial(pixels.batch_noise, seed=seed, first=first)
        flow, spec, condition = self.distribution, self.condition_spec, self.condition_of(data)
        batch = replicas.Statistics(self.global_statistics, weights)
        with surround_with(statistics=batch):
            values, log_noise = self.noise.add_noise(images, noise_fn, training=True)
            record.add("the data", values)
            if isinstance(self.distribution, ClusterMixture):
                flow, spec = flow.components_distribution, flow.components_spec
                condition = self.distribution.clusters.nearest(values, condition)
            condition = drop_conditions(spec, condition, seed, first)
            if condition is not None and (spec is None or not spec.may_be_missing):
                record.add("the condition", condition)
            if condition is not None and self._has_class_mixture:
                condition = spec.with_and_without(condition)
            with surround_with(observer=record.add_bijector):
                log_prob = scorer.log_prob_of(flow, values, condition, True) - log_noise
        if isinstance(self.distribution, ClusterMixture):
            log_frequencies = self.distribution.clusters.log_frequencies(condition)
            log_prob += tf.cast(log_frequencies, log_prob.dtype)
        return log_prob

    def _scheduled_rate(self, part: replicas.BatchPart) -> Any:
        """Returns the context in which the optimizer has the learning rate of the current step."""
        if self.rate_factors is None:
            return contextlib.nullcontext(True)
        num_rows = part.number if self.event_ndims == 1 else None
        return self.rate_factors.multiply(self.optimizer, num_rows)

    def _statistics(self) -> list[tf.Variable]:
        """Returns the variables that a forward pass in training writes."""
        return [v for part in self._bijectors() for v in part.variables_set_in_training]

    @property
    def _can_initialize(self) -> bool:
        """Whether normalizations can be set before the next step."""
        if not self.compiled:
            return False
        with self.distribute_strategy.scope():
            return not (tf.distribute.has_strategy() or self.run_eagerly)

    def _initialize_normalizations(self, data: Any) -> None:
        """Sets the normalizations that the first batch sets, before a graph is traced.

        Otherwise, and under a `tf.distribute` strategy, the step's graph contains the
        initialization. Sets nothing if the batch fails a check of the data, or its log density is
        not finite: the step then names the part.
        """
        norms = [part for part in self._bijectors() if isinstance(part, ActNorm)]
        to_set = {id(v) for norm in norms for v in norm.variables_set_in_training}
        if not to_set:
            return
        statistics = self._statistics()
        before = [tf.convert_to_tensor(variable) for variable in statistics]
        is_valid = False
        try:
            images, weights = events_and_weights(data, self.distribution)
            record = record_of_data(self, images, weights, self.condition_of(data))
            record.add("the log density", self._training_log_prob(data, images, weights, 0, record))
            is_valid = bool(tf.reduce_all(record.are_finite() > 0))
            is_valid &= weights is None or bool(tf.reduce_any(weights > 0))
        finally:
            # Also after an error, which may come when some normalizations are set.
            for variable, value in zip(statistics, before, strict=True):
                if not (is_valid and id(variable) in to_set):
                    variable.assign(value)

    @tf.autograph.experimental.do_not_convert
    def test_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Updates the metrics with a batch."""
        images, weights, log_prob = self._evaluated(data)
        part = replicas.part_of_batch(tf.shape(images)[0], weights)
        loss = -_part_of_mean(log_prob, weights, part.total)
        [loss] = replicas.sum_over_replicas([loss])
        return self._updated_metrics(loss, images, part)

    @tf.autograph.experimental.do_not_convert
    def predict_step(self, data: Any) -> tf.Tensor:
        """Returns log p, [B], of a batch."""
        return self._evaluated(data)[-1]

    def raise_failure(self) -> None:
        """Raises an error, once, if a `train_step` was not finite; no later step was made.

        A training loop of your own around `train_step` has to call this; `fit` does.

        Raises:
          NonFiniteLossError: names the step and its first part that was not finite.
        """
        self._guard.raise_failure(self.trainable_variables)

    def make_train_function(self, force: bool = False) -> Callable[[Any], dict[str, tf.Tensor]]:
        """Makes the function that `fit` calls, which first checks the step before."""
        if self.train_function is not None and not force:
            return self.train_function
        self.build_optimizer()
        with self.distribute_strategy.scope():
            self.rate_factors = RateFactors(self.steps_per_execution)
        super().make_train_function(force)
        train_function = self._made_faster(self.train_function, self.train_step)

        def checked(iterator: Any) -> dict[str, tf.Tensor]:
            # One step late, since reading the variable waits for the step that writes it.
            self.raise_failure()
            return train_function(iterator)

        self.train_function = checked
        return checked

    def make_test_function(self, force: bool = False) -> Callable[[Any], dict[str, tf.Tensor]]:
        """Makes the function that `evaluate` calls."""
        if self.test_function is None or force:
            super().make_test_function(force)
            self.test_function = self._made_faster(self.test_function, self.test_step, fuse=True)
        return self.test_function

    def make_predict_function(self, force: bool = False) -> Callable[[Any], Any]:
        """Makes the function that `predict` calls."""
        if self.predict_function is None or force:
            super().make_predict_function(force)
            self.predict_function = self._made_faster(self.predict_function, fuse=True)
        return self.predict_function

    def _made_faster(
        self,
        function: Callable[[Any], Any],
        step: Callable[[Any], Any] | None = None,
        fuse: bool = False,
    ) -> Callable[[Any], Any]:
        """Returns Keras' function of an iterator with one graph, which is rewritten little.

        The graph of `step`, a function of a batch, replaces two graphs of Keras, except with a
        strategy, XLA, or several steps in an execution. `fuse` is that of `few_graph_rewrites`.
        """
        # A loop of several steps gains from rewrites, too.
        if self.steps_per_execution > 1:
            return function
        with self.distribute_strategy.scope():
            has_strategy = tf.distribute.has_strategy()
        if step is not None and not (has_strategy or self.run_eagerly or self.jit_compile):
            function = _as_one_graph(function, step)
        if self._gains_from_rewrites:
            return function

        def rewritten(iterator: Any) -> Any:
            with few_graph_rewrites(fuse):
                return function(iterator)

        return rewritten

    def _penalty(self, dtype: tf.DType) -> tf.Tensor:
        """Returns the L2 penalty and the losses of layers."""
        # One operation for all scales of a shape, and one for its gradient.
        groups: dict[Any, list[tf.Tensor]] = {}
        for scale in self._scales:
            groups.setdefault((scale.dtype, tuple(scale.shape)), []).append(scale.value)
        halves = [tf.cast(tf.nn.l2_loss(tf.stack(g)), dtype) for g in groups.values()]
        losses = [tf.reduce_sum(tf.cast(loss, dtype)) for loss in self.losses]
        if halves:
            losses.append(2 * self.scale_l2 * tf.add_n(halves))
        return tf.add_n(losses) if losses else tf.zeros([], dtype)

    def _evaluated(self, data: Any) -> tuple[tf.Tensor, tf.Tensor | None, tf.Tensor]:
        """Returns events, weights, and log densities with the first noise sample of each event.

        `evaluate` and `predict` raise an error if the data failed a check.
        """
        images, weights = events_and_weights(data, self.distribution)
        condition = self.condition_of(data)
        record = record_of_data(self, images, weights, condition)
        if record.names:
            shares = record.are_finite() / replicas.num_replicas()
            [are_finite] = replicas.sum_over_replicas([shares])
            self._evaluation_guard.check(tf.constant(0, tf.int64), record, are_finite)
        options = self.distribution, self.noise, None, False
        log_prob = scorer.score(*options, images, self.seed, condition=condition)
        return images, weights, log_prob

    def condition_of(self, data: Any) -> tf.Tensor | None:
        """Returns the condition of a batch, `None` for a distribution that takes none."""
        condition = batch_parts.condition_in(data)
        if condition is not None and not self.takes_condition:
            warn_of_labels(self.distribution)
            condition = None
        return routing.as_conditions(self.distribution, condition, "FlowModel")

    def _updated_metrics(
        self, loss: tf.Tensor, images: tf.Tensor, part: replicas.BatchPart
    ) -> dict[str, tf.Tensor]:
        bits_per_dim = pixels.bits_per_dim(-loss, tf.reduce_prod(tf.shape(images)[1:]))
        for metric, value in zip(self.metrics, (loss, bits_per_dim), strict=False):
            metric.update_state(value, sample_weight=part.total)
        logs = self.get_metrics_result()
        if replicas.num_workers(self.distribute_strategy) == 1:
            return logs
        # With several workers, Keras averages over a first axis.
        return {key: tf.expand_dims(value, axis=0) for key, value in logs.items()}

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        # Keras calls this with the first batch to build variables, and still trains on the batch.
        # Ours exist already, so we use the batch to initialize `ActNorm`.
        if not self._may_initialize:
            return
        self._may_initialize = False
        if iterator is not None:
            with contextlib.suppress(StopIteration, tf.errors.OutOfRangeError):
                for *_, batches in iterator:
                    data_batch = next(batches)
                    break
        if data_batch is not None:
            check_training_batch(self, data_batch)
            self._initialize_normalizations(data_batch)

    # Training and evaluation.

    def fit(self, x: Any = None, *args: Any, **kwargs: Any) -> keras.callbacks.History:
        """Trains as `keras.Model.fit` does.

        Issues a `UserWarning` if labels of a `ClassMixture` are not learned.

        Args:
          x: images, or a dataset of images, conditions and weights.
          *args: as in `keras.Model.fit`; `y` are conditions.
          **kwargs: as in `keras.Model.fit`. `sample_weight` are weights of at least 0, [N];
            `class_weight` is for labels.

        Raises:
          ValueError: if there are no images; images are not [B, H, W, C] or not finite gray levels
            of the model; conditions are not as declared, or the distribution takes none; weights
            are negative or all zero; no variable is trainable; or all means of a `ClassMixture` are
            equal and no labels are known before training.
          NonFiniteLossError: if the loss or its gradient is not finite.
        """
        self._check_trainable()
        arguments = arguments_for_keras(self, "fit", x, *args, **kwargs)
        if self.event_ndims == 3:
            _advise_onednn()
        self._guard.reset()
        self.validation_freq = arguments.get("validation_freq", 1)
        callbacks = keras.tree.flatten(arguments.get("callbacks") or [])
        ends = ("is_used_up", "is_out_of_patience")
        is_over = any(getattr(callback, end, False) for callback in callbacks for end in ends)
        if is_over:
            # Keras asks callbacks whether to stop after a step only.
            arguments["epochs"] = arguments.get("initial_epoch", 0)
        separation = None
        if self._has_class_mixture:
            budgets = [callback for callback in callbacks if hasattr(callback, "fraction")]
            data = None if replicas.num_workers(self.distribute_strategy) > 1 else arguments["x"]
            separation = ClassSeparation(self.distribution, data, self.dequantize, budgets)
            callbacks = arguments["callbacks"] = [*callbacks, separation]
        schedules = (LearningRateBudget, keras.callbacks.LearningRateScheduler)
        has_schedule = any(isinstance(callback, schedules) for callback in callbacks)
        if self._is_annealed and not has_schedule:
            # Larger batches of vectors make fewer steps with less noise, which bear higher rates.
            power = 0.5 if self.event_ndims == 1 else 0.0
            arguments["callbacks"] = [*callbacks, CosineAnnealing(power)]
        # A batch of an iterator cannot be given back.
        self._may_initialize = self._can_initialize and not isinstance(x, Iterator)
        try:
            history = super().fit(**arguments)
        finally:
            self._after_fit.close()
            if self.rate_factors is not None:
                self.rate_factors.clear()
        self.raise_failure()
        if separation is not None:
            separation.warn_of_errors()
        if not (is_over or history.history.get("loss")):
            raise ValueError("FlowModel.fit: expected data to train on, got an empty dataset.")
        return history

    def call_after_fit(self, function: Callable[[], None]) -> None:
        """Calls a function once at the end of `fit`, even if `fit` raises an error.

        This is for callbacks, whose `on_train_end` Keras does not call after an error.
        """
        self._after_fit.callback(function)

    def evaluate(self, x: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Evaluates as `keras.Model.evaluate` does; see `fit` for `x` and errors.

        Issues a `RuntimeWarning` if the loss is not finite.
        """
        self._evaluation_guard.reset()
        if kwargs.get(private_api.WITHIN_FIT, False):
            with self.averaged_weights():
                results = super().evaluate(x, *args, **kwargs)
        else:
            arguments = arguments_for_keras(self, "evaluate", x, *args, **kwargs)
            results = super().evaluate(**arguments)
        self._evaluation_guard.raise_failure()
        if not self._loss_tracker.count.numpy():
            raise ValueError(
                "FlowModel.evaluate: expected data, got an empty dataset, or weights of zero only."
            )
        warn_unless_finite(self._loss_tracker.result().numpy(), "evaluate")
        return results

    def predict(self, x: Any, *args: Any, **kwargs: Any) -> np.ndarray:
        """Returns log p in nats for each image, [N]; see `fit` for `x` and errors.

        Issues a `RuntimeWarning` if a log density is not finite.
        """
        arguments = arguments_for_keras(self, "predict", x, *args, **kwargs)
        callbacks = keras.tree.flatten(arguments.get("callbacks") or [])
        arguments["callbacks"] = [*callbacks, _RequireBatch()]
        self._evaluation_guard.reset()
        log_prob = super().predict(**arguments)
        self._evaluation_guard.raise_failure()
        warn_unless_finite(log_prob, "predict")
        return log_prob

    def sample(
        self,
        num_samples: int,
        seed: int | Sequence[int] | None = None,
        *,
        temperature: float = 1.0,
        guidance: float = 0.0,
        conditional_input: Any = None,
    ) -> tf.Tensor:
        """Returns samples by one graph, which is traced once for any number of them.

        With `temperature=1` and `guidance=0` these are samples of `model.distribution`, equal to
        `distribution.sample(num_samples, seed=tf.constant([seed, 0]))`. Both make samples more
        typical and less diverse. They take effect in the latents and in each coupling:

        ```
        z ~ temperature * N(0, I);    parameters (1 + guidance) * a(c) - guidance * a(no condition)
        ```

        Args:
          num_samples: number of samples N.
          seed: an int32, two of them, or `None` for other samples in each call.
          temperature: standard deviation of the latents, which have to be standard normal.
          guidance: the weight, at least 0, for a flow that was trained with `condition_dropout`. It
            needs a condition, and evaluates each network twice.
          conditional_input: one condition, or one for each sample, [N, ...]. With
            `condition_dropout`, `None` leaves the condition out.

        Returns:
          Continuous pixel values [N, H, W, C], which `tfr.to_uint8` rounds; or vectors [N, D].

        Raises:
          ValueError: if the model cannot honor an argument, or a value is out of range.
          TypeError: if a number is of another type.

        #### References

        Ho, Salimans: Classifier-free diffusion guidance (2022).
        """
        weights = temperature, guidance
        return sampler.sample(self.distribution, num_samples, seed, *weights, conditional_input)

    def log_prob(
        self, x: Any, conditional_input: Any = None, *, batch_size: int | None = None
    ) -> np.ndarray:
        """Returns log p in nats for each event, [N]: `predict` of events and their conditions."""
        data = x if conditional_input is None else (x, conditional_input)
        return self.predict(data, batch_size=batch_size, verbose=0)

    def train_on_batch(
        self,
        x: Any,
        y: Any = None,
        sample_weight: Any = None,
        class_weight: dict[int, float] | None = None,
        return_dict: bool = False,
    ) -> Any:
        """Makes one step as `keras.Model.train_on_batch` does; see `fit` for `x` and errors."""
        self._check_trainable()
        data = checked_batch(self, (x, y, sample_weight), class_weight)
        self._guard.reset()
        self._may_initialize = self._can_initialize
        logs = super().train_on_batch(*data, class_weight=class_weight, return_dict=return_dict)
        self.raise_failure()
        return logs

    def test_on_batch(
        self, x: Any, y: Any = None, sample_weight: Any = None, return_dict: bool = False
    ) -> Any:
        """Evaluates as `keras.Model.test_on_batch` does; see `fit` for `x` and errors."""
        data = checked_batch(self, (x, y, sample_weight))
        return super().test_on_batch(*data, return_dict=return_dict)

    def predict_on_batch(self, x: Any) -> np.ndarray:
        """Returns log p in nats for each image of a batch, [B]; see `fit` for `x` and errors."""
        return super().predict_on_batch(checked_batch(self, (x, None, None))[0])

    def _check_trainable(self) -> None:
        if not self.trainable_variables:
            raise ValueError(
                "FlowModel: expected variables to train, got none; `model.trainable = True` makes "
                "all of them trainable, and then `model.compile()` again."
            )


def _as_one_graph(
    function: Callable[[Any], Any], step: Callable[[Any], Any]
) -> Callable[[Any], Any]:
    """Returns a function of an iterator whose graph is that of a step.

    Keras makes two graphs, one of a step and one that calls it. TensorFlow then copies the first
    into the second, so that first steps take up to a quarter more time (see
    `benchmarks/README.md`). Iterators that are not of `tf.data` go to Keras' function.
    """

    def none_if_optional(value: Any) -> Any:
        return None if isinstance(value, tf.experimental.Optional) else value

    @functools.partial(tf.function, reduce_retracing=True)
    @tf.autograph.experimental.do_not_convert
    def next_step(iterator: tf.data.Iterator) -> Any:
        # Generators of Keras have an empty optional in place of each `None`.
        return step(keras.tree.map_structure(none_if_optional, iterator.get_next()))

    def one_graph(iterator: Any) -> Any:
        # `train_on_batch` has another iterator, of one batch.
        is_dataset = isinstance(iterator, tf.data.Iterator)
        return next_step(iterator) if is_dataset else function(iterator)

    return one_graph


@functools.cache
def _advise_onednn() -> None:
    """Logs a warning, once in a process, if convolutions would be faster with oneDNN.

    TensorFlow uses oneDNN by default on x86 processors with VNNI instructions alone, and reads the
    environment variable when it is imported. If the variable is set, the user has chosen.
    """
    name = "TF_ENABLE_ONEDNN_OPTS"
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    is_off = is_x86 and name not in os.environ and not private_api.is_onednn_enabled()
    if is_off and not tf.config.list_physical_devices("GPU"):
        logging.warning(
            "Training is about 1.4 times as fast on this processor with oneDNN, which TensorFlow "
            "leaves off here: set the environment variable %s=1 before TensorFlow is imported.",
            name,
        )


@functools.cache
def _advise_no_xla() -> None:
    """Logs a warning, once in a process, if XLA compiles for a processor."""
    if {device.device_type for device in tf.config.list_physical_devices()} == {"CPU"}:
        logging.warning(
            "On a CPU, XLA takes five to ten times as long to the first step as TensorFlow without "
            "it, and steps are not faster: leave out jit_compile=True."
        )

"""A distribution as a Keras model: maximum likelihood with `fit`."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_realnvp import distributions, pixels
from tfp_realnvp.bijectors import ActNorm
from tfp_realnvp.bijectors.passes import surround_with
from tfp_realnvp.internal import batch_parts, private_api, replicas, validation
from tfp_realnvp.internal.graph_rewrites import few_graph_rewrites
from tfp_realnvp.training import model_variables, optimizers, workers
from tfp_realnvp.training.batch_model import BatchModel
from tfp_realnvp.training.diagnosis import FiniteGuard, FiniteRecord, warn_unless_finite
from tfp_realnvp.training.few_labels import LABEL_WEIGHT, ClassSeparation, mean_of_labeled, parts_of
from tfp_realnvp.training.input_data import (
    arguments_for_keras,
    check_channels_last,
    check_distribution,
    check_no_labels,
    drop_conditions,
    events_of_batch,
)
from tfp_realnvp.training.learning_rate import CosineAnnealing, StepRates, step_of
from tfp_realnvp.training.muon import Muon
from tfp_realnvp.training.processor import advise_onednn
from tfp_realnvp.training.savable_model import SavableModel

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
class FlowModel(BatchModel, SavableModel):
    r"""Trains a distribution over images or vectors by maximum likelihood, as any Keras model.

    ```
    loss = -sum_i w_i log p(x_i) / sum_i w_i + scale_l2 * sum(scales²) + sum(model.losses)
    x = floor(images) + U[0, 1)
    ```

    with sums over the batch and weights w of the events, 1 by default.

    Images are uint8 or floating gray levels, [B, H, W, C]. Vectors [B, D] are taken as they are:
    what follows about noise and bits/dim is for images. The model adds the noise, new at each
    step and determined by `seed` and the step. `model.distribution` is the object that was passed:
    training the model trains it, including a trainable base distribution. `model.losses` are the
    losses of networks, by `add_loss` or as regularizers of their weights. The metrics are `loss`,
    the weighted mean of the negative log-likelihood in nats per image without the other terms, and
    `bits_per_dim`.

    *   `fit`, `evaluate`, `predict` take what those of any `keras.Model` take: arrays, tensors,
        pandas frames, `tf.data`, `keras.utils.PyDataset`, generators. A batch is images, a tuple
        whose first element is the images, or a dictionary with `'image'`; the batches of a
        generator are tuples, `(images,)` without labels. Floats become those of the distribution's
        dtype. As in any Keras model, with `keras.utils.set_random_seed` arrays are shuffled in the
        same order in each epoch; a `tf.data` pipeline is not.
    *   A distribution that takes a condition gets the second element as `conditional_input`, or of
        a dictionary `'conditional_input'` or `'label'`: `fit(images, labels)`,
        `predict((images, labels))`. With other distributions, such arguments are an error, and the
        labels of a dataset are ignored with a warning. With a `ClassMixture` as base, -1 stands for
        a label that is not known. With the flow's `condition_dropout=p`, each step leaves out the
        condition of a share p of the images.
    *   `fit` and `evaluate` take `sample_weight`, or the third element of a dataset, or of a
        dictionary `'sample_weight'`; `fit` also `class_weight`. An event of weight two counts like
        two equal events, in the loss, the metrics and batch statistics, and one of weight zero
        like none.
    *   `predict`, and `evaluate` in its metrics, give the log density of each image in nats, with
        moving statistics. The noise of an image is determined by `seed` and its gray levels, so
        that its log density does not depend on the other images.
    *   `model(x)` is `log_prob(x)` for continuous pixel values, without noise; with a condition
        `model((x, c))`.
    *   Constructed in the scope of a `tf.distribute.MirroredStrategy` or
        `MultiWorkerMirroredStrategy`, with the distribution and the optimizer, it trains on several
        devices or machines as on one with the same batch; see `compile` for batch statistics.

    An optimizer with `use_ema=True` keeps moving averages of the weights. At its end `fit` replaces
    the weights by the averages, as in Keras. The validation within `fit` uses the averages as well.
    Moving statistics of batch normalization are not averaged.

    A loss or gradient that is not finite changes nothing: weights, statistics and optimizer stay
    as they were before that step, and `fit` raises a `NonFiniteLossError`.

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
        dequantizer: distributions.VariationalDequantization | None = None,
        seed: int = 0,
        name: str | None = None,
    ) -> None:
        """Constructs the model.

        Args:
          distribution: over images [H, W, C] or vectors [D], for example a
            `tfd.TransformedDistribution` with a `RealNVPImage` or `RealNVPVector`.
          dequantize: whether values are integers, as gray levels are, that need noise; `False`
            takes them as they are. By default `True` for images and `False` for vectors.
          dequantizer: of the noise, trained with the distribution; by default it is uniform. Then
            `log p(x)` in the loss, the metrics and `predict` is the bound
            `log p(x + u) - log q(u | x)`.
          seed: of the noise.
          name: of the model.

        Raises:
          TypeError: if `distribution` is not a `tfd.Distribution`, `dequantizer` is not a
            `VariationalDequantization`, or `seed` is not a number.
          ValueError: if its events are neither images nor vectors, or images with channels first;
            it has batch dimensions; or it was not constructed in the scope of the same
            `tf.distribute.Strategy` as this model.
        """
        event_ndims = check_distribution(distribution)
        if dequantize is None:
            dequantize = event_ndims == 3
        validation.flag(dequantize, "FlowModel: expected a bool as dequantize")
        if dequantize:
            check_channels_last(distribution.event_shape)
        is_dequantizer = isinstance(dequantizer, distributions.VariationalDequantization)
        expected = "FlowModel: expected a VariationalDequantization as dequantizer"
        validation.require(dequantizer is None or is_dequantizer, expected, dequantizer, TypeError)
        if dequantizer is not None and not dequantize:
            raise ValueError("FlowModel: expected dequantize=True with a dequantizer, got False.")
        seed = validation.int32(seed, "FlowModel: expected an int32 seed")
        modules = [distribution] if dequantizer is None else [distribution, dequantizer]
        variables = [variable for module in modules for variable in module.variables]
        workers.check_scope("the distribution", variables)
        # Keras casts the inputs of `call` to this dtype.
        super().__init__(name=name, dtype=distribution.dtype.name)
        self.distribution = distribution
        self.event_ndims = event_ndims
        self.dequantize = dequantize
        self.dequantizer = dequantizer
        self.seed = seed
        self.takes_condition = distributions.takes_condition(distribution)
        self.condition_spec = spec = distributions.find_condition_spec(distribution)
        self._may_lack_condition = spec is not None and spec.may_be_missing
        self._has_class_mixture = isinstance(parts_of(distribution)[-1], distributions.ClassMixture)
        uniform = pixels.UniformNoise if dequantize else pixels.NoNoise
        self.noise = uniform(distribution.dtype) if dequantizer is None else dequantizer
        bijectors = model_variables.find_bijectors(modules)
        model_variables.build_networks(distribution, bijectors)
        # Keras tracks layers; all other variables are wrapped in one.
        self.networks = list(dict.fromkeys(layer for part in bijectors for layer in part.layers))
        self.other_variables = model_variables.TrackedVariables.outside(self.networks, modules)
        self._scales = tuple(model_variables.find_scales(self.networks, bijectors))
        self._gains_from_rewrites = model_variables.gains_from_rewrites(bijectors)
        # Keras tracks lists that are attributes, but nothing that a function returns.
        self._bijectors = lambda: bijectors
        self._guard = FiniteGuard(
            lambda: [v for part in bijectors for v in part.variables_set_in_training]
        )
        self._bits_per_dim = workers.ReplicatedMean(name="bits_per_dim")
        self._evaluation_guard = FiniteGuard()
        self.scale_l2 = 0.0
        self.global_statistics = True
        self.step_rates: StepRates | None = None
        self.validation_freq: int | list[int] = 1
        self._is_annealed = False
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
          optimizer: by default `Muon` for images and `FusedAdam` for vectors, with gradients
            clipped to a global norm of 100. The learning rate starts at 4e-3 for images and at 1e-3
            for vectors in each call of `fit`, and falls to zero at its end, along half a period of
            a cosine; with `initial_epoch` it continues where it was. An optimizer that is given
            keeps its own rate, and so does a rate that a callback sets, for example a
            `LearningRateBudget` of steps or seconds. The paper has Adam at a constant rate, as in
            `FusedAdam(1e-3, global_clipnorm=100.0)`, see `benchmarks/README.md`.
          scale_l2: factor of the sum of squares of all scales, those of weight normalization and
            those of tanh in the couplings.
          global_statistics: whether batch statistics are those of the batch of all replicas of a
            `tf.distribute.Strategy`, so that training is that of one device with the whole batch.
            With `False` each replica normalizes by its part of the batch, without waiting for the
            others, and moving statistics are averaged after each step.
          **kwargs: as in `keras.Model.compile`, except `loss` and metrics.

        Raises:
          ValueError: if a `loss` or metrics are given, `scale_l2` is negative, networks compute in
            float16, or the optimizer was not constructed in the scope of the model's
            `tf.distribute.Strategy`, or accumulates gradients in one.
        """
        if kwargs.pop("loss", None) is not None:
            raise ValueError("FlowModel.compile: expected no loss, it is the negative log density.")
        for name in ("metrics", "weighted_metrics"):
            if kwargs.get(name):
                raise ValueError(
                    f"FlowModel.compile: expected no {name}, got {kwargs[name]!r}; the model has "
                    "`loss`, and for images `bits_per_dim`, and a callback can compute others."
                )
        if any(layer.compute_dtype == "float16" for layer in self.networks):
            raise ValueError(
                "FlowModel.compile: expected networks in float32, mixed_bfloat16 or float64, got "
                "float16, whose range is too small to train with; see `network_dtype`."
            )
        expected = "FlowModel.compile: expected a scale_l2 of at least 0"
        validation.real(scale_l2, lambda x: 0 <= x < math.inf, expected)
        validation.flag(
            global_statistics, "FlowModel.compile: expected a bool as global_statistics"
        )
        with self.distribute_strategy.scope():
            self._is_annealed = optimizer is None
            if optimizer is None:
                default = Muon if self.event_ndims == 3 else optimizers.FusedAdam
                optimizer = default(_PEAKS[self.event_ndims], global_clipnorm=100.0)
            super().compile(optimizer=optimizer, **kwargs)
            workers.check_scope("the optimizer", [v.value for v in self.optimizer.variables])
            if tf.distribute.has_strategy() and self.optimizer.gradient_accumulation_steps:
                raise ValueError(
                    "FlowModel.compile: expected an optimizer without gradient_accumulation_steps, "
                    "with which Keras fails in a `tf.distribute.Strategy`; use larger batches."
                )
            self._loss_tracker = workers.ReplicatedMean(name="loss")
        self.scale_l2 = scale_l2
        self.global_statistics = global_statistics

    def build_optimizer(self) -> None:
        """Creates the optimizer's variables, unless they exist; `fit` does so at its start."""
        if not self.optimizer.built:
            with self.distribute_strategy.scope():
                self.optimizer.build(self.trainable_variables)

    @contextlib.contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Puts the averages of an optimizer with `use_ema=True` in place of the weights.

        Restores the weights on exit. Without such an optimizer, or before its first step, it does
        nothing.
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
        return distributions.log_prob_of(self.distribution, images, condition, training)

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Makes one step of maximum likelihood, if loss and gradients are finite."""
        images, weights = self._events_and_weights(data)
        part = replicas.part_of_batch(tf.shape(images)[0], weights)
        replicas.assert_not_empty(images, "FlowModel.fit")
        step = tf.cast(private_api.batch_counter(self.optimizer).value, tf.int64)
        variables = self.trainable_variables
        statistics = self._guard.statistics()
        record = self._data_record(images, weights, self.condition_of(data))
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
        packing = optimizers.packing_of(self.optimizer, variables)
        loss, are_finite, *packed = replicas.sum_over_replicas(
            [loss, record.are_finite() / replicas.num_replicas(), *packing.pack(gradients)]
        )
        if not self.global_statistics:
            self._guard.average_statistics()
        is_applied = self._guard.check(step, record, are_finite, packing, packed, [loss + penalty])
        if weights is not None:
            # A batch whose weights are all zero counts like no batch.
            is_applied &= part.total > 0
        if self.step_rates is not None:
            is_applied &= self.step_rates.apply_to(self.optimizer)
        optimizers.apply_if(is_applied, self.optimizer, gradients, packed, packing, variables)
        self._guard.restore_unless(is_applied, statistics)
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

        With the labels of a `ClassMixture` the result is [2, B], with and without these labels.

        Args:
          data: the batch, with conditions.
          images: its events.
          weights: of the events.
          first: number of events of the replicas before this one.
          record: gets the parts of the pass.
        """
        step = private_api.batch_counter(self.optimizer).value
        seed = tf.stack([self.seed, tf.cast(step, tf.int32)])
        noise_fn = functools.partial(pixels.batch_noise, seed=seed, first=first)
        condition = drop_conditions(self.condition_spec, self.condition_of(data), seed, first)
        batch = replicas.Statistics(self.global_statistics, weights)
        with surround_with(statistics=batch):
            values, log_noise = self.noise.add_noise(images, noise_fn, training=True)
            record.add("the data", values)
            if condition is not None and not self._may_lack_condition:
                record.add("the condition", condition)
            if condition is not None and self._has_class_mixture:
                condition = self.condition_spec.with_and_without(condition)
            with surround_with(observer=record.add_bijector):
                log_prob = distributions.log_prob_of(self.distribution, values, condition, True)
                return log_prob - log_noise

    @property
    def _can_initialize(self) -> bool:
        """Whether the next step is the first one, and normalizations can be set before it."""
        if not self.compiled or step_of(self) > 0:
            return False
        with self.distribute_strategy.scope():
            return not (tf.distribute.has_strategy() or self.run_eagerly)

    def _initialize_normalizations(self, data: Any) -> None:
        """Sets the normalizations that the first batch sets, before a graph is traced.

        Otherwise, and under a `tf.distribute` strategy, the step's graph contains the
        initialization. If the log density of the batch is not finite, nothing is set, and the step
        names the part.
        """
        norms = [part for part in self._bijectors() if isinstance(part, ActNorm)]
        to_set = {id(v) for norm in norms for v in norm.variables_set_in_training}
        if not to_set:
            return
        statistics = [v for part in self._bijectors() for v in part.variables_set_in_training]
        before = [tf.convert_to_tensor(variable) for variable in statistics]
        is_valid = False
        try:
            images, weights = self._events_and_weights(data)
            log_prob = self._training_log_prob(data, images, weights, 0, FiniteRecord())
            is_valid = bool(tf.reduce_all(tf.math.is_finite(log_prob)))
            if weights is not None:
                is_valid = is_valid and bool(tf.reduce_sum(weights) > 0)
        finally:
            # Also after an error, which may come when some normalizations are set.
            for variable, value in zip(statistics, before, strict=True):
                if not (is_valid and id(variable) in to_set):
                    variable.assign(value)

    def test_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Updates the metrics with a batch."""
        images, weights = self._events_and_weights(data)
        self._check_in_evaluation(images, weights, self.condition_of(data))
        part = replicas.part_of_batch(tf.shape(images)[0], weights)
        loss = -_part_of_mean(self._evaluation_log_prob(data), weights, part.total)
        [loss] = replicas.sum_over_replicas([loss])
        return self._updated_metrics(loss, images, part)

    def predict_step(self, data: Any) -> tf.Tensor:
        """Returns log p, [B], of a batch."""
        self._check_in_evaluation(*self._events_and_weights(data), self.condition_of(data))
        return self._evaluation_log_prob(data)

    def raise_failure(self) -> None:
        """Raises an error once if a `train_step` was not finite; no later step was made.

        `fit` and `train_on_batch` call it. Call it in a loop of your own around `train_step`.

        Raises:
          NonFiniteLossError: names the step and its first part that was not finite.
        """
        self._guard.raise_failure(self.trainable_variables)

    def make_train_function(self, force: bool = False) -> Callable[[Any], dict[str, tf.Tensor]]:
        """Makes the function that `fit` calls, which first checks the step before."""
        if self.train_function is not None and not force:
            return self.train_function
        self.build_optimizer()
        self.step_rates = None
        if self.steps_per_execution > 1:
            with self.distribute_strategy.scope():
                self.step_rates = StepRates(self.steps_per_execution)
        super().make_train_function(force)
        train_function = self._as_one_graph(self.train_function, self.train_step)
        train_function = self._with_few_rewrites(train_function)

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
            test_function = self._as_one_graph(self.test_function, self.test_step)
            self.test_function = self._with_few_rewrites(test_function, fuse=True)
        return self.test_function

    def make_predict_function(self, force: bool = False) -> Callable[[Any], Any]:
        """Makes the function that `predict` calls."""
        if self.predict_function is None or force:
            super().make_predict_function(force)
            self.predict_function = self._with_few_rewrites(self.predict_function, fuse=True)
        return self.predict_function

    def _as_one_graph(
        self, function: Callable[[Any], Any], step: Callable[[Any], Any]
    ) -> Callable[[Any], Any]:
        """Returns a function of an iterator whose graph is that of a step.

        Keras makes two graphs, one of a step and one that calls it. TensorFlow then copies the
        first into the second, so that first steps take up to a quarter more time (see
        `benchmarks/README.md`). With a strategy, XLA or several steps in an execution, and for
        other iterators, the function is that of Keras.

        Args:
          function: of an iterator, made by Keras.
          step: of a batch.
        """
        with self.distribute_strategy.scope():
            has_strategy = tf.distribute.has_strategy()
        if has_strategy or self.run_eagerly or self.jit_compile or self.steps_per_execution > 1:
            return function

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

    def _with_few_rewrites(
        self, function: Callable[[Any], Any], fuse: bool = False
    ) -> Callable[[Any], Any]:
        """Returns a function of batches whose graph is rewritten little, where that is as fast."""
        # A loop of several steps gains from rewrites, too.
        if self._gains_from_rewrites or self.steps_per_execution > 1:
            return function

        def rewritten(iterator: Any) -> Any:
            with few_graph_rewrites(fuse):
                return function(iterator)

        return rewritten

    def _penalty(self, dtype: tf.DType) -> tf.Tensor:
        """Returns what the objective has beside the log densities."""
        # One operation for all scales of a shape, and one for its gradient.
        groups: dict[Any, list[tf.Variable]] = {}
        for scale in self._scales:
            groups.setdefault((scale.dtype, tuple(scale.shape)), []).append(scale)
        halves = [tf.cast(tf.nn.l2_loss(tf.stack(g)), dtype) for g in groups.values()]
        losses = [tf.reduce_sum(tf.cast(loss, dtype)) for loss in self.losses]
        if halves:
            losses.append(2 * self.scale_l2 * tf.add_n(halves))
        return tf.add_n(losses) if losses else tf.zeros([], dtype)

    def _evaluation_log_prob(self, data: Any) -> tf.Tensor:
        """Returns log p - log q of each event, [B], with the first noise sample of the event."""
        images = events_of_batch(data, self.distribution.event_shape)
        number = tf.shape(images)[0]
        condition = self.condition_of(data)
        images = replicas.at_least_one(images)
        condition = None if condition is None else replicas.at_least_one(condition)
        options = self.distribution, self.noise, None, False
        return distributions.score(*options, images, self.seed, condition=condition)[:number]

    def _updated_metrics(
        self, loss: tf.Tensor, images: tf.Tensor, part: replicas.BatchPart
    ) -> dict[str, tf.Tensor]:
        bits_per_dim = pixels.bits_per_dim(-loss, tf.reduce_prod(tf.shape(images)[1:]))
        for metric, value in zip(self.metrics, (loss, bits_per_dim), strict=False):
            metric.update_state(value, sample_weight=part.total)
        logs = self.get_metrics_result()
        if workers.num_workers(self.distribute_strategy) == 1:
            return logs
        # With several workers, Keras averages over a first axis.
        return {key: tf.expand_dims(value, axis=0) for key, value in logs.items()}

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        # Keras calls it with the data, for models whose variables do not exist, which ours do. It
        # is the only place where `fit` can take a batch and give it back.
        if not self._may_initialize:
            return
        self._may_initialize = False
        if iterator is not None:
            with contextlib.suppress(StopIteration, tf.errors.OutOfRangeError):
                for *_, batches in iterator:
                    data_batch = next(batches)
                    break
        if data_batch is not None:
            self._initialize_normalizations(data_batch)

    # Training and evaluation.

    def fit(self, x: Any = None, *args: Any, **kwargs: Any) -> keras.callbacks.History:
        """Trains as `keras.Model.fit` does.

        Issues a `UserWarning` if labels of a `ClassMixture` are not learned.

        Args:
          x: images, or a dataset of images, conditions and weights.
          *args: as in `keras.Model.fit`; `y` are conditions.
          **kwargs: as in `keras.Model.fit`. `sample_weight` are weights of at least 0, [N];
            `class_weight` is for conditions that are labels.

        Raises:
          ValueError: if there are no images; they are not [B, H, W, C] with finite values, the
            gray levels of the model; conditions are not as declared, or given to a distribution
            that takes none; weights are negative or all zero; no variable is trainable; or all
            means of a `ClassMixture` are equal and no labels are known before training.
          NonFiniteLossError: if the loss or its gradient is not finite.
        """
        self._check_trainable()
        arguments = arguments_for_keras(self, "fit", x, *args, **kwargs)
        if self.event_ndims == 3:
            advise_onednn()
        self._guard.reset()
        self.validation_freq = arguments.get("validation_freq", 1)
        callbacks = keras.tree.flatten(arguments.get("callbacks") or [])
        is_over = any(
            getattr(callback, "is_used_up", False) or getattr(callback, "is_out_of_patience", False)
            for callback in callbacks
        )
        if is_over:
            # Keras asks callbacks whether to stop after a step only.
            arguments["epochs"] = arguments.get("initial_epoch", 0)
        separation = None
        if self._has_class_mixture:
            budgets = [callback for callback in callbacks if hasattr(callback, "fraction")]
            data = None if workers.num_workers(self.distribute_strategy) > 1 else arguments["x"]
            separation = ClassSeparation(self.distribution, data, self.dequantize, budgets)
            callbacks = arguments["callbacks"] = [*callbacks, separation]
        if self._is_annealed:
            # Before those of the caller, which can then set another rate.
            annealing = CosineAnnealing(_PEAKS[self.event_ndims])
            self.call_after_fit(annealing.restore)
            arguments["callbacks"] = [annealing, *callbacks]
        # A batch of an iterator cannot be given back.
        self._may_initialize = self._can_initialize and not isinstance(x, Iterator)
        try:
            history = super().fit(**arguments)
        finally:
            self._after_fit.close()
            if self.step_rates is not None:
                self.step_rates.clear()
        self.raise_failure()
        if separation is not None:
            separation.warn_of_errors()
        if not (is_over or history.history.get("loss")):
            raise ValueError("FlowModel.fit: expected data to train on, got an empty dataset.")
        return history

    def call_after_fit(self, function: Callable[[], None]) -> None:
        """Calls a function at the end of `fit`, also where `fit` raises an error.

        This is for callbacks: Keras does not call their `on_train_end` then.

        Args:
          function: to call once.
        """
        self._after_fit.callback(function)

    def evaluate(self, x: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Evaluates as `keras.Model.evaluate` does; see `fit` for `x` and errors.

        Warns with a `RuntimeWarning` of a loss that is not finite.
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

        Warns with a `RuntimeWarning` of those that are not finite.
        """
        arguments = arguments_for_keras(self, "predict", x, *args, **kwargs)
        callbacks = keras.tree.flatten(arguments.get("callbacks") or [])
        arguments["callbacks"] = [*callbacks, _RequireBatch()]
        self._evaluation_guard.reset()
        log_prob = super().predict(**arguments)
        self._evaluation_guard.raise_failure()
        warn_unless_finite(log_prob, "predict")
        return log_prob

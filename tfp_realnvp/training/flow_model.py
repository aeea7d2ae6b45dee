"""A distribution as a Keras model: maximum likelihood with `fit`."""

from __future__ import annotations

import contextlib
import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_realnvp import distributions, pixels
from tfp_realnvp.bijectors import FlowBijector, nested
from tfp_realnvp.internal import atomic_files, replicas, validation
from tfp_realnvp.serialization import keras_config, presets, saved_model
from tfp_realnvp.training import keras_arguments, tracking, workers
from tfp_realnvp.training.diagnosis import (
    FiniteRecord,
    NonFiniteLossError,
    find_non_finite_variable,
)
from tfp_realnvp.training.input_data import (
    check_events,
    events_of_batch,
)
from tfp_realnvp.training.optimizers import FusedAdam, apply_if

__all__ = ["FlowModel"]

tfd = tfp.distributions

# The dropout of conditions and the noise of a step differ.
_DROPOUT_STREAM = 0xD809
_INT32 = range(-(2**31), 2**31)
_FIRST = tf.VariableAggregation.ONLY_FIRST_REPLICA


@keras.saving.register_keras_serializable(package="tfp_realnvp")
class FlowModel(keras.Model):
    r"""Trains a distribution over images or vectors by maximum likelihood, as any Keras model.

    ```
    loss = -mean log p(x) + scale_l2 * sum(scales²),   x = floor(images) + U[0, 1)
    ```

    Images are uint8 or floating gray levels, [B, H, W, C]. Vectors [B, D] are taken as they are:
    what follows about noise and bits/dim is for images. The model adds the noise, new at each
    step and determined by `seed` and the step. `model.distribution` is the object that was passed:
    training the model trains it, including a trainable base distribution. The metrics are `loss`,
    the mean negative log-likelihood in nats per image (without the penalty), and `bits_per_dim`.

    *   `fit`, `evaluate`, `predict` take NumPy arrays, tensors, and `tf.data` of images, of tuples
        whose first element is the images, or of dictionaries with `'image'`.
    *   A distribution that takes a condition gets the second element as `conditional_input`, or of
        a dictionary `'conditional_input'` or `'label'`: `fit(images, labels)`,
        `predict((images, labels))`. Other distributions ignore labels. With the flow's
        `condition_dropout=p`, each step leaves out the condition of a share p of the images.
    *   `predict`, and `evaluate` in its metrics, give the log density of each image in nats, with
        moving statistics, and with the same noise each time.
    *   `model(x)` is `log_prob(x)` for continuous pixel values, without noise; with a condition
        `model((x, c))`.
    *   Constructed in the scope of a `tf.distribute.MirroredStrategy` or
        `MultiWorkerMirroredStrategy`, with the distribution and the optimizer, it trains on several
        devices or machines as on one with the same batch; see `compile` for batch statistics.

    An optimizer with `use_ema=True` keeps moving averages of the weights. As in Keras, `fit` leaves
    the averages in the model at its end; its validation is of them too. Moving statistics are those
    of training.

    A loss or gradient that is not finite changes nothing: weights, statistics and optimizer stay
    as they were before that step, and `fit` raises a `NonFiniteLossError`.

    #### Example

    >>> import numpy as np, tensorflow_probability as tfp, tfp_realnvp as tfr
    >>> tfd = tfp.distributions
    >>> flow = tfd.TransformedDistribution(
    ...     tfd.Sample(tfd.Normal(0., 1.), [8, 8, 1]),
    ...     tfr.RealNVPImage((8, 8, 1), num_blocks=1, num_filters=8))
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
          ValueError: if its events are neither images nor vectors, it has batch dimensions, or
            it was not constructed in the scope of the same `tf.distribute.Strategy` as this model.
        """
        if not isinstance(distribution, tfd.Distribution):
            raise TypeError(f"FlowModel: expected a tfd.Distribution, got {distribution!r}.")
        rank = distribution.event_shape.rank
        event_ndims = 3 if rank is None else rank
        if event_ndims not in (1, 3) or distribution.batch_shape.rank != 0:
            raise ValueError(
                "FlowModel: expected a distribution over images [height, width, channels] or "
                f"vectors [size] without batch dimensions, got event_shape "
                f"{distribution.event_shape} and batch_shape {distribution.batch_shape}."
            )
        if dequantize is None:
            dequantize = event_ndims == 3
        validation.flag(dequantize, "FlowModel: expected a bool as dequantize")
        is_dequantizer = isinstance(dequantizer, distributions.VariationalDequantization)
        expected = "FlowModel: expected a VariationalDequantization as dequantizer"
        validation.require(dequantizer is None or is_dequantizer, expected, dequantizer, TypeError)
        if dequantizer is not None and not dequantize:
            raise ValueError("FlowModel: expected dequantize=True with a dequantizer, got False.")
        expected = "FlowModel: expected an int32 seed"
        seed = int(validation.real(seed, lambda x: x in _INT32, expected))
        modules = [distribution] if dequantizer is None else [distribution, dequantizer]
        _check_scope("the distribution", [v for module in modules for v in module.variables])
        takes_condition = distributions.takes_condition(distribution)
        condition_spec = distributions.find_condition_spec(distribution)
        super().__init__(name=name)
        self.distribution = distribution
        self.event_ndims = event_ndims
        self._event_name = {3: "images", 1: "vectors"}[event_ndims]
        self.dequantize = dequantize
        self.dequantizer = dequantizer
        self.seed = seed
        self.takes_condition = takes_condition
        self.condition_spec = condition_spec
        parts = [part for module in modules for part in module.submodules]
        bijectors = [part for part in parts if isinstance(part, FlowBijector)]
        tracking.build_networks(distribution, bijectors)
        # Keras tracks the networks, which are layers; all other variables are wrapped in one.
        self.networks = list(dict.fromkeys(layer for part in bijectors for layer in part.layers))
        of_networks = {id(v.value) for layer in self.networks for v in layer.variables}
        self.other_variables = tracking.TrackedVariables(
            [v for module in modules for v in module.variables if id(v) not in of_networks],
            name="other_variables",
        )
        self._scales = tuple(tracking.find_scales(self.networks, bijectors))
        self._set_in_training = tuple(v for p in bijectors for v in p.variables_set_in_training)
        self._bits_per_dim = _ReplicatedMean(name="bits_per_dim")
        self._evaluation_batch = tf.Variable(0, trainable=False, dtype=tf.int64, aggregation=_FIRST)
        # The step that was not finite, and the index of its first such part; -1 if there is none.
        self._failure = tf.Variable([-1, -1], trainable=False, dtype=tf.int64, aggregation=_FIRST)
        self._part_names: list[str] = []
        self.scale_l2 = 0.0
        self.global_statistics = True
        self.built = True

    def compile(
        self,
        optimizer: str | keras.optimizers.Optimizer | None = None,
        *,
        scale_l2: float = 5e-5,
        global_statistics: bool = True,
        **kwargs: Any,
    ) -> None:
        """Configures training; the defaults are those of the paper and its authors' code.

        Args:
          optimizer: by default Adam with a learning rate of 1e-3 and gradients clipped to a global
            norm of 100.
          scale_l2: factor of the sum of squares of all scales, those of weight normalization and
            those of tanh in the couplings.
          global_statistics: whether batch statistics are those of the batch of all replicas of a
            `tf.distribute.Strategy`, so that training is that of one device with the whole batch.
            With `False` each replica normalizes by its part of the batch, without waiting for the
            others, and moving statistics are averaged after each step.
          **kwargs: as in `keras.Model.compile`, except `loss`.

        Raises:
          ValueError: if a `loss` is given, `scale_l2` is negative, or the optimizer was not
            constructed in the scope of the model's `tf.distribute.Strategy`.
        """
        if kwargs.pop("loss", None) is not None:
            raise ValueError("FlowModel.compile: expected no loss, it is the negative log density.")
        expected = "FlowModel.compile: expected a scale_l2 of at least 0"
        validation.real(scale_l2, lambda x: 0 <= x < math.inf, expected)
        validation.flag(
            global_statistics, "FlowModel.compile: expected a bool as global_statistics"
        )
        with self.distribute_strategy.scope():
            if optimizer is None:
                optimizer = FusedAdam(1e-3, global_clipnorm=100.0)
            super().compile(optimizer=optimizer, **kwargs)
            _check_scope("the optimizer", [v.value for v in self.optimizer.variables])
            self._loss_tracker = _ReplicatedMean(name="loss")
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

        On exit the weights are what they were. Without such an optimizer, or before its first step,
        it does nothing.
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

    def reset_metrics(self) -> None:
        """Resets the metrics and the noise of evaluation, for each epoch and evaluation."""
        super().reset_metrics()
        self._evaluation_batch.assign(0)

    # Steps on a batch.

    def call(self, images: Any, training: bool = False) -> tf.Tensor:
        """Returns log p, [B], in nats, for continuous pixel values [B, H, W, C].

        Args:
          images: [B, H, W, C], or a tuple of images and their conditions.
          training: whether to use and update batch statistics.
        """
        condition = self._condition(images)
        images = tf.cast(pixels.image_component(images), self.distribution.dtype)
        return self._log_prob(images, condition, training=training)

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Makes one step of maximum likelihood, if loss and gradients are finite."""
        images = events_of_batch(data, self.distribution.event_shape)
        part = replicas.part_of_batch(tf.shape(images)[0])
        if replicas.num_replicas() > 1:
            message = (
                "FlowModel.fit: expected images for each replica, got a batch with fewer images "
                "than replicas; leave a smaller last batch out (drop_remainder=True)."
            )
            tf.debugging.assert_positive(tf.shape(images)[0], message)
        step = tf.cast(self.optimizer.iterations.value, tf.int64)
        seed = self.seed, tf.cast(step, tf.int32)
        condition = self._with_dropout(self._condition(data), seed, part)
        variables = self.trainable_variables
        statistics = [tf.convert_to_tensor(variable) for variable in self._set_in_training]
        record = FiniteRecord()
        with replicas.global_statistics(self.global_statistics):
            with tf.GradientTape() as tape:
                values, log_noise = self._values(images, seed, part, training=True)
                record.add("the data", values)
                if condition is not None and self._has_no_gaps(condition):
                    record.add("the condition", condition)
                with nested.observe_inverse(record.add_bijector):
                    log_prob = self._log_prob(values, condition, training=True) - log_noise
                # The sum over replicas is the mean over the batch, plus the penalty.
                loss = -tf.reduce_sum(log_prob) / tf.cast(part.total, log_prob.dtype)
                penalty = tf.cast(self._penalty(), loss.dtype) / replicas.num_replicas()
                objective = self.optimizer.scale_loss(loss + penalty)
            gradients = tape.gradient(
                objective,
                [variable.value for variable in variables],
                unconnected_gradients=tf.UnconnectedGradients.ZERO,
            )
        name = f"the log density of {self.distribution.name}, after its bijectors"
        record.add(name, log_prob)
        loss, are_finite, *gradients = replicas.sum_over_replicas(
            [loss, record.are_finite() / replicas.num_replicas(), *gradients]
        )
        if not self.global_statistics:
            replicas.average(self._set_in_training)
        record_after = FiniteRecord()
        for variable, gradient in zip(variables, gradients, strict=True):
            record_after.add(f"the gradient of {variable.path}", gradient)
        record_after.add("the sum over the batch or the penalty", loss + penalty)
        are_finite = tf.concat([are_finite, record_after.are_finite()], axis=0)
        self._part_names = record.names + record_after.names
        # After a step that failed, later ones of the same execution change nothing either.
        failure = tf.convert_to_tensor(self._failure)
        fails, failed_before = tf.reduce_any(are_finite < 1), failure[0] >= 0
        is_applied = tf.logical_not(fails | failed_before)
        apply_if(is_applied, self.optimizer, gradients, variables)
        for variable, value in zip(self._set_in_training, statistics, strict=True):
            replicas.assign(variable, tf.where(is_applied, variable, value))
        new_failure = tf.stack([step, tf.argmax(are_finite < 1)])
        is_first = tf.logical_not(is_applied | failed_before)
        replicas.assign(self._failure, tf.where(is_first, new_failure, failure))
        self._update_metrics(loss, images, part)
        return self._logs()

    def test_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Updates the metrics with a batch."""
        images, log_prob, part = self._evaluation_log_prob(data)
        loss = -tf.reduce_sum(log_prob) / tf.cast(part.total, log_prob.dtype)
        [loss] = replicas.sum_over_replicas([loss])
        self._update_metrics(loss, images, part)
        return self._logs()

    def predict_step(self, data: Any) -> tf.Tensor:
        """Returns log p, [B], of a batch."""
        _, log_prob, _ = self._evaluation_log_prob(data)
        return log_prob

    def make_train_function(self, force: bool = False) -> Callable[[Any], dict[str, tf.Tensor]]:
        """Makes the function that `fit` calls, which first checks the step before."""
        if self.train_function is not None and not force:
            return self.train_function
        self.build_optimizer()
        super().make_train_function(force)
        train_function = self.train_function

        def checked(iterator: Any) -> dict[str, tf.Tensor]:
            # One step late, since reading the variable waits for the step that writes it.
            self._raise_if_not_finite()
            return train_function(iterator)

        self.train_function = checked
        return checked

    def _log_prob(
        self, values: tf.Tensor, condition: tf.Tensor | None, training: bool = False
    ) -> tf.Tensor:
        options = {"training": training}
        if condition is not None:
            options["conditional_input"] = condition
        return self.distribution.log_prob(
            values, **distributions.route(self.distribution, **options)
        )

    def _condition(self, data: Any) -> tf.Tensor | None:
        """Returns the condition of a batch, `None` for a distribution that takes none."""
        condition = pixels.condition_component(data) if self.takes_condition else None
        return distributions.as_conditions(self.distribution, condition, "FlowModel")

    def _has_no_gaps(self, condition: Any) -> bool:
        """Returns whether all elements have to be finite: a NaN may stand for "no condition"."""
        may_be_missing = self.condition_spec is not None and self.condition_spec.may_be_missing
        return tf.is_tensor(condition) and condition.dtype.is_floating and not may_be_missing

    def _with_dropout(
        self, condition: tf.Tensor | None, seed: Any, part: replicas.BatchPart
    ) -> tf.Tensor | None:
        rate = self.condition_spec.dropout if self.condition_spec is not None else None
        if condition is None or not rate:
            return condition
        seed = tf.stack([seed[0] ^ _DROPOUT_STREAM, seed[1]])
        noise = pixels.uniform_noise(tf.shape(condition)[:1], seed, first=part.first)
        return self.condition_spec.without(condition, noise < rate)

    def _penalty(self) -> tf.Tensor:
        halves = [tf.cast(tf.nn.l2_loss(scale), tf.float32) for scale in self._scales]
        return 2 * self.scale_l2 * tf.add_n(halves) if halves else tf.zeros([])

    def _evaluation_log_prob(self, data: Any) -> tuple[tf.Tensor, tf.Tensor, replicas.BatchPart]:
        images = events_of_batch(data, self.distribution.event_shape)
        number = tf.shape(images)[0]
        part = replicas.part_of_batch(number)
        condition = self._condition(data)
        if replicas.num_replicas() > 1:
            images = _at_least_one(images)
            condition = None if condition is None else _at_least_one(condition)
        batch = self._evaluation_batch + 1
        replicas.assign(self._evaluation_batch, batch)
        values, log_noise = self._values(images, pixels.evaluation_seed(self.seed, batch), part)
        return images, (self._log_prob(values, condition) - log_noise)[:number], part

    def _values(
        self, images: tf.Tensor, seed: Any, part: replicas.BatchPart, training: bool = False
    ) -> tuple[tf.Tensor, tf.Tensor | float]:
        """Returns pixel values, and the log density of the noise in them."""
        dtype, seed = self.distribution.dtype, tf.stack(seed)
        if not self.dequantize:
            return tf.cast(images, dtype), 0.0
        if self.dequantizer is None:
            return pixels.dequantize(images, seed, dtype, first=part.first), 0.0
        return self.dequantizer.dequantize(images, seed, first=part.first, training=training)

    def _update_metrics(self, loss: tf.Tensor, images: tf.Tensor, part: replicas.BatchPart) -> None:
        self._loss_tracker.update_state(loss, sample_weight=part.total)
        if self.event_ndims != 3:
            return
        num_dims = tf.reduce_prod(tf.shape(images)[1:])
        bits_per_dim = pixels.bits_per_dim(-loss, num_dims)
        self._bits_per_dim.update_state(bits_per_dim, sample_weight=part.total)

    def _logs(self) -> dict[str, tf.Tensor]:
        logs = self.get_metrics_result()
        if workers.num_workers(self.distribute_strategy) == 1:
            return logs
        # With several workers, Keras averages over a first axis.
        return {key: tf.expand_dims(value, axis=0) for key, value in logs.items()}

    def _raise_if_not_finite(self) -> None:
        step, part = (int(each) for each in self._failure.numpy())
        if step < 0:
            return
        self._failure.assign([-1, -1])
        variable = find_non_finite_variable(self.trainable_variables)
        # Only the data comes before the variables.
        if variable is not None and part > 0:
            raise NonFiniteLossError(step, f"the variable {variable}")
        raise NonFiniteLossError(step, self._part_names[part])

    def _maybe_symbolic_build(self, *args: Any, **kwargs: Any) -> None:
        # All variables exist. Keras would take a batch of the data for this, and fails with several
        # workers.
        del args, kwargs

    # Training and evaluation.

    def _check_events(self, x: Any) -> None:
        check_events(x, self.distribution.event_shape, gray_levels=self.dequantize)

    def fit(self, x: Any = None, *args: Any, **kwargs: Any) -> keras.callbacks.History:
        """Trains as `keras.Model.fit` does.

        Args:
          x: images, or a dataset of images and conditions.
          *args: as in `keras.Model.fit`; `y` are conditions.
          **kwargs: as in `keras.Model.fit`, except `sample_weight` and `class_weight`.

        Raises:
          ValueError: if there are no images, they are not [B, H, W, C] with gray levels, or weights
            of images are given.
          NonFiniteLossError: if the loss or its gradient is not finite.
        """
        self._check_events(x)
        arguments = keras_arguments.for_fit(self.condition_spec, x, *args, **kwargs)
        self._failure.assign([-1, -1])
        history = super().fit(**arguments)
        self._raise_if_not_finite()
        if not history.history.get("loss"):
            raise ValueError(
                f"FlowModel.fit: expected {self._event_name} to train on, got an empty dataset."
            )
        return history

    def evaluate(self, x: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Evaluates as `keras.Model.evaluate` does; see `fit` for `x` and errors.

        Warns with a `RuntimeWarning` of a loss that is not finite.
        """
        is_within_fit = kwargs.get("_use_cached_eval_dataset", False)
        if not is_within_fit:
            self._check_events(x)
            kwargs = keras_arguments.for_evaluate(self.condition_spec, x, *args, **kwargs)
            args, x = (), kwargs.pop("x")
        with self.averaged_weights() if is_within_fit else contextlib.nullcontext():
            results = super().evaluate(x, *args, **kwargs)
        if not self._loss_tracker.count.numpy():
            raise ValueError(
                f"FlowModel.evaluate: expected {self._event_name}, got an empty dataset."
            )
        _warn_unless_finite(self._loss_tracker.result().numpy(), "evaluate")
        return results

    def predict(self, x: Any, *args: Any, **kwargs: Any) -> np.ndarray:
        """Returns log p in nats for each image, [N]; see `fit` for `x` and errors.

        Warns with a `RuntimeWarning` of those that are not finite.
        """
        self._check_events(x)
        arguments = keras_arguments.for_predict(self.condition_spec, x, *args, **kwargs)
        self._evaluation_batch.assign(0)
        try:
            log_prob = super().predict(**arguments)
        except UnboundLocalError as error:
            # Keras raises it when there was no batch.
            if self._evaluation_batch.numpy() == 0:
                raise ValueError(
                    f"FlowModel.predict: expected {self._event_name}, got an empty dataset."
                ) from error
            raise
        _warn_unless_finite(log_prob, "predict")
        return log_prob

    # Saving.

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of `from_config`, the distribution by its constructor arguments.

        Raises:
          TypeError: if a part of the distribution cannot be described; the message names it.
        """
        return {
            "name": self.name,
            "distribution": keras_config.serialize_distribution(self.distribution),
            "dequantize": self.dequantize,
            "dequantizer": keras.saving.serialize_keras_object(self.dequantizer),
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> FlowModel:
        """Returns a model with new networks.

        Args:
          config: of `get_config`.
          custom_objects: classes by name, as in `keras.Model.from_config`.
        """
        with keras.saving.custom_object_scope(custom_objects or {}):
            distribution = keras_config.deserialize_distribution(config["distribution"])
            dequantizer = keras.saving.deserialize_keras_object(config.get("dequantizer"))
        return cls(**{**config, "distribution": distribution, "dequantizer": dequantizer})

    def get_compile_config(self) -> dict[str, Any]:
        """Returns the arguments of `compile`, serialized."""
        config = super().get_compile_config()
        own = {"scale_l2": self.scale_l2, "global_statistics": self.global_statistics}
        return {**config, **own} if config else config

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles with the arguments that `get_compile_config` returned."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.build_optimizer()

    def save(
        self,
        filepath: str | os.PathLike[str],
        overwrite: bool = True,
        zipped: bool | None = None,
        **kwargs: Any,
    ) -> None:
        """Saves architecture, weights and optimizer atomically, otherwise as `keras.Model.save`.

        `keras.models.load_model(filepath)` restores the model, ready for the next training step,
        in any process that has imported `tfp_realnvp`. The new file is written beside `filepath`
        and replaces it when complete, so that a save that is interrupted leaves the old file.

        Args:
          filepath: `*.keras`.
          overwrite: whether an existing file may be replaced.
          zipped: `False` makes a folder.
          **kwargs: as in `keras.Model.save`.

        Raises:
          FileExistsError: if the file exists and not `overwrite`.
          TypeError: if a part of the distribution cannot be described; the message names it.
        """
        if "://" in os.fspath(filepath):
            # Not a local file: Keras and the remote service define what is atomic.
            return super().save(filepath, overwrite=overwrite, zipped=zipped, **kwargs)
        if os.path.exists(filepath) and not overwrite:
            raise FileExistsError(f"FlowModel.save: {os.fspath(filepath)!r} exists.")
        if self.compiled:
            # Loading builds the optimizer as well.
            self.build_optimizer()
        with atomic_files.atomic_replace(filepath) as whole:
            super().save(whole, zipped=zipped, **kwargs)

    def export(self, filepath: str | os.PathLike[str], **kwargs: Any) -> None:
        """Writes a SavedModel for serving; see `export_saved_model`.

        Args:
          filepath: the folder.
          **kwargs: as in `export_saved_model`.
        """
        saved_model.export_saved_model(self.distribution, filepath, **kwargs)

    def save_to_preset(self, folder: str | os.PathLike[str], **kwargs: Any) -> None:
        """Writes configuration, weights and a model card to a folder, for `from_preset`.

        Args:
          folder: created if it is missing; other files in it stay.
          **kwargs: as in `tfp_realnvp.serialization.presets.save_to_preset`; `card` is a dictionary
            of facts for the model card.
        """
        presets.save_to_preset(self, folder, **kwargs)

    @classmethod
    def from_preset(
        cls, handle: str | os.PathLike[str], custom_objects: dict[str, Any] | None = None
    ) -> FlowModel:
        """Returns the model of a preset, with its weights; no code from the preset is run.

        Args:
          handle: a folder of `save_to_preset`, the name of a preset of this package,
            `hf://user/repo`, or `kaggle://user/model/keras/variation`.
          custom_objects: the caller's own layers and functions, by name.

        Raises:
          ValueError: if there is no such preset, or it is not a valid one.
          ImportError: if the handle needs a library that is not installed.
        """
        return presets.from_preset(handle, custom_objects)


class _ReplicatedMean(keras.metrics.Mean):
    """A mean that all replicas update with the same values.

    Keras sums the replicas' values when a metric is read, which needs all workers: a worker that
    saves the model alone would wait forever.
    """

    def add_variable(self, *args: Any, **kwargs: Any) -> keras.Variable:
        """Creates a variable that is read without communication."""
        return super().add_variable(*args, **{**kwargs, "aggregation": "only_first_replica"})


def _at_least_one(values: tf.Tensor) -> tf.Tensor:
    # A replica may have no image of a last batch, and convolutions of empty tensors fail. It then
    # computes one image of zeros, which does not count.
    missing = tf.cast(tf.equal(tf.shape(values)[0], 0), tf.int32)
    filled = tf.pad(values, tf.stack([[0, missing], *[[0, 0]] * (values.shape.rank - 1)]))
    return tf.ensure_shape(filled, [None, *values.shape[1:]])


def _warn_unless_finite(values: Any, method: str) -> None:
    # Not an error: a validation within `fit` may pass, and other images have a density.
    number = np.count_nonzero(~np.isfinite(values))
    if number:
        warnings.warn(
            f"FlowModel.{method}: expected finite log densities, got {number} of {np.size(values)} "
            "that are not; a bijector with validate_args=True says where, and "
            "evaluation.bits_per_dim for which image.",
            RuntimeWarning,
            stacklevel=3,
        )


def _check_scope(name: str, variables: Sequence[tf.Variable]) -> None:
    strategy = tf.distribute.get_strategy()
    if not all(strategy.extended.variable_created_in_scope(variable) for variable in variables):
        raise ValueError(
            f"FlowModel: expected {name} of the scope that the model is in, of "
            f"{type(strategy).__name__}, got variables of another: construct distribution, model "
            "and optimizer in one `with strategy.scope()`."
        )

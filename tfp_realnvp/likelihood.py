"""The steps of training and evaluation by maximum likelihood, on one device or on many."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_realnvp import pixels, replicas, tracking
from tfp_realnvp.bare_function import BareFunction
from tfp_realnvp.bijectors import AffineCoupling, FlowBijector, FlowChain
from tfp_realnvp.diagnosis import NonFiniteLossError, first_non_finite_part
from tfp_realnvp.groups import map_in_groups, read, sum_in_groups
from tfp_realnvp.image_input import images_of_batch
from tfp_realnvp.optimizers import apply_if_finite

__all__ = ["LikelihoodModel", "ReplicatedMean"]

tfd = tfp.distributions

_FIRST = tf.VariableAggregation.ONLY_FIRST_REPLICA


_NO_IMAGES = (
    "FlowModel.fit: expected images for each replica, got a batch with fewer images than replicas; "
    "leave a smaller last batch out (drop_remainder=True)."
)


class LikelihoodModel(keras.Model):
    """What `FlowModel` does with a batch: see there.

    Replicas of a `tf.distribute.Strategy` have parts of a batch, and do together what one device
    does with the whole: the loss is the mean over all images, each image gets the noise that it
    gets there, and gradients are summed before they are clipped. All replicas, and all workers,
    then know the same metrics.
    """

    def __init__(
        self, distribution: tfd.Distribution, *, dequantize: bool, seed: int, name: str | None
    ) -> None:
        super().__init__(name=name)
        self.distribution = distribution
        self.dequantize = dequantize
        self.seed = seed
        bijectors = [part for part in distribution.submodules if isinstance(part, FlowBijector)]
        tracking.build_networks(distribution, bijectors)
        # Keras tracks layers and its own variables: the networks, and all else wrapped in one.
        self.networks = list(dict.fromkeys(layer for part in bijectors for layer in part.layers))
        of_networks = {id(v.value) for layer in self.networks for v in layer.variables}
        self.other_variables = tracking.TrackedVariables(
            [v for v in distribution.variables if id(v) not in of_networks],
            name="other_variables",
        )
        self._scales = tuple(tracking.find_scales(self.networks, bijectors))
        self._set_in_training = tuple(v for p in bijectors for v in p.variables_set_in_training)
        self._bits_per_dim = ReplicatedMean(name="bits_per_dim")
        self._evaluation_batch = tf.Variable(0, trainable=False, dtype=tf.int64, aggregation=_FIRST)
        self._failed_step = tf.Variable(-1, trainable=False, dtype=tf.int64, aggregation=_FIRST)
        self._last_step = None
        self.scale_l2 = 0.0
        self.global_statistics = True
        self.built = True

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """`loss` and `bits_per_dim`."""
        return [self._loss_tracker, self._bits_per_dim] if self.compiled else [self._bits_per_dim]

    def reset_metrics(self) -> None:
        """Resets the metrics, and the noise of evaluation, for each epoch and evaluation."""
        super().reset_metrics()
        self._evaluation_batch.assign(0)

    def build_optimizer(self) -> None:
        """Makes the optimizer's variables, which `fit` does when it begins."""
        if not self.optimizer.built:
            with self.distribute_strategy.scope():
                self.optimizer.build(self.trainable_variables)

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        """One step of maximum likelihood on a batch."""
        images = images_of_batch(data, self.distribution.event_shape)
        number = tf.shape(images)[0]
        part = replicas.part_of_batch(number)
        if replicas.num_replicas() > 1:
            tf.debugging.assert_positive(number, _NO_IMAGES)
        step = tf.cast(self.optimizer.iterations.value, tf.int64)
        values = self._values(images, (self.seed, tf.cast(step, tf.int32)), part)
        variables = self.trainable_variables
        # Tensors share the variables' buffers until those are written: this costs nothing.
        statistics = read(self._set_in_training)
        penalty = self._penalty()
        with replicas.global_statistics(self.global_statistics):
            with tf.GradientTape() as tape:
                tape.watch(penalty)
                log_prob = self._log_prob(values, training=True)
                # What replicas have is to be summed.
                loss = -tf.reduce_sum(log_prob) / tf.cast(part.total, log_prob.dtype)
                penalized = loss + tf.cast(penalty, loss.dtype) / replicas.num_replicas()
                scaled = self.optimizer.scale_loss(penalized)
            by_penalty, *gradients = tape.gradient(scaled, [penalty, *variables])
        self._add_gradient_of_penalty(by_penalty, gradients, variables)
        loss, *gradients = replicas.sum_over_replicas([loss, *gradients])
        if not self.global_statistics:
            replicas.average(self._set_in_training)
        # A step after one that failed, in the same execution, changes nothing either.
        failed_before = self._failed_step >= 0
        checked = loss + tf.cast(penalty, loss.dtype)
        checked = tf.where(failed_before, tf.cast(float("nan"), loss.dtype), checked)
        is_finite = apply_if_finite(self.optimizer, checked, gradients, variables)
        fails = tf.logical_not(is_finite | failed_before)
        replicas.assign(self._failed_step, tf.where(fails, step, self._failed_step))
        map_in_groups(
            _restore_unless,
            [(v.handle, value) for v, value in zip(self._set_in_training, statistics, strict=True)],
            [is_finite],
        )
        self._update_metrics(loss, images, part)
        # The wrapper in `make_train_function` takes these out again.
        last = {"_failed_step": tf.identity(self._failed_step)}
        if replicas.num_replicas() == 1:
            last |= {"_fails": fails, "_images": images}
        return self._logs(last)

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

    def make_train_function(self, force: bool = False) -> Any:
        """Makes the function that `fit` calls, which looks whether the step before was finite."""
        if self.train_function is not None and not force:
            return self.train_function
        self.build_optimizer()
        super().make_train_function(force)
        train_function = self._train_function_of_iterators(self.train_function)

        def checked(iterator: Any) -> dict[str, tf.Tensor]:
            # One step late: by now the value is there, and the device need not be waited for.
            self._raise_if_not_finite()
            logs = dict(train_function(iterator))
            self._last_step = {key: logs.pop(key) for key in list(logs) if key.startswith("_")}
            return logs

        self.train_function = checked
        return checked

    def _train_function_of_iterators(self, train_function: Any) -> Any:
        """Returns Keras's function, or one that does the same in a single graph.

        Keras has a function of the data within one of the iterator, and each takes all variables:
        for hundreds of them, and twice as many moments, that is a fifth of the graph. Where
        couplings are functions of their own, there is nothing to optimise in what calls them.
        """
        several = self.steps_per_execution > 1 or self.distribute_strategy.num_replicas_in_sync > 1
        if several or self.run_eagerly or self.jit_compile:
            return train_function

        def step_on_iterator(iterator: tf.data.Iterator) -> dict[str, tf.Tensor]:
            return self.distribute_strategy.run(self.train_step, args=(iterator.get_next(),))

        optimized = not _is_of_functions(self.distribution)
        steps: dict[tf.TypeSpec, BareFunction] = {}

        def step(iterator: Any) -> dict[str, tf.Tensor]:
            # Keras' own function also takes generators, for `train_on_batch`.
            if not isinstance(iterator, tf.data.Iterator):
                return train_function(iterator)
            if tf.config.functions_run_eagerly():
                return step_on_iterator(iterator)
            spec = tf.type_spec_from_value(iterator)
            if spec not in steps:
                steps[spec] = BareFunction(step_on_iterator, iterator, optimized=optimized)
            return steps[spec](iterator)

        return step

    def _log_prob(self, values: tf.Tensor, training: bool = False) -> tf.Tensor:
        options = tracking.log_prob_options(self.distribution, training=training)
        return self.distribution.log_prob(values, **options)

    def _penalty(self) -> tf.Tensor:
        halves = [
            sum_in_groups(_half_square, [[v.handle] for v in self._scales if v.dtype == d], dtype=d)
            for d in {variable.dtype for variable in self._scales}
        ]
        return 2 * self.scale_l2 * tf.add_n(halves) if halves else tf.zeros([])

    def _add_gradient_of_penalty(
        self, upstream: tf.Tensor, gradients: list[tf.Tensor], variables: list[keras.Variable]
    ) -> None:
        # By hand: the tape would have some operations for each.
        index = {id(variable.value): i for i, variable in enumerate(variables)}
        indices = [index[id(scale)] for scale in self._scales if id(scale) in index]
        rows = [(gradients[i], variables[i].value.handle) for i in indices]
        sums = map_in_groups(_add_multiple, rows, [2 * self.scale_l2 * upstream])
        for i, gradient in zip(indices, sums, strict=True):
            gradient.set_shape(gradients[i].shape)
            gradients[i] = gradient

    def _update_metrics(self, loss: tf.Tensor, images: tf.Tensor, part: replicas.BatchPart) -> None:
        num_dims = tf.reduce_prod(tf.shape(images)[1:])
        self._loss_tracker.update_state(loss, sample_weight=part.total)
        bits_per_dim = pixels.bits_per_dim(-loss, num_dims)
        self._bits_per_dim.update_state(bits_per_dim, sample_weight=part.total)

    def _logs(self, more: dict[str, tf.Tensor] | None = None) -> dict[str, tf.Tensor]:
        logs = {**self.get_metrics_result(), **(more or {})}
        if replicas.num_workers(self.distribute_strategy) == 1:
            return logs
        # Keras takes the mean over an axis of them.
        return {key: tf.expand_dims(value, axis=0) for key, value in logs.items()}

    def _maybe_symbolic_build(self, *args: Any, **kwargs: Any) -> None:
        # All has been built. Keras would take a batch of the data for this, and fails at it when
        # there are several workers.
        del args, kwargs

    def _evaluation_log_prob(self, data: Any) -> tuple[tf.Tensor, tf.Tensor, replicas.BatchPart]:
        images = images_of_batch(data, self.distribution.event_shape)
        number = tf.shape(images)[0]
        part = replicas.part_of_batch(number)
        if replicas.num_replicas() > 1:
            images = _at_least_one(images)
        batch = self._evaluation_batch + 1
        replicas.assign(self._evaluation_batch, batch)
        values = self._values(images, pixels.evaluation_seed(self.seed, batch), part)
        return images, self._log_prob(values)[:number], part

    def _values(
        self, images: tf.Tensor, seed: Any, part: replicas.BatchPart | None = None
    ) -> tf.Tensor:
        if not self.dequantize:
            return tf.cast(images, self.distribution.dtype)
        first = part.first if part else 0
        return pixels.dequantize(images, tf.stack(seed), self.distribution.dtype, first=first)

    def _raise_if_not_finite(self) -> None:
        last, self._last_step = self._last_step, None
        if last is None or int(last["_failed_step"]) < 0:
            return
        self._failed_step.assign(-1)
        step = int(last["_failed_step"])
        if not bool(last.get("_fails", False)):
            raise NonFiniteLossError(
                step, "a batch that is gone (one device and steps_per_execution=1 tell more)"
            )
        # The same noise and the same weights give the same failure, now step by step.
        values = self._values(last["_images"], (self.seed, step))
        state = [(v, tf.identity(v)) for v in self._set_in_training]
        part = first_non_finite_part(
            self.distribution,
            values,
            self.trainable_variables,
            **tracking.log_prob_options(self.distribution, training=True),
        )
        for variable, value in state:
            variable.assign(value)
        raise NonFiniteLossError(step, part)


def _is_of_functions(distribution: tfd.Distribution) -> bool:
    """Returns whether all that has networks is traced as a function of its own."""
    parts = [part for part in distribution.submodules if isinstance(part, FlowBijector)]
    return any(isinstance(part, FlowChain) and part.recompute for part in parts) and all(
        isinstance(part, AffineCoupling) and part.can_be_traced for part in parts if part.layers
    )


def _at_least_one(images: tf.Tensor) -> tf.Tensor:
    # A replica may have none of a last batch, and convolutions of no images fail in places: it then
    # computes one of zeros, for nothing.
    missing = tf.cast(tf.equal(tf.shape(images)[0], 0), tf.int32)
    filled = tf.pad(images, tf.stack([[0, missing], [0, 0], [0, 0], [0, 0]]))
    return tf.ensure_shape(filled, [None, *images.shape[1:]])


class ReplicatedMean(keras.metrics.Mean):
    """A mean that each replica knows: it is updated by what all of them have in common.

    Keras sums the replicas' values whenever someone reads a metric, and then all workers have to:
    one that saves the model alone would wait for ever.
    """

    def add_variable(self, *args: Any, **kwargs: Any) -> keras.Variable:
        """Makes a variable, which is read where it is asked for."""
        return super().add_variable(*args, **{**kwargs, "aggregation": "only_first_replica"})


def _half_square(handle: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    value = tf.raw_ops.ReadVariableOp(resource=handle, dtype=dtype)
    return tf.nn.l2_loss(tf.cast(value, tf.float32))


def _add_multiple(gradient: tf.Tensor, handle: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    value = tf.raw_ops.ReadVariableOp(resource=handle, dtype=gradient.dtype)
    return gradient + tf.cast(factor, gradient.dtype) * value


def _restore_unless(handle: tf.Tensor, before: tf.Tensor, is_finite: tf.Tensor) -> None:
    now = tf.raw_ops.ReadVariableOp(resource=handle, dtype=before.dtype)
    tf.raw_ops.AssignVariableOp(resource=handle, value=tf.where(is_finite, now, before))

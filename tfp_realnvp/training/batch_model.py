"""The batches of a `FlowModel`: their checks, and methods that take one batch."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfp_realnvp import distributions, pixels
from tfp_realnvp.condition_spec import ConditionSpec
from tfp_realnvp.internal import batch_parts, replicas
from tfp_realnvp.training.diagnosis import FiniteGuard, FiniteRecord
from tfp_realnvp.training.input_data import (
    EXPECTED_WEIGHTS,
    batch_for_keras,
    events_of_batch,
    warn_of_labels,
    weights_of_batch,
)

__all__ = ["BatchModel"]


class BatchModel(keras.Model):
    """A Keras model of a distribution that checks its batches."""

    distribution: Any
    dequantize: bool
    takes_condition: bool
    condition_spec: ConditionSpec | None
    _guard: FiniteGuard
    _evaluation_guard: FiniteGuard
    _has_warned_of_labels = False
    # Whether Keras hands the first batch of `fit` to the normalizations that it sets.
    _may_initialize = False

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
        data = batch_for_keras(self, x, y, sample_weight, class_weight)
        options = {"class_weight": class_weight, "return_dict": return_dict}
        self._guard.reset()
        self._may_initialize = self._can_initialize
        logs = super().train_on_batch(*data, **options)
        self.raise_failure()
        return logs

    def test_on_batch(
        self, x: Any, y: Any = None, sample_weight: Any = None, return_dict: bool = False
    ) -> Any:
        """Evaluates as `keras.Model.test_on_batch` does; see `fit` for `x` and errors."""
        data = batch_for_keras(self, x, y, sample_weight)
        return super().test_on_batch(*data, return_dict=return_dict)

    def predict_on_batch(self, x: Any) -> np.ndarray:
        """Returns log p in nats for each image of a batch, [B]; see `fit` for `x` and errors."""
        return super().predict_on_batch(batch_for_keras(self, x)[0])

    def _check_trainable(self) -> None:
        if not self.trainable_variables:
            raise ValueError(
                "FlowModel: expected variables to train, got none; `model.trainable = True` makes "
                "all of them trainable, and then `model.compile()` again."
            )

    def _events_and_weights(self, data: Any) -> tuple[tf.Tensor, tf.Tensor | None]:
        """Returns the events of a batch, and their weights [B] in the dtype of log densities."""
        events = events_of_batch(data, self.distribution.event_shape)
        return events, weights_of_batch(data, self.distribution.dtype)

    def _data_record(
        self, images: tf.Tensor, weights: tf.Tensor | None, condition: tf.Tensor | None
    ) -> FiniteRecord:
        """Returns a record of what the data have to be, which holds for data of any form."""
        record, spec = FiniteRecord(), self.condition_spec
        if condition is not None and spec is not None and spec.num_classes is not None:
            is_valid = tf.reduce_all(spec.in_range(condition))
            expected = f"FlowModel: expected a conditional_input of {spec.description}"
            record.require(is_valid, f"{expected}, got other labels.")
        if self.dequantize:
            num_values = distributions.find_num_values(self.distribution)
            for is_valid, *message in pixels.gray_level_conditions(images, num_values):
                record.require(is_valid, f"FlowModel: {'. '.join(message)}")
        if weights is not None:
            is_valid = tf.reduce_all(weights >= 0) & tf.math.is_finite(tf.reduce_sum(weights))
            record.require(is_valid, f"FlowModel: {EXPECTED_WEIGHTS}.")
        return record

    def _check_in_evaluation(
        self, images: tf.Tensor, weights: tf.Tensor | None, condition: tf.Tensor | None
    ) -> None:
        record = self._data_record(images, weights, condition)
        if record.names:
            shares = record.are_finite() / replicas.num_replicas()
            [are_finite] = replicas.sum_over_replicas([shares])
            self._evaluation_guard.check(tf.constant(0, tf.int64), record, are_finite)

    def condition_of(self, data: Any) -> tf.Tensor | None:
        """Returns the condition of a batch, `None` for a distribution that takes none."""
        condition = batch_parts.condition_in(data)
        if condition is not None and not self.takes_condition:
            if not self._has_warned_of_labels:
                self._has_warned_of_labels = True
                warn_of_labels(self.distribution)
            condition = None
        return distributions.as_conditions(self.distribution, condition, "FlowModel")

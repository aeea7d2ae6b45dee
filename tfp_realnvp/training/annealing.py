"""Learning rates that change from step to step, also within an execution of several steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfp_realnvp.internal import replicas

__all__ = ["CosineAnnealing", "StepRates", "set_learning_rates"]


class StepRates:
    """The learning rates of the steps of an execution, which the training step looks up.

    Keras calls callbacks once an execution. With `steps_per_execution=1` this is not needed.
    """

    def __init__(self, num_steps: int) -> None:
        """Constructs the variables.

        Args:
          num_steps: of an execution.
        """
        first = tf.VariableAggregation.ONLY_FIRST_REPLICA
        options = {"trainable": False, "aggregation": first}
        self._first = tf.Variable(-num_steps, dtype=tf.int64, **options)
        self._rates = tf.Variable(np.zeros(num_steps, np.float32), **options)
        self.num_steps = num_steps

    def assign(self, first: int, rates: list[float | None]) -> None:
        """Sets the rates of the steps from `first` on. A step of rate `None` is not made."""
        self._first.assign(first)
        self._rates.assign([math.nan if rate is None else rate for rate in rates])

    def clear(self) -> None:
        """Leaves the learning rate of all steps as it is."""
        self._first.assign(-self.num_steps)

    def apply_to(self, optimizer: keras.optimizers.Optimizer) -> tf.Tensor:
        """Sets the learning rate of the current step; returns whether the step is to be made.

        A rate that is not that of the step before was set by somebody else, and stays.
        """
        variable = optimizer.learning_rate
        if not isinstance(variable, keras.Variable):  # It is given by a schedule.
            return tf.constant(True)
        index = tf.cast(optimizer.iterations.value, tf.int64) - self._first
        is_inside = (index > 0) & (index < self.num_steps)
        # The rate of the first step is set before the execution.
        index = tf.where(is_inside, index, 1)
        rates, current = tf.convert_to_tensor(self._rates), tf.convert_to_tensor(variable.value)
        is_ours = is_inside & tf.equal(current, tf.cast(rates[index - 1], current.dtype))
        rate = tf.cast(rates[index], current.dtype)
        is_end = is_ours & tf.math.is_nan(rate)
        replicas.assign(variable.value, tf.where(is_ours & ~is_end, rate, current))
        return ~is_end


def set_learning_rates(
    model: keras.Model, rate_of: Callable[[int], float | None]
) -> list[float | None]:
    """Sets the learning rates of the next execution of a model's training function.

    Args:
      model: a `FlowModel`; another model gets the rate of the first step for all of them.
      rate_of: returns the rate of a step, from 0 to `model.steps_per_execution - 1`. All steps from
        one with `None` on, which is not the first, are not made.

    Returns:
      The rates.
    """
    step_rates: StepRates | None = getattr(model, "step_rates", None)
    rates = [rate_of(index) for index in range(step_rates.num_steps if step_rates else 1)]
    model.optimizer.learning_rate = rates[0]
    if step_rates is not None:
        step_rates.assign(int(model.optimizer.iterations.numpy()), rates)
    return rates


class CosineAnnealing(keras.callbacks.Callback):
    r"""Anneals the learning rate to zero over the epochs of `fit`.

    ```
    learning_rate = peak * (1 + cos(π f)) / 2,   f = (epoch + batch / steps) / epochs
    ```

    Where Keras does not know the number of steps, as with a generator, the rate changes with the
    epoch only. Otherwise each step has its own rate, also with `steps_per_execution`.

    `epoch` is counted by Keras, so that with `initial_epoch` or `keras.callbacks.BackupAndRestore`
    the rate continues where it was. Between executions the optimizer has the peak again, which is
    then what checkpoints save. A rate that a user or another callback has set is left as it is.

    #### References

    Loshchilov, Hutter: SGDR: stochastic gradient descent with warm restarts, equation 5.
    """

    def __init__(self, peak: float) -> None:
        """Constructs the callback.

        Args:
          peak: the learning rate of the optimizer at the start.
        """
        super().__init__()
        self._peak = np.float32(peak)
        self._annealed: list[float | None] = []
        self._epoch = 0

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Notes the epoch."""
        self._epoch = epoch

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Sets the learning rates of the execution, unless the rate is not the peak."""
        if self._learning_rate != self._peak:
            return
        steps = self.params["steps"]

        def rate_of(index: int) -> float:
            share = min(1.0, (batch + index) / steps) if steps else 0
            fraction = (self._epoch + share) / self.params["epochs"]
            return float(np.float32(self._peak * (1 + math.cos(math.pi * fraction)) / 2))

        self._annealed = set_learning_rates(self.model, rate_of)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Sets the learning rate to the peak again."""
        self.restore()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Sets the learning rate to the peak again, also if the data ended before a batch."""
        self.restore()

    def restore(self) -> None:
        """Sets the learning rate to the peak again, unless another callback has set it since."""
        if self._annealed and self._learning_rate in self._annealed:
            self.model.optimizer.learning_rate = self._peak
        self._annealed = []

    @property
    def _learning_rate(self) -> np.float32:
        return np.float32(self.model.optimizer.learning_rate.numpy())

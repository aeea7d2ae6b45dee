"""Schedules of the learning rate, step by step, also within an execution of several steps."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfp_realnvp.internal import private_api, replicas, validation

__all__ = ["CosineAnnealing", "LearningRateBudget", "StepRates", "step_of"]

# The default warm-up: a number of steps, and its largest share of a budget.
_WARMUP_STEPS, _WARMUP_SHARE = 100, 0.3


class StepRates:
    """The learning rates of the steps of one execution, which the training step looks up.

    Keras calls callbacks once an execution. With `steps_per_execution=1` this is not needed.
    """

    def __init__(self, num_steps: int) -> None:
        """Constructs the variables for executions of `num_steps` steps."""
        first = tf.VariableAggregation.ONLY_FIRST_REPLICA
        options = {"trainable": False, "aggregation": first}
        self._first = tf.Variable(-num_steps, dtype=tf.int64, **options)
        self._rates = tf.Variable(np.zeros(num_steps, np.float32), **options)
        self.num_steps = num_steps

    def assign(self, first: int, rates: list[float]) -> None:
        """Sets the rates of the steps from `first` on. A step whose rate is NaN is not made."""
        self._first.assign(first)
        self._rates.assign(rates)

    def clear(self) -> None:
        """Leaves the learning rate of all steps as it is."""
        self._first.assign(-self.num_steps)

    def apply_to(self, optimizer: keras.optimizers.Optimizer) -> tf.Tensor:
        """Sets the learning rate of the current step; returns whether the step is to be made.

        Callbacks set the rate of the first step.
        """
        variable = optimizer.learning_rate
        if not isinstance(variable, keras.Variable):  # It is given by a schedule.
            return tf.constant(True)
        index = tf.cast(private_api.batch_counter(optimizer).value, tf.int64) - self._first
        is_later = (index > 0) & (index < self.num_steps)
        current = tf.convert_to_tensor(variable.value)
        rate = tf.cast(tf.gather(self._rates, tf.where(is_later, index, 0)), current.dtype)
        is_made = ~(is_later & tf.math.is_nan(rate))
        replicas.assign(variable.value, tf.where(is_later & is_made, rate, current))
        return is_made


def _set_later_rates(model: keras.Model, rate_of: Callable[[int], float]) -> float:
    """Sets the rates of the later steps of the next execution; returns the rate of its first step.

    `rate_of` takes the number of a step in the execution. A rate of NaN ends the training. Models
    other than a `FlowModel` keep the rate of the first step.
    """
    step_rates: StepRates | None = getattr(model, "step_rates", None)
    if step_rates is not None:
        step_rates.assign(step_of(model), [rate_of(i) for i in range(step_rates.num_steps)])
    return rate_of(0)


class CosineAnnealing(keras.callbacks.Callback):
    r"""Anneals the learning rate to zero over the epochs of `fit`.

    ```
    learning_rate = factor * peak * (1 + cos(π f)) / 2,   f = (epoch + batch / steps) / epochs
    ```

    Each step has its own rate, also with `steps_per_execution`; if the number of steps is unknown,
    each epoch has one. Keras counts the epochs, also from `initial_epoch` and after
    `keras.callbacks.BackupAndRestore`. Between executions the optimizer has the peak again, which
    checkpoints save. A rate that a user or another callback has set stays.

    #### References

    Loshchilov, Hutter: SGDR: stochastic gradient descent with warm restarts, equation 5.
    """

    def __init__(self, peak: float, factor: float = 1.0) -> None:
        super().__init__()
        self._peak, self._factor = np.float32(peak), factor
        self._is_annealed = False
        self._epoch = 0

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Notes the epoch."""
        self._epoch = epoch

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Sets the learning rates of the execution, unless somebody else has set another rate."""
        optimizer, steps = self.model.optimizer, self.params["steps"]
        if optimizer.rate_was_set or optimizer.learning_rate.numpy() != self._peak:
            return

        def rate_of(index: int) -> float:
            share = min(1.0, (batch + index) / steps) if steps else 0
            fraction = (self._epoch + share) / self.params["epochs"]
            return self._factor * float(self._peak) * _half_cosine(1 - fraction)

        self._is_annealed = True
        optimizer.learning_rate.assign(_set_later_rates(self.model, rate_of))

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Sets the learning rate to the peak again."""
        self.restore()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Sets the learning rate to the peak again, also if the data ended before a batch."""
        self.restore()

    def restore(self) -> None:
        """Sets the learning rate to the peak again, unless another callback has set it since."""
        if self._is_annealed and not self.model.optimizer.rate_was_set:
            self.model.optimizer.learning_rate.assign(self._peak)
        self._is_annealed = False


class LearningRateBudget(keras.callbacks.Callback):
    r"""Warms the learning rate up, holds it, and anneals it to zero at the end of a budget.

    With the fraction `f` of the budget that is used up, in steps or in seconds of wall time,

    ```
    learning_rate = peak * min(1, (step + 1) / warmup_steps) * min(1, (1 - f) / (1 - hold))
    ```

    and training stops at `f = 1`. Much of a flow's gain comes in the last, annealed part. With
    several workers, the chief's clock counts.

    A budget counts the steps of the calls of `fit` that have this callback. A run that
    `keras.callbacks.BackupAndRestore` or `TrainingCheckpoint(budget=...)` resumes continues its
    budget. If the budget is used up, `fit` makes no step, and warns.

    With `warmup`, a fraction of the budget, the first factor is `min(1, f / warmup)`. With
    `cosine`, the last factor r is replaced by `(1 - cos(π r)) / 2`.

    By default the warm-up takes 100 steps, or in a short budget the smaller of 0.3 and `hold` of
    it. A budget of seconds counts this share from the end of the first step of `fit`, which is
    mostly tracing.

    With `compile(steps_per_execution=...)`, a `FlowModel` sets the rate of a budget of steps, and
    ends it, at each step. A budget of seconds reads the clock once an execution. The logs of each
    epoch have `minutes_left`, the time until the budget is used up.

    #### Example

    >>> import numpy as np, tensorflow_probability as tfp, tfp_realnvp as tfr
    >>> tfd = tfp.distributions
    >>> model = tfr.FlowModel(tfd.TransformedDistribution(
    ...     tfd.Sample(tfd.Normal(0., 1.), [4, 4, 1]),
    ...     tfr.RealNVPImage((4, 4, 1), num_scales=1, num_blocks=1, num_filters=4)))
    >>> model.compile()
    >>> images = np.random.default_rng(0).integers(0, 256, [32, 4, 4, 1], dtype=np.uint8)
    >>> history = model.fit(images, batch_size=8, epochs=9, verbose=0,
    ...                     callbacks=[tfr.LearningRateBudget(1e-3, steps=12)])
    >>> len(history.epoch), round(float(model.optimizer.learning_rate), 6)
    (3, 0.000167)
    """

    def __init__(
        self,
        peak: float = 1e-3,
        *,
        steps: int | None = None,
        seconds: float | None = None,
        warmup_steps: int | None = None,
        hold: float = 0.5,
        warmup: float | None = None,
        cosine: bool = False,
        used_seconds: float = 0.0,
        used_steps: int = 0,
    ) -> None:
        """Constructs the callback.

        Args:
          peak: the highest learning rate.
          steps: the budget in batches. Give either `steps` or `seconds`.
          seconds: the budget in seconds within `fit`.
          warmup_steps: steps until the peak; by default 100, or less as above.
          hold: fraction of the budget at which annealing begins, in [0, 1).
          warmup: fraction of the budget until the peak, in place of `warmup_steps`.
          cosine: whether annealing follows half a cosine, not a line.
          used_seconds: seconds of training of earlier runs.
          used_steps: steps of earlier runs.

        Raises:
          ValueError: if not exactly one budget is given, an argument is out of range, or a given
            warm-up takes longer than the budget.
        """
        super().__init__()
        expected = "LearningRateBudget: expected "
        limits = [limit for limit in (steps, seconds) if limit is not None]
        one_limit = f"{expected}either a positive number of steps or of seconds"
        validation.require(len(limits) == 1 and limits[0] > 0, one_limit, limits)
        validation.positive(peak, f"{expected}a positive peak")
        validation.fraction(hold, f"{expected}hold in [0, 1)")
        validation.fraction(warmup or 0, f"{expected}warmup in [0, 1)")
        if warmup_steps is not None:
            longest = (steps or math.inf) if warmup is None else 0
            expected += "warmup_steps of at least 1 and at most the steps, only without warmup"
            validation.real(warmup_steps, lambda x: 1 <= x <= longest, expected)
        self.peak = peak
        self.steps = steps
        self.seconds = seconds
        self.warmup_steps = warmup_steps
        self.hold = hold
        self.warmup = warmup
        self.cosine = cosine
        self.used_seconds = used_seconds
        self.used_steps = used_steps
        self._start: float | None = None
        self._first_step = 0
        # Steps, time and fraction after the first step of `fit`, most of which is tracing.
        self._after_first_step: tuple[int, float, float] | None = None

    @property
    def fraction(self) -> float:
        """The fraction of the budget that is used up, from 0."""
        if self.steps is not None:
            return self.elapsed_steps / self.steps
        return self.elapsed_seconds / self.seconds

    @property
    def is_used_up(self) -> bool:
        """Whether nothing of the budget is left."""
        return self.fraction >= 1

    @property
    def elapsed_steps(self) -> int:
        """Steps of training, including earlier runs."""
        is_running = self._start is not None
        return self.used_steps + (step_of(self.model) - self._first_step if is_running else 0)

    @property
    def elapsed_seconds(self) -> float:
        """Seconds of training, including earlier runs."""
        return self.used_seconds + (0 if self._start is None else time.monotonic() - self._start)

    @property
    def remaining_seconds(self) -> float:
        """Seconds until the budget is used up; NaN for a budget of steps before the first step.

        For steps, an estimate from this `fit` without its first step.
        """
        if self.seconds is not None:
            return max(0.0, self.seconds - self.elapsed_seconds)
        if self._after_first_step is None:
            return math.nan
        first, start, _ = self._after_first_step
        step = self.elapsed_steps
        seconds_per_step = (time.monotonic() - start) / max(1, step - first)
        return max(0, self.steps - step) * seconds_per_step

    def set_model(self, model: keras.Model) -> None:
        """Stores the step at which `fit` begins, before another callback restores a later one."""
        super().set_model(model)
        self._first_step = step_of(model)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Starts the clock; warns of a budget that is used up."""
        if self.is_used_up:
            budget = f"{self.steps} steps" if self.seconds is None else f"{self.seconds} seconds"
            warnings.warn(
                f"LearningRateBudget: the budget of {budget} is used up, so that `fit` does not "
                "train; a new LearningRateBudget trains on.",
                UserWarning,
                stacklevel=2,
            )
        self._start, self._after_first_step = time.monotonic(), None
        # Another Keras model does not call it where `fit` raises an error.
        getattr(self.model, "call_after_fit", lambda function: None)(self.on_train_end)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Stops the clock."""
        self.used_seconds, self.used_steps = self.elapsed_seconds, self.elapsed_steps
        self._start = None

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Sets the learning rate."""
        first, fraction = self.elapsed_steps, self._common_fraction()

        def rate_of(index: int) -> float:
            step = first + index
            if self.steps is None:
                return self._rate(step, fraction)
            is_over = index > 0 and step >= self.steps
            return math.nan if is_over else self._rate(step, step / self.steps)

        self.model.optimizer.learning_rate = _set_later_rates(self.model, rate_of)

    def _rate(self, step: int, fraction: float) -> float:
        if self.warmup:
            warm = fraction / self.warmup
        elif self.warmup_steps is not None:
            warm = (step + 1) / self.warmup_steps
        else:
            warm = (step + 1) / _WARMUP_STEPS
            # At a hold of nearly zero no warm-up ends before the annealing begins.
            share = max(0.05, min(_WARMUP_SHARE, self.hold))
            if self.steps is not None:
                warm = max(warm, (step + 1) / (share * self.steps))
            elif self._after_first_step is not None:
                *_, start = self._after_first_step
                warm = max(warm, (fraction - start) / (share * (1 - start)))
        left = min(1.0, max(0.0, 1 - fraction) / (1 - self.hold))
        return self.peak * min(1.0, warm) * (_half_cosine(left) if self.cosine else left)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Stops when the budget is used up."""
        fraction = self._common_fraction()
        if self._after_first_step is None:
            self._after_first_step = self.elapsed_steps, time.monotonic(), fraction
        self.model.stop_training |= fraction >= 1

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Adds `minutes_left` to the logs; stops if the budget ran out during the validation."""
        if logs is not None:
            logs["minutes_left"] = round(self.remaining_seconds / 60, 2)
        self.model.stop_training |= self._common_fraction() >= 1

    def _common_fraction(self) -> float:
        # With different learning rates the workers' weights would diverge, and a worker that stops
        # alone leaves the others waiting.
        if self.steps is not None:
            return self.fraction
        return replicas.broadcast_from_chief(self.model.distribute_strategy, self.fraction)


def step_of(model: keras.Model) -> int:
    """Returns the number of batches that a model was trained on, each of which is a step."""
    # A variable of several devices does not convert to a Python number.
    return int(private_api.batch_counter(model.optimizer).numpy())


def _half_cosine(left: float) -> float:
    """Returns the share of the learning rate when a share of its decay is left, from 1 to 0."""
    return (1 - math.cos(math.pi * left)) / 2

"""Learning rate schedules that apply to each step, even within an execution of several steps."""

import contextlib
import contextvars
import math
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from tfp_realnvp.internal import private_api, replicas, validation

# The default warm-up: its number of steps, and the largest share of a budget that it takes.
_WARMUP_STEPS, _WARMUP_SHARE = 100, 0.3
# `RateFactors` clips the number of rows in a batch to this range.
_LEAST_ROWS, _MOST_ROWS = 32, 512


# An optimizer's learning rate variable, and its value while a step runs eagerly or is traced.
_of_step = contextvars.ContextVar[Any]("rate_of_step", default=(None, None))


class _Rate(keras.Variable):
    """A learning rate that reads as the rate of the step within `RateFactors.multiply`."""

    @property
    def value(self) -> Any:
        variable, rate = _of_step.get()
        return rate if variable is self else super().value


class RateFactors:
    """Multiplies the learning rate by a factor within a step.

    The optimizer's variable never changes: callbacks that read or save it, also after a failed
    step, get the user's value without the factor. Keras calls callbacks once per execution, so
    callbacks set the factors of all steps of an execution in advance.
    """

    def __init__(self, num_steps: int) -> None:
        """Constructs factors of 1, for executions of `num_steps` steps."""
        options = {"trainable": False, "aggregation": tf.VariableAggregation.ONLY_FIRST_REPLICA}
        self._first = tf.Variable(0, dtype=tf.int64, **options)
        # One row per step of an execution: the factor and the power.
        self._table = tf.Variable(tf.tile([[1.0, 0.0]], [num_steps, 1]), **options)
        self.num_steps = num_steps

    def assign(
        self, model: keras.Model, factor: Callable[[int], float], power: float = 0.0
    ) -> None:
        """Sets the factors of the next execution of the model's train function.

        `factor` maps the index of a step in the execution to its factor; NaN skips the step. The
        factors are multiplied by `(rows / 32) ** power`, with rows clipped to [32, 512].
        """
        if self.num_steps > 1:
            self._first.assign(step_of(model))
        self._table.assign([[factor(i), power] for i in range(self.num_steps)])

    @contextlib.contextmanager
    def multiply(
        self, optimizer: keras.optimizers.Optimizer, num_rows: tf.Tensor | None = None
    ) -> Iterator[tf.Tensor]:
        """Multiplies the learning rate within the context; yields whether to make the step.

        If the step is not to be made, the rate is 0. Does not change a `LearningRateSchedule`.
        `num_rows` is the number of rows in the batch; `None` leaves out the factor
        `(rows / 32) ** power`.
        """
        variable = optimizer.learning_rate
        if not isinstance(variable, keras.Variable):
            yield tf.constant(True)
            return
        index: Any = 0
        if self.num_steps > 1:
            step = tf.cast(private_api.batch_counter(optimizer).value, tf.int64)
            index = tf.clip_by_value(step - self._first, 0, self.num_steps - 1)
        factor, power = tf.unstack(tf.gather(self._table, index))
        is_made = tf.math.is_finite(factor)
        if num_rows is not None:
            rows = tf.clip_by_value(tf.cast(num_rows, tf.float32), _LEAST_ROWS, _MOST_ROWS)
            factor *= tf.pow(rows / _LEAST_ROWS, power)
        # Keras has no hook for the rate of a step, so a subclass overrides the property.
        variable.__class__ = _Rate
        token = _of_step.set((None, None))
        rate, factor = tf.convert_to_tensor(variable), tf.where(is_made, factor, 0.0)
        _of_step.set((variable, rate * tf.cast(factor, rate.dtype)))
        try:
            yield is_made
        finally:
            _of_step.reset(token)


class CosineAnnealing(keras.callbacks.Callback):
    r"""Anneals the learning rate to zero over the epochs of `FlowModel.fit`.

    ```
    learning_rate = optimizer.learning_rate * (B / 32)^power * (1 + cos(π f)) / 2
    f = (epoch + batch / steps) / epochs
    ```

    where B is the number of rows in the batch, clipped to [32, 512]. Each step has its own rate,
    even within an execution of several steps. If the number of steps is unknown, the rate changes
    once per epoch. The count of epochs includes the epochs before `initial_epoch` and, in a run
    that `keras.callbacks.BackupAndRestore` resumes, the earlier epochs. If a `TrainingCheckpoint`
    resumes within an epoch, the count includes the batches of this epoch, and training stops when
    the rate is zero.

    Source: Loshchilov, Hutter: SGDR: stochastic gradient descent with warm restarts, equation 5.
    """

    def __init__(self, power: float = 0.0, made: tuple[int, int] = (0, 0)) -> None:
        """Constructs the callback.

        `made` is the number of batches of the first epoch that an interrupted run has made, and the
        number of all batches in its epochs.
        """
        super().__init__()
        self._power, self._made, self._first_batch = power, made, 0
        self._epoch = 0

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Continues an interrupted epoch, unless `fit` only makes the rest of this epoch."""
        first, steps = self._made
        self._first_batch = first if self.params["steps"] == steps else 0

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Stores the number of the epoch."""
        self._epoch = epoch

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Sets the rate factors of the next execution."""

        def factor(index: int) -> float:
            fraction = self._fraction(batch + index)
            is_over = index > 0 and self._first_batch and fraction >= 1
            return math.nan if is_over else _half_cosine(max(0.0, 1 - fraction))

        self.model.rate_factors.assign(self.model, factor, self._power)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Stops a resumed run after the steps of an uninterrupted one."""
        self.model.stop_training |= self._first_batch > 0 and self._fraction(batch + 1) >= 1

    def _fraction(self, batch: int) -> float:
        steps = self.params["steps"]
        share = (self._first_batch + batch) / steps if steps else 0
        return (self._epoch + share) / self.params["epochs"]


class LearningRateBudget(keras.callbacks.Callback):
    r"""Warms the learning rate up, holds it, and anneals it to zero at the end of a budget.

    Let `f` be the used fraction of the budget, in steps or in seconds of wall time. Then

    ```
    learning_rate = peak * min(1, (step + 1) / warmup_steps) * min(1, (1 - f) / (1 - hold))
    ```

    and training stops at `f = 1`. Much of the improvement comes while the rate is annealed. Several
    workers use the chief's clock.

    The callback changes the rate only during a step. Between steps, in saved models and after
    `fit`, `optimizer.learning_rate` has its original value.

    A budget counts the steps or seconds of all calls of `fit` with the same callback. If
    `keras.callbacks.BackupAndRestore` or `TrainingCheckpoint(budget=...)` resumes a run, the budget
    continues. If the budget is exhausted, `fit` issues a warning and makes no step.

    With `warmup`, a fraction of the budget, the first factor is `min(1, f / warmup)`. With
    `cosine`, `(1 - cos(π r)) / 2` replaces the last factor r.

    By default the warm-up takes 100 steps, but at most a share `min(0.3, hold)` of the budget. With
    a budget of seconds, this share begins after the first step, which is mostly tracing.

    With `compile(steps_per_execution=...)`, a `FlowModel` applies a budget of steps exactly, even
    within one execution; a budget of seconds reads the clock once per execution. After each epoch
    the callback logs the last `learning_rate` and the `minutes_left`.

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
    >>> [round(rate, 6) for rate in history.history["learning_rate"]]
    [0.001, 0.000833, 0.000167]
    >>> round(float(model.optimizer.learning_rate), 6)
    0.004
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
          peak: the highest learning rate; replaces the optimizer's learning rate.
          steps: the budget in batches. Give either `steps` or `seconds`.
          seconds: the budget in seconds; only time within `fit` counts.
          warmup_steps: steps until the peak; by default 100, or fewer as described above.
          hold: fraction of the budget at which annealing begins, in [0, 1).
          warmup: fraction of the budget until the peak, in place of `warmup_steps`.
          cosine: whether to anneal along half a cosine instead of linearly.
          used_seconds: seconds of training in earlier runs.
          used_steps: steps in earlier runs.

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
            expected += "warmup_steps from 1 to steps, and only without warmup"
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
        # The optimizer's learning rate at the start of `fit`, and the factor of the last execution.
        self._initial_rate = self._factor = 1.0
        # Restores the learning rate after each step of a model that is not a `FlowModel`.
        self._after_step = contextlib.ExitStack()
        # Elapsed steps, time and fraction at the end of `fit`'s first step, which is mostly
        # tracing.
        self._after_first_step: tuple[int, float, float] | None = None

    @property
    def fraction(self) -> float:
        """The used fraction of the budget: 0 at the start, 1 or slightly more at the end."""
        if self.steps is not None:
            return self.elapsed_steps / self.steps
        return self.elapsed_seconds / self.seconds

    @property
    def is_used_up(self) -> bool:
        """Whether the budget is exhausted."""
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
        """Seconds left in the budget; for a budget of steps an estimate, NaN during the first step.

        The estimate uses the mean time of a step in the current `fit`, without the first step.
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
        """Stores the step at which `fit` starts, before another callback restores a later step."""
        super().set_model(model)
        self._first_step = step_of(model)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Starts the clock; warns if the budget is exhausted.

        Raises:
          TypeError: if the learning rate of the optimizer is a `LearningRateSchedule`.
          ValueError: if the learning rate is zero.
        """
        if self.is_used_up:
            budget = f"{self.steps} steps" if self.seconds is None else f"{self.seconds} seconds"
            warnings.warn(
                f"LearningRateBudget: the budget of {budget} is used up, so `fit` does not "
                "train; to continue, pass a new LearningRateBudget.",
                stacklevel=2,
            )
        self._after_step.close()
        optimizer = self.model.optimizer
        rate = optimizer.learning_rate
        is_variable = isinstance(rate, keras.Variable)
        rate = float(rate.numpy()) if is_variable else optimizer.get_config()["learning_rate"]
        expected = "LearningRateBudget: expected an optimizer with a positive learning rate"
        self._initial_rate = validation.positive(rate, f"{expected}, and no schedule")
        self._start, self._after_first_step = time.monotonic(), None
        # If `fit` raises an error, only a `FlowModel` calls `on_train_end`.
        getattr(self.model, "call_after_fit", lambda function: None)(self.on_train_end)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Stops the clock."""
        self.used_seconds, self.used_steps = self.elapsed_seconds, self.elapsed_steps
        self._start = None

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Sets the rate factors of the next execution."""
        first, fraction = self.elapsed_steps, self._common_fraction()

        def factor(index: int) -> float:
            step = first + index
            if self.steps is None:
                return self._rate(step, fraction) / self._initial_rate
            is_over = index > 0 and step >= self.steps
            return math.nan if is_over else self._rate(step, step / self.steps) / self._initial_rate

        self._factor = factor(0)
        rate_factors: RateFactors | None = getattr(self.model, "rate_factors", None)
        if rate_factors is not None:
            rate_factors.assign(self.model, factor)
        else:
            self._after_step.close()
            variable = self.model.optimizer.learning_rate
            rate = float(variable.numpy())
            self._after_step.callback(variable.assign, rate)
            variable.assign(rate * self._factor)

    def _rate(self, step: int, fraction: float) -> float:
        if self.warmup:
            warm = fraction / self.warmup
        elif self.warmup_steps is not None:
            warm = (step + 1) / self.warmup_steps
        else:
            warm = (step + 1) / _WARMUP_STEPS
            # With `hold` near 0, annealing begins before warm-up ends.
            share = max(0.05, min(_WARMUP_SHARE, self.hold))
            if self.steps is not None:
                warm = max(warm, (step + 1) / (share * self.steps))
            elif self._after_first_step is not None:
                *_, start = self._after_first_step
                warm = max(warm, (fraction - start) / (share * (1 - start)))
        left = min(1.0, max(0.0, 1 - fraction) / (1 - self.hold))
        return self.peak * min(1.0, warm) * (_half_cosine(left) if self.cosine else left)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Stops training when the budget is exhausted."""
        self._after_step.close()
        fraction = self._common_fraction()
        if self._after_first_step is None:
            self._after_first_step = self.elapsed_steps, time.monotonic(), fraction
        self.model.stop_training |= fraction >= 1

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Adds rate and time to the logs; stops if the budget ran out during the validation."""
        # If the data end before a batch, Keras calls `on_train_batch_begin` but no
        # `on_train_batch_end`.
        self._after_step.close()
        if logs is not None:
            rate = float(self.model.optimizer.learning_rate.numpy())
            logs["learning_rate"] = rate * self._factor
            logs["minutes_left"] = round(self.remaining_seconds / 60, 2)
        self.model.stop_training |= self._common_fraction() >= 1

    def _common_fraction(self) -> float:
        # With different learning rates, the weights of workers would diverge. If one worker stopped
        # alone, the others would wait forever.
        if self.steps is not None:
            return self.fraction
        return replicas.broadcast_from_chief(self.model.distribute_strategy, self.fraction)


def step_of(model: keras.Model) -> int:
    """Returns the number of batches that a model was trained on."""
    # `int(variable)` fails for a distributed variable, so call `numpy()`.
    return int(private_api.batch_counter(model.optimizer).numpy())


def _half_cosine(left: float) -> float:
    return (1 - math.cos(math.pi * left)) / 2

"""Learning rate schedules that apply to each step, even within an execution of several steps."""

import contextlib
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfp_realnvp.internal import private_api, replicas, validation

# The default warm-up: its number of steps, and the largest share of a budget that it takes.
_WARMUP_STEPS, _WARMUP_SHARE = 100, 0.3
# `StepRates` clips the number of rows in a batch to this range.
_LEAST_ROWS, _MOST_ROWS = 32, 512


class StepRates:
    """The learning rates of the steps of the next execution.

    Keras calls callbacks once per execution, so a schedule plans the rates of all steps of an
    execution in advance. `FlowModel.train_step` then sets the optimizer's learning rate in the
    graph, applies the gradients, and sets it back.
    """

    def __init__(self, num_steps: int) -> None:
        """Constructs an empty plan for executions of `num_steps` steps."""
        options = {"trainable": False, "aggregation": tf.VariableAggregation.ONLY_FIRST_REPLICA}
        self._first = tf.Variable(0, dtype=tf.int64, **options)
        # One row per step of an execution: the rate, -1 without a plan, and the power.
        self._table = tf.Variable(tf.tile([[-1.0, 0.0]], [num_steps, 1]), **options)
        self.num_steps = num_steps

    def plan(self, first_step: int, rates: Sequence[float], power: float = 0.0) -> None:
        """Plans the rates of the next execution; NaN skips a step.

        The rates are multiplied by `(rows / 32) ** power`, with rows clipped to [32, 512].
        """
        if self.num_steps > 1:
            self._first.assign(first_step)
        self._table.assign([[rate, power] for rate in rates])

    def clear(self) -> None:
        """Removes the plan: steps have the optimizer's learning rate."""
        self._table.assign([[-1.0, 0.0]] * self.num_steps)

    @contextlib.contextmanager
    def of_step(
        self,
        optimizer: keras.optimizers.Optimizer,
        is_made: tf.Tensor,
        num_rows: tf.Tensor | None = None,
    ) -> Iterator[tf.Tensor]:
        """Sets the optimizer's learning rate within the context; yields whether to make the step.

        The rate is 0 unless the plan and `is_made` say that the step is to be made. Does not change
        a `LearningRateSchedule`. `num_rows` is the number of rows in the batch; `None` leaves out
        the factor `(rows / 32) ** power`.
        """
        variable = optimizer.learning_rate
        if not isinstance(variable, keras.Variable):
            yield is_made
            return
        index: Any = 0
        if self.num_steps > 1:
            step = tf.cast(private_api.batch_counter(optimizer).value, tf.int64)
            index = tf.clip_by_value(step - self._first, 0, self.num_steps - 1)
        rate, power = tf.unstack(tf.gather(self._table, index))
        is_made &= tf.logical_not(tf.math.is_nan(rate))
        if num_rows is not None:
            rows = tf.clip_by_value(tf.cast(num_rows, tf.float32), _LEAST_ROWS, _MOST_ROWS)
            rate *= tf.pow(rows / _LEAST_ROWS, power)
        before = tf.convert_to_tensor(variable)
        rate = tf.cast(tf.where(rate < 0, tf.cast(before, rate.dtype), rate), before.dtype)
        # `is_made` also delays the assignment until the assertions of the step have passed.
        replicas.assign(variable, tf.where(is_made, rate, tf.zeros_like(rate)))
        try:
            yield is_made
        finally:
            replicas.assign(variable, before)


class _Schedule(keras.callbacks.Callback):
    """Multiplies the optimizer's learning rate by a factor in each step.

    In a model whose steps do not use `StepRates`, all steps of an execution have the rate of the
    first one. The optimizer then has this rate from `on_train_batch_begin` to `on_train_batch_end`.
    """

    def __init__(self, power: float = 0.0) -> None:
        super().__init__()
        self._power = power
        # Sets the learning rate back.
        self._after_step = contextlib.ExitStack()

    def factor(self, batch: int) -> Callable[[int], float]:
        """Returns the function from the index of a step in the next execution to its factor.

        The factor NaN skips the step.
        """
        raise NotImplementedError

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Sets the rate back if Keras called no callback after an error in the last `fit`."""
        self._after_step.close()
        # If `fit` raises an error, only a `FlowModel` calls `on_train_end`.
        getattr(self.model, "call_after_fit", lambda function: None)(self.on_train_end)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Sets the rate back."""
        self._after_step.close()

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Sets the rates of the next execution."""
        self._after_step.close()
        variable, factor = self.model.optimizer.learning_rate, self.factor(batch)
        if not isinstance(variable, keras.Variable):
            return
        peak = float(variable.numpy())
        rates: StepRates | None = getattr(self.model, "step_rates", None)
        if rates is not None:
            planned = [peak * factor(i) for i in range(rates.num_steps)]
            rates.plan(step_of(self.model), planned, self._power)
        if rates is None or self.model.has_own_train_step:
            self._after_step.callback(variable.assign, peak)
            variable.assign(peak * factor(0))

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Sets the rate back."""
        self._after_step.close()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Sets the rate back if the data ended before a batch: then no `on_train_batch_end` ran."""
        self._after_step.close()


class CosineAnnealing(_Schedule):
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
        super().__init__(power)
        self._made, self._first_batch, self._epoch = made, 0, 0

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Continues an interrupted epoch, unless `fit` only makes the rest of this epoch."""
        super().on_train_begin(logs)
        first, steps = self._made
        self._first_batch = first if self.params["steps"] == steps else 0

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Stores the number of the epoch."""
        self._epoch = epoch

    def factor(self, batch: int) -> Callable[[int], float]:
        """Returns the factors of the half-cosine."""

        def of_step(index: int) -> float:
            fraction = self._fraction(batch + index)
            is_over = index > 0 and self._first_batch and fraction >= 1
            return math.nan if is_over else _half_cosine(max(0.0, 1 - fraction))

        return of_step

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Stops a resumed run after the steps of an uninterrupted one."""
        super().on_train_batch_end(batch, logs)
        self.model.stop_training |= self._first_batch > 0 and self._fraction(batch + 1) >= 1

    def _fraction(self, batch: int) -> float:
        steps = self.params["steps"]
        share = (self._first_batch + batch) / steps if steps else 0
        return (self._epoch + share) / self.params["epochs"]


class LearningRateBudget(_Schedule):
    r"""Warms the learning rate up, holds it, and anneals it to zero at the end of a budget.

    Let `f` be the used fraction of the budget, in steps or in seconds of wall time. Then

    ```
    learning_rate = peak * min(1, (step + 1) / warmup_steps) * min(1, (1 - f) / (1 - hold))
    ```

    and training stops at `f = 1`. Much of the improvement comes while the rate is annealed. Several
    workers use the chief's clock.

    The callback changes the rate only during a step. Between steps, in saved models and after
    `fit`, `optimizer.learning_rate` has its original value. A model with a `train_step` of its own,
    or another Keras model, has the rate of the step from `on_train_batch_begin` on.

    A budget counts the steps or seconds of all calls of `fit` with the same callback. If
    `keras.callbacks.BackupAndRestore` or `TrainingCheckpoint(budget=...)` resumes a run, the budget
    continues. If the budget is exhausted, `fit` issues a warning and makes no step.

    With `warmup`, a fraction of the budget, the first factor is `min(1, f / warmup)`. With
    `cosine`, `(1 - cos(π r)) / 2` replaces the last factor r.

    By default the warm-up takes 100 steps, but at most a share `max(0.05, min(0.3, hold))` of the
    budget. With a budget of seconds, this share begins after the first step, which is mostly
    tracing.

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
        super().on_train_begin(logs)
        optimizer = self.model.optimizer
        rate = optimizer.learning_rate
        is_variable = isinstance(rate, keras.Variable)
        rate = float(rate.numpy()) if is_variable else optimizer.get_config()["learning_rate"]
        expected = "LearningRateBudget: expected an optimizer with a positive learning rate"
        self._initial_rate = validation.positive(rate, f"{expected}, and no schedule")
        self._start, self._after_first_step = time.monotonic(), None

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Stops the clock."""
        super().on_train_end(logs)
        self.used_seconds, self.used_steps = self.elapsed_seconds, self.elapsed_steps
        self._start = None

    def factor(self, batch: int) -> Callable[[int], float]:
        """Returns the factors of the budget."""
        first, fraction = self.elapsed_steps, self._common_fraction()

        def of_step(index: int) -> float:
            step = first + index
            if self.steps is None:
                return self._rate(step, fraction) / self._initial_rate
            is_over = index > 0 and step >= self.steps
            return math.nan if is_over else self._rate(step, step / self.steps) / self._initial_rate

        self._factor = of_step(0)
        return of_step

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
        super().on_train_batch_end(batch, logs)
        fraction = self._common_fraction()
        if self._after_first_step is None:
            self._after_first_step = self.elapsed_steps, time.monotonic(), fraction
        self.model.stop_training |= fraction >= 1

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Adds rate and time to the logs; stops if the budget ran out during the validation."""
        super().on_epoch_end(epoch, logs)
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

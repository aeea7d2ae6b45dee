"""Keras callbacks for training flows."""

from __future__ import annotations

import contextlib
import math
import os
import pathlib
import shutil
import time
from typing import Any

import keras
import tensorflow as tf

from tfp_realnvp.internal import validation
from tfp_realnvp.internal.folder_lock import FolderLock
from tfp_realnvp.training import workers
from tfp_realnvp.training.annealing import set_learning_rates
from tfp_realnvp.training.flow_model import FlowModel

__all__ = ["LearningRateBudget", "TrainingCheckpoint"]

# The default warm-up: a number of steps, and its largest share of a budget.
_WARMUP_STEPS, _WARMUP_SHARE = 100, 0.3


class LearningRateBudget(keras.callbacks.Callback):
    r"""Warms the learning rate up, holds it, and anneals it to zero at the end of a budget.

    With the fraction `f` of the budget that is used up, in steps or in seconds of wall time,

    ```
    learning_rate = peak * min(1, (step + 1) / warmup_steps) * min(1, (1 - f) / (1 - hold))
    ```

    and training stops at `f = 1`, so that it makes good use of a fixed time on any machine. Much of
    a flow's gain comes in the last, annealed part. With several workers, the chief's clock counts.

    With `warmup`, a fraction of the budget, the first factor is `min(1, f / warmup)`. With
    `cosine`, the last factor r is replaced by `(1 - cos(π r)) / 2`.

    By default the warm-up takes 100 steps, and in a short budget a share of it, 0.3 or `hold` if
    that is less, so that the rate reaches its peak. In a budget of seconds the share is one of the
    time after the first step of `fit`, most of which is tracing.

    With the `steps_per_execution` of `compile`, a `FlowModel` has the rates of a budget of steps,
    and its end, at each step. A budget of seconds looks at the clock once an execution.

    The logs of each epoch, and so the progress line of `fit`, have `minutes_left`: the time until
    the budget is used up.

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
    ) -> None:
        """Constructs the callback.

        Args:
          peak: the highest learning rate.
          steps: the budget in steps of the optimizer. Give either `steps` or `seconds`.
          seconds: the budget in seconds within `fit`.
          warmup_steps: steps until the peak is reached; by default 100, or less as above.
          hold: fraction of the budget at which annealing begins, in [0, 1).
          warmup: fraction of the budget until the peak is reached, in place of `warmup_steps`.
          cosine: whether annealing follows half a cosine, not a line.
          used_seconds: seconds of the budget that earlier runs have used up.

        Raises:
          ValueError: if not exactly one budget is given, an argument is out of range, or a given
            warm-up takes longer than the budget.
        """
        super().__init__()
        if (steps is None) == (seconds is None):
            raise ValueError(
                "LearningRateBudget: expected either a positive number of steps or of seconds, got "
                f"steps={steps}, seconds={seconds}."
            )
        for value, is_valid, expected in (
            (steps if seconds is None else seconds, lambda x: x > 0, "positive steps or seconds"),
            (peak, lambda x: 0 < x < math.inf, "a positive peak"),
            (
                1 if warmup_steps is None else warmup_steps,
                lambda x: 1 <= x < math.inf,
                "at least 1 warmup_steps",
            ),
            (hold, lambda x: 0 <= x < 1, "hold in [0, 1)"),
            (warmup or 0, lambda x: 0 <= x < 1, "warmup in [0, 1)"),
            (used_seconds, lambda x: 0 <= x < math.inf, "used_seconds of at least 0"),
        ):
            validation.real(value, is_valid, f"LearningRateBudget: expected {expected}")
        if warmup_steps is not None and (warmup is not None or warmup_steps > (steps or math.inf)):
            raise ValueError(
                "LearningRateBudget: expected warmup_steps of at most the steps, and only without "
                f"warmup, got warmup_steps={warmup_steps}, steps={steps}, warmup={warmup}."
            )
        self.peak = peak
        self.steps = steps
        self.seconds = seconds
        self.warmup_steps = warmup_steps
        self.hold = hold
        self.warmup = warmup
        self.cosine = validation.flag(cosine, "LearningRateBudget: expected a bool as cosine")
        self.used_seconds = used_seconds
        self._start: float | None = None
        # Steps, time and fraction after the first step of `fit`, most of which is tracing.
        self._after_first_step: tuple[int, float, float] | None = None

    @property
    def fraction(self) -> float:
        """The fraction of the budget that is used up, from 0."""
        if self.steps is not None:
            return _step(self.model) / self.steps
        return self.elapsed_seconds / self.seconds

    @property
    def elapsed_seconds(self) -> float:
        """Seconds of training, those of earlier runs included."""
        return self.used_seconds + (0 if self._start is None else time.monotonic() - self._start)

    @property
    def remaining_seconds(self) -> float:
        """Seconds until the budget is used up; NaN for steps before the first one of `fit`.

        The time of the remaining steps is estimated by that of the steps of this `fit`, with their
        validations and checkpoints, and without the first step.
        """
        if self.seconds is not None:
            return max(0.0, self.seconds - self.elapsed_seconds)
        if self._after_first_step is None:
            return math.nan
        first, start, _ = self._after_first_step
        step = _step(self.model)
        seconds_per_step = (time.monotonic() - start) / max(1, step - first)
        return max(0, self.steps - step) * seconds_per_step

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Starts the clock."""
        self._start, self._after_first_step = time.monotonic(), None
        if isinstance(self.model, FlowModel):
            self.model.call_after_fit(self.on_train_end)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Stops the clock."""
        self.used_seconds, self._start = self.elapsed_seconds, None

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Sets the learning rate."""
        first, fraction = _step(self.model), self._common_fraction()

        def rate_of(index: int) -> float | None:
            step = first + index
            if self.steps is None:
                return self._rate(step, fraction)
            is_over = index > 0 and step >= self.steps
            return None if is_over else self._rate(step, step / self.steps)

        set_learning_rates(self.model, rate_of)

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
        annealed = min(1.0, max(0.0, 1 - fraction) / (1 - self.hold))
        if self.cosine:
            annealed = (1 - math.cos(math.pi * annealed)) / 2
        return self.peak * min(1.0, warm) * annealed

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Stops when the budget is used up."""
        fraction = self._common_fraction()
        if self._after_first_step is None:
            self._after_first_step = _step(self.model), time.monotonic(), fraction
        self._stop_if_used_up(fraction)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Adds `minutes_left` to the logs; stops if the budget ran out during the validation."""
        if logs is not None:
            logs["minutes_left"] = round(self.remaining_seconds / 60, 2)
        self._stop_if_used_up(self._common_fraction())

    def _stop_if_used_up(self, fraction: float) -> None:
        if fraction >= 1:
            self.model.stop_training = True

    def _common_fraction(self) -> float:
        # With different learning rates the workers' weights would diverge, and a worker that stops
        # alone leaves the others waiting.
        if self.steps is not None:
            return self.fraction
        return workers.broadcast_from_chief(self.model.distribute_strategy, self.fraction)


class TrainingCheckpoint(keras.callbacks.Callback):
    """Saves the state of training, and separately the weights of the best epoch.

    It saves after each epoch, and within an epoch every `save_seconds`. Training stops when
    `patience` successive epochs with a validation were not better than the best one before them.

    A checkpoint holds the variables of the distribution and of the dequantizer, the optimizer, the
    seconds used so far, the best value of `monitor` and the number of epochs since. A process that
    is killed at any point resumes from the last complete checkpoint (`tf.train.CheckpointManager`).
    The optimizer's iterations are the number of steps done, which also determines the position in
    the data and the seeds of the noise. With several workers, only the chief writes; all have to
    see the folder.

    With an optimizer that averages the weights (`use_ema=True`) a checkpoint holds the weights and
    the averages. The best weights are averages, as those are that `fit` validates.

    One process at a time trains in a folder: `fit` and `restore` raise an error while another one
    does. A process that is killed does not lock the folder.

    #### Example

    >>> import numpy as np, tempfile, tensorflow_probability as tfp, tfp_realnvp as tfr
    >>> tfd = tfp.distributions
    >>> def make():
    ...   flow = tfr.RealNVPImage((4, 4, 1), num_scales=1, num_blocks=0, num_filters=4)
    ...   model = tfr.FlowModel(
    ...       tfd.TransformedDistribution(tfd.Sample(tfd.Normal(0., 1.), [4, 4, 1]), flow))
    ...   model.compile()
    ...   return model
    >>> images = np.random.default_rng(0).integers(0, 256, [32, 4, 4, 1], dtype=np.uint8)
    >>> folder = tempfile.mkdtemp()
    >>> checkpoint = tfr.TrainingCheckpoint(folder, make())
    >>> history = checkpoint.model.fit(images, batch_size=8, verbose=0, callbacks=[checkpoint])
    >>> again = tfr.TrainingCheckpoint(folder, make())
    >>> again.restore(), int(again.model.optimizer.iterations)
    (True, 4)
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        model: FlowModel,
        *,
        budget: LearningRateBudget | None = None,
        monitor: str | None = None,
        best_weights: str = "best.weights.h5",
        save_seconds: float | None = None,
        patience: int | None = None,
    ) -> None:
        """Constructs the callback.

        Args:
          folder: of the checkpoints, in `folder/checkpoints`, and of the best weights.
          model: the compiled model.
          budget: a budget whose used seconds are saved.
          monitor: a key of the logs; smaller is better. By default `'val_bits_per_dim'`, or
            `'val_loss'` for vectors: without a validation no best weights are saved. `fit` raises a
            `ValueError` if the logs lack a `monitor` that is given, or one that `patience` needs.
          best_weights: the file name of the weights of the best epoch.
          save_seconds: the longest time without a checkpoint; `None` saves after epochs only.
          patience: number of epochs with a validation, without improvement, after which training
            stops; `None` never stops it.

        Raises:
          TypeError: if an argument has a wrong type.
          ValueError: if `save_seconds` or `patience` is not positive, or `best_weights` does not
            end in `.weights.h5`.
        """
        super().__init__()
        if not isinstance(model, FlowModel):
            raise TypeError(f"TrainingCheckpoint: expected a FlowModel, got {model!r}.")
        if not (budget is None or isinstance(budget, LearningRateBudget)):
            raise TypeError(f"TrainingCheckpoint: expected a budget or None, got {budget!r}.")
        self._needs_value = monitor is not None or patience is not None
        if monitor is None:
            monitor = "val_bits_per_dim" if model.event_ndims == 3 else "val_loss"
        for argument, value in (("monitor", monitor), ("best_weights", best_weights)):
            if not isinstance(value, str):
                raise TypeError(f"TrainingCheckpoint: expected {argument} as a str, got {value!r}.")
        if not best_weights.endswith(".weights.h5"):
            raise ValueError(
                f"TrainingCheckpoint: expected best_weights '*.weights.h5', got {best_weights!r}."
            )
        if save_seconds is not None:
            expected = "TrainingCheckpoint: expected positive save_seconds or None"
            validation.real(save_seconds, lambda x: x > 0, expected)
        if patience is not None:
            patience = validation.integer(
                patience, 1, "TrainingCheckpoint: expected a positive patience or None"
            )
        self.set_model(model)
        self._budget = budget
        self._monitor = monitor
        self._best_path = pathlib.Path(folder) / best_weights
        self._folder = pathlib.Path(folder)
        self._lock = FolderLock(folder, "TrainingCheckpoint")
        self._seconds = tf.Variable(0.0, dtype=tf.float64)
        self._best = tf.Variable(float("inf"), dtype=tf.float64)
        self._epochs_since_best = tf.Variable(0, dtype=tf.int64)
        self._save_seconds = save_seconds
        self._patience = patience
        self._last_save = 0.0
        model.build_optimizer()
        dequantizer = {} if model.dequantizer is None else {"dequantizer": model.dequantizer}
        checkpoint = tf.train.Checkpoint(
            distribution=model.distribution,
            **dequantizer,
            optimizer=model.optimizer,
            seconds=self._seconds,
            best=self._best,
            epochs_since_best=self._epochs_since_best,
        )
        self._manager = tf.train.CheckpointManager(
            checkpoint, str(pathlib.Path(folder) / "checkpoints"), max_to_keep=2
        )

    def restore(self) -> bool:
        """Restores the latest checkpoint; returns whether there was one.

        Raises:
          BlockingIOError: if another process is training in the folder.
          FileNotFoundError: if a worker does not find the checkpoint that the chief has.
        """
        latest = self._manager.latest_checkpoint
        if latest is not None:
            lock = FolderLock(self._folder, "TrainingCheckpoint.restore")
            with lock if self._writes else contextlib.nullcontext():
                self._manager.checkpoint.restore(latest).assert_existing_objects_matched()
        strategy = self.model.distribute_strategy
        step = _step(self.model)
        step_of_chief = int(workers.broadcast_from_chief(strategy, float(step)))
        if step != step_of_chief:
            raise FileNotFoundError(
                f"TrainingCheckpoint: expected a checkpoint of step {step_of_chief}, as the chief "
                f"has, in {self._manager.directory!r}, got one of step {step}: all workers have to "
                "see the same folder."
            )
        if latest is None:
            return False
        if self._budget is not None:
            self._budget.used_seconds = float(self._seconds.numpy())
        return True

    @property
    def is_out_of_patience(self) -> bool:
        """Whether the best epoch was `patience` epochs ago."""
        return self._patience is not None and int(self._epochs_since_best.numpy()) >= self._patience

    def save(self) -> None:
        """Saves a checkpoint now. With several workers, only the chief writes.

        Raises:
          OSError: if it cannot be written. The last checkpoint stays.
        """
        self._last_save = time.monotonic()
        if not self._writes:
            return
        if self._budget is not None:
            self._seconds.assign(self._budget.elapsed_seconds)
        try:
            self._manager.save(_step(self.model))
        except tf.errors.OpError as error:
            # TensorFlow leaves what it has written.
            for part in pathlib.Path(self._manager.directory).glob("*_temp"):
                shutil.rmtree(part, ignore_errors=True)
            raise OSError(
                f"TrainingCheckpoint: expected to write to {self._manager.directory!r}, got "
                f"{type(error).__name__}: {error.message}"
            ) from error

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Locks the folder until the end of `fit`, and starts the clock."""
        if self._writes:
            self._lock.acquire()
            self.model.call_after_fit(self._lock.release)
        self._last_save = time.monotonic()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Unlocks the folder."""
        self._lock.release()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Saves if the last checkpoint is older than `save_seconds`."""
        if self._save_seconds is None or time.monotonic() < self._last_save + self._save_seconds:
            return
        # The end of an epoch has its own checkpoint. One before the validation would skip it.
        is_last = batch + 1 >= (self.params.get("steps") or math.inf)
        if not self.model.stop_training and not is_last:
            self.save()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Saves, and checks whether this was the best epoch."""
        logs = logs or {}
        value = float(logs.get(self._monitor, math.nan))
        if value < float(self._best.numpy()):
            self._best.assign(value)
            self._epochs_since_best.assign(0)
            if self._writes:
                with self.model.averaged_weights():
                    self.model.save_weights(self._best_path)
        elif self._monitor in logs:
            self._epochs_since_best.assign_add(1)
        self.save()
        if self._needs_value and self._monitor not in logs and self._has_validation(epoch):
            raise ValueError(
                f"TrainingCheckpoint: expected {self._monitor!r} in the logs of an epoch, as "
                f"monitor with patience={self._patience}, got {sorted(logs)}: pass validation_data "
                "to fit, or another monitor."
            )
        if self.is_out_of_patience:
            self.model.stop_training = True

    def _has_validation(self, epoch: int) -> bool:
        """Returns whether `fit` validates after this epoch, if it has data for it."""
        frequency = self.model.validation_freq
        if isinstance(frequency, int):
            return (epoch + 1) % frequency == 0
        return epoch + 1 in frequency

    @property
    def _writes(self) -> bool:
        return workers.is_chief(self.model.distribute_strategy)


def _step(model: keras.Model) -> int:
    # A variable of several devices does not convert to a Python number.
    return int(model.optimizer.iterations.numpy())

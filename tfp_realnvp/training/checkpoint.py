"""Checkpoints from which a new process resumes interrupted training."""

import contextlib
import math
import os
import pathlib
import shutil
import time
import warnings
from typing import Any

import keras
import tensorflow as tf

from tfp_realnvp.internal import atomic_files, replicas, validation
from tfp_realnvp.training.flow_model import FlowModel
from tfp_realnvp.training.learning_rate import LearningRateBudget, step_of


class TrainingCheckpoint(keras.callbacks.Callback):
    """Saves the state of training, and separately the weights of the best epoch.

    The callback saves a checkpoint after each epoch, and every `save_seconds` seconds within an
    epoch. Training stops after `patience` successive validations without improvement.

    A checkpoint holds the variables of the distribution and of the dequantizer, the optimizer, the
    budget's used steps and seconds, the best value of `monitor` and the number of epochs since
    then. If a process is killed at any point, a new process can resume from the last complete
    checkpoint (`tf.train.CheckpointManager`). The optimizer's step count determines the next batch
    and the seed of its noise. With several workers, only the chief writes checkpoints, and all
    workers need access to the folder.

    A resumed run equals an uninterrupted one if both get the same batches, as with
    `fit(tfr.data.batches(..., step=step), initial_epoch=step // steps_per_epoch, ...)`, where
    `step` is the optimizer's step count. Keras shuffles arrays differently in each process: for
    arrays, use `fit(..., shuffle=False)` and resume after a whole epoch.

    If the optimizer averages the weights (`use_ema=True`), a checkpoint holds both the weights and
    their averages. `fit` validates with the averages, so the best weights are averages too. `fit`
    and `restore` raise an error while another process trains in the folder.

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
    >>> again.restore(), int(again.model.optimizer.iterations.numpy())
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
          folder: folder for the best weights, and for the checkpoints in `folder/checkpoints`.
          model: the compiled model.
          budget: a `LearningRateBudget`; checkpoints store its used steps and seconds.
          monitor: a key of the logs; smaller is better. Defaults to `'val_bits_per_dim'`, or
            `'val_loss'` for vectors; without a validation, no best weights are saved. If `monitor`
            or `patience` is given and the logs lack the key, `fit` raises a `ValueError`.
          best_weights: the file name of the weights of the best epoch.
          save_seconds: seconds between checkpoints; `None` saves after epochs only.
          patience: number of successive validations without improvement after which training stops.

        Raises:
          ValueError: if the model is not compiled, `save_seconds` or `patience` is not positive, or
            `best_weights` does not end in `.weights.h5`.
        """
        super().__init__()
        caller = "TrainingCheckpoint: expected"
        expected = f"{caller} best_weights '*.weights.h5'"
        validation.require(str(best_weights).endswith(".weights.h5"), expected, best_weights)
        if save_seconds is not None:
            validation.positive(save_seconds, f"{caller} positive save_seconds or None")
        if patience is not None:
            patience = validation.integer(patience, 1, f"{caller} a positive patience or None")
        self._require_compiled(model)
        super().set_model(model)
        self._writes = replicas.is_chief(model.distribute_strategy)
        self._budget = budget
        self._needs_value = monitor is not None or patience is not None
        is_image = model.data_spec.event_ndims == 3
        self._monitor = monitor or ("val_bits_per_dim" if is_image else "val_loss")
        self._folder = pathlib.Path(folder)
        self._best_path = self._folder / best_weights
        self._save_seconds = save_seconds
        self._patience = patience
        self._state = tf.train.Checkpoint(
            distribution=model.distribution,
            seconds=tf.Variable(0.0, dtype=tf.float64),
            steps=tf.Variable(0, dtype=tf.int64),
            best=tf.Variable(math.inf, dtype=tf.float64),
            epochs_since_best=tf.Variable(0, dtype=tf.int64),
            made_batches=tf.Variable([0, 0], dtype=tf.int64),
        )
        # The batches of the current epoch that are made, and all its batches: when `restore` found
        # the checkpoint, and now.
        self.made_batches = self._made_batches = (0, 0)
        if model.dequantizer is not None:
            self._state.dequantizer = model.dequantizer
        path = str(self._folder / "checkpoints")
        self._manager = tf.train.CheckpointManager(self._state, path, max_to_keep=2)
        self._follow_optimizer()

    @staticmethod
    def _require_compiled(model: FlowModel) -> None:
        expected = "TrainingCheckpoint: expected a compiled model; call `model.compile()` first"
        validation.require(model.compiled, expected, model)

    def set_model(self, model: FlowModel) -> None:
        """Follows a new optimizer of the model.

        Raises:
          ValueError: if `fit` trains another model than that of the constructor.
        """
        expected = "TrainingCheckpoint: expected `fit` of its own model"
        validation.require(model is self.model, f"{expected} {self.model.name!r}", model)
        self._follow_optimizer()

    def _follow_optimizer(self) -> None:
        self._require_compiled(self.model)
        self.model.build_optimizer()
        self._state.optimizer = self.model.optimizer

    def restore(self) -> bool:
        """Restores the latest checkpoint; returns whether there was one.

        Raises:
          BlockingIOError: if another process is training in the folder.
          FileNotFoundError: if a worker does not find the checkpoint of the chief.
        """
        self._follow_optimizer()
        latest = self._manager.latest_checkpoint
        if latest is not None:
            lock = atomic_files.folder_lock(self._folder, "TrainingCheckpoint.restore")
            with lock if self._writes else contextlib.nullcontext():
                self._state.restore(latest).assert_existing_objects_matched()
        strategy = self.model.distribute_strategy
        step = step_of(self.model)
        step_of_chief = int(replicas.broadcast_from_chief(strategy, float(step)))
        if step != step_of_chief:
            raise FileNotFoundError(
                f"TrainingCheckpoint: expected a checkpoint of step {step_of_chief}, as the chief "
                f"has, in {self._manager.directory!r}, got one of step {step}: all workers have to "
                "see the same folder."
            )
        if latest is None:
            return False
        self.made_batches = tuple(self._state.made_batches.numpy().tolist())
        if self._budget is not None:
            self._budget.used_seconds = float(self._state.seconds.numpy())
            self._budget.used_steps = int(self._state.steps.numpy())
        return True

    @property
    def is_out_of_patience(self) -> bool:
        """Whether the last `patience` epochs brought no improvement."""
        epochs = int(self._state.epochs_since_best.numpy())
        return self._patience is not None and epochs >= self._patience

    def save(self) -> None:
        """Saves a checkpoint now. With several workers, only the chief writes.

        Raises:
          OSError: if the checkpoint cannot be written. The previous checkpoint remains.
        """
        self._last_save = time.monotonic()
        if not self._writes:
            return
        self._state.made_batches.assign(self._made_batches)
        if self._budget is not None:
            self._state.seconds.assign(self._budget.elapsed_seconds)
            self._state.steps.assign(self._budget.elapsed_steps)
        try:
            self._manager.save(step_of(self.model))
        except tf.errors.OpError as error:
            # Remove the partial files that TensorFlow leaves behind after an error.
            for part in pathlib.Path(self._manager.directory).glob("*_temp"):
                shutil.rmtree(part, ignore_errors=True)
            what = f"TrainingCheckpoint: cannot write to {self._manager.directory!r}"
            raise OSError(f"{what}: {type(error).__name__}: {error.message}") from error

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Locks the folder until the end of `fit`; warns if patience has run out already."""
        if self.is_out_of_patience:
            warnings.warn(
                f"TrainingCheckpoint: the last {self._patience} epochs brought no improvement, so "
                "`fit` does not train; to continue, pass a larger `patience`.",
                stacklevel=2,
            )
        if self._writes:
            lock = contextlib.ExitStack()
            lock.enter_context(atomic_files.folder_lock(self._folder, "TrainingCheckpoint"))
            self.model.call_after_fit(lock.close)
        self._last_save = time.monotonic()
        # The next `fit` begins with a whole epoch, unless `restore` is called again.
        self.model.call_after_fit(lambda: setattr(self, "made_batches", (0, 0)))

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Saves if the last checkpoint is more than `save_seconds` seconds old."""
        if steps := self.params.get("steps"):
            first = self.made_batches[0] if self.made_batches[1] == steps else 0
            self._made_batches = (first + batch + 1) % steps, steps
        if self._save_seconds is None or time.monotonic() < self._last_save + self._save_seconds:
            return
        # Do not save after the last batch of an epoch: a resumed run would skip the validation.
        # `on_epoch_end` saves instead.
        is_last = batch + 1 >= (self.params.get("steps") or math.inf)
        if not self.model.stop_training and not is_last:
            self.save()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Saves a checkpoint, and the weights if this was the best epoch."""
        logs = logs or {}
        value = float(logs.get(self._monitor, math.nan))
        if value < float(self._state.best.numpy()):
            self._state.best.assign(value)
            self._state.epochs_since_best.assign(0)
            if self._writes:
                with self.model.averaged_weights():
                    self.model.save_weights(self._best_path)
        elif self._monitor in logs:
            self._state.epochs_since_best.assign_add(1)
        self.save()
        frequency = self.model.validation_freq
        is_int = isinstance(frequency, int)
        has_validation = (epoch + 1) % frequency == 0 if is_int else epoch + 1 in frequency
        if self._needs_value and self._monitor not in logs and has_validation:
            raise ValueError(
                f"TrainingCheckpoint: expected the monitor {self._monitor!r} in the logs of an "
                f"epoch, for patience={self._patience}, got {sorted(logs)}; pass validation_data "
                "to fit, or another monitor."
            )
        self.model.stop_training |= self.is_out_of_patience

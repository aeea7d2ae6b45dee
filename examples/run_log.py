"""The log of a training run, `log.csv`, with one row for each epoch, also across restarts."""

from __future__ import annotations

import pathlib
from typing import Any

import keras

import tfp_realnvp as tfr
from tfp_realnvp.internal.atomic_files import write_text

__all__ = ["Progress", "keep_epochs"]


class Progress(keras.callbacks.Callback):
    """Adds steps, seconds and the learning rate to the logs of subsequent callbacks."""

    def __init__(self, budget: tfr.LearningRateBudget) -> None:
        super().__init__()
        self._budget = budget

    def on_epoch_end(self, epoch: int, logs: dict[str, Any]) -> None:
        logs["step"] = int(self.model.optimizer.iterations)
        logs["seconds"] = round(self._budget.elapsed_seconds, 3)
        logs["learning_rate"] = float(self.model.optimizer.learning_rate)


def keep_epochs(path: pathlib.Path, num_epochs: int) -> None:
    """Removes the rows after the first `num_epochs` epochs, which training is going to repeat.

    Args:
      path: path of the log, which need not exist.
      num_epochs: number of epochs in the last checkpoint.
    """
    if not path.exists():
        return
    header, *lines = path.read_text(encoding="utf-8").splitlines(keepends=True) or [""]
    kept = [line for line in lines if line.split(",")[0].isdigit()]
    kept = [line for line in kept if int(line.split(",")[0]) < num_epochs]
    # Without rows, remove the header too: it may be truncated, and CSVLogger writes it again.
    write_text(path, "".join([header, *kept]) if kept else "")

"""The log of a training run, `log.csv`: a line for each epoch, also over restarts."""

from __future__ import annotations

import pathlib
from typing import Any

import keras

import tfp_realnvp as tfr
from tfp_realnvp.files import write_text

__all__ = ["Progress", "keep_epochs"]


class Progress(keras.callbacks.Callback):
    """Adds to the logs of the callbacks that follow it: steps, seconds and the learning rate."""

    def __init__(self, budget: tfr.LearningRateBudget) -> None:
        super().__init__()
        self._budget = budget

    def on_epoch_end(self, epoch: int, logs: dict[str, Any]) -> None:
        logs["step"] = int(self.model.optimizer.iterations)
        logs["seconds"] = round(self._budget.elapsed_seconds, 3)
        logs["learning_rate"] = float(self.model.optimizer.learning_rate)


def keep_epochs(path: pathlib.Path, num_epochs: int) -> None:
    """Drops from a log what comes after `num_epochs` epochs, since it will be done again.

    Args:
      path: of the log, which may be absent.
      num_epochs: that the last checkpoint has.
    """
    if not path.exists():
        return
    header, *lines = path.read_text(encoding="utf-8").splitlines(keepends=True) or [""]
    kept = [line for line in lines if line.split(",")[0].isdigit()]
    kept = [line for line in kept if int(line.split(",")[0]) < num_epochs]
    # Without a line the header is not needed either, and may have been cut off.
    write_text(path, "".join([header, *kept]) if kept else "")

"""The learning rate of `FlowModel.fit` where `compile` was given no optimizer."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np

__all__ = ["CosineAnnealing"]


class CosineAnnealing(keras.callbacks.Callback):
    r"""Anneals the learning rate to zero over the epochs of `fit`.

    ```
    learning_rate = peak * (1 + cos(π f)) / 2,   f = (epoch + batch / steps) / epochs
    ```

    Where Keras does not know the number of steps, as with a generator, the rate changes with the
    epoch only.

    `epoch` is counted by Keras, so that with `initial_epoch` or `keras.callbacks.BackupAndRestore`
    the rate continues where it was. Between steps the optimizer has the peak again, which is then
    what checkpoints save. A rate that a user or another callback has set is left as it is.

    #### Example

    >>> import keras, numpy as np, tensorflow as tf, tensorflow_probability as tfp
    >>> import tfp_realnvp as tfr
    >>> tfd = tfp.distributions
    >>> class Print(keras.callbacks.Callback):
    ...   def on_train_batch_begin(self, batch, logs=None):
    ...     print(f'{float(self.model.optimizer.learning_rate):.6f}')
    >>> model = tfr.FlowModel(tfd.Sample(tfd.Normal(tf.Variable(0.), 1.), [2]))
    >>> model.compile()
    >>> x = np.zeros([8, 2], np.float32)
    >>> history = model.fit(x, batch_size=4, epochs=2, verbose=0, callbacks=[Print()])
    0.001000
    0.000854
    0.000500
    0.000146

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
        self._annealed: np.float32 | None = None
        self._epoch = 0

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Notes the epoch."""
        self._epoch = epoch

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Sets the learning rate of the step, unless it is not the peak."""
        if self._learning_rate != self._peak:
            return
        steps = self.params["steps"]
        fraction = (self._epoch + (batch / steps if steps else 0)) / self.params["epochs"]
        self._annealed = np.float32(self._peak * (1 + math.cos(math.pi * fraction)) / 2)
        self.model.optimizer.learning_rate = self._annealed

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Sets the learning rate to the peak again."""
        self.restore()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Sets the learning rate to the peak again, where a batch that began was missing."""
        self.restore()

    def restore(self) -> None:
        """Sets the learning rate to the peak again, unless another callback has set it since."""
        if self._annealed is not None and self._learning_rate == self._annealed:
            self.model.optimizer.learning_rate = self._peak
        self._annealed = None

    @property
    def _learning_rate(self) -> np.float32:
        return np.float32(self.model.optimizer.learning_rate.numpy())

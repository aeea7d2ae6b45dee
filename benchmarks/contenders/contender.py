"""What the benchmark asks of a contender."""

from __future__ import annotations

import abc
import importlib
from typing import Any

import numpy as np

from benchmarks.images import synthetic_images
from benchmarks.sizes import Size

__all__ = ["Contender", "NotAvailable", "contender_class"]

# The modules are imported late: each process has one framework only.
_CLASSES = {
    "ours": "benchmarks.contenders.ours:Ours",
    "plain_tfp": "benchmarks.contenders.plain_tfp:PlainTFP",
    "glow": "benchmarks.contenders.glow:Glow",
    "pytorch": "benchmarks.contenders.pytorch:PyTorch",
}


class NotAvailable(Exception):
    """A contender, or an option of it, that does not exist here; the message is the reason."""


class Contender(abc.ABC):
    """A flow over images that can be trained, scored and sampled.

    The constructor builds the model and its optimizer; the first call of an operation may trace
    and compile.

    Attributes:
      size: the architecture and the batch size.
      images: the `uint8` batch that the operations are measured on.
    """

    def __init__(self, size: Size, images: np.ndarray | None = None) -> None:
        self.size = size
        if images is None:
            images = synthetic_images(size.batch_size, size.image_shape)
        self.images = images

    @abc.abstractmethod
    def train_on(self, images: np.ndarray) -> float:
        """Makes one training step on a batch of `uint8` images; returns its loss in nats."""

    @abc.abstractmethod
    def log_prob(self) -> np.ndarray:
        """Returns log p, [B], of `images`, to which noise has been added."""

    @abc.abstractmethod
    def sample(self) -> np.ndarray:
        """Returns `batch_size` samples, [B, H, W, C]."""

    @abc.abstractmethod
    def score(self, images: np.ndarray) -> np.ndarray:
        """Returns log p, [B], of any `uint8` images after adding noise."""

    @property
    @abc.abstractmethod
    def num_parameters(self) -> int:
        """The number of trainable numbers."""

    def train_step(self) -> float:
        """Makes one training step on `images`."""
        return self.train_on(self.images)

    def train_steps(self, steps: int) -> float:
        """Makes several training steps, as a training loop would; returns the last loss."""
        for _ in range(steps):
            loss = self.train_step()
        return loss

    def run(self, what: str, steps: int) -> Any:
        """Runs `train`, `log_prob` or `sample` `steps` times; the result is there on return."""
        if what == "train":
            return self.train_steps(steps)
        for _ in range(steps):
            result = getattr(self, what)()
        return result


def contender_class(name: str) -> type[Contender]:
    """Imports a contender with its framework.

    Args:
      name: `'ours'`, `'plain_tfp'`, `'glow'` or `'pytorch'`.

    Raises:
      ValueError: if there is none of that name.
      NotAvailable: if its framework is not installed.
    """
    if name not in _CLASSES:
        raise ValueError(f"expected a contender of {sorted(_CLASSES)}, got {name!r}.")
    module, attribute = _CLASSES[name].split(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise NotAvailable("PyTorch is not installed: pip install '.[bench]'") from error

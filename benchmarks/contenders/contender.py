"""Defines the operations that every contender has."""

from __future__ import annotations

import abc

import numpy as np

from benchmarks.sizes import Size

__all__ = ["Contender"]


class Contender(abc.ABC):
    """A flow over images that can be trained, evaluated and sampled.

    The constructor builds the model and its optimizer; the first call of an operation may trace
    and compile.

    Attributes:
      size: the architecture and the batch size.
      images: the `uint8` batch on which the operations are measured.
      num_parameters: the number of trainable numbers.
    """

    num_parameters: int

    def __init__(self, size: Size) -> None:
        self.size = size
        self.images = _synthetic_images(size.batch_size, size.image_shape)

    @abc.abstractmethod
    def train_step(self, images: np.ndarray) -> float:
        """Makes one training step on a batch of `uint8` images; returns its loss in nats."""

    @abc.abstractmethod
    def log_prob(self, values: np.ndarray) -> np.ndarray:
        """Returns log p, [B], of pixel values, [B, H, W, C], in evaluation mode."""

    @abc.abstractmethod
    def sample(self) -> np.ndarray:
        """Returns `batch_size` samples, [B, H, W, C]."""

    def train(self, steps: int) -> float:
        """Makes several training steps on `images`; returns the last loss."""
        for _ in range(steps):
            loss = self.train_step(self.images)
        return loss

    def run(self, what: str, steps: int) -> float:
        """Runs `train`, `log_prob` or `sample` `steps` times; returns the last result's mean."""
        if what == "train":
            return self.train(steps)
        values = self.images.astype(np.float32) + 0.5
        for _ in range(steps):
            result = self.log_prob(values) if what == "log_prob" else self.sample()
        return float(result.mean())


def _synthetic_images(number: int, image_shape: tuple[int, int, int]) -> np.ndarray:
    """Returns `uint8` images [number, H, W, C] of smooth blobs with a little noise."""
    rng = np.random.default_rng(0)
    height, width, channels = image_shape
    coarse = rng.uniform(40, 215, [number, -(-height // 4), -(-width // 4), channels])
    smooth = coarse.repeat(4, axis=1).repeat(4, axis=2)[:, :height, :width]
    return np.clip(smooth + rng.normal(0, 8, smooth.shape), 0, 255).astype(np.uint8)

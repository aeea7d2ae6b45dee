"""Masks of coupling layers: which half of an image a coupling keeps, and which it changes."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import tensorflow as tf

__all__ = ["ChannelMask", "CheckerboardMask", "Mask"]


class Mask(Protocol):
    """What a coupling asks of its mask; `b` is the mask of eq. 9 of the paper."""

    parity: int | tf.Tensor

    def split(self, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns what the network sees, and what the coupling changes."""

    def restrict(self, x: tf.Tensor) -> tf.Tensor:
        """Returns the network's output where the coupling changes, zero where it keeps."""

    def merge(self, kept: tf.Tensor, changed: tf.Tensor) -> tf.Tensor:
        """Returns the image from both results of `split`, the second one changed."""

    def changed_channels(self, channels: int) -> int:
        """Returns how many channels the changed half of an image with `channels` has."""


def _check_parity(parity: int | tf.Tensor) -> int | tf.Tensor:
    if tf.is_tensor(parity) and parity.dtype.is_integer and parity.shape.rank == 0:
        return parity
    if not (isinstance(parity, numbers.Real) and parity in (0, 1)):
        raise ValueError(f"parity: expected 0 or 1, got {parity!r}.")
    return int(parity)


class CheckerboardMask:
    """Spatial checkerboard (paper, section 3.4 and figure 3, left).

    `b[i, j] = 1`, that is kept, where `i + j + parity` is odd. Parity 0 is the paper's mask and
    parity 1 its complement. The board is made for the height and width of each call, so that a
    coupling is not bound to one resolution.

    #### Example

    >>> import numpy as np, tensorflow as tf
    >>> mask = CheckerboardMask(parity=0)
    >>> mask.split(tf.ones([1, 2, 2, 1]))[0].numpy()[0, :, :, 0].tolist()
    [[0.0, 1.0], [1.0, 0.0]]
    """

    def __init__(self, parity: int | tf.Tensor = 0) -> None:
        """Constructs the mask.

        Args:
          parity: 0 keeps the positions whose coordinates have an odd sum, 1 the others. A scalar
            integer tensor makes one graph for both.

        Raises:
          ValueError: if `parity` is neither 0 nor 1, nor such a tensor.
        """
        self.parity = _check_parity(parity)

    @property
    def is_static(self) -> bool:
        """Whether the parity is known now, not only when the graph runs."""
        return not tf.is_tensor(self.parity)

    def board(self, image: tf.Tensor) -> tf.Tensor:
        """Returns `b` as [H, W, 1] in the dtype of `image`, [..., H, W, C]."""
        height, width = image.shape[-3], image.shape[-2]
        if height is None or width is None:
            shape = tf.shape(image)
            rows, columns = tf.range(shape[-3])[:, None, None], tf.range(shape[-2])[:, None]
            return tf.cast((rows + columns + self.parity) % 2, image.dtype)
        sums = np.add.outer(np.arange(height), np.arange(width))[..., np.newaxis]
        if self.is_static:
            # A constant: no operation of the graph computes it again at each step.
            return tf.constant((sums + self.parity) % 2, image.dtype)
        return tf.abs(tf.constant(sums % 2, image.dtype) - tf.cast(self.parity, image.dtype))

    def split(self, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns `(b * x, x)`: the kept half with zeros between, and the whole image."""
        return x * self.board(x), x

    def restrict(self, x: tf.Tensor) -> tf.Tensor:
        """Returns `(1 - b) * x`: a zero shift and log scale leave the kept half as it is."""
        return x * (1 - self.board(x))

    @property
    def changed_in_cell(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Row and column of both positions that the coupling changes in each cell of 2×2."""
        return (0, self.parity), (1, 1 - self.parity)

    def take_changed(self, x: tf.Tensor) -> list[tf.Tensor]:
        """Returns what is at the changed positions of the even rows and of the odd rows.

        Args:
          x: [B, H, W, C], with H and W even and known.

        Returns:
          Two tensors [B, H/2, W/2, C], for the positions of `changed_in_cell`.
        """
        _, height, width, channels = x.shape
        # Both squares of a row of a cell lie side by side, as channels.
        cells = tf.reshape(x, [-1, height // 2, 2, width // 2, 2 * channels])
        return [
            cells[:, :, i, :, j * channels : (j + 1) * channels] for i, j in self.changed_in_cell
        ]

    def put_changed(self, halves: Sequence[tf.Tensor]) -> tf.Tensor:
        """Returns [B, H, W, C] with zeros where `take_changed` takes nothing."""
        rows = [
            tf.stack([tf.zeros_like(half), half] if j else [half, tf.zeros_like(half)], axis=3)
            for half, (_, j) in zip(halves, self.changed_in_cell, strict=True)
        ]
        _, height, width, channels = halves[0].shape
        return tf.reshape(tf.stack(rows, axis=2), [-1, 2 * height, 2 * width, channels])

    def merge(self, kept: tf.Tensor, changed: tf.Tensor) -> tf.Tensor:
        """Returns `changed`, which still holds the kept positions."""
        del kept
        return changed

    def changed_channels(self, channels: int) -> int:
        """Returns `channels`: each channel has positions of both colours."""
        return channels

    def __repr__(self) -> str:
        return f"CheckerboardMask(parity={self.parity})"

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.parity == self.parity

    def __hash__(self) -> int:
        return hash((type(self), self.parity))


class ChannelMask:
    """Channel-wise mask (paper, section 3.4 and figure 3, right).

    Parity 0 keeps the first half of the channels and changes the second, parity 1 the other way
    round. The network sees the kept channels only.

    #### Example

    >>> import tensorflow as tf
    >>> kept, changed = ChannelMask(parity=1).split(tf.constant([[[[1., 2.]]]]))
    >>> kept.numpy().item(), changed.numpy().item()
    (2.0, 1.0)
    """

    def __init__(self, parity: int | tf.Tensor = 0) -> None:
        """Constructs the mask.

        Args:
          parity: 0 keeps the first half of the channels, 1 the second. A scalar integer tensor
            makes one graph for both.

        Raises:
          ValueError: if `parity` is neither 0 nor 1, nor such a tensor.
        """
        self.parity = _check_parity(parity)

    def split(self, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the kept and the changed half of the channels, each [..., H, W, C/2]."""
        half = self.changed_channels(x.shape[-1])
        if tf.is_tensor(self.parity):
            kept, changed = tf.split(tf.roll(x, half * self.parity, axis=-1), 2, axis=-1)
            return kept, changed
        first, second = tf.split(x, 2, axis=-1)
        return (second, first) if self.parity else (first, second)

    def restrict(self, x: tf.Tensor) -> tf.Tensor:
        """Returns `x`: the network only speaks of the changed half."""
        return x

    def merge(self, kept: tf.Tensor, changed: tf.Tensor) -> tf.Tensor:
        """Returns both halves at their places, [..., H, W, C]."""
        if tf.is_tensor(self.parity):
            return tf.roll(tf.concat([kept, changed], axis=-1), kept.shape[-1] * self.parity, -1)
        return tf.concat([changed, kept] if self.parity else [kept, changed], axis=-1)

    def changed_channels(self, channels: int) -> int:
        """Returns `channels / 2`.

        Args:
          channels: the channels of the image.

        Raises:
          ValueError: if `channels` is odd.
        """
        if channels % 2:
            raise ValueError(f"ChannelMask: expected an even number of channels, got {channels}.")
        return channels // 2

    def __repr__(self) -> str:
        return f"ChannelMask(parity={self.parity})"

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.parity == self.parity

    def __hash__(self) -> int:
        return hash((type(self), self.parity))

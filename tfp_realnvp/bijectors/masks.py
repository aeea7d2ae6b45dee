"""Masks of coupling layers: which half of an image a coupling keeps, and which it transforms."""

from __future__ import annotations

from typing import Protocol

import tensorflow as tf

from tfp_realnvp.internal.checkerboard import check_parity, checkerboard

__all__ = ["ChannelMask", "CheckerboardMask", "Mask"]


class Mask(Protocol):
    """The methods of a mask that a coupling calls; `b` is the mask of eq. 9 of the paper."""

    def split(self, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the input of the network, and the values that the coupling transforms."""

    def restrict(self, x: tf.Tensor) -> tf.Tensor:
        """Returns the network's output, with zeros where the coupling keeps the image."""

    def merge(self, kept: tf.Tensor, changed: tf.Tensor) -> tf.Tensor:
        """Returns the image from both results of `split`, the second one transformed."""

    def changed_channels(self, channels: int) -> int:
        """Returns the number of channels of the transformed half of an image with `channels`."""


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

    def __init__(self, parity: int = 0) -> None:
        """Constructs the mask.

        Args:
          parity: 0 keeps the positions whose coordinates have an odd sum, 1 the others.

        Raises:
          ValueError: if `parity` is neither 0 nor 1.
        """
        self.parity = check_parity(parity)

    def board(self, image: tf.Tensor) -> tf.Tensor:
        """Returns `b` as [H, W, 1] in the dtype of `image`, [..., H, W, C]."""
        return checkerboard(image, self.parity)

    def split(self, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns `(b * x, x)`: the kept half with zeros between, and the whole image."""
        return x * self.board(x), x

    def restrict(self, x: tf.Tensor) -> tf.Tensor:
        """Returns `(1 - b) * x`: zeros where the coupling keeps the image."""
        return x * (1 - self.board(x))

    def merge(self, kept: tf.Tensor, changed: tf.Tensor) -> tf.Tensor:
        """Returns `kept + (1 - b) * changed`."""
        return kept + self.restrict(changed)

    def changed_channels(self, channels: int) -> int:
        """Returns `channels`: each channel has positions of both colors."""
        return channels

    def __repr__(self) -> str:
        return f"CheckerboardMask(parity={self.parity})"

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.parity == self.parity

    def __hash__(self) -> int:
        return hash((type(self), self.parity))


class ChannelMask:
    """Channel-wise mask (paper, section 3.4 and figure 3, right).

    Parity 0 keeps the first half of the channels and transforms the second, parity 1 the other way
    round. The input of the network is the kept channels.

    #### Example

    >>> import tensorflow as tf
    >>> kept, changed = ChannelMask(parity=1).split(tf.constant([[[[1., 2.]]]]))
    >>> kept.numpy().item(), changed.numpy().item()
    (2.0, 1.0)
    """

    def __init__(self, parity: int = 0) -> None:
        """Constructs the mask.

        Args:
          parity: 0 keeps the first half of the channels, 1 the second.

        Raises:
          ValueError: if `parity` is neither 0 nor 1.
        """
        self.parity = check_parity(parity)

    def split(self, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the kept and the transformed half of the channels, each [..., H, W, C/2]."""
        self.changed_channels(x.shape[-1])
        first, second = tf.split(x, 2, axis=-1)
        return (second, first) if self.parity else (first, second)

    def restrict(self, x: tf.Tensor) -> tf.Tensor:
        """Returns `x`: the network's output is for the transformed half only."""
        return x

    def merge(self, kept: tf.Tensor, changed: tf.Tensor) -> tf.Tensor:
        """Returns both halves at their places, [..., H, W, C]."""
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

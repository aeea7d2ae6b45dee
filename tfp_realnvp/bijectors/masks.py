"""Masks of coupling layers: which half of an event a coupling keeps, and which it transforms."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import tensorflow as tf

from tfp_realnvp.internal import validation
from tfp_realnvp.internal.checkerboard import check_parity, checkerboard

__all__ = ["ChannelMask", "CheckerboardMask", "Mask"]


@runtime_checkable
class Mask(Protocol):
    """The methods of a mask that a coupling calls; `b` is the mask of eq. 9 of the paper."""

    def split(self, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the input of the network, and the values that the coupling transforms."""

    def restrict(self, x: tf.Tensor) -> tf.Tensor:
        """Returns the network's output, with zeros where the coupling keeps the event."""

    def merge(self, kept: tf.Tensor, changed: tf.Tensor) -> tf.Tensor:
        """Returns the event from both results of `split`, the second one transformed."""

    def changed_channels(self, channels: int) -> int:
        """Returns the number of channels of the transformed half of an event with `channels`."""


class CheckerboardMask:
    """Spatial checkerboard (paper, section 3.4 and figure 3, left).

    `b[i, j] = 1`, that is kept, where `i + j + parity` is odd. Parity 0 is the paper's mask and
    parity 1 its complement. The board is made for the height and width of each call, so that a
    coupling is not bound to one resolution.

    #### Example

    >>> import numpy as np, tensorflow as tf, tfp_realnvp as tfr
    >>> mask = tfr.CheckerboardMask(parity=0)
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
    """Channel-wise mask (paper, section 3.4 and figure 3, right), of images or vectors.

    Parity 0 keeps the first channels and transforms the others, parity 1 the other way round. The
    input of the network is the kept channels.

    #### Example

    >>> import tensorflow as tf, tfp_realnvp as tfr
    >>> kept, changed = tfr.ChannelMask(parity=1).split(tf.constant([[[[1., 2.]]]]))
    >>> kept.numpy().item(), changed.numpy().item()
    (2.0, 1.0)
    >>> kept, changed = tfr.ChannelMask(num_first=1).split(tf.constant([1., 2., 3.]))
    >>> kept.numpy().tolist(), changed.numpy().tolist()
    ([1.0], [2.0, 3.0])
    """

    def __init__(self, parity: int = 0, *, num_first: int | None = None) -> None:
        """Constructs the mask.

        Args:
          parity: 0 keeps the first channels, 1 the others.
          num_first: number of first channels; by default half of all.

        Raises:
          ValueError: if `parity` is neither 0 nor 1, or `num_first` is negative.
          TypeError: if `num_first` is not a number.
        """
        self.parity = check_parity(parity)
        if num_first is not None:
            num_first = validation.integer(
                num_first, 0, "ChannelMask: expected num_first of at least 0"
            )
        self.num_first = num_first

    def split(self, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the kept and the transformed channels, each [..., c]."""
        sizes = self._sizes(x.shape[-1])
        first, second = tf.split(x, 2 if self.num_first is None else sizes, axis=-1)
        return (second, first) if self.parity else (first, second)

    def restrict(self, x: tf.Tensor) -> tf.Tensor:
        """Returns `x`: the network's output is for the transformed half only."""
        return x

    def merge(self, kept: tf.Tensor, changed: tf.Tensor) -> tf.Tensor:
        """Returns both halves at their places, [..., C]."""
        return tf.concat([changed, kept] if self.parity else [kept, changed], axis=-1)

    def changed_channels(self, channels: int) -> int:
        """Returns the number of channels that are transformed.

        Args:
          channels: number of channels of the event.

        Raises:
          ValueError: if the channels cannot be halved, or there is none to transform.
        """
        return self._sizes(channels)[1 - self.parity]

    def _sizes(self, channels: int) -> list[int]:
        if self.num_first is None:
            if channels % 2:
                message = f"ChannelMask: expected an even number of channels, got {channels}."
                raise ValueError(message)
            return [channels // 2, channels // 2]
        sizes = [self.num_first, channels - self.num_first]
        if sizes[1 - self.parity] < 1 or sizes[1] < 0:
            raise ValueError(f"{self}: expected a channel to transform, got {channels} channels.")
        return sizes

    def __repr__(self) -> str:
        first = "" if self.num_first is None else f", num_first={self.num_first}"
        return f"ChannelMask(parity={self.parity}{first})"

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and vars(other) == vars(self)

    def __hash__(self) -> int:
        return hash((type(self), self.parity, self.num_first))

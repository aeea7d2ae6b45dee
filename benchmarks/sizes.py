"""Defines the measured model sizes, and counts the multiply-adds of one evaluation."""

from __future__ import annotations

import dataclasses

__all__ = ["SIZES", "Size", "multiply_adds"]


@dataclasses.dataclass(frozen=True)
class Size:
    """A Real NVP architecture and its batch size.

    Attributes:
      image_shape: (height, width, channels).
      num_scales: number of scales.
      num_blocks: residual blocks of each network.
      num_filters: feature maps in the networks of the first scale's checkerboard couplings.
      batch_size: images in a batch.
      rounds: timed turns of each contender.
    """

    image_shape: tuple[int, int, int]
    num_scales: int
    num_blocks: int
    num_filters: int
    batch_size: int
    rounds: int


SIZES: dict[str, Size] = {
    "tiny": Size((8, 8, 3), 2, 1, 4, batch_size=4, rounds=2),  # for tests
    "small": Size((32, 32, 3), 2, 4, 32, batch_size=64, rounds=5),
    # The paper's architectures. With half of the paper's batch, two processes fit into 16 GB.
    "cifar10": Size((32, 32, 3), 2, 8, 64, batch_size=32, rounds=3),
    "images64": Size((64, 64, 3), 5, 2, 32, batch_size=32, rounds=3),
}


def multiply_adds(size: Size) -> int:
    """Returns the multiply-adds of all convolutions in `log_prob` of one image.

    Every network runs once. A training step costs about three times as much.

    #### Example

    >>> round(multiply_adds(SIZES['small']) / 1e9, 2)
    0.83
    """
    total = 0
    height, width, channels = size.image_shape
    filters = size.num_filters
    for scale in range(size.num_scales):
        is_last = scale == size.num_scales - 1
        checkerboard = _network(2 * channels + 1, 2 * channels, size.num_blocks, filters)
        total += (4 if is_last else 3) * height * width * checkerboard
        if not is_last:
            height, width, channels, filters = height // 2, width // 2, 4 * channels, 2 * filters
            channelwise = _network(channels, channels, size.num_blocks, filters)
            total += 3 * height * width * channelwise
            channels //= 2  # half of the dimensions are factored out
    return total


def _network(inputs: int, outputs: int, blocks: int, filters: int) -> int:
    """Returns the multiply-adds of one network at one position."""
    first = 9 * inputs * filters + filters**2
    return first + blocks * (2 * 9 * filters**2 + filters**2) + filters * outputs

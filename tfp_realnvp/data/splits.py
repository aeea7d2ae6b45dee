"""Splits of images that come without any."""

from __future__ import annotations

import numpy as np

__all__ = ["check_split", "hold_out"]


def hold_out(num_images: int, num_held_out: int) -> tuple[np.ndarray, np.ndarray]:
    """Divides images in two at random, but for equal arguments always in the same way.

    Args:
      num_images: the number of images.
      num_held_out: the number of those in the second part.

    Returns:
      The indices of both parts, each in ascending order.

    Raises:
      ValueError: one of the parts would have no images.

    #### Example

    >>> rest, held_out = hold_out(10, 2)
    >>> len(rest), len(held_out), sorted([*rest.tolist(), *held_out.tolist()])
    (8, 2, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])

    """
    if not 0 < num_held_out < num_images:
        raise ValueError(
            f"Expected to hold out at least one and fewer than all of {num_images} images, got "
            f"{num_held_out}."
        )
    order = np.random.default_rng(0).permutation(num_images)
    return np.sort(order[num_held_out:]), np.sort(order[:num_held_out])


def check_split(
    name: str, split: str, splits: tuple[str, ...], num_validation: int = 0
) -> tuple[str, ...]:
    """Returns the splits that a data set has with `num_validation` images held out of training.

    Args:
      name: the data set's name.
      split: the split that is asked for.
      splits: the splits that the data set comes with.
      num_validation: number of training images that make up the split `'validation'`.

    Raises:
      ValueError: there is no such split, or the data set has a split `'validation'` already.

    #### Example

    >>> check_split("cifar10", "validation", ("train", "test"), num_validation=5000)
    ('train', 'test', 'validation')

    """
    if num_validation < 0:
        raise ValueError(f"Expected num_validation of at least 0, got {num_validation}.")
    if num_validation:
        if "validation" in splits or "train" not in splits:
            raise ValueError(
                f"Expected num_validation only for a data set with a split 'train' and without a "
                f"split 'validation', got {name!r} with the splits {list(splits)}."
            )
        splits = (*splits, "validation")
    if split not in splits:
        hint = ""
        if split == "validation":
            hint = " A num_validation above 0 holds out a part of 'train' for 'validation'."
        raise ValueError(
            f"Unknown split {split!r} of {name!r}; the known ones are {list(splits)}.{hint}"
        )
    return splits

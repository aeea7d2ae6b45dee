"""The images of a split, and the splits of a dataset."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

import numpy as np

from tfp_realnvp.data.image_source import ImageSource

__all__ = ["SplitImages", "check_condition", "check_split", "hold_out", "reported_split"]


@dataclasses.dataclass(frozen=True, eq=False)
class SplitImages:
    """The images of a split and the properties of the dataset.

    Attributes:
      images: `uint8` array of shape `[N, H, W, C]`; a tuple of it and of an array `[N, ...]` of
        conditions; or a source to read either from.
      splits: names of all splits.
      evaluation_split: the split to report bits/dim on.
      num_values: number of pixel levels.
      flip: whether images are mirrored at random in training.
      num_classes: number of classes, if conditions are labels.
      conditional_event_shape: shape of a condition, if conditions are vectors.
    """

    images: np.ndarray | tuple[np.ndarray, np.ndarray] | ImageSource
    splits: tuple[str, ...]
    evaluation_split: str
    num_values: int = 256
    flip: bool = False
    num_classes: int | None = None
    conditional_event_shape: tuple[int, ...] | None = None


def hold_out(num_images: int, num_held_out: int) -> tuple[np.ndarray, np.ndarray]:
    """Splits images into two parts at random, identically for equal arguments.

    Args:
      num_images: number of images.
      num_held_out: number of images in the second part.

    Returns:
      The indices of both parts, each in ascending order.

    Raises:
      ValueError: if one of the parts is empty.
    """
    if not 0 < num_held_out < num_images:
        raise ValueError(
            f"Expected to hold out at least 1 and fewer than all of {num_images} images, got "
            f"{num_held_out}."
        )
    order = np.random.default_rng(0).permutation(num_images)
    return np.sort(order[num_held_out:]), np.sort(order[:num_held_out])


def check_split(
    name: str, split: str, splits: tuple[str, ...], num_validation: int = 0
) -> tuple[str, ...]:
    """Returns the names of all splits, with `'validation'` if training images are held out.

    Args:
      name: name of the dataset.
      split: name of the requested split.
      splits: names of the splits of the dataset itself.
      num_validation: number of training images that are held out as the split `'validation'`.

    Raises:
      ValueError: if there is no such split, or if the dataset already has a split `'validation'`.
    """
    if num_validation < 0:
        raise ValueError(f"Expected num_validation of at least 0, got {num_validation}.")
    if num_validation:
        if "validation" in splits or "train" not in splits:
            raise ValueError(
                f"Expected num_validation only for a dataset with a split 'train' and without a "
                f"split 'validation', got {name!r} with the splits {list(splits)}."
            )
        splits = (*splits, "validation")
    if split not in splits:
        hint = ""
        if split == "validation":
            hint = " With num_validation above 0, part of 'train' is held out as 'validation'."
        raise ValueError(f"Expected a split of {name!r} in {list(splits)}, got {split!r}.{hint}")
    return splits


def check_condition(name: str, condition: str | None, stored: Collection[str]) -> None:
    """Raises `ValueError` if the condition of a dataset is not `None` or one of those `stored`."""
    if condition is not None and condition not in stored:
        raise ValueError(
            f"Expected a condition of {name!r} in {[*stored, 'gray']}, got {condition!r}."
        )


def reported_split(splits: Collection[str]) -> str:
    """Returns the split to report bits/dim on: `'test'`, or else `'validation'` or `'train'`."""
    return next((split for split in ("test", "validation") if split in splits), "train")

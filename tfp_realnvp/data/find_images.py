"""Finds the images of a split by the name of the dataset."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Literal

import numpy as np
from absl import logging

from tfp_realnvp.data import image_folder, tfds_source
from tfp_realnvp.data.array_file import load_array_file
from tfp_realnvp.data.dataset_spec import find_spec
from tfp_realnvp.data.image_source import ImageSource
from tfp_realnvp.data.load_arrays import load_arrays
from tfp_realnvp.data.splits import check_split, hold_out

__all__ = ["SplitImages", "find_images"]

_EMBEDDED = ("digits", "photos")


@dataclasses.dataclass(frozen=True, eq=False)
class SplitImages:
    """The images of a split and the properties of the dataset.

    Attributes:
      images: `uint8` array of shape `[N, H, W, C]`, or a source to read images from.
      splits: names of all splits.
      evaluation_split: the split to report bits/dim on.
      num_values: number of pixel levels.
      flip: whether images are mirrored at random in training.
    """

    images: np.ndarray | ImageSource
    splits: tuple[str, ...]
    evaluation_split: str
    num_values: int = 256
    flip: bool = False


def find_images(
    name: str,
    split: str,
    *,
    num_validation: int = 0,
    image_size: int | None = None,
    on_error: Literal["raise", "skip"] = "raise",
    data_dir: str | None = None,
    download: bool = False,
    shuffle_buffer: int = 10_000,
) -> SplitImages:
    """Returns the images of a split. The arguments and errors are those of `load`.

    #### Example

    >>> find_images("digits", "validation", num_validation=100).images.shape
    (100, 8, 8, 1)

    """
    path = pathlib.Path(name)
    if name and name not in _EMBEDDED and find_spec(name) is None and path.is_dir():
        return _from_folder(path, split, num_validation, image_size, on_error)
    if name in _EMBEDDED or path.suffix in (".npy", ".npz"):
        if image_size is not None:
            raise ValueError(f"Expected no image_size for {name!r}, whose image size is fixed.")
        return _from_arrays(name, split, num_validation)
    return _from_tfds(name, split, num_validation, image_size, data_dir, download, shuffle_buffer)


def _from_arrays(name: str, split: str, num_validation: int) -> SplitImages:
    if name in _EMBEDDED:
        embedded = load_arrays(name)
        arrays = {"train": embedded.train, "test": embedded.test}
        properties = {"num_values": embedded.num_values, "flip": embedded.flip}
    else:
        arrays, properties = load_array_file(name), {}
    splits = check_split(name, split, tuple(arrays), num_validation)
    if num_validation and split != "test":
        rest, held_out = hold_out(len(arrays["train"]), num_validation)
        arrays["train"], arrays["validation"] = arrays["train"][rest], arrays["train"][held_out]
    return SplitImages(arrays[split], splits, _evaluation_split(arrays), **properties)


def _from_folder(
    folder: pathlib.Path,
    split: str,
    num_validation: int,
    image_size: int | None,
    on_error: Literal["raise", "skip"],
) -> SplitImages:
    paths = image_folder.list_images(folder)
    evaluation_split = _evaluation_split(paths)
    first = paths["train"][0]
    splits = check_split(str(folder), split, tuple(paths), num_validation)
    if num_validation:
        rest, held_out = hold_out(len(paths["train"]), num_validation)
        paths["validation"] = [paths["train"][i] for i in held_out]
        paths["train"] = [paths["train"][i] for i in rest]
    source = image_folder.folder_source(
        paths[split], first=first, image_size=image_size, on_error=on_error
    )
    return SplitImages(source, splits, evaluation_split)


def _from_tfds(
    name: str,
    split: str,
    num_validation: int,
    image_size: int | None,
    data_dir: str | None,
    download: bool,
    shuffle_buffer: int,
) -> SplitImages:
    builder = tfds_source.find_builder(name, data_dir, download)
    spec = tfds_source.spec_of(name, builder, image_size)
    if spec.tfds_name.startswith("imagenet_resized"):
        logging.log_first_n(
            logging.WARNING,
            "imagenet_resized is not the downsampled ImageNet of the paper (imagenet32 and "
            "imagenet64). Bits/dim on the two are not comparable.",
            1,
        )
    # A dataset outside `DATASETS` has no splits before it is prepared; `tfds_source` then raises.
    splits = check_split(name, split, spec.splits, num_validation) if spec.splits else ()
    source = tfds_source.tfds_source(
        spec, builder, split, num_validation=num_validation, shuffle_buffer=shuffle_buffer
    )
    return SplitImages(source, splits, spec.evaluation_split, flip=spec.flip)


def _evaluation_split(splits: dict[str, object]) -> str:
    return next((split for split in ("test", "validation") if split in splits), "train")

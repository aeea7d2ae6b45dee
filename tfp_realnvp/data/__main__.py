"""Describes a dataset and, with `--download`, fetches it first.

Usage: `python -m tfp_realnvp.data --dataset=cifar10 --download`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from tfp_realnvp.data.dataset_spec import DATASETS
from tfp_realnvp.data.load import ImageBatches, load

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the image shape, the splits and the split sizes of a dataset, as `load` returns it.

    Args:
      arguments: command-line arguments; `None` means those of the process.

    #### Example

    >>> from tfp_realnvp.data.__main__ import main
    >>> main(["--dataset=digits"])
    digits: images of shape (8, 8, 1) with values in [0, 17), evaluated on test
    train: 1500 images
    test: 297 images

    """
    names = ", ".join(["digits", "photos", *(spec.name for spec in DATASETS)])
    parser = argparse.ArgumentParser(
        prog="python -m tfp_realnvp.data",
        description="Describes a dataset and, with --download, fetches it first.",
        epilog=f"Names: {names}, and other image datasets of TensorFlow Datasets.",
    )
    parser.add_argument("--dataset", required=True, help="a name, an array file or a folder")
    parser.add_argument("--data_dir", help="data directory of TensorFlow Datasets")
    parser.add_argument("--download", action="store_true", help="download missing data")
    parser.add_argument("--image_size", type=int, help="height and width to resize images to")
    flags = parser.parse_args(arguments)

    def loaded(split: str) -> ImageBatches:
        return load(
            flags.dataset,
            batch_size=1,
            split=split,
            image_size=flags.image_size,
            data_dir=flags.data_dir,
            download=flags.download,
            cache_bytes=0,
        )

    train = loaded("train")
    print(
        f"{train.name}: images of shape {train.image_shape} with values in "
        f"[0, {train.num_values}), evaluated on {train.evaluation_split}"
    )
    for split in train.splits:
        print(f"{split}: {loaded(split).num_images} images")


if __name__ == "__main__":
    try:
        main()
    except (FileNotFoundError, ImportError, ValueError) as error:
        raise SystemExit(str(error)) from None

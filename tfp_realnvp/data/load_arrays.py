"""Embedded datasets by name."""

from collections.abc import Callable

from tfp_realnvp.data.digits import load_digits
from tfp_realnvp.data.image_arrays import ImageArrays
from tfp_realnvp.data.photos import load_photos

__all__ = ["load_arrays"]

_LOADERS: dict[str, Callable[[], ImageArrays]] = {
    "digits": load_digits,
    "photos": load_photos,
}


def load_arrays(name: str) -> ImageArrays:
    """Loads a dataset that needs no download. Every call returns the same arrays.

    | name     | images      | levels | train  | test | flips | labels |
    | -------- | ----------- | ------ | ------ | ---- | ----- | ------ |
    | `digits` | [8, 8, 1]   | 17     | 1,500  | 297  | no    | 10     |
    | `photos` | [32, 32, 3] | 256    | 13,440 | 450  | yes   | none   |

    Args:
      name: `'digits'` or `'photos'`.

    Returns:
      `ImageArrays`, with `uint8` images of shape `[N, H, W, C]`.

    Raises:
      ValueError: if the name is unknown.
      ImportError: if scikit-learn, which contains the images, is not installed.

    #### Example

    >>> digits = load_arrays("digits")
    >>> digits.train.shape, digits.train.dtype
    ((1500, 8, 8, 1), dtype('uint8'))

    """
    if name not in _LOADERS:
        raise ValueError(f"Expected a dataset of {sorted(_LOADERS)}, got {name!r}.")
    return _LOADERS[name]()

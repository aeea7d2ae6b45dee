"""Data sets by name."""

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
    """Loads a data set that needs no network into memory; every call returns the same arrays.

    | name     | images      | levels | train  | test | flips |
    | -------- | ----------- | ------ | ------ | ---- | ----- |
    | `digits` | [8, 8, 1]   | 17     | 1,500  | 297  | no    |
    | `photos` | [32, 32, 3] | 256    | 13,440 | 450  | yes   |

    Args:
      name: `'digits'` or `'photos'`.

    Returns:
      `ImageArrays`, with `uint8` images of shape `[N, H, W, C]`.

    Raises:
      ValueError: `name` is none of the known names.
      ImportError: scikit-learn, which the images come with, is not installed.

    #### Example

    >>> digits = load_arrays("digits")
    >>> digits.train.shape, digits.train.dtype
    ((1500, 8, 8, 1), dtype('uint8'))

    """
    if name not in _LOADERS:
        raise ValueError(f"Unknown data set {name!r}; the known ones are {sorted(_LOADERS)}.")
    return _LOADERS[name]()

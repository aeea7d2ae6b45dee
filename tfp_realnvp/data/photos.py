"""Color patches of 32×32 pixels from two photographs."""

import numpy as np

from tfp_realnvp.data.image_arrays import ImageArrays
from tfp_realnvp.data.scikit_learn import import_datasets

__all__ = ["load_photos"]

_PATCH_SIZE = 32
# Of 640 columns, 448 are for training, 32 (one patch) are skipped, and 160 are for the test.
_TRAIN_COLUMNS = slice(0, 448)
_TEST_COLUMNS = slice(480, 640)
_TRAIN_STRIDE = 5
_TEST_STRIDE = 16
_ORDER_SEED = 0


def load_photos() -> ImageArrays:
    """Returns 32×32 color patches of scikit-learn's two photographs, a temple and a flower.

    Training patches come from the left 448 columns of each photograph, one at every fifth pixel in
    both directions (13,440 patches). Test patches come from the right 160 columns, one at every
    sixteenth pixel (450 patches). The 32 columns in between are not used, so that training and test
    patches share no pixel and are at least one patch apart. The order of the patches is random
    and fixed: the first n patches are a random sample.

    Patches of one region overlap, and they come from only two photographs. Compare bits/dim on them
    between models, but not with bits/dim on other data.

    Raises:
      ImportError: if scikit-learn, or pillow, with which it reads photographs, is not installed.

    #### Example

    >>> photos = load_photos()
    >>> photos.train.shape, photos.test.shape, photos.flip
    ((13440, 32, 32, 3), (450, 32, 32, 3), True)

    """
    photographs = import_datasets().load_sample_images().images
    rng = np.random.default_rng(_ORDER_SEED)
    train = [_patches(photo[:, _TRAIN_COLUMNS], _TRAIN_STRIDE) for photo in photographs]
    test = [_patches(photo[:, _TEST_COLUMNS], _TEST_STRIDE) for photo in photographs]
    return ImageArrays(
        name="photos",
        train=rng.permutation(np.concatenate(train)),
        test=rng.permutation(np.concatenate(test)),
        num_values=256,
        flip=True,
    )


def _patches(image: np.ndarray, stride: int) -> np.ndarray:
    """Returns the `[N, 32, 32, C]` patches of an `[H, W, C]` image, in raster order."""
    windows = np.lib.stride_tricks.sliding_window_view(image, (_PATCH_SIZE, _PATCH_SIZE), (0, 1))
    patches = np.moveaxis(windows[::stride, ::stride], 2, -1)
    return patches.reshape(-1, *patches.shape[2:])

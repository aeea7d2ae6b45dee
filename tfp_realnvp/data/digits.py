"""Handwritten digits of 8×8 pixels."""

import numpy as np

from tfp_realnvp.data.image_arrays import ImageArrays
from tfp_realnvp.data.scikit_learn import import_datasets

__all__ = ["load_digits"]

_NUM_TRAIN = 1500
_SPLIT_SEED = 0


def load_digits() -> ImageArrays:
    """Returns scikit-learn's 1,797 handwritten digits.

    Images have shape `[8, 8, 1]` and 17 gray levels, from 0 (background) to 16. A fixed random
    split gives 1,500 training and 297 test images. `flip` is false: mirrored digits are not digits.
    Labels are the ten digits.

    Raises:
      ImportError: if scikit-learn is not installed.

    #### Example

    >>> digits = load_digits()
    >>> digits.train.shape, digits.test.shape, digits.num_values
    ((1500, 8, 8, 1), (297, 8, 8, 1), 17)
    >>> digits.train_labels.shape, digits.num_classes
    ((1500,), 10)

    """
    digits = import_datasets().load_digits()
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(digits.images))
    images = digits.images[order].astype(np.uint8)[..., np.newaxis]
    labels = digits.target[order].astype(np.int32)
    return ImageArrays(
        name="digits",
        train=images[:_NUM_TRAIN],
        test=images[_NUM_TRAIN:],
        num_values=17,
        flip=False,
        num_classes=10,
        train_labels=labels[:_NUM_TRAIN],
        test_labels=labels[_NUM_TRAIN:],
    )

"""A dataset in memory."""

import dataclasses

import numpy as np

__all__ = ["ImageArrays"]


@dataclasses.dataclass(frozen=True, eq=False)
class ImageArrays:
    """The training and test images of a dataset.

    Attributes:
      name: name of the dataset.
      train: `uint8` array of shape `[N, H, W, C]`.
      test: `uint8` array of shape `[M, H, W, C]`.
      num_values: number of pixel levels. Pixels are integers in `[0, num_values)`.
      flip: whether an image and its mirror image are equally likely, so that random horizontal
        flips are a valid augmentation.
      num_classes: number of classes; `None` without labels.
      train_labels: integer array of shape `[N]`, with values in `[0, num_classes)`.
      test_labels: integer array of shape `[M]`.

    #### Example

    >>> import numpy as np
    >>> arrays = ImageArrays(
    ...     name="black",
    ...     train=np.zeros([5, 4, 4, 1], np.uint8),
    ...     test=np.zeros([2, 4, 4, 1], np.uint8),
    ...     num_values=2,
    ...     flip=True,
    ... )
    >>> arrays.image_shape
    (4, 4, 1)

    """

    name: str
    train: np.ndarray
    test: np.ndarray
    num_values: int
    flip: bool
    num_classes: int | None = None
    train_labels: np.ndarray | None = None
    test_labels: np.ndarray | None = None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """The shape `(H, W, C)` of one image."""
        return self.train.shape[1:]

"""Access to TensorFlow Datasets."""

import types

__all__ = ["import_tfds"]


def import_tfds() -> types.ModuleType:
    """Returns the module `tensorflow_datasets`.

    Raises:
      ImportError: if it is not installed. The message says how to install it.

    #### Example

    >>> import_tfds().__name__
    'tensorflow_datasets'

    """
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise ImportError(
            "This dataset needs tensorflow-datasets, which is not installed. Install it with "
            '`pip install "tfp_realnvp[examples]"`.'
        ) from error
    return tensorflow_datasets

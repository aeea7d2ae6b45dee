"""Access to the datasets that are installed with scikit-learn."""

import types

__all__ = ["import_datasets"]


def import_datasets() -> types.ModuleType:
    """Returns the module `sklearn.datasets`.

    Raises:
      ImportError: if scikit-learn is not installed. The message says how to install it.

    #### Example

    >>> import_datasets().load_digits().images.shape
    (1797, 8, 8)

    """
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ImportError(
            "This dataset is part of scikit-learn, which is not installed. Install it with "
            '`pip install "tfp_realnvp[examples]"`.'
        ) from error
    return datasets

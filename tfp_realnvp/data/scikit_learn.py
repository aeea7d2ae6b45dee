"""Access to scikit-learn's data sets, which come with its installation."""

import types

__all__ = ["import_datasets"]


def import_datasets() -> types.ModuleType:
    """Returns the module `sklearn.datasets`.

    Raises:
      ImportError: scikit-learn is not installed; the message says how to install it.

    #### Example

    >>> import_datasets().load_digits().images.shape
    (1797, 8, 8)

    """
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ImportError(
            "The embedded images come with scikit-learn, which is not installed. Install it with "
            '`pip install "tfp_realnvp[examples]"`.'
        ) from error
    return datasets

"""Columns of a pandas `DataFrame`: which of them are numbers, and rows with the same columns."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import numpy as np

__all__ = ["check_columns", "dtypes_of", "is_frame", "listed", "rows_as_frame", "warn_of_integers"]


def is_frame(table: Any) -> bool:
    """Returns whether a table is a pandas `DataFrame`, without an import of pandas."""
    return "pandas" in sys.modules and isinstance(table, sys.modules["pandas"].DataFrame)


def dtypes_of(table: Any) -> Any:
    """Returns names and dtypes of columns, a `Series`; `None` if the table is not a `DataFrame`."""
    return table.dtypes if is_frame(table) else None


def check_columns(table: Any, caller: str, takes_labels: bool) -> None:
    """Raises an error for columns of a `DataFrame` that are not numbers.

    Args:
      table: of any type.
      caller: an estimator.
      takes_labels: whether its `fit(X, y)` takes categories as y.
    """
    if not is_frame(table):
        return
    from pandas.api import types

    others = {
        name: dtype for name, dtype in table.dtypes.items() if not types.is_numeric_dtype(dtype)
    }
    if not others:
        return
    times = [name for name, dtype in others.items() if dtype.kind in "mM"]
    categories = [name for name in others if name not in times]
    calls = []
    if takes_labels and len(others) == len(categories) == 1:
        name = categories[0]
        calls.append(
            f"For the density of the other columns given {name}, call "
            f"fit(X.drop(columns={name!r}), X[{name!r}])."
        )
    if categories:
        calls.append(
            "To encode categories as numbers, call make_pipeline(make_column_transformer("
            f"(OrdinalEncoder(), {categories!r}), remainder='passthrough'), {caller}()).fit(X)."
        )
    if times:
        name = f"X[{times[0]!r}]"
        calls.append(f"Times in seconds are ({name} - {name}.min()) / np.timedelta64(1, 's').")
    got = ", ".join(f"{name} ({dtype})" for name, dtype in others.items())
    raise ValueError(f"{caller}: expected columns of numbers, got {got}. {' '.join(calls)}")


def _is_whole(dtypes: Any) -> np.ndarray:
    """Returns of each column whether it is one of integers or of `bool`."""
    # Dtypes of pandas have the same kinds as those of NumPy.
    return np.array([dtype.kind in "iub" for dtype in dtypes], bool)


def warn_of_integers(dtypes: Any, has_noise: np.ndarray, caller: str) -> None:
    """Warns of columns of integers in a `DataFrame`, for which a density is not a probability.

    Args:
      dtypes: as from `dtypes_of`.
      has_noise: whether a column gets noise in training, [D].
      caller: whose warning it is.
    """
    is_whole = _is_whole(dtypes) if dtypes is not None else np.array([False])
    if not is_whole.any():
        return
    names = np.array([str(name) for name in dtypes.index])
    dequantized = listed(names[is_whole & has_noise]) or "none"
    warnings.warn(
        f"{caller}: columns of integers count as rounded numbers: {listed(names[is_whole])}. "
        "Where the rounding is coarse beside the standard deviation, they are dequantized, by "
        f"noise in training: {dequantized}. score_samples is a density at the integers. It is not "
        "their probability, and can be greater. Fit and score X.astype(float) if this is what you "
        "want: then there is no warning, and sample does not round.",
        UserWarning,
        stacklevel=3,
    )


def rows_as_frame(rows: np.ndarray, dtypes: Any) -> Any:
    """Returns rows [N, D] as a `DataFrame` with the names and dtypes of columns.

    Integers are rounded, and those out of the range of their dtype are its ends. So `bool` is true
    from 0.5 on.

    Args:
      rows: float64.
      dtypes: as from `dtypes_of`.
    """
    import pandas as pd

    columns = {}
    for i, (dtype, is_whole) in enumerate(zip(dtypes, _is_whole(dtypes), strict=True)):
        column = rows[:, i]
        if is_whole and dtype.kind == "b":
            column = column >= 0.5
        elif is_whole:
            limits = np.iinfo(getattr(dtype, "numpy_dtype", dtype.type))
            # The greatest int64 is no float64; the number below is.
            column = np.rint(np.clip(column, limits.min, np.nextafter(float(limits.max), 0)))
        columns[i] = pd.Series(column).astype(dtype)
    return pd.DataFrame(columns).set_axis(dtypes.index, axis=1)


def listed(names: Any) -> str:
    """Returns the first five names, and the number of the others."""
    names = list(names)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")

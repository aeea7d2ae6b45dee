"""Checks of the columns of a pandas `DataFrame`, and rows as a `DataFrame`."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

__all__ = ["check_columns", "dtypes_of", "is_frame", "listed", "rows_as_frame"]


def is_frame(table: Any) -> bool:
    """Returns whether a table is a pandas `DataFrame`, without an import of pandas."""
    return "pandas" in sys.modules and isinstance(table, sys.modules["pandas"].DataFrame)


def dtypes_of(table: Any) -> Any:
    """Returns the dtypes of columns, a `Series` indexed by name; `None` if not a `DataFrame`."""
    return table.dtypes if is_frame(table) else None


def check_columns(table: Any, caller: str) -> None:
    """Raises a `ValueError` if a column of a `DataFrame` does not contain numbers."""
    if not is_frame(table):
        return
    import pandas as pd

    is_number = pd.api.types.is_numeric_dtype
    others = {name: dtype for name, dtype in table.dtypes.items() if not is_number(dtype)}
    if not others:
        return
    times = [name for name, dtype in others.items() if dtype.kind in "mM"]
    numbers = [name for name in others if name not in times and _is_numbers(table[name])]
    categories = [name for name in others if name not in times + numbers]
    calls = []
    if numbers:
        call = f"X.assign(**X[{numbers!r}].apply(pd.to_numeric))"
        calls.append(f"For numbers that are stored as objects or strings, call {call}.")
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


def _is_numbers(column: Any) -> bool:
    """Returns whether `pd.to_numeric` converts all values of a `Series` that are not missing."""
    import pandas as pd

    is_category = isinstance(column.dtype, pd.CategoricalDtype)
    is_number = pd.to_numeric(column, errors="coerce").notna() | column.isna()
    return bool(not is_category and is_number.all())


def rows_as_frame(rows: np.ndarray, dtypes: Any) -> Any:
    """Returns rows [N, D], float64, as a `DataFrame` with the names and dtypes of `dtypes_of`.

    Integers are rounded and clipped to the range of their dtype. Booleans are true from 0.5 on.
    """
    import pandas as pd

    columns = {}
    for i, dtype in enumerate(dtypes):
        column = rows[:, i]
        if dtype.kind == "b":  # pandas and NumPy dtypes have equal kinds
            column = column >= 0.5
        elif dtype.kind in "iu":
            limits = np.iinfo(getattr(dtype, "numpy_dtype", dtype.type))
            column = np.rint(column).clip(limits.min, limits.max)
        columns[i] = pd.Series(column).astype(dtype)
    return pd.DataFrame(columns).set_axis(dtypes.index, axis=1)


def listed(names: Any) -> str:
    """Returns a string with the first five names, and the number of further names."""
    names = list(names)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")

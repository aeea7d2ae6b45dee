"""Converts pandas `DataFrame`s to arrays, with integer codes for categories, and back."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from tfp_realnvp.internal import validation

_MAX_CATEGORIES = 255


def check_columns(table: Any, categories: Iterable[int], caller: str) -> None:
    """Raises a `ValueError` if a column is neither numeric nor one of `categories`."""
    columns = [column for i, column in enumerate(table.items()) if i not in categories]
    columns = [pair for pair in columns if not pd.api.types.is_numeric_dtype(pair[1].dtype)]
    if not columns:
        return
    times = [name for name, column in columns if column.dtype.kind in "mM"]
    numbers = [name for name, column in columns if name not in times and is_numbers(column)]
    got = ", ".join(f"{name} ({column.dtype})" for name, column in columns)
    message = f"{caller}: expected columns of numbers, got {got}."
    if numbers:
        call = f"X.assign(**X[{numbers!r}].apply(pd.to_numeric))"
        message += f" For numbers that are stored as objects or strings, call {call}."
    if len(columns) > len(numbers) + len(times):
        message += " For categories, leave categorical_features at 'from_dtype'."
    if times:
        name = f"X[{times[0]!r}]"
        message += f" Times in seconds are ({name} - {name}.min()) / np.timedelta64(1, 's')."
    raise ValueError(message)


def is_numbers(column: Any) -> bool:
    """Returns whether `pd.to_numeric` converts all known values of a `Series` to numbers."""
    values = column.dropna().astype(object)  # `to_numeric` does not convert Arrow strings
    is_bool = column.dtype.kind == "b" or values.map(type).eq(bool).any()
    is_other = is_bool or isinstance(column.dtype, pd.CategoricalDtype)
    return bool(not is_other and pd.to_numeric(values, errors="coerce").notna().all())


def check_cells(table: Any, caller: str) -> None:
    """Raises a `ValueError` if a list or an array has strings that are not numbers."""
    cells = np.asarray(table) if isinstance(table, (list, np.ndarray)) else np.empty(0)
    if cells.ndim == 2 and cells.dtype.kind in "OU":
        texts = [i for i, column in as_frame(cells).items() if column.map(type).eq(str).any()]
        texts = [i for i in texts if not is_numbers(pd.Series(cells[:, i]))]
        call = f"For categories pass a DataFrame, or call {caller}(categorical_features={texts})"
        if texts:
            raise ValueError(f"{caller}: expected numbers, got strings in columns {texts}. {call}.")


def position(name: Any, names: list[Any], option: str, caller: str) -> int:
    """Returns the position of a column given by name or position; names take precedence."""
    if names.count(name) > 1:
        raise ValueError(
            f"{caller}: expected {option} by a name of one column or by position, got {name!r}, "
            f"the name of {names.count(name)} columns."
        )
    i = names.index(name) if name in names else name
    expected = f"{caller}: expected {option} by name ({listed(names)}) or position of columns"
    validation.require(i in range(len(names)), expected, name)
    return int(i)


def unmasked(table: Any, dtype: Any) -> Any:
    """Replaces masked cells with NaN; returns tables without a mask unchanged."""
    return np.ma.filled(table.astype(dtype), np.nan) if np.ma.isMaskedArray(table) else table


def as_frame(table: Any) -> Any:
    """Converts a table to a `DataFrame`; masked cells become NaN."""
    table = unmasked(table, object)
    if isinstance(table, pd.DataFrame):
        return table
    frame = pd.DataFrame(np.asarray(table)).infer_objects()
    texts = [i for i, dtype in enumerate(frame.dtypes) if dtype.kind == "O"]
    texts = [i for i in texts if frame[i].map(type).eq(str).all() and is_numbers(frame[i])]
    return frame.astype(dict.fromkeys(texts, np.float64))


def categories_of(frame: Any, features: Any, caller: str) -> dict[int, list[Any]]:
    """Maps positions of categorical columns to their sorted categories.

    `features` selects the columns by names, positions or a mask. `'from_dtype'` selects columns of
    dtype category, string, object or bool, but no column whose strings are all numbers.
    """
    if isinstance(features, str) and features == "from_dtype":
        features = [i for i, dtype in enumerate(frame.dtypes) if dtype.kind in "bOU"]
        features = [i for i in features if not is_numbers(frame.iloc[:, i])]
    features = [features] if isinstance(features, str) else () if features is None else features
    if np.asarray(features).dtype == bool:
        number = frame.shape[1]
        expected = f"{caller}: expected {number} bools as categorical_features, one for each column"
        validation.require(np.shape(features) == frame.shape[1:], expected, features)
        features = np.flatnonzero(features)
    names, categories = list(frame.columns), {}
    for i in sorted(position(name, names, "categorical_features", caller) for name in features):
        cells = frame.iloc[:, i]
        values = getattr(cells.dtype, "categories", cells.dropna().unique())
        categories[i] = sorted(values.tolist(), key=str)
        if len(values) > _MAX_CATEGORIES:
            expected = f"{caller}: expected at most {_MAX_CATEGORIES} categories in a column"
            name = repr(names[i])
            days = f"(pd.to_datetime(X[{name}]) - pd.Timestamp(0)) / pd.Timedelta('1D')"
            raise ValueError(
                f"{expected}, got {len(values)} in column {names[i]}. For dates call "
                f"X.assign(**{{{name}: {days}}}), for identifiers X.drop(columns={name})."
            )
    return categories


def coded(frame: Any, categories: dict[int, list[Any]], caller: str) -> Any:
    """Replaces categories in a `DataFrame` by their codes, and missing categories by NaN."""
    frame = frame.copy()
    for i, values in categories.items():
        cells = frame.iloc[:, i].astype(object)
        codes = cells.map(dict(zip(values, range(len(values)), strict=True))).astype(np.float64)
        if len(unknown := cells[codes.isna() & cells.notna()].unique()):
            raise ValueError(
                f"{caller}: expected column {frame.columns[i]} to have the categories "
                f"{listed(map(repr, values))}, got {listed(map(repr, unknown))}."
            )
        frame.isetitem(i, codes)
    return frame


def decoded(rows: np.ndarray, categories: dict[int, list[Any]]) -> np.ndarray:
    """Replaces the codes in rows [..., D] by categories.

    If a category is not a number, the result has dtype object.
    """
    names = [np.asarray(value) for values in categories.values() for value in values]
    is_object = any(name.ndim or name.dtype.kind not in "iuf" for name in names)
    rows = rows.astype(object if is_object else np.float64)
    for i, values in categories.items():
        options = np.empty(len(values), rows.dtype)
        options[:] = values
        rows[..., i] = options[rows[..., i].astype(int)]
    return rows


def rows_as_frame(rows: np.ndarray, dtypes: Any) -> Any:
    """Converts rows [N, D] to a `DataFrame` with `dtypes`, a `Series` indexed by column names.

    Integer columns are rounded and clipped to the range of their dtype. In bool columns, numbers of
    at least 0.5 become true.
    """
    columns = {}
    for i, dtype in enumerate(dtypes):
        column = rows[:, i].astype(np.float64 if dtype.kind in "biuf" else object)
        if dtype.kind == "b":  # pandas and NumPy dtypes have equal kinds
            column = column >= 0.5
        elif dtype.kind in "iu":
            limits = np.iinfo(getattr(dtype, "numpy_dtype", dtype.type))
            # As float64, the largest 64-bit integer rounds to a number outside of the range.
            most = np.nextafter(float(limits.max), 0) if limits.bits == 64 else limits.max
            column = np.rint(column).clip(limits.min, most)
        columns[i] = pd.Series(column).astype(dtype)
    return pd.DataFrame(columns).set_axis(dtypes.index, axis=1)


def listed(names: Any) -> str:
    """Lists the first five names, and says how many more there are."""
    names = list(map(str, names))
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")

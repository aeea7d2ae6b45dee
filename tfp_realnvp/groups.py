"""What is done to each of hundreds of variables, traced once for a group of them."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tensorflow as tf

__all__ = ["assign", "map_in_groups", "read", "sum_in_groups", "unfolded"]

_SIZE = 32


def map_in_groups(
    function: Callable[..., Any],
    rows: Sequence[Sequence[tf.Tensor]],
    shared: Sequence[tf.Tensor] = (),
    **static: Any,
) -> list[Any]:
    """Returns `[function(*row, *shared, **static) for row in rows]`.

    The function is traced for a group of rows, and stays a function, also in a graph, which is
    called for one group after the other: where there are hundreds of variables, a training step of
    separate operations for each takes longer to trace, and more memory to keep, than all the rest;
    and longer than the rest to run, where there is no graph. Static shapes are not known within.

    #### Example

    >>> import tensorflow as tf
    >>> def assign_sum(handle, x, y):
    ...   tf.raw_ops.AssignVariableOp(resource=handle, value=x + y)
    >>> a, b = tf.Variable(0.0), tf.Variable(0.0)
    >>> rows = [(a.handle, tf.constant(1.0)), (b.handle, tf.constant(2.0))]
    >>> _ = map_in_groups(assign_sum, rows, [tf.constant(3.0)])
    >>> float(a), float(b)
    (4.0, 5.0)

    Args:
      function: of tensors; defined once, so that it is known again. Returns a tensor, a tuple of
        them, or none.
      rows: tensors and handles of variables, as many in each.
      shared: tensors that all rows have in common.
      **static: what the function has to know while it is traced.
    """
    if tf.config.functions_run_eagerly():
        return [function(*row, *shared, **static) for row in rows]
    results = []
    for group, outputs in _call_in_groups(function, rows, shared, static, adds=False):
        results.extend(outputs if outputs else [None] * len(group))
    return results


def sum_in_groups(
    function: Callable[..., tf.Tensor],
    rows: Sequence[Sequence[tf.Tensor]],
    shared: Sequence[tf.Tensor] = (),
    **static: Any,
) -> tf.Tensor:
    """Returns the sum of what `map_in_groups` gives, of which each group gives its own sum.

    #### Example

    >>> import tensorflow as tf
    >>> rows = [[tf.constant(1.0)], [tf.constant(2.0)]]
    >>> float(sum_in_groups(tf.square, rows))
    5.0
    """
    if tf.config.functions_run_eagerly():
        return tf.add_n([function(*row, *shared, **static) for row in rows])
    calls = _call_in_groups(function, rows, shared, static, adds=True)
    return tf.add_n([output for _, [output] in calls])


def _call_in_groups(
    function: Callable[..., Any],
    rows: Sequence[Sequence[tf.Tensor]],
    shared: Sequence[tf.Tensor],
    static: dict[str, Any],
    adds: bool,
) -> Iterator[tuple[Sequence[Sequence[tf.Tensor]], list[tf.Tensor]]]:
    for start in range(0, len(rows), _SIZE):
        group = rows[start : start + _SIZE]
        inputs = [unfolded(x) for x in (*itertools.chain(*group), *shared)]
        dtypes = tuple(x.dtype for x in inputs)
        traced = _traced(function, len(group), len(group[0]), dtypes, tuple(static.items()), adds)
        yield group, traced(*inputs)


def unfolded(value: Any) -> tf.Tensor:
    """Returns a tensor of the value that the graph's optimizer does not know for a constant.

    For each call with a constant among its arguments it would make a copy of the function.

    #### Example

    >>> int(unfolded(3))
    3
    """
    value = tf.convert_to_tensor(value)
    if tf.executing_eagerly() or value.op.type != "Const":
        return value
    return tf.raw_ops.PlaceholderWithDefault(input=value, shape=value.shape)


def read(variables: Sequence[tf.Variable]) -> list[tf.Tensor]:
    """Returns the variables' values.

    #### Example

    >>> import tensorflow as tf
    >>> [float(value) for value in read([tf.Variable(1.0), tf.Variable(2.0)])]
    [1.0, 2.0]
    """
    values = {}
    for dtype in {variable.dtype for variable in variables}:
        own = [i for i, variable in enumerate(variables) if variable.dtype == dtype]
        rows = [[variables[i].handle] for i in own]
        for i, value in zip(own, map_in_groups(_read, rows, dtype=dtype), strict=True):
            value.set_shape(variables[i].shape)
            values[i] = value
    return [values[i] for i in range(len(variables))]


def _read(handle: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    return tf.raw_ops.ReadVariableOp(resource=handle, dtype=dtype)


def assign(variables: Sequence[tf.Variable], values: Sequence[tf.Tensor]) -> None:
    """Gives each variable its value.

    #### Example

    >>> import tensorflow as tf
    >>> variable = tf.Variable(1.0)
    >>> assign([variable], [tf.constant(2.0)])
    >>> float(variable)
    2.0
    """
    handles = [variable.handle for variable in variables]
    map_in_groups(_assign, list(zip(handles, values, strict=True)))


def _assign(handle: tf.Tensor, value: tf.Tensor) -> None:
    tf.raw_ops.AssignVariableOp(resource=handle, value=value)


@functools.lru_cache(maxsize=64)
def _traced(
    function: Callable[..., Any],
    number: int,
    width: int,
    dtypes: tuple[tf.DType, ...],
    static: tuple[tuple[str, Any], ...],
    adds: bool,
) -> Callable[..., list[tf.Tensor]]:
    # Handles without a shape, and tensors of any: one function for all groups.
    specs = [tf.TensorSpec([] if d == tf.resource else None, d) for d in dtypes]

    def group(*inputs: tf.Tensor) -> list[tf.Tensor]:
        shared = inputs[number * width :]
        outputs = [
            function(*inputs[i * width : (i + 1) * width], *shared, **dict(static))
            for i in range(number)
        ]
        if adds:
            return [tf.add_n(outputs)]
        return [output for output in outputs if output is not None]

    with tf.init_scope():
        return tf.function(
            group, autograph=False, experimental_attributes={"_noinline": True}
        ).get_concrete_function(*specs)

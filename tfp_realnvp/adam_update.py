"""Adam's update: of one variable by TensorFlow's kernel, or of many small ones at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

__all__ = ["SCALARS", "groups_of", "places_in", "update_all", "update_one", "update_part"]

# What the update takes beside variables and gradients, in this order.
SCALARS = ("beta1_power", "beta2_power", "lr", "beta1", "beta2", "epsilon")

# Variables of one group, at most; and of a small variable, numbers: larger ones are worth a kernel.
_GROUP_SIZE = 32
_SMALL = 2**16


def groups_of(variables: Sequence[Any]) -> tuple[tuple[int, ...], ...]:
    """Returns the indices of variables whose moments are to lie end to end, group by group.

    Small ones of equal dtype share a group; a large one is a group of its own.

    #### Example

    >>> import tensorflow as tf
    >>> groups_of([tf.zeros([2]), tf.zeros([300, 300]), tf.zeros([])])
    ((0, 2), (1,))

    Args:
      variables: with `shape` and `dtype`.
    """
    groups, open_groups = [], {}
    for index, variable in enumerate(variables):
        size = math.prod(variable.shape)
        group = None if size > _SMALL else open_groups.get(tf.as_dtype(variable.dtype))
        if group is None or len(group) == _GROUP_SIZE:
            group = []
            groups.append(group)
            if size <= _SMALL:
                open_groups[tf.as_dtype(variable.dtype)] = group
        group.append(index)
    return tuple(tuple(group) for group in groups)


def places_in(
    groups: Sequence[Sequence[int]], variables: Sequence[Any]
) -> tuple[tuple[int, slice | None], ...]:
    """Returns for each variable the number of its group, and its part of that, if not all.

    #### Example

    >>> import tensorflow as tf
    >>> places_in([(0, 2), (1,)], [tf.zeros([2]), tf.zeros([300, 300]), tf.zeros([])])
    ((0, slice(0, 2, None)), (1, None), (0, slice(2, 3, None)))

    Args:
      groups: as of `groups_of`.
      variables: with `shape`.
    """
    places = {}
    for number, group in enumerate(groups):
        start = 0
        for index in group:
            stop = start + math.prod(variables[index].shape)
            places[index] = number, slice(start, stop) if len(group) > 1 else None
            start = stop
    return tuple(places[index] for index in range(len(variables)))


def update_one(
    gradient: tf.Tensor,
    variable: tf.Tensor,
    momentum: tf.Tensor,
    velocity: tf.Tensor,
    factor: tf.Tensor,
    *scalars: tf.Tensor,
) -> None:
    """Updates one variable and its moments, of its shape.

    #### Example

    >>> import tensorflow as tf
    >>> variable, momentum, velocity = (tf.Variable(0.0) for _ in range(3))
    >>> handles = [each.handle for each in (variable, momentum, velocity)]
    >>> scalars = [tf.constant(value) for value in (0.9, 0.999, 0.5, 0.9, 0.999, 1e-7)]
    >>> update_one(tf.constant(3.0), *handles, tf.constant(1.0), *scalars)
    >>> round(float(variable), 4)
    -0.5

    Args:
      gradient: of the variable's dtype.
      variable: its handle.
      momentum: the handle of m.
      velocity: the handle of v.
      factor: what the gradient is to be multiplied by. Zero times NaN is zero here.
      *scalars: see `SCALARS`.
    """
    dtype = gradient.dtype
    tf.raw_ops.ResourceApplyAdam(
        var=variable,
        m=momentum,
        v=velocity,
        grad=tf.math.multiply_no_nan(gradient, tf.cast(factor, dtype)),
        **{name: tf.cast(value, dtype) for name, value in zip(SCALARS, scalars, strict=True)},
    )


def update_all(*inputs: tf.Tensor, number: int) -> None:
    """Updates variables whose moments lie end to end.

    #### Example

    >>> import tensorflow as tf
    >>> variables = tf.Variable(0.0), tf.Variable([1.0, 1.0])
    >>> handles = [each.handle for each in (*variables, *(tf.Variable([0.0] * 3) for _ in 'mv'))]
    >>> gradients = tf.constant(3.0), tf.constant([-2.0, 0.0])
    >>> scalars = [tf.constant(value) for value in (0.9, 0.999, 0.5, 0.9, 0.999, 1e-7)]
    >>> update_all(*gradients, *handles, tf.constant(1.0), *scalars, number=2)
    >>> round(float(variables[0]), 4), variables[1].numpy().round(4).tolist()
    (-0.5, [1.5, 1.0])

    Args:
      *inputs: as many gradients of equal dtype, then the handles of their variables, then what
        `update_one` takes after those, with moments of rank one.
      number: of variables.
    """
    gradients, variables = inputs[:number], inputs[number : 2 * number]
    momentum, velocity, factor, *scalars = inputs[2 * number :]
    dtype = gradients[0].dtype
    m, v = (tf.raw_ops.ReadVariableOp(resource=each, dtype=dtype) for each in (momentum, velocity))
    flat = tf.concat([tf.reshape(gradient, [-1]) for gradient in gradients], axis=0)
    m, v, decrease = _updated(flat, m, v, factor, scalars)
    tf.raw_ops.AssignVariableOp(resource=momentum, value=m)
    tf.raw_ops.AssignVariableOp(resource=velocity, value=v)
    sizes = [tf.size(gradient) for gradient in gradients]
    parts = tf.split(decrease, sizes, num=number)
    for variable, part, gradient in zip(variables, parts, gradients, strict=True):
        part = tf.reshape(part, tf.shape(gradient))
        tf.raw_ops.AssignSubVariableOp(resource=variable, value=part)


def update_part(
    gradient: tf.Tensor,
    variable: tf.Variable,
    momentum: tf.Variable,
    velocity: tf.Variable,
    part: slice,
    factor: tf.Tensor,
    *scalars: tf.Tensor,
) -> None:
    """Updates one of the variables whose moments lie end to end.

    #### Example

    >>> import tensorflow as tf
    >>> variable, momentum, velocity = (tf.Variable([0.0] * size) for size in (2, 3, 3))
    >>> scalars = [tf.constant(value) for value in (0.9, 0.999, 0.5, 0.9, 0.999, 1e-7)]
    >>> gradient, factor = tf.constant([2.0, 2.0]), tf.constant(1.0)
    >>> update_part(gradient, variable, momentum, velocity, slice(1, 3), factor, *scalars)
    >>> variable.numpy().round(4).tolist(), [round(float(m), 4) for m in momentum]
    ([-0.5, -0.5], [0.0, 0.2, 0.2])

    Args:
      gradient: of the variable's dtype.
      variable: the variable.
      momentum: m of all, of rank one.
      velocity: v of all.
      part: this variable's.
      factor: see `update_one`.
      *scalars: see `SCALARS`.
    """
    m, v = momentum[part], velocity[part]
    new_m, new_v, decrease = _updated(tf.reshape(gradient, [-1]), m, v, factor, scalars)
    m.assign(new_m)
    v.assign(new_v)
    variable.assign_sub(tf.reshape(decrease, variable.shape))


def _updated(
    gradient: tf.Tensor,
    m: tf.Tensor,
    v: tf.Tensor,
    factor: tf.Tensor,
    scalars: Sequence[tf.Tensor],
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns new moments, and by how much the variable decreases."""
    dtype = gradient.dtype
    power_1, power_2, rate, beta_1, beta_2, epsilon = (tf.cast(each, dtype) for each in scalars)
    gradient = tf.math.multiply_no_nan(gradient, tf.cast(factor, dtype))
    m += (gradient - m) * (1 - beta_1)
    v += (tf.square(gradient) - v) * (1 - beta_2)
    rate *= tf.sqrt(1 - power_2) / (1 - power_1)
    return m, v, rate * m / (tf.sqrt(v) + epsilon)

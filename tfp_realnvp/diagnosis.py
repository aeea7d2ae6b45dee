"""Finding the part of a flow in which a loss stops being finite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf
import tensorflow_probability as tfp

from tfp_realnvp.bijectors import parts

__all__ = ["NonFiniteLossError", "first_non_finite_part"]

tfd = tfp.distributions


class NonFiniteLossError(ArithmeticError):
    """A training step gave a loss or a gradient that is not finite; the weights were kept.

    Attributes:
      step: the training step, counted from 0.
      part: where the first value that is not finite arose.
    """

    def __init__(self, step: int, part: str) -> None:
        super().__init__(
            f"the loss or its gradient is not finite at step {step}, first in {part}; the weights "
            "are those before that step. A smaller learning rate or gradient norm may help."
        )
        self.step = step
        self.part = part


def first_non_finite_part(
    distribution: tfd.Distribution,
    values: tf.Tensor,
    variables: Sequence[Any],
    **options: Any,
) -> str:
    """Returns a description of where, on the way from `values` to a gradient, a NaN or inf arises.

    Args:
      distribution: the distribution whose `log_prob` is the loss.
      values: what it was asked for.
      variables: those that are trained.
      **options: keyword arguments of `distribution.log_prob`.

    Returns:
      The data, the name of a variable, of a bijector or of the base distribution, or the variable
      of whose gradient it is.
    """
    if not _is_finite(values):
        return "the data"
    for variable in variables:
        if not _is_finite(tf.convert_to_tensor(variable)):
            return f"the variable {_path(variable)}"
    found = []

    def look(part: Any, value: tf.Tensor, log_det: tf.Tensor) -> None:
        if not found and not (_is_finite(value) and _is_finite(log_det)):
            found.append(f"the bijector {part.name}")

    # An identity, so that no cache knows the values.
    with parts.observe_inverse(look), tf.GradientTape() as tape:
        log_prob = distribution.log_prob(tf.identity(values), **options)
    if found:
        return found[0]
    if not _is_finite(log_prob):
        return f"the log density of {distribution.name}, after its bijectors"
    gradients = tape.gradient(log_prob, variables)
    for variable, gradient in zip(variables, gradients, strict=True):
        if gradient is not None and not _is_finite(tf.convert_to_tensor(gradient)):
            return f"the gradient of {_path(variable)}"
    return "the sum over the batch or the penalty"


def _path(variable: Any) -> str:
    return getattr(variable, "path", variable.name)


def _is_finite(value: tf.Tensor) -> bool:
    return bool(tf.reduce_all(tf.math.is_finite(tf.cast(value, tf.float64))))

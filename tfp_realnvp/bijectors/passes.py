"""What travels with a value through the parts of a flow."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf
import tensorflow_probability as tfp

from tfp_realnvp.internal.replicas import LOCAL_STATISTICS, Statistics

__all__ = ["Pass", "surround_with", "surrounding_pass"]

tfb = tfp.bijectors


@dataclasses.dataclass(frozen=True, eq=False)
class Pass:
    """What travels with a value through the parts of a flow, down to the networks.

    The outermost bijector makes the pass from the keyword arguments of its call. Each part gets it
    as second argument, and hands it to its own parts: `part._inverse_and_log_det(y, p)`.

    #### Example

    >>> import tensorflow as tf, tfp_realnvp as tfr
    >>> y = tf.random.normal([64, 8, 8, 3])
    >>> bijector = tfr.BatchNormalization()
    >>> x, ildj = bijector._inverse_and_log_det(y, tfr.Pass(training=True))
    >>> int(bijector.moving.num_updates)
    1

    Attributes:
      training: whether to normalize by batch statistics, and to update the moving ones.
      condition: the condition of the events. If a network declares its shape, this is a checked
        tensor with the leading shape of the events.
      recompute: whether gradients compute the activations of the networks again.
      statistics: the events that batch statistics average over, and their weights.
      observer: called as `observer(bijector, value, log_det)` after each part, inner parts first.
      guidance: the weight w of guidance, a scalar, or `None`: each coupling then has the parameters
        (1 + w) a(c) - w a(∅), from the condition c and from a missing condition ∅.
      no_condition: the embedding of ∅, of the shape of `condition`, where `guidance` needs it.
      terms: a list that gets the terms of the log density by position, [..., h, w]. A term of a
        squeezed image has fewer positions, each of which covers a block of the image.
    """

    training: bool = False
    condition: Any = None
    recompute: bool = False
    statistics: Statistics = LOCAL_STATISTICS
    observer: Callable[[tfb.Bijector, tf.Tensor, tf.Tensor], None] | None = None
    guidance: tf.Tensor | float | None = None
    no_condition: tf.Tensor | None = None
    terms: list[tf.Tensor] | None = None

    def but(self, **fields: Any) -> Pass:
        """Returns a pass with other values of some fields."""
        return dataclasses.replace(self, **fields)

    def record(self, elements: tf.Tensor) -> None:
        """Adds terms of the log density, [..., H, W, C], to `terms`, summed over channels."""
        if self.terms is not None:
            self.terms.append(tf.reduce_sum(elements, axis=-1))


_NOTHING = Pass()
_surrounding = contextvars.ContextVar[Pass]("surrounding_pass", default=_NOTHING)


def surrounding_pass() -> Pass:
    """Returns the fields that `surround_with` sets here."""
    return _surrounding.get()


@contextlib.contextmanager
def surround_with(**fields: Any) -> Iterator[None]:
    """Sets fields of the `Pass` of each outermost bijector that is called within the context.

    Callers of a distribution need it: TFP hands on only `training` and `conditional_input`.
    """
    token = _surrounding.set(surrounding_pass().but(**fields))
    try:
        yield
    finally:
        _surrounding.reset(token)

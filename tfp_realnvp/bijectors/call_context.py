"""The options of a call, which a flow passes to its parts with the value."""

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
    """The options of a call, which a flow passes to its parts and their networks.

    The bijector that the user calls makes the pass from its keyword arguments. Compositions pass it
    on: `part._inverse_and_log_det(y, p)`.

    #### Example

    >>> import tensorflow as tf, tfp_realnvp as tfr
    >>> y = tf.random.normal([64, 8, 8, 3])
    >>> bijector = tfr.BatchNormalization()
    >>> x, ildj = bijector._inverse_and_log_det(y, tfr.Pass(training=True))
    >>> int(bijector.moving.num_updates)
    1

    Attributes:
      training: whether to normalize by batch statistics and update the moving statistics.
      condition: the condition. If declared, a checked tensor with the leading shape of the events.
      recompute: whether the backward pass recomputes the networks' activations.
      statistics: the events that batch statistics average over, and their weights.
      observer: called as `observer(bijector, value, log_det)` after each part, nested parts first.
      guidance: the scalar weight w of guidance, or `None`. Couplings combine the parameters a for
        the condition c and for the missing condition ∅: (1 + w) a(c) - w a(∅).
      no_condition: with `guidance`, the embedding of ∅, of the shape of `condition`.
      terms: a list that collects terms of the log density by position, [..., h, w]. In terms from
        squeezed images, each position covers a block of pixels.
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
        """Returns a copy with some fields replaced."""
        return dataclasses.replace(self, **fields)

    def record(self, elements: tf.Tensor) -> None:
        """Sums elements of the log density, [..., H, W, C], over channels, for `terms`."""
        if self.terms is not None:
            self.terms.append(tf.reduce_sum(elements, axis=-1))


_NOTHING = Pass()
_surrounding = contextvars.ContextVar[Pass]("surrounding_pass", default=_NOTHING)


def surrounding_pass() -> Pass:
    """Returns a pass with the fields that `surround_with` has set."""
    return _surrounding.get()


@contextlib.contextmanager
def surround_with(**fields: Any) -> Iterator[None]:
    """Sets fields of each `Pass` that bijectors make within the context."""
    token = _surrounding.set(surrounding_pass().but(**fields))
    try:
        yield
    finally:
        _surrounding.reset(token)

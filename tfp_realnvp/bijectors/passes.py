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

__all__ = ["Pass", "TermsByPosition", "surround_with", "surrounding_pass"]

tfb = tfp.bijectors


class TermsByPosition(list):
    """The terms of a log density, [..., h, w], before they are summed over an event.

    Where images are squeezed, a term has fewer positions than the image, each of which covers a
    block of it.
    """

    _is_missing = False

    def expect(self) -> None:
        """Begins the pass of a part, which has to record a term."""
        self._is_missing = True

    def record(self, elements: tf.Tensor) -> None:
        """Appends terms [..., H, W, C], summed over channels."""
        self.append(tf.reduce_sum(elements, axis=-1))
        self._is_missing = False

    def require(self, name: str) -> None:
        """Ends the pass of the part `name`; raises `ValueError` if it did not record a term."""
        if self._is_missing:
            raise ValueError(
                f"{name}: expected a bijector whose log det has positions in the image. Compose "
                "bijectors by `tfr.FlowChain` instead of `tfb.Chain`. A bijector of your own sums "
                "its log dets by the methods `_sum_over_event` and `_log_det_of_positions` of "
                "`FlowBijector`."
            )


@dataclasses.dataclass(frozen=True, eq=False)
class Pass:
    """What travels with a value through the parts of a flow, from the outermost to the networks.

    The outermost bijector makes it from the keyword arguments of its call. A part gets it as second
    argument, and hands it to its own parts: `part._inverse_and_log_det(y, p)`.

    #### Example

    >>> import tensorflow as tf, tfp_realnvp as tfr
    >>> y = tf.random.normal([64, 8, 8, 3])
    >>> bijector = tfr.BatchNormalization()
    >>> x, ildj = bijector._inverse_and_log_det(y, tfr.Pass(training=True))
    >>> int(bijector.moving.num_updates)
    1

    Attributes:
      training: whether to normalize by batch statistics, and to update the moving ones.
      condition: the condition of the events. If a network declares its shape, a tensor that was
        checked and has the leading shape of the events; otherwise as the caller gave it, or `None`.
      recompute: whether gradients compute the activations of the networks again.
      statistics: of which events batch statistics are, and with which weights.
      observer: called as `observer(bijector, value, log_det)` after each pass of a part, inner
        parts first.
      terms: gets the terms of log dets by position.
    """

    training: bool = False
    condition: Any = None
    recompute: bool = False
    statistics: Statistics = LOCAL_STATISTICS
    observer: Callable[[tfb.Bijector, tf.Tensor, tf.Tensor], None] | None = None
    terms: TermsByPosition | None = None

    def but(self, **fields: Any) -> Pass:
        """Returns a pass with other values of some fields."""
        return dataclasses.replace(self, **fields)

    def record(self, elements: tf.Tensor) -> None:
        """Hands the terms of a log density, [..., H, W, C], to whoever collects them."""
        if self.terms is not None:
            self.terms.record(elements)


_surrounding: contextvars.ContextVar[Pass | None]
_surrounding = contextvars.ContextVar("surrounding_pass", default=None)


def surrounding_pass() -> Pass:
    """Returns what the code around a call of an outermost bijector says about its pass."""
    return _surrounding.get() or Pass()


@contextlib.contextmanager
def surround_with(**fields: Any) -> Iterator[None]:
    """Sets fields of the `Pass` of each outermost bijector that is called within the context.

    It is for callers that TFP stands between: a distribution hands on no more than `training` and
    `conditional_input`.
    """
    token = _surrounding.set(surrounding_pass().but(**fields))
    try:
        yield
    finally:
        _surrounding.reset(token)

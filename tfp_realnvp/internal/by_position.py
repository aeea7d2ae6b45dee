"""Collects the terms of a log density by their position in the image, while they are computed."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

import tensorflow as tf

__all__ = [
    "collect",
    "discard",
    "is_collecting",
    "no_positions",
    "record",
    "required",
    "spread_evenly",
]

_terms: contextvars.ContextVar[list[tf.Tensor] | None]
_terms = contextvars.ContextVar("terms_by_position", default=None)


@contextlib.contextmanager
def collect() -> Iterator[list[tf.Tensor]]:
    """Gives a list, to which `record` appends within the context.

    Bijectors record their log dets before they sum them over an event. A term is [..., h, w]. Where
    images are squeezed, it has fewer positions than the image, each of which covers a block of it.

    #### Example

    >>> import tensorflow as tf, tfp_realnvp as tfr
    >>> from tfp_realnvp.internal import by_position
    >>> with by_position.collect() as terms:
    ...   _, ildj = tfr.PixelLogit().inverse_and_log_det(tf.fill([5, 4, 4, 3], 99.))
    >>> [term.shape for term in terms], bool(abs(tf.reduce_sum(terms[0][0]) - ildj[0]) < 1e-4)
    ([TensorShape([5, 4, 4])], True)
    """
    terms: list[tf.Tensor] = []
    token = _terms.set(terms)
    try:
        yield terms
    finally:
        _terms.reset(token)


def is_collecting() -> bool:
    """Returns whether the current code runs within `collect`."""
    return _terms.get() is not None


def record(elements: tf.Tensor) -> None:
    """Appends terms of the log density, [..., H, W, C], summed over channels."""
    terms = _terms.get()
    if terms is not None:
        terms.append(tf.reduce_sum(elements, axis=-1))


def discard() -> None:
    """Removes all terms that were recorded so far."""
    terms = _terms.get()
    if terms is not None:
        terms.clear()


@contextlib.contextmanager
def required(name: str) -> Iterator[None]:
    """Raises `ValueError` within `collect` unless a pass of the bijector `name` records a term."""
    terms = _terms.get()
    num_before = len(terms or ())
    yield
    if terms is not None and len(terms) == num_before:
        raise no_positions(name)


def no_positions(name: str) -> ValueError:
    """Returns the error of a bijector that does not record its log det."""
    return ValueError(
        f"{name}: expected a bijector whose log det has positions in the image. Compose bijectors "
        "by `tfr.FlowChain` instead of `tfb.Chain`. A bijector of your own sums its log dets by "
        "the methods `_sum_over_event` and `_log_det_of_positions` of `FlowBijector`."
    )


def spread_evenly(term: tf.Tensor, height: tf.Tensor, width: tf.Tensor) -> tf.Tensor:
    """Returns a term [..., h, w] as [..., height, width]: each value over its block of pixels.

    #### Example

    >>> import tensorflow as tf
    >>> from tfp_realnvp.internal.by_position import spread_evenly
    >>> spread_evenly(tf.constant([[8., 4.]]), 2, 4).numpy().tolist()
    [[2.0, 2.0, 1.0, 1.0], [2.0, 2.0, 1.0, 1.0]]
    """
    rows, columns = height // tf.shape(term)[-2], width // tf.shape(term)[-1]
    share = term / tf.cast(rows * columns, term.dtype)
    return tf.repeat(tf.repeat(share, rows, axis=-2), columns, axis=-1)

"""Eager passes that come again, which a graph computes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from tfp_realnvp.bijectors.passes import is_surrounded
from tfp_realnvp.internal import private_api
from tfp_realnvp.internal.kept import kept

__all__ = ["is_repeated"]

# To trace a graph takes as long as seven eager passes.
_NUM_EAGER_PASSES = 2


def is_repeated(bijector: Any, inverse: bool, shape: tf.TensorShape) -> bool:
    """Returns whether an inference pass of a bijector is eager, and comes at least a third time.

    Passes of one direction are equal if their events have the same shape. A thousand operations
    take a tenth of a second in eager mode, and some milliseconds as a graph.

    The answer is `False` where a graph could differ from the eager pass: with a function, a layer
    or a bijector of the user, which may have state in Python; with networks in bfloat16, whose
    operations oneDNN fuses; within `surround_with` or a `tf.distribute` strategy; and while a layer
    reads other variables than it had.
    """
    if not tf.executing_eagerly() or is_surrounded() or tf.distribute.has_strategy():
        return False
    if 0 in shape or not _is_same_in_graph(bijector):
        return False
    known = {id(variable) for variable in bijector.state_variables}
    for part in (bijector, *_parts(bijector)):
        if any(id(variable) not in known for variable in getattr(part, "_layer_variables", ())):
            return False
    calls = _calls(bijector, inverse, tuple(shape[-bijector.event_ndims :]))
    return next(calls) >= _NUM_EAGER_PASSES


@kept
def _calls(bijector: Any, inverse: bool, event_shape: tuple[int, ...]) -> Iterator[int]:
    return itertools.count()


@kept
def _parts(bijector: Any) -> tuple[tf.Module, ...]:
    return tuple(bijector.submodules)


@kept
def _is_same_in_graph(bijector: Any) -> bool:
    """Returns whether all code of a pass is of this package, and computes in float32 or float64."""
    parts = (bijector, *bijector.submodules)
    arguments = [v for b in parts for v in getattr(b, "parameters", {}).values() if callable(v)]
    return all(
        isinstance(piece, private_api.Invert)
        or (
            type(piece).__module__.startswith("tfp_realnvp.")
            and getattr(piece, "compute_dtype", "float32") in ("float32", "float64")
        )
        for piece in (*parts, *arguments)
    )

"""Finds the parts of distributions and bijectors."""

from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf


def outermost_parts(module: Any, is_wanted: Callable[[Any], bool]) -> Iterator[Any]:
    """Yields each wanted part of a distribution or bijector, but no parts within a wanted part.

    Parts are the constructor arguments and attributes, also within lists and dictionaries. The
    module itself counts as a part.
    """
    # Keys are `id`s, which are unique because the values keep the objects alive.
    seen: dict[int, Any] = {}
    pending = [module]
    while pending:
        part = pending.pop()
        if id(part) in seen:
            continue
        seen[id(part)] = part
        if is_wanted(part):
            yield part
        elif isinstance(part, (list, tuple)):
            pending += reversed(part)
        elif isinstance(part, dict):
            pending += reversed(part.values())
        elif isinstance(part, tf.Module):
            attributes = [v for v in vars(part).values() if isinstance(v, tf.Module)]
            pending += [*attributes, *reversed(getattr(part, "parameters", vars(part)).values())]

"""The seeds of initial weights."""

from __future__ import annotations

import contextlib
import contextvars
import random
from collections.abc import Iterator

__all__ = ["initial_seed", "initial_seeds_from"]

_generator = contextvars.ContextVar[random.Random | None]("initial_seeds", default=None)


def initial_seed() -> int | None:
    """Returns a seed for an initializer; `None` lets Keras draw one from its global generator."""
    generator = _generator.get()
    return None if generator is None else generator.randint(1, 1_000_000_000)


@contextlib.contextmanager
def initial_seeds_from(generator: random.Random) -> Iterator[None]:
    """Within the context, networks draw the seeds of their initial weights from `generator`."""
    token = _generator.set(generator)
    try:
        yield
    finally:
        _generator.reset(token)

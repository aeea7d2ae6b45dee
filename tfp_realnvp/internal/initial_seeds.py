"""The seeds of initial weights."""

import contextlib
import contextvars
import random
from collections.abc import Iterator

_generator = contextvars.ContextVar[random.Random | None]("initial_seeds", default=None)


def initial_seed() -> int | None:
    """Returns a seed for an initializer; if `None`, Keras' global generator draws the seed."""
    generator = _generator.get()
    return None if generator is None else generator.randint(1, 1_000_000_000)


@contextlib.contextmanager
def initial_seeds_from(seed: int | None) -> Iterator[None]:
    """Makes a generator with this seed draw the seeds of initial weights within the context."""
    token = _generator.set(None if seed is None else random.Random(seed))
    try:
        yield
    finally:
        _generator.reset(token)

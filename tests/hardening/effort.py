"""A quick share of each test in the suite, all of it with `HARDENING=full`.

HARDENING=full python -m pytest tests/hardening --durations=0
"""

import os

import hypothesis

_IS_FULL = os.environ.get("HARDENING") == "full"


def share(quick, full):
    """Returns the number of repetitions."""
    return full if _IS_FULL else quick


def cases(quick, full):
    """Returns the settings of a fuzz test: the same cases each time, or many new ones."""
    return hypothesis.settings(
        max_examples=share(quick, full),
        derandomize=not _IS_FULL,
        database=None,
        deadline=None,
        print_blob=True,
        suppress_health_check=[hypothesis.HealthCheck.too_slow],
    )

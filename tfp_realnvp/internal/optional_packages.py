"""The error for an optional package that is not installed."""

from __future__ import annotations

import shlex

__all__ = ["missing_package"]


def missing_package(needed_by: str, *requirements: str) -> ImportError:
    """Returns an error with the command that installs the missing package.

    Args:
      needed_by: the first words of the sentence: what needs the package.
      *requirements: the package, and packages that it needs and does not declare, as for pip.
    """
    command = shlex.join(["pip", "install", *requirements])
    return ImportError(f"{needed_by} needs {requirements[0]}, which is not installed: `{command}`.")

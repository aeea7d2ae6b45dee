"""The error for a package that is needed and not installed."""

from __future__ import annotations

import shlex

__all__ = ["missing_package"]


def missing_package(needed_by: str, *requirements: str) -> ImportError:
    """Returns an error with the command that installs what is missing.

    Args:
      needed_by: what needs the package, the beginning of a sentence.
      *requirements: the package, and others that it needs without declaring them, as for pip.
    """
    command = shlex.join(["pip", "install", *requirements])
    return ImportError(f"{needed_by} needs {requirements[0]}, which is not installed: `{command}`.")

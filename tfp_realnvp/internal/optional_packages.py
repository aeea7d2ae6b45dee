"""The error for an optional package that is not installed."""

from __future__ import annotations

import shlex

__all__ = ["missing_package"]


def missing_package(needed_by: str, *requirements: str) -> ImportError:
    """Returns an error "`needed_by` needs …" with the command that installs the missing package.

    After the package, `requirements` may list undeclared requirements of the package, as for pip.
    """
    command = shlex.join(["pip", "install", *requirements])
    return ImportError(f"{needed_by} needs {requirements[0]}, which is not installed: `{command}`.")

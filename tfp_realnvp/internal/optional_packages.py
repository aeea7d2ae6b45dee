"""Optional packages, and the error for one that is not installed."""

from __future__ import annotations

import importlib
import shlex
from typing import Any

__all__ = ["missing_package", "optional_module"]


def optional_module(name: str, needed_by: str, *requirements: str) -> Any:
    """Returns a module of an optional package, or raises the error of `missing_package`."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise missing_package(needed_by, *requirements) from error


def missing_package(needed_by: str, *requirements: str) -> ImportError:
    """Returns an error "`needed_by` needs …" with the command that installs the missing package.

    `requirements` are those of pip, the missing package first.
    """
    command = shlex.join(["pip", "install", *requirements])
    return ImportError(f"{needed_by} needs {requirements[0]}, which is not installed: `{command}`.")

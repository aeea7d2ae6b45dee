"""Imports optional packages, and says how to install missing ones."""

from __future__ import annotations

import importlib
import shlex
from typing import Any

__all__ = ["missing_package", "optional_module"]


def optional_module(name: str, needed_by: str, *requirements: str) -> Any:
    """Imports a module, or raises the error of `missing_package`."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise missing_package(needed_by, *requirements) from error


def missing_package(needed_by: str, *requirements: str) -> ImportError:
    """Returns an error that names the missing package, the first of pip's `requirements`."""
    command = shlex.join(["pip", "install", *requirements])
    return ImportError(f"{needed_by} needs {requirements[0]}, which is not installed: `{command}`.")

"""Imports optional packages, and says how to install missing ones."""

import importlib
import shlex
from typing import Any


def load(name: str, needed_by: str, *requirements: str) -> Any:
    """Imports a module; if it is missing, the `ImportError` says how to install `requirements`."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package, command = requirements[0], shlex.join(["pip", "install", *requirements])
        message = f"{needed_by} needs {package}, which is not installed: `{command}`."
        raise ImportError(message) from error

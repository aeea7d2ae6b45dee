"""The versions that saved files carry, and that errors of loading them name."""

import contextlib
import functools
import importlib.metadata
from collections.abc import Iterator, Mapping
from typing import Any

from tfp_realnvp.internal import validation

# Increment it if files of the format before no longer load; tests load the bundled presets.
_FORMAT = 2


@functools.cache  # The installed version does not change.
def current() -> Mapping[str, Any]:
    """Returns what a configuration and a weights file say about the version that writes them."""
    packages = importlib.metadata.distributions(name="tfp_realnvp")
    version = next((package.version for package in packages), "unknown")
    return {"tfp_realnvp_version": version, "format_version": _FORMAT}


@contextlib.contextmanager
def named_in_errors(found: Mapping[str, Any]) -> Iterator[None]:
    """Names both versions in an error of loading a file that another version wrote.

    Raises `ValueError` if the file has a later format.

    Args:
      found: what the file has of `current()`.
    """
    writer = {key: found.get(key) for key in current()}
    try:
        expected = f"expected a format_version of at most {_FORMAT}"
        validation.integer(found.get("format_version", 1), 1, expected, below=_FORMAT + 1)
        yield
    except Exception as error:
        if writer == current():
            raise
        message = str(error).rstrip(".")
        raise ValueError(
            f"{message}. The file was written by {_described(writer)}, and this is "
            f"{_described(current())}: load the file with the version that wrote it, or train the "
            "model again with this version."
        ) from error


def _described(versions: Mapping[str, Any]) -> str:
    version = versions["tfp_realnvp_version"]
    name = f"tfp_realnvp {version}" if version else "an earlier version of tfp_realnvp"
    return f"{name} (file format {versions['format_version'] or 1})"

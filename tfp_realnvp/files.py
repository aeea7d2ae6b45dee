"""Files that appear whole or not at all."""

import contextlib
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any, BinaryIO

__all__ = ["write_json", "write_text", "written_whole"]


@contextlib.contextmanager
def written_whole(path: str | os.PathLike[str]) -> Iterator[tuple[BinaryIO, pathlib.Path]]:
    """Opens a temporary file that takes the place of `path` once the block has succeeded.

    #### Example

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with written_whole(f"{folder}/new/greeting.txt") as (file, path):
    ...         count, exists = file.write(b"hello"), path.exists()
    ...     exists, path.read_bytes()
    (False, b'hello')

    Args:
      path: the file; its folder is made if it is missing.

    Yields:
      The temporary file, open for writing bytes, and the path of the file that it will be.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, since only a rename within one file system is atomic.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file, path
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> pathlib.Path:
    """Writes text as UTF-8, whole or not at all; returns the path."""
    with written_whole(path) as (file, path):
        file.write(text.encode())
    return path


def write_json(path: str | os.PathLike[str], value: Any) -> pathlib.Path:
    """Writes a value as indented JSON, whole or not at all; returns the path.

    Raises:
      TypeError: if JSON has no form for the value.
      ValueError: if a number in it is not finite.
    """
    return write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")

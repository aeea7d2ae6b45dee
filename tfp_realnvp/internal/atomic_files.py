"""Atomic writes of files and folders."""

import contextlib
import ctypes
import json
import os
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any, BinaryIO

__all__ = ["atomic_replace", "atomic_write", "write_json", "write_text"]


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[tuple[BinaryIO, pathlib.Path]]:
    """Opens a temporary file that replaces `path` when the block succeeds.

    #### Example

    >>> import tempfile
    >>> from tfp_realnvp.internal.atomic_files import atomic_write
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with atomic_write(f"{folder}/new/greeting.txt") as (file, path):
    ...         count, exists = file.write(b"hello"), path.exists()
    ...     exists, path.read_bytes()
    (False, b'hello')

    Args:
      path: the file; its folder is created if it is missing.

    Yields:
      The temporary file, open for writing bytes, and the final path.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The file is in the same folder, since a rename is atomic only within one file system.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file, path
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_replace(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """Yields a temporary path whose file or folder replaces `path` when the block succeeds.

    This is for writers that take a path, not an open file. The yielded path has the same last
    component, and so the same suffix. A process that is killed in the block leaves `path` as it
    was.

    #### Example

    >>> import pathlib, tempfile
    >>> from tfp_realnvp.internal.atomic_files import atomic_replace
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder) / "model"
    ...     for text in ("old", "new"):
    ...         with atomic_replace(path) as temporary:
    ...             temporary.mkdir()
    ...             count = (temporary / "text").write_text(text)
    ...     (path / "text").read_text(), len(list(path.parent.iterdir()))
    ('new', 1)

    Args:
      path: the file or folder; its parent is created if it is missing.

    Yields:
      The path to write to, in a temporary folder beside `path`.
    """
    path = pathlib.Path(os.path.abspath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        temporary = pathlib.Path(folder) / path.name
        yield temporary
        if not path.is_dir():
            os.replace(temporary, path)
        elif not _exchange(temporary, path):
            os.replace(path, pathlib.Path(folder) / "old")
            os.replace(temporary, path)


def _exchange(first: pathlib.Path, second: pathlib.Path) -> bool:
    """Exchanges two paths atomically if the system supports it; returns whether it did."""
    # A rename does not replace a folder that is not empty. Linux can exchange the two, so that
    # there is always a folder at the path.
    at_working_directory, exchange = -100, 2
    try:
        rename = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    names = os.fsencode(first), os.fsencode(second)
    return rename(at_working_directory, names[0], at_working_directory, names[1], exchange) == 0


def write_text(path: str | os.PathLike[str], text: str) -> pathlib.Path:
    """Writes text as UTF-8, atomically; returns the path."""
    with atomic_write(path) as (file, path):
        file.write(text.encode())
    return path


def write_json(path: str | os.PathLike[str], value: Any) -> pathlib.Path:
    """Writes a value as indented JSON, atomically; returns the path.

    Raises:
      TypeError: if the value has no JSON representation.
      ValueError: if a number in it is not finite.
    """
    return write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")

"""Files that appear whole or not at all."""

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
    """Opens a temporary file that takes the place of `path` once the block has succeeded.

    #### Example

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with atomic_write(f"{folder}/new/greeting.txt") as (file, path):
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


@contextlib.contextmanager
def atomic_replace(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """Yields a path whose file or folder takes the place of `path` once the block has succeeded.

    For writers that want a name and not an open file. The yielded path has the same last part, so
    that a suffix keeps its meaning. Whoever is killed in the block leaves what was at `path`.

    #### Example

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder) / "model"
    ...     for text in ("old", "new"):
    ...         with atomic_replace(path) as whole:
    ...             whole.mkdir()
    ...             count = (whole / "text").write_text(text)
    ...     (path / "text").read_text(), len(list(path.parent.iterdir()))
    ('new', 1)

    Args:
      path: the file or folder; its parent is made if it is missing.

    Yields:
      The path to write to, in a temporary folder beside `path`.
    """
    path = pathlib.Path(os.path.abspath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        whole = pathlib.Path(folder) / path.name
        yield whole
        if not path.is_dir():
            os.replace(whole, path)
        elif not _exchange(whole, path):
            os.replace(path, pathlib.Path(folder) / "old")
            os.replace(whole, path)


def _exchange(first: pathlib.Path, second: pathlib.Path) -> bool:
    """Lets two paths change places, atomically, if the system can; returns whether it did."""
    # A rename does not replace a folder that holds something; Linux can swap the two, which leaves
    # no moment without either.
    at_working_directory, exchange = -100, 2
    try:
        rename = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    names = os.fsencode(first), os.fsencode(second)
    return rename(at_working_directory, names[0], at_working_directory, names[1], exchange) == 0


def write_text(path: str | os.PathLike[str], text: str) -> pathlib.Path:
    """Writes text as UTF-8, whole or not at all; returns the path."""
    with atomic_write(path) as (file, path):
        file.write(text.encode())
    return path


def write_json(path: str | os.PathLike[str], value: Any) -> pathlib.Path:
    """Writes a value as indented JSON, whole or not at all; returns the path.

    Raises:
      TypeError: if JSON has no form for the value.
      ValueError: if a number in it is not finite.
    """
    return write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")

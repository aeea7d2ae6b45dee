"""Atomic writes of files, folders, and several files of a folder."""

import contextlib
import ctypes
import json
import os
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

__all__ = ["atomic_replace", "current_path", "replace_together", "write_json", "write_text"]

# The folder of new files that are about to be moved to their places.
_PENDING = ".tfp_realnvp.pending"


@contextlib.contextmanager
def atomic_replace(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """Yields a temporary path, whose file or folder replaces `path` when the block succeeds.

    The yielded path, in a temporary folder beside `path`, has the same last component and suffix. A
    process that is killed in the block leaves `path` as it was. Missing parent folders are created.
    """
    path = pathlib.Path(os.path.abspath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    # The files of an interrupted `replace_together` are older than the new file.
    _move_pending(path.parent)
    # A rename is atomic only within one file system.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        temporary = pathlib.Path(folder) / path.name
        yield temporary
        _sync(temporary)
        if not (os.path.lexists(path) and (path.is_dir() or temporary.is_dir())):
            os.replace(temporary, path)
        elif not _exchange(temporary, path):
            # Between the two moves nothing is at the path.
            old = pathlib.Path(folder) / "old"
            os.replace(path, old)
            try:
                os.replace(temporary, path)
            except BaseException:
                os.replace(old, path)
                raise


@contextlib.contextmanager
def replace_together(folder: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """Yields a temporary folder, whose files replace files of `folder`: all of them or none.

    Other files of the folder stay. When the block succeeds, the temporary folder becomes the folder
    `.tfp_realnvp.pending`, from which `current_path` returns the new files, until all are moved to
    their places. If the process is killed before, the next writer moves the rest.
    """
    folder = pathlib.Path(os.path.abspath(folder))
    with atomic_replace(folder / _PENDING) as new:
        new.mkdir()
        yield new
    _move_pending(folder)


def current_path(folder: str | os.PathLike[str], name: str) -> pathlib.Path:
    """Returns the current path of a file that `replace_together` writes."""
    pending = pathlib.Path(folder) / _PENDING / name
    return pending if os.path.lexists(pending) else pathlib.Path(folder) / name


def _move_pending(folder: pathlib.Path) -> None:
    pending = folder / _PENDING
    # Another process may move the files at the same time.
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(pending):
            with contextlib.suppress(FileNotFoundError):
                os.replace(pending / name, folder / name)
        os.rmdir(pending)


def _sync(path: pathlib.Path) -> None:
    """Waits until a file, or all files of a folder, are on the disk, or raises `OSError`."""
    for file in [path] if path.is_file() else path.rglob("*"):
        if file.is_file():
            with open(file, "rb+") as opened:
                os.fsync(opened.fileno())


def _exchange(first: pathlib.Path, second: pathlib.Path) -> bool:
    """Exchanges two paths atomically if the system can; returns whether it did."""
    # A rename cannot replace a folder that is not empty. Linux can exchange two folders, so that
    # the path always exists.
    at_working_directory, exchange = -100, 2
    try:
        rename = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    names = os.fsencode(first), os.fsencode(second)
    return rename(at_working_directory, names[0], at_working_directory, names[1], exchange) == 0


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes text as UTF-8, atomically."""
    with atomic_replace(path) as new:
        new.write_bytes(text.encode())


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes a value as indented JSON, atomically.

    Raises:
      TypeError: if the value has no JSON representation.
      ValueError: if a number is not finite.
    """
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")

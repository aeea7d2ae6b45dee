"""Writes files and folders atomically: completely or not at all; locks folders."""

import contextlib
import json
import os
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

import filelock

# The folder of new files that are complete, but have not yet replaced the old files.
_PENDING = ".tfp_realnvp.pending"


@contextlib.contextmanager
def atomic_replace(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """Yields a temporary path, whose file or folder replaces `path` if the block succeeds.

    The temporary path has the same file name, and is in a temporary folder next to `path`. If the
    process is killed within the block, `path` is unchanged. Creates missing parent folders.

    Replacing a folder takes two renames. If the process is killed between the two, the old and the
    new folder are in the temporary folder.
    """
    path = pathlib.Path(os.path.abspath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    # Finish an interrupted `replace_together` first: its files would later replace the new file.
    _move_pending(path.parent)
    # A rename is atomic only within one file system.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        temporary = pathlib.Path(folder) / path.name
        yield temporary
        _sync(temporary)
        with contextlib.ExitStack() as undo:
            if os.path.lexists(path) and (path.is_dir() or temporary.is_dir()):
                # A rename cannot replace a folder that is not empty.
                old = pathlib.Path(folder) / "old"
                os.replace(path, old)
                undo.callback(os.replace, old, path)
            os.replace(temporary, path)
            undo.pop_all()


@contextlib.contextmanager
def replace_together(folder: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """Yields a temporary folder, whose files then replace files of `folder`: all or none.

    Keeps other files of `folder`. If the block succeeds, renames the temporary folder to
    `.tfp_realnvp.pending`, and then moves each file. `current_path` finds files that are not yet
    moved. If the process is killed before all files are moved, the next writer moves the rest.
    """
    folder = pathlib.Path(os.path.abspath(folder))
    with atomic_replace(folder / _PENDING) as new:
        new.mkdir()
        yield new
    _move_pending(folder)


def current_path(folder: str | os.PathLike[str], name: str) -> pathlib.Path:
    """Returns the path of the current version of a file that `replace_together` writes."""
    pending = pathlib.Path(folder) / _PENDING / name
    return pending if os.path.lexists(pending) else pathlib.Path(folder) / name


def _move_pending(folder: pathlib.Path) -> None:
    pending = folder / _PENDING
    # A file is missing if another process has just moved it.
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(pending):
            with contextlib.suppress(FileNotFoundError):
                os.replace(pending / name, folder / name)
        os.rmdir(pending)


def _sync(path: pathlib.Path) -> None:
    for file in [path] if path.is_file() else path.rglob("*"):
        if file.is_file():
            with open(file, "rb+") as opened:
                os.fsync(opened.fileno())


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes text as UTF-8, atomically."""
    with atomic_replace(path) as new:
        new.write_bytes(text.encode())


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes a value as indented JSON, atomically. Raises `ValueError` for NaN."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


@contextlib.contextmanager
def folder_lock(folder: str | os.PathLike[str], caller: str) -> Iterator[None]:
    """Locks a folder against other processes within the context; creates a missing folder.

    Uses an OS file lock on `.tfp_realnvp.lock`, which the system releases when the process ends;
    the file may remain. A process can take the lock repeatedly. Does nothing for a read-only
    folder, or if the OS has no locks. Raises `BlockingIOError` if another process holds the lock.
    """
    path = pathlib.Path(os.path.realpath(folder))
    file = path / ".tfp_realnvp.lock"
    lock = filelock.FileLock(file, timeout=0, thread_local=False, is_singleton=True)
    with contextlib.ExitStack() as stack:
        try:
            path.mkdir(parents=True, exist_ok=True)
            stack.enter_context(lock)
        except filelock.Timeout:
            raise BlockingIOError(
                f"{caller}: expected a folder in which no other process is training, got "
                f"{str(path)!r}."
            ) from None
        except (OSError, NotImplementedError):
            pass
        yield

"""A lock by which one process at a time works in a folder."""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Iterator

import filelock

__all__ = ["folder_lock"]


@contextlib.contextmanager
def folder_lock(folder: str | os.PathLike[str], caller: str) -> Iterator[None]:
    """Locks a folder for this process in the context, or until the process ends, however it does.

    The lock is one of the operating system, on a file `.tfp_realnvp.lock`, which may stay. The
    locks of a process do not exclude each other. Where the system has no locks, or the folder
    cannot be written to, nothing is locked.

    Args:
      folder: the folder, which is created if it is missing.
      caller: name that begins the error message.

    Raises:
      BlockingIOError: if another process has locked it.
    """
    path = pathlib.Path(os.path.realpath(folder))
    lock = filelock.FileLock(
        path / ".tfp_realnvp.lock", timeout=0, thread_local=False, is_singleton=True
    )
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

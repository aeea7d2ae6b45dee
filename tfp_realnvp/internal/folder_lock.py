"""Lets only one process at a time work in a folder."""

import contextlib
import os
import pathlib
from collections.abc import Iterator

import filelock


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

"""A lock by which one process at a time works in a folder."""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import socket
from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["FolderLock"]

# The lock file of each folder that this process has locked, and how many locks it has.
_held: dict[pathlib.Path, tuple[IO[str] | None, int]] = {}


class FolderLock:
    """Locks a folder for this process until `release`, or until the process ends, however it does.

    The lock is one of the operating system, on a file `.tfp_realnvp.lock`, which stays. The locks
    of a process do not exclude each other. Where the system has no locks, or the folder cannot be
    written to, nothing is locked.
    """

    def __init__(self, folder: str | os.PathLike[str], caller: str) -> None:
        """Constructs the lock, without locking.

        Args:
          folder: the folder; `acquire` creates it if it is missing.
          caller: name that begins the error message.
        """
        self._folder = pathlib.Path(os.path.realpath(folder))
        self._caller = caller
        self._is_held = False

    def acquire(self) -> None:
        """Locks the folder.

        Raises:
          BlockingIOError: if another process has locked it.
        """
        if self._is_held:
            return
        file, number = _held.get(self._folder, (None, 0))
        if not number:
            file = self._lock_file()
        _held[self._folder] = file, number + 1
        self._is_held = True

    def release(self) -> None:
        """Unlocks the folder, unless this process has other locks of it."""
        if not self._is_held:
            return
        self._is_held = False
        file, number = _held.pop(self._folder)
        if number > 1:
            _held[self._folder] = file, number - 1
        elif file is not None:
            file.close()

    def __enter__(self) -> FolderLock:
        self.acquire()
        return self

    def __exit__(self, *error: Any) -> None:
        self.release()

    def _lock_file(self) -> IO[str] | None:
        """Returns the locked file; the lock ends when it is closed."""
        if fcntl is None:
            return None
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            file = open(self._folder / ".tfp_realnvp.lock", "a+")
        except OSError:
            return None
        try:
            # Not `flock`: child processes would have that lock as well, and could outlive this one.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            with contextlib.closing(file):
                if error.errno not in (errno.EACCES, errno.EAGAIN):
                    return None
                file.seek(0)
                holder = file.read(1_000).strip() or "one"
            raise BlockingIOError(
                f"{self._caller}: expected a folder in which no other process is training, got "
                f"{str(self._folder)!r}, in which {holder} is."
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        return file

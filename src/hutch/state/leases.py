"""Which engine processes live: each holds a lock on a file of its own while it does.

The kernel drops a flock(2) when its process ends, however it ends, so a lease needs no renewal,
no clock and no process id, and holds across pid namespaces and reboots.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Lease:
    """This process's lease; held from construction to `close`."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(mode=0o700, exist_ok=True)
        self.name = secrets.token_hex(8)
        self._path = directory / self.name
        self._fd = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def close(self) -> None:
        """Give it up. Idempotent."""
        if self._fd >= 0:
            self._path.unlink(missing_ok=True)
            os.close(self._fd)
            self._fd = -1


def lease_held(directory: Path, name: str) -> bool:
    """Whether the process that took the lease `name` lives; a dead one's file is removed."""
    path = directory / name
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        path.unlink(missing_ok=True)
        return False
    finally:
        os.close(fd)


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold a lock on the file at `path`, made if need be; blocks while another process has it."""
    fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


class ExclusiveLock:
    """A lock that at most one process on the host has; given up by `close` or by its end."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        self._held = False

    def try_acquire(self) -> bool:
        """Take it if it is free; True while it is held by this object."""
        if not self._held:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            self._held = True
        return True

    def close(self) -> None:
        """Give it up. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd, self._held = -1, False

"""Locks between processes on files: flock(2), waited for without holding up the event loop."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

_LOOK_AGAIN_S = 0.05
"""flock(2) cannot be waited for together with anything else, so a wait is a series of tries."""


@asynccontextmanager
async def locked(path: Path, *, shared: bool = False) -> AsyncIterator[None]:
    """Hold the lock on a file, made if need be, once no other holder excludes it."""
    fd = _open(path)
    try:
        while not _try(fd, shared=shared):
            await asyncio.sleep(_LOOK_AGAIN_S)
        yield
    finally:
        os.close(fd)


@asynccontextmanager
async def locked_if_free(path: Path) -> AsyncIterator[bool]:
    """Hold the lock on a file alone, if that needs no waiting; yields whether it is held."""
    fd = _open(path)
    try:
        yield _try(fd, shared=False)
    finally:
        os.close(fd)


def _open(path: Path) -> int:
    return os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)


def _try(fd: int, *, shared: bool) -> bool:
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True

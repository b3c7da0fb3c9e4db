"""Waiting for files to change: inotify(7) on the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
from pathlib import Path
from types import TracebackType
from typing import Self

_IN_MODIFY = 0x2
_EVENTS_BYTES = 4096

_libc = ctypes.CDLL(None, use_errno=True)


class Watch:
    """Wakes a waiter when one of some files is written to.

    Raises:
        OSError: a file is missing, or the user's inotify limits are reached.
    """

    def __init__(self, *paths: Path) -> None:
        self._paths = paths
        self._fd = -1

    def __enter__(self) -> Self:
        self._fd = _checked(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC), None)
        try:
            for path in self._paths:
                added = _libc.inotify_add_watch(self._fd, os.fsencode(path), _IN_MODIFY)
                _checked(added, path)
        except BaseException:
            os.close(self._fd)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.close(self._fd)

    async def wait(self, seconds: float) -> None:
        """Return at the next change since the last return, or after `seconds`."""
        loop = asyncio.get_running_loop()
        changed = asyncio.Event()
        loop.add_reader(self._fd, changed.set)
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await changed.wait()
        finally:
            loop.remove_reader(self._fd)
        with contextlib.suppress(BlockingIOError):
            while os.read(self._fd, _EVENTS_BYTES):
                pass


def _checked(result: int, path: Path | None) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), None if path is None else str(path))
    return result

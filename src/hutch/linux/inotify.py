"""Waiting for files to change: inotify(7) on the event loop.

A user has few inotify instances (128 by default) and many watches, so whoever waits in one event
loop shares one instance.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import struct
from collections.abc import Iterator
from pathlib import Path

_IN_MODIFY = 0x2
_IN_CLOSE_WRITE = 0x8
_IN_DELETE_SELF = 0x400
_CHANGES = _IN_MODIFY | _IN_CLOSE_WRITE | _IN_DELETE_SELF
_OVERFLOW = -1
"""The watch of an event that says that others were lost."""
_EVENT = struct.Struct("iIII")
_EVENTS_BYTES = 65536

_libc = ctypes.CDLL(None, use_errno=True)


class Change:
    """Something that may happen to the files that one caller watches."""

    def __init__(self) -> None:
        self._happened = asyncio.Event()

    def notify(self) -> None:
        """Wake who waits, or will."""
        self._happened.set()

    async def wait(self, seconds: float) -> None:
        """Return at the next change since the last return, or after `seconds`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._happened.wait()
        self._happened.clear()


class Watcher:
    """An inotify instance, made when the first file is watched and kept until `close`."""

    def __init__(self) -> None:
        self._fd = -1
        self._waiting: dict[int, set[Change]] = {}
        """By watch; the kernel has one watch for each file."""

    @contextlib.contextmanager
    def watching(self, *paths: Path) -> Iterator[Change]:
        """Tell of changes of files: written to, let go by a writer, removed.

        Where the user's watches are used up, nothing is told: callers look again from time to
        time in any case.

        Raises:
            FileNotFoundError: a file is missing.
        """
        change = Change()
        watches: list[int] = []
        try:
            for path in paths:
                with contextlib.suppress(_Exhausted):
                    watches.append(self._add(path, change))
            yield change
        finally:
            for watch in watches:
                self._drop(watch, change)

    def _add(self, path: Path, change: Change) -> int:
        if self._fd < 0:
            self._fd = _checked(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC), None)
            asyncio.get_running_loop().add_reader(self._fd, self._read)
        added = _libc.inotify_add_watch(self._fd, os.fsencode(path), _CHANGES)
        watch = _checked(added, path)
        self._waiting.setdefault(watch, set()).add(change)
        return watch

    def _drop(self, watch: int, change: Change) -> None:
        waiting = self._waiting.get(watch, set())
        waiting.discard(change)
        if not waiting and self._waiting.pop(watch, None) is not None and self._fd >= 0:
            _libc.inotify_rm_watch(self._fd, watch)  # EINVAL: its file is gone, and it with it

    def _read(self) -> None:
        try:
            data = os.read(self._fd, _EVENTS_BYTES)
        except BlockingIOError:
            return
        offset = 0
        while offset < len(data):
            watch, _mask, _cookie, length = _EVENT.unpack_from(data, offset)
            offset += _EVENT.size + length
            everybody = [*self._waiting] if watch == _OVERFLOW else [watch]
            for number in everybody:
                for change in self._waiting.get(number, ()):
                    change.notify()

    def close(self) -> None:
        """Stop telling. Idempotent."""
        if self._fd >= 0:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
        self._waiting.clear()


class _Exhausted(OSError):
    """The user has no further instance or watch."""


def _checked(result: int, path: Path | None) -> int:
    if result >= 0:
        return result
    number = ctypes.get_errno()
    # OSError makes of some numbers a class of their own, such as FileNotFoundError.
    error = OSError(number, os.strerror(number), None if path is None else str(path))
    if isinstance(error, FileNotFoundError):
        raise error
    raise _Exhausted(*error.args)

"""Directory trees that hostile code has made or still works on: removal above all.

Every step is relative to a descriptor and follows no symlink. Depth costs neither stack nor
descriptors: the walk holds one directory open and climbs by `..`, checking that it arrives where
it came from, so that a directory moved elsewhere during the walk ends it instead of leading it
out of the tree.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(slots=True)
class _Level:
    """A directory the walk is inside of, below the top."""

    name: str
    identity: tuple[int, int]
    """Device and inode of the directory that holds it."""


def _nothing() -> None:
    pass


def remove_tree(parent_fd: int, name: str, *, check: Callable[[], None] = _nothing) -> None:
    """Remove `name` in the directory `parent_fd`, and all below it. Missing is fine.

    `check` is called before each entry below; what it raises ends the removal.

    Raises:
        OSError: something could not be removed, or the tree was moved during the walk.
    """
    try:
        mode = os.stat(name, dir_fd=parent_fd, follow_symlinks=False).st_mode
        if not stat.S_ISDIR(mode):
            os.unlink(name, dir_fd=parent_fd)
            return
        fd = os.open(name, _OPEN_DIRECTORY, dir_fd=parent_fd)
    except FileNotFoundError:
        return
    _empty(fd, check)
    _remove_directory(parent_fd, name)


def _identity(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def _empty(fd: int, check: Callable[[], None]) -> None:
    """Remove all in the directory `fd`, and close it."""
    path: list[_Level] = []
    try:
        while True:
            below = _remove_files(fd, check)
            if below is not None:
                path.append(_Level(below, _identity(fd)))
                fd = _step(fd, below)
            elif path:
                level = path.pop()
                fd = _step(fd, "..")
                if _identity(fd) != level.identity:
                    raise OSError(f"{level.name!r} was moved while its tree was being removed")
                _remove_directory(fd, level.name)
            else:
                return
    finally:
        os.close(fd)


def _step(fd: int, name: str) -> int:
    """Open the directory `name` in the directory `fd`, instead of it."""
    below = os.open(name, _OPEN_DIRECTORY, dir_fd=fd)
    os.close(fd)
    return below


def _remove_files(fd: int, check: Callable[[], None]) -> str | None:
    """Remove all that is no directory, and directories that are empty; name one that is not."""
    with os.scandir(fd) as entries:
        for entry in entries:
            check()
            if not entry.is_dir(follow_symlinks=False):
                _unlink(fd, entry.name)
                continue
            try:
                os.rmdir(entry.name, dir_fd=fd)
            except FileNotFoundError:
                continue
            except OSError:
                return entry.name
    return None


def _unlink(fd: int, name: str) -> None:
    try:
        os.unlink(name, dir_fd=fd)
    except FileNotFoundError:
        return


def _remove_directory(fd: int, name: str) -> None:
    try:
        os.rmdir(name, dir_fd=fd)
    except FileNotFoundError:
        return


def make_directories(path: str) -> None:
    """Make a directory and those above it, as far as they are missing, however many they are."""
    missing = []
    while path and not os.path.isdir(path):
        missing.append(path)
        path = path.rpartition("/")[0]
    for directory in reversed(missing):
        os.mkdir(directory)


def disk_usage(top: Path) -> int:
    """Return the bytes allocated on disk by a tree that may change meanwhile.

    Hard links count once per name. What vanishes or moves away during the walk is left out.
    """
    fd = os.open(top, _OPEN_DIRECTORY)
    total = 0
    path: list[tuple[tuple[int, int], list[str]]] = []
    try:
        used, below = _measure(fd)
        total += used
        while True:
            if below:
                name = below.pop()
                identity = _identity(fd)
                try:
                    fd = _step(fd, name)
                except OSError:  # gone, or no directory any more
                    continue
                path.append((identity, below))
                used, below = _measure(fd)
                total += used
            elif path:
                identity, below = path.pop()
                fd = _step(fd, "..")
                if _identity(fd) != identity:
                    return total
            else:
                return total
    finally:
        os.close(fd)


def _measure(fd: int) -> tuple[int, list[str]]:
    """Return the bytes that a directory's entries take, and which of them are directories."""
    total = 0
    below = []
    with os.scandir(fd) as entries:
        for entry in entries:
            try:
                total += entry.stat(follow_symlinks=False).st_blocks * 512
            except FileNotFoundError:
                continue
            if entry.is_dir(follow_symlinks=False):
                below.append(entry.name)
    return total, below

"""A faithful copy of a file, symlink, FIFO or directory with all below it.

Kept are owner, group, mode, times, holes and the attributes `user.*`; hard links become files of
their own, access control lists and file capabilities are lost. The copy of a directory is out of
others' reach until it is complete: what it will permit is set last.

The sandbox may work on both trees meanwhile. So the walk is the one of `hutch.linux.tree`: single
names in directories that are held open, none of them followed, and back by `..` only to where it
came from. Each entry is opened once and used by that descriptor: an exchange of names changes what
is copied, never where from. What is mounted below is not entered.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from hutch.linux.syscalls import RESOLVE_NO_XDEV, openat2

_PIECE_BYTES = 1024**2
_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_OPEN_ABOVE = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_FILE = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
_Identity = tuple[int, int]


class TargetError(OSError):
    """An error about what is made, not about what it is made from."""


@contextmanager
def about_target() -> Iterator[None]:
    """Mark the OSErrors of the block as being about the target."""
    try:
        yield
    except TargetError:
        raise
    except OSError as error:
        raise TargetError(error.errno, error.strerror) from error


@dataclass(frozen=True, slots=True)
class CopyRules:
    """What bounds a copy.

    `check` is called before each entry and each MiB; what it raises ends the copy. `ids` are the
    uids and gids that files may be given to.
    """

    check: Callable[[], None]
    ids: range


@contextmanager
def opened_entry(directory: int, name: str) -> Iterator[tuple[int, os.stat_result]]:
    """Hold an entry of a directory, whatever it is (O_PATH); EBUSY where something is mounted."""
    flags = os.O_PATH | os.O_NOFOLLOW
    try:
        fd = openat2(directory, os.fsencode(name), flags, resolve=RESOLVE_NO_XDEV)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        raise OSError(errno.EBUSY, "something is mounted there") from error
    try:
        yield fd, os.fstat(fd)
    finally:
        os.close(fd)


def check_removable(directory: int, name: str, mode: int) -> None:
    """Raise what the removal of an entry would, if that is not permitted.

    The kernel checks that before it finds that the call is the one for the other kind of entry.
    """
    remove_other_kind = os.unlink if stat.S_ISDIR(mode) else os.rmdir
    try:
        remove_other_kind(name, dir_fd=directory)
    except OSError as error:
        if error.errno not in {errno.EISDIR, errno.ENOTDIR}:
            raise


def copy(source: int, source_name: str, target: int, target_name: str, rules: CopyRules) -> None:
    """Copy an entry of the directory `source` to a new name in `target`; failure leaves a part.

    Raises:
        TargetError: the copy could not be made.
        OSError: the source could not be read, or it could not be removed afterwards; ENXIO for
            sockets and devices, EBUSY for what is mounted.
    """
    walk = _Walk(_Pair(os.dup(source), os.dup(target)), rules)
    try:
        walk.copy(source_name, target_name)
    finally:
        walk.close()


@dataclass(slots=True)
class _Pair:
    """A directory and its copy, both held open."""

    source: int
    copy: int

    def identities(self) -> tuple[_Identity, _Identity]:
        return _identity(self.source), _identity(self.copy)

    def close(self) -> None:
        os.close(self.source)
        os.close(self.copy)


@dataclass(slots=True)
class _Level:
    """A directory that the walk is in or below."""

    status: os.stat_result
    left: list[str]
    """Entries that are still to be copied."""
    above: tuple[_Identity, _Identity]
    """What holds it, and what holds its copy."""


class _Walk:
    """Where a copy has come to; `at` is held open, and so is nothing else between two entries."""

    def __init__(self, at: _Pair, rules: CopyRules) -> None:
        self._at = at
        self._rules = rules
        self._levels: list[_Level] = []

    def copy(self, source_name: str, target_name: str) -> None:
        self._copy_entry(source_name, target_name)
        while self._levels:
            left = self._levels[-1].left
            if left:
                name = left.pop()
                self._copy_entry(name, name)
            else:
                self._complete(self._levels.pop())

    def close(self) -> None:
        self._at.close()

    def _copy_entry(self, source_name: str, target_name: str) -> None:
        self._rules.check()
        with opened_entry(self._at.source, source_name) as (entry, status):
            check_removable(self._at.source, source_name, status.st_mode)
            match stat.S_IFMT(status.st_mode):
                case stat.S_IFDIR:
                    self._enter(entry, status, target_name)
                case stat.S_IFREG:
                    _copy_file(entry, status, self._at.copy, target_name, self._rules)
                case stat.S_IFLNK:
                    _copy_link(entry, status, self._at.copy, target_name, self._rules)
                case stat.S_IFIFO:
                    _copy_fifo(status, self._at.copy, target_name, self._rules)
                case _:
                    raise OSError(errno.ENXIO, "a socket or device cannot be copied")

    def _enter(self, entry: int, status: os.stat_result, name: str) -> None:
        """Make the copy of a directory, and go on in both."""
        source = os.open(_by_descriptor(entry), _OPEN_DIRECTORY)
        try:
            left = os.listdir(source)
            with about_target():
                os.mkdir(name, 0o700, dir_fd=self._at.copy)
                copy = os.open(name, _OPEN_DIRECTORY | os.O_NOFOLLOW, dir_fd=self._at.copy)
        except BaseException:
            os.close(source)
            raise
        self._levels.append(_Level(status, left, self._at.identities()))
        self._go_to(_Pair(source, copy))
        _keep_attributes(source, copy)

    def _complete(self, level: _Level) -> None:
        """Give a directory's copy what was left for the end, and go back to what holds it."""
        with _held(self._at.copy) as copy:
            self._climb(level)
            _keep_status(copy, level.status, self._rules)

    def _climb(self, level: _Level) -> None:
        source = os.open("..", _OPEN_ABOVE, dir_fd=self._at.source)
        try:
            copy = os.open("..", _OPEN_ABOVE, dir_fd=self._at.copy)
        except BaseException:
            os.close(source)
            raise
        self._go_to(_Pair(source, copy))
        if self._at.identities() != level.above:
            raise OSError(errno.EBUSY, "a directory was moved while its tree was being copied")

    def _go_to(self, pair: _Pair) -> None:
        self._at.close()
        self._at = pair


def _identity(fd: int) -> _Identity:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def _by_descriptor(fd: int) -> str:
    """A path that leads to an open file, also one opened with O_PATH, and nowhere else."""
    return f"/proc/self/fd/{fd}"


@contextmanager
def _held(fd: int) -> Iterator[int]:
    """Hold what `fd` is for the time of the block."""
    own = os.dup(fd)
    try:
        yield own
    finally:
        os.close(own)


def _copy_file(
    entry: int, status: os.stat_result, target: int, name: str, rules: CopyRules
) -> None:
    reader = os.open(_by_descriptor(entry), _OPEN_FILE)
    try:
        with about_target():
            writer = openat2(target, os.fsencode(name), _CREATE, mode=0o600)
        try:
            _copy_content(reader, writer, status.st_size, rules)
            _keep_attributes(reader, writer)
            _keep_status(writer, status, rules)
        finally:
            os.close(writer)
    finally:
        os.close(reader)


def _copy_content(reader: int, writer: int, size: int, rules: CopyRules) -> None:
    """Copy `size` bytes, holes as holes; what is appended meanwhile is left out."""
    start = _next_data(reader, 0, size)
    while start < size:
        end = min(os.lseek(reader, start, os.SEEK_HOLE), size)
        with about_target():
            os.lseek(writer, start, os.SEEK_SET)
        while start < end:
            rules.check()
            with about_target():
                copied = os.sendfile(writer, reader, start, min(_PIECE_BYTES, end - start))
            if not copied:
                break  # it was truncated meanwhile
            start += copied
        start = _next_data(reader, end, size)
    with about_target():
        os.ftruncate(writer, size)


def _next_data(reader: int, start: int, size: int) -> int:
    """Return where data goes on from `start`; `size` where no more follows."""
    try:
        return min(os.lseek(reader, start, os.SEEK_DATA), size)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return size


def _copy_link(
    entry: int, status: os.stat_result, target: int, name: str, rules: CopyRules
) -> None:
    link = os.readlink("", dir_fd=entry)
    with about_target():
        os.symlink(link, name, dir_fd=target)
    _keep_status_of_new(status, target, name, rules)


def _copy_fifo(status: os.stat_result, target: int, name: str, rules: CopyRules) -> None:
    with about_target():
        os.mkfifo(name, 0o600, dir_fd=target)
    _keep_status_of_new(status, target, name, rules)


def _keep_status_of_new(status: os.stat_result, target: int, name: str, rules: CopyRules) -> None:
    """Give what was just made under a name what the source has, unless the sandbox swapped it."""
    with about_target(), opened_entry(target, name) as (made, found):
        if stat.S_IFMT(found.st_mode) != stat.S_IFMT(status.st_mode):
            raise OSError(errno.EBUSY, "the copy was exchanged while it was being made")
        _keep_status(made, status, rules)


def _keep_attributes(source: int, copy: int) -> None:
    """Copy the attributes `user.*`; a filesystem that has no such does without."""
    with _unless_unsupported():
        for name in os.listxattr(source):
            if name.startswith("user."):
                value = os.getxattr(source, name)
                with about_target():
                    os.setxattr(copy, name, value)


@contextmanager
def _unless_unsupported() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise


def _keep_status(copy: int, status: os.stat_result, rules: CopyRules) -> None:
    """Give the copy its owner, group, mode and times; in this order, as owners change modes."""
    path = _by_descriptor(copy)
    if status.st_uid not in rules.ids or status.st_gid not in rules.ids:
        raise OSError(errno.EPERM, "it belongs to nobody that the sandbox has")
    try:
        with about_target():
            os.chown(path, status.st_uid, status.st_gid)
    except TargetError as error:
        if error.errno != errno.EPERM:
            raise
        problem = "the user may not give a copy to its owner and group"
        raise OSError(errno.EPERM, problem) from error
    with about_target():
        if not stat.S_ISLNK(status.st_mode):
            os.chmod(path, stat.S_IMODE(status.st_mode))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

"""Moving a file, symlink, FIFO or directory: rename(2), and its semantics where it will not.

A directory that comes from an image layer cannot be renamed by overlayfs, and nothing can between
two mounts; the answer is EXDEV. The source is then copied to a name of its own beside the target,
the copy is renamed onto the target, and the source is removed. Whatever fails or ends this before
that rename leaves source and target as they were, and nothing of the copy. All permissions that
the removal needs are asked for before, so that only a sandbox that changes them meanwhile can
keep a part of the source.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from hutch.linux.tree import remove_tree
from hutch.runtime.native import paths
from hutch.runtime.native.copies import (
    CopyRules,
    TargetError,
    about_target,
    check_removable,
    copy,
    opened_entry,
)


@dataclass(frozen=True, slots=True)
class _Place:
    """A name in a directory that is held open."""

    directory: int
    name: str


def move(
    root_fd: int,
    source: bytes,
    target: bytes,
    rules: CopyRules,
    *,
    check_committed: Callable[[], None],
) -> None:
    """Rename; where the kernel will not (EXDEV), copy and then remove the source.

    `check_committed` is called instead of `rules.check` once the target is in place.

    Raises:
        TargetError: about the target.
        OSError: about the source.
    """
    with paths.parent(root_fd, source) as place:
        origin = _Place(*place)
        with opened_entry(origin.directory, origin.name) as (_, status):
            pass
        with _target_place(root_fd, target) as goal:
            try:
                _rename(origin, goal)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise _about_one(error, origin, status) from error
                if _is_same(status, goal):
                    return
                _copy_over(origin, status, goal, rules)
                remove_tree(origin.directory, origin.name, check=check_committed)


def _rename(origin: _Place, goal: _Place) -> None:
    os.rename(origin.name, goal.name, src_dir_fd=origin.directory, dst_dir_fd=goal.directory)


@contextmanager
def _target_place(root_fd: int, path: bytes) -> Iterator[_Place]:
    """Hold the target's directory, made if it is missing; EBUSY where the target is a mount."""
    with contextlib.ExitStack() as stack:
        with about_target():
            place = _Place(*stack.enter_context(paths.parent(root_fd, path, make=True)))
            _status(place)
        yield place


def _status(place: _Place) -> os.stat_result | None:
    try:
        with opened_entry(place.directory, place.name) as (_, status):
            return status
    except FileNotFoundError:
        return None


def _about_one(error: OSError, origin: _Place, status: os.stat_result) -> OSError:
    """Say which of the two names an error of rename(2) is about, as it does not."""
    try:
        check_removable(origin.directory, origin.name, status.st_mode)
    except OSError as why:
        return why
    if error.errno == errno.EACCES and stat.S_ISDIR(status.st_mode) and not _is_writable(origin):
        return error  # a directory's own permissions count: its `..` changes
    return TargetError(error.errno, error.strerror)


def _is_writable(place: _Place) -> bool:
    return os.access(
        place.name, os.W_OK, dir_fd=place.directory, effective_ids=True, follow_symlinks=False
    )


def _is_same(status: os.stat_result, goal: _Place) -> bool:
    """Whether both names are of one file, which rename(2) then leaves alone."""
    found = _status(goal)
    return found is not None and os.path.samestat(found, status)


def _copy_over(origin: _Place, status: os.stat_result, goal: _Place, rules: CopyRules) -> None:
    """Put a copy in the target's place, in one step."""
    with about_target():
        _check_replaceable(goal, is_directory=stat.S_ISDIR(status.st_mode))
    temporary = _Place(goal.directory, paths.temporary_name())
    try:
        copy(origin.directory, origin.name, temporary.directory, temporary.name, rules)
        with about_target():
            _rename(temporary, goal)
    except BaseException:
        with contextlib.suppress(OSError):  # the sandbox has taken it; the first error counts
            remove_tree(temporary.directory, temporary.name)
        raise


def _check_replaceable(place: _Place, *, is_directory: bool) -> None:
    """Raise what rename(2) of a file or directory onto this would, before work is put into it."""
    found = _status(place)
    if found is None:
        return
    number = 0
    if is_directory and not stat.S_ISDIR(found.st_mode):
        number = errno.ENOTDIR
    elif not is_directory and stat.S_ISDIR(found.st_mode):
        number = errno.EISDIR
    elif is_directory and _has_entries(place):
        number = errno.ENOTEMPTY
    if number:
        raise OSError(number, os.strerror(number))
    check_removable(place.directory, place.name, found.st_mode)


def _has_entries(place: _Place) -> bool:
    """Whether a directory is known not to be empty."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
    try:
        fd = os.open(place.name, flags, dir_fd=place.directory)
    except PermissionError:
        return False  # the kernel looks before it is replaced
    try:
        with os.scandir(fd) as entries:
            return next(entries, None) is not None
    finally:
        os.close(fd)

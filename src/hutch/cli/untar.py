"""Unpacking an archive that comes out of a sandbox, which is hostile, into a fresh directory.

Nothing is ever written through a symlink of the archive's, since they are made last; so they may
lead anywhere, as those of a virtual environment do. Everything belongs to the caller, and no
setuid bit, device or FIFO comes out. Zeros and holes come out as holes. What the archive can make
this process remember is bounded, here and in hutch.linux.tar.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import IO

from hutch.errors import FileError, NoSpaceError
from hutch.linux.tar import Kind, Member, TarError, TarReader
from hutch.linux.tree import make_directories

_MAX_REMEMBERED = 256 * 1024**2
"""Bytes, about, of the links and directories that are seen to last."""
_ENTRY_COST = 400
"""Bytes that each of them takes besides its names."""
_MAX_PADDING = 1024**2
"""Bytes after an archive's end mark; tar fills up to 10 KiB."""


def untar(archive: IO[bytes], target: Path) -> None:
    """Make the directory `target`, which must not exist, with what the archive holds.

    Raises:
        FileError: the archive is corrupt, or holds what no honest tree has.
        NoSpaceError: the disk is full.
    """
    try:
        target.mkdir()
        _Extraction(TarReader(archive), str(target)).run()
        if len(archive.read(_MAX_PADDING)) == _MAX_PADDING:
            raise TarError("it goes on after its end mark")
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise NoSpaceError(str(target.parent)) from error
        raise _refusal(target, error.strerror or str(error)) from error
    except (TarError, ValueError, OverflowError, RecursionError, MemoryError) as error:
        raise _refusal(target, str(error) or type(error).__name__) from error


def _refusal(target: Path, problem: str) -> FileError:
    return FileError(target.name, f"the sandbox's archive is refused: {problem}")


class _Extraction:
    def __init__(self, reader: TarReader, target: str) -> None:
        self._reader = reader
        self._target = target
        self._symlinks: dict[str, str] = {}
        self._directories: list[tuple[str, Member]] = []
        self._remembered = 0

    def run(self) -> None:
        for member in self._reader:
            self._make(member, self._place(member.name))
        for path, leads_to in self._symlinks.items():
            os.symlink(leads_to, path)
        for path, member in reversed(self._directories):
            _set_attributes(path, member)

    def _place(self, name: str) -> str:
        parts = [part for part in name.rstrip("/").split("/") if part != "."]
        if "" in parts or ".." in parts:
            raise TarError(f"{name!r} leads out of it")
        return "/".join((self._target, *parts))

    def _make(self, member: Member, path: str) -> None:
        make_directories(os.path.dirname(path))
        match member.kind:
            case Kind.DIRECTORY:
                make_directories(path)
                self._remember(path)
                self._directories.append((path, member))
            case Kind.SYMLINK:
                self._remember(path + member.link)
                self._symlinks[path] = member.link
            case Kind.HARD_LINK:
                self._hard_link(path, self._place(member.link))
            case Kind.FILE:
                self._file(path, member)
            case _:
                raise TarError(f"{member.name!r} is neither file, directory nor link")

    def _remember(self, names: str) -> None:
        self._remembered += len(names) + _ENTRY_COST
        if self._remembered > _MAX_REMEMBERED:
            raise TarError("it has too many links and directories")

    def _hard_link(self, path: str, target: str) -> None:
        if target in self._symlinks:
            self._remember(path + self._symlinks[target])
            self._symlinks[path] = self._symlinks[target]
        elif os.path.isfile(target):
            os.link(target, path)
        else:
            raise TarError(f"{path!r} is a link to what is not in it")

    def _file(self, path: str, member: Member) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(path, flags, 0o600)
        try:
            self._reader.copy_to(fd)
        finally:
            os.close(fd)
        _set_attributes(path, member)


def _set_attributes(path: str, member: Member) -> None:
    os.chmod(path, member.mode & 0o777)
    os.utime(path, ns=(member.mtime_ns, member.mtime_ns))

"""Unpacking an archive that came out of a sandbox, which is hostile, into a fresh directory.

Nothing is ever written through a symlink of the archive's, since they are made last; so they may
lead anywhere, as those of a virtual environment do. Everything belongs to the caller, and no
setuid bit, device or FIFO comes out. (The standard library's own filter, PEP 706, is missing in
Python 3.11.2, Debian 12's, and refuses symlinks with absolute targets.)
"""

from __future__ import annotations

import os
import shutil
import tarfile
from pathlib import Path

from hutch.errors import FileError

_CHUNK = 1024 * 1024


def untar(archive: Path, target: Path) -> None:
    """Make the directory `target`, which must not exist, with what the archive holds.

    Raises:
        FileError: the archive is corrupt, or holds what no honest tree has.
    """
    target.mkdir()
    try:
        with tarfile.open(archive) as tar:
            _Extraction(tar, target).run()
    except (tarfile.TarError, FileExistsError, NotADirectoryError, EOFError) as error:
        raise FileError(target.name, f"the sandbox's archive is refused: {error}") from error


class _Extraction:
    def __init__(self, tar: tarfile.TarFile, target: Path) -> None:
        self._tar = tar
        self._target = target
        self._symlinks: dict[Path, str] = {}
        self._directories: list[tuple[Path, tarfile.TarInfo]] = []

    def run(self) -> None:
        for member in self._tar:
            self._make(member, self._place(member.name))
        for path, leads_to in self._symlinks.items():
            path.symlink_to(leads_to)
        for path, member in reversed(self._directories):
            _set_attributes(path, member)

    def _place(self, name: str) -> Path:
        parts = [part for part in name.split("/") if part != "."]
        if "" in parts[:-1] or ".." in parts:
            raise tarfile.TarError(f"{name!r} leads out of it")
        return self._target.joinpath(*parts)

    def _make(self, member: tarfile.TarInfo, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if member.isdir():
            path.mkdir(exist_ok=True)
            self._directories.append((path, member))
        elif member.issym():
            self._symlinks[path] = member.linkname
        elif member.islnk():
            self._hard_link(path, self._place(member.linkname))
        elif member.isfile():
            self._file(path, member)
        else:
            raise tarfile.TarError(f"{member.name!r} is neither file, directory nor link")

    def _hard_link(self, path: Path, target: Path) -> None:
        if target in self._symlinks:
            self._symlinks[path] = self._symlinks[target]
        elif target.is_file():
            os.link(target, path)
        else:
            raise tarfile.TarError(f"{path.name!r} is a link to what is not in it")

    def _file(self, path: Path, member: tarfile.TarInfo) -> None:
        source = self._tar.extractfile(member)
        assert source is not None, "a regular file has content"
        with source, path.open("xb") as file:
            shutil.copyfileobj(source, file, _CHUNK)
        _set_attributes(path, member)


def _set_attributes(path: Path, member: tarfile.TarInfo) -> None:
    path.chmod(member.mode & 0o777)
    os.utime(path, (member.mtime, member.mtime))

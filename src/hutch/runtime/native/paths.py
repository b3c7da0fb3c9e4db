"""File operations below a root that no path can leave: openat2(2) and fd-relative calls only.

Every function works as whoever the calling thread acts as, and raises OSError. A path is
resolved by the kernel, symlinks included, as if `root_fd` were the root; what is made, replaced
or removed is a single name in a directory that is held open.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from hutch.linux.syscalls import (
    PROC_SUPER_MAGIC,
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
    openat2,
    statfs_type,
)
from hutch.linux.tree import remove_tree
from hutch.models import MAX_PATH_BYTES, FileInfo, FileType

_IN_ROOT = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
_MAX_SYMLINKS = 40  # as path_resolution(7)
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY
_COPY_BYTES = 1024**2


def encode(path: str) -> bytes:
    """Return the bytes of a path.

    Raises:
        OSError: EINVAL for a NUL, ENAMETOOLONG.
    """
    data = os.fsencode(path)
    if b"\0" in data:
        raise OSError(errno.EINVAL, "a path has no NUL")
    if len(data) > MAX_PATH_BYTES:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
    return data


@contextmanager
def opened(root_fd: int, path: bytes, flags: int) -> Iterator[int]:
    """Open an existing file for the time of the block."""
    fd = open_existing(root_fd, path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


def open_existing(root_fd: int, path: bytes, flags: int) -> int:
    """Open an existing file; EACCES on procfs, where the engine's rights would be the reader's."""
    fd = openat2(root_fd, path, flags, resolve=_IN_ROOT)
    try:
        if statfs_type(fd) == PROC_SUPER_MAGIC:
            raise OSError(errno.EACCES, "procfs is not served as files; read it with a command")
    except BaseException:
        os.close(fd)
        raise
    return fd


def open_regular(root_fd: int, path: bytes) -> int:
    """Open a regular file for reading; EISDIR or ENXIO for anything else, at once."""
    fd = open_existing(root_fd, path, _READ)
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode):
        os.close(fd)
        number = errno.EISDIR if stat.S_ISDIR(mode) else errno.ENXIO
        raise OSError(number, os.strerror(number))
    return fd


def _split(path: bytes) -> tuple[bytes, bytes]:
    """Return a path's directory and its last name; EINVAL where that is no name."""
    directory, _, name = path.rstrip(b"/").rpartition(b"/")
    if name in {b"", b".", b".."}:
        raise OSError(errno.EINVAL, "the path must end in a name")
    return directory or b"/", name


@contextmanager
def _parent(root_fd: int, path: bytes, *, make: bool = False) -> Iterator[tuple[int, str]]:
    """Hold the directory of `path` open; with `make`, it and its parents are made if missing."""
    directory, name = _split(path)
    try:
        fd = open_existing(root_fd, directory, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        if not make:
            raise
        make_directories(root_fd, directory, 0o755)
        fd = open_existing(root_fd, directory, os.O_RDONLY | os.O_DIRECTORY)
    except PermissionError:  # searchable is enough: only listing needs it readable
        fd = open_existing(root_fd, directory, os.O_PATH | os.O_DIRECTORY)
    try:
        yield fd, os.fsdecode(name)
    finally:
        os.close(fd)


def make_directories(root_fd: int, path: bytes, mode: int) -> None:
    """Make a directory and the parents it lacks."""
    names = [name for name in path.split(b"/") if name not in {b"", b"."}]
    for count in range(1, len(names) + 1):
        prefix = b"/" + b"/".join(names[:count])
        try:
            os.close(open_existing(root_fd, prefix, os.O_PATH | os.O_DIRECTORY))
        except FileNotFoundError:
            make_directory(root_fd, prefix, mode)


def make_directory(root_fd: int, path: bytes, mode: int) -> None:
    """Make one directory in an existing one."""
    with _parent(root_fd, path) as (fd, name):
        os.mkdir(name, 0o700, dir_fd=fd)
        made = openat2(fd, os.fsencode(name), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            os.fchmod(made, mode)  # the engine's umask is not the sandbox's
        finally:
            os.close(made)


class Replacement:
    """New content for a path, invisible until `commit` and gone without it.

    The content is written to a nameless file (O_TMPFILE) in the target's directory, so that
    nothing is left behind whatever happens to the engine; overlayfs has them since Linux 6.10,
    before it the file has a name. Where that directory refuses new names, or the file belongs to
    somebody else, it is rewritten in place instead.
    """

    def __init__(self, root_fd: int, path: bytes) -> None:
        if path.endswith(b"/"):
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        self.fd = -1
        self._mode: int | None = None
        self._in_place = False
        self._temporary: str | None = None
        """The name that the new file has before it gets its own, if any."""
        directory, self._name, status = self._target(root_fd, path)
        self._directory = directory
        try:
            if status is not None:
                self._check_writable(status)
                self._mode = stat.S_IMODE(status.st_mode)
            self._open(status)
        except BaseException:
            self.close()
            raise

    def _target(self, root_fd: int, path: bytes) -> tuple[int, str, os.stat_result | None]:
        """Follow symlinks to where the file is or will be; return its directory, held open."""
        for _ in range(_MAX_SYMLINKS):
            with _parent(root_fd, path, make=True) as (fd, name):
                try:
                    status = os.stat(name, dir_fd=fd, follow_symlinks=False)
                except FileNotFoundError:
                    return os.dup(fd), name, None
                if not stat.S_ISLNK(status.st_mode):
                    return os.dup(fd), name, status
                link = os.fsencode(os.readlink(name, dir_fd=fd))
            path = link if link.startswith(b"/") else _split(path)[0] + b"/" + link
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))

    def _check_writable(self, status: os.stat_result) -> None:
        if stat.S_ISDIR(status.st_mode):
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))
        try:
            os.close(self._open_existing(os.O_WRONLY))
        except OSError as error:
            if error.errno != errno.ETXTBSY:  # a running program may be replaced, not rewritten
                raise

    def _open_existing(self, flags: int) -> int:
        flags |= os.O_NONBLOCK | os.O_NOCTTY | os.O_NOFOLLOW
        return openat2(self._directory, os.fsencode(self._name), flags)

    def _open(self, status: os.stat_result | None) -> None:
        try:
            self.fd = self._open_new()
            if status is not None:
                self._give_to_owner(status)
        except PermissionError:
            if status is None:
                raise
            self._discard()
            self.fd = self._open_existing(os.O_WRONLY | os.O_TRUNC)
            self._in_place = True

    def _open_new(self) -> int:
        try:
            return openat2(self._directory, b".", os.O_TMPFILE | os.O_WRONLY, mode=0o600)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
        name = _temporary_name()
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        fd = openat2(self._directory, os.fsencode(name), flags, mode=0o600)
        self._temporary = name
        return fd

    def _give_to_owner(self, status: os.stat_result) -> None:
        own = os.fstat(self.fd)
        if (status.st_uid, status.st_gid) != (own.st_uid, own.st_gid):
            os.fchown(self.fd, status.st_uid, status.st_gid)

    def commit(self, mode: int | None) -> None:
        """Put the content in place, in one step."""
        wanted = mode if mode is not None else self._mode
        if not self._in_place or mode is not None:
            os.fchmod(self.fd, 0o644 if wanted is None else wanted)
        if self._in_place:
            return
        if self._temporary is None:
            if self._mode is None and self._link(self._name):
                return
            name = _temporary_name()  # what appeared meanwhile is replaced
            self._link(name)
            self._temporary = name
        os.rename(
            self._temporary, self._name, src_dir_fd=self._directory, dst_dir_fd=self._directory
        )
        self._temporary = None

    def _link(self, name: str) -> bool:
        """Give the nameless file a name; False where there is a file of that name."""
        content = f"/proc/self/fd/{self.fd}"
        try:
            os.link(content, name, dst_dir_fd=self._directory, follow_symlinks=True)
        except FileExistsError:
            return False
        return True

    def close(self) -> None:
        """Let go; what was not committed is gone. Idempotent."""
        self._discard()
        if self._directory >= 0:
            os.close(self._directory)
            self._directory = -1

    def _discard(self) -> None:
        if self._temporary is not None:
            with contextlib.suppress(FileNotFoundError):  # the sandbox was quicker
                os.unlink(self._temporary, dir_fd=self._directory)
            self._temporary = None
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _temporary_name() -> str:
    return f".hutch-{secrets.token_hex(8)}"


def describe(
    status: os.stat_result, *, name: str, path: str, uid_base: int, target: str | None = None
) -> FileInfo:
    """Turn a stat of a sandbox's file into what the sandbox itself would see."""
    kinds = {
        stat.S_IFREG: FileType.FILE,
        stat.S_IFDIR: FileType.DIRECTORY,
        stat.S_IFLNK: FileType.SYMLINK,
    }
    return FileInfo(
        name=name,
        path=path,
        type=kinds.get(stat.S_IFMT(status.st_mode), FileType.OTHER),
        size=status.st_size,
        mode=stat.S_IMODE(status.st_mode),
        uid=status.st_uid - uid_base,
        gid=status.st_gid - uid_base,
        modified_at=datetime.fromtimestamp(status.st_mtime, UTC),
        target=target,
    )


def stat_path(root_fd: int, path: bytes, *, follow: bool, uid_base: int) -> FileInfo:
    """Describe one file."""
    text = os.fsdecode(path)
    flags = os.O_PATH if follow else os.O_PATH | os.O_NOFOLLOW
    with opened(root_fd, path, flags) as fd:
        status = os.fstat(fd)
        target = os.readlink("", dir_fd=fd) if stat.S_ISLNK(status.st_mode) else None
    name = text.rstrip("/").rpartition("/")[2] or "/"
    return describe(status, name=name, path=text, uid_base=uid_base, target=target)


def list_directory(root_fd: int, path: bytes, *, uid_base: int) -> list[FileInfo]:
    """Describe a directory's entries by name; one that vanishes meanwhile is left out."""
    infos = []
    top = os.fsdecode(path).rstrip("/")
    with opened(root_fd, path, os.O_RDONLY | os.O_DIRECTORY) as fd, os.scandir(fd) as entries:
        for entry in entries:
            try:
                status = entry.stat(follow_symlinks=False)
                target = os.readlink(entry.name, dir_fd=fd) if entry.is_symlink() else None
            except FileNotFoundError:
                continue
            infos.append(
                describe(
                    status,
                    name=entry.name,
                    path=f"{top}/{entry.name}",
                    uid_base=uid_base,
                    target=target,
                )
            )
    return sorted(infos, key=lambda info: info.name)


def real_path(root_fd: int, path: bytes) -> str:
    """Return the canonical path of an existing file, as the sandbox would name it."""
    with opened(root_fd, path, os.O_PATH) as fd:
        shown = os.readlink(f"/proc/self/fd/{fd}")
        root = os.readlink(f"/proc/self/fd/{root_fd}")
    return shown if root == "/" else "/" + shown.removeprefix(root).lstrip("/")


def move(root_fd: int, source: bytes, target: bytes) -> None:
    """Rename; where the kernel will not (EXDEV), copy and then remove the source.

    A directory that comes from an image cannot be renamed by overlayfs, so this is common.
    """
    with (
        _parent(root_fd, source) as (from_fd, from_name),
        _parent(root_fd, target, make=True) as (to_fd, to_name),
    ):
        try:
            os.rename(from_name, to_name, src_dir_fd=from_fd, dst_dir_fd=to_fd)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            _copy(from_fd, from_name, to_fd, to_name)
            remove_tree(from_fd, from_name)


def _copy(from_fd: int, from_name: str, to_fd: int, to_name: str) -> None:
    """Copy a file, symlink or directory with all below; FIFOs and devices are EINVAL."""
    status = os.stat(from_name, dir_fd=from_fd, follow_symlinks=False)
    if stat.S_ISLNK(status.st_mode):
        os.symlink(os.readlink(from_name, dir_fd=from_fd), to_name, dir_fd=to_fd)
    elif stat.S_ISREG(status.st_mode):
        _copy_file(from_fd, from_name, to_fd, to_name, status)
    elif stat.S_ISDIR(status.st_mode):
        _copy_directory(from_fd, from_name, to_fd, to_name, status)
    else:
        raise OSError(errno.EINVAL, "only files, symlinks and directories can be moved")


def _copy_file(
    from_fd: int, from_name: str, to_fd: int, to_name: str, status: os.stat_result
) -> None:
    create = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    reader = os.open(from_name, _READ | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=from_fd)
    try:
        writer = os.open(to_name, create, 0o600, dir_fd=to_fd)
        try:
            while os.sendfile(writer, reader, None, _COPY_BYTES):
                pass
            os.fchmod(writer, stat.S_IMODE(status.st_mode))
            os.utime(writer, ns=(status.st_atime_ns, status.st_mtime_ns))
        finally:
            os.close(writer)
    finally:
        os.close(reader)


def _copy_directory(
    from_fd: int, from_name: str, to_fd: int, to_name: str, status: os.stat_result
) -> None:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    os.mkdir(to_name, 0o700, dir_fd=to_fd)
    reader = os.open(from_name, flags, dir_fd=from_fd)
    try:
        writer = os.open(to_name, flags, dir_fd=to_fd)
        try:
            for name in os.listdir(reader):
                _copy(reader, name, writer, name)
            os.fchmod(writer, stat.S_IMODE(status.st_mode))
        finally:
            os.close(writer)
    finally:
        os.close(reader)


def remove(root_fd: int, path: bytes, *, recursive: bool) -> None:
    """Remove a name; with `recursive`, a directory with all below it."""
    with _parent(root_fd, path) as (fd, name):
        status = os.stat(name, dir_fd=fd, follow_symlinks=False)
        if not stat.S_ISDIR(status.st_mode):
            os.unlink(name, dir_fd=fd)
        elif recursive:
            remove_tree(fd, name)
        else:
            os.rmdir(name, dir_fd=fd)

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
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from hutch.checks import MAX_PATH_BYTES
from hutch.linux.syscalls import (
    PROC_SUPER_MAGIC,
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
    openat2,
    statfs_type,
)
from hutch.linux.tree import remove_tree
from hutch.models import FileInfo, FileType

_IN_ROOT = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
_MAX_SYMLINKS = 40  # as path_resolution(7)
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY
_PIECE_BYTES = 1024**2
_SPOOLS = (b"tmp", b"var/tmp", b"dev/shm")  # a sandbox's own; relative to its root


def encode(path: str) -> bytes:
    """Return the bytes of a path.

    Raises:
        OSError: EINVAL for a NUL or what no bytes are for (lone surrogates), ENAMETOOLONG.
    """
    try:
        data = os.fsencode(path)
    except UnicodeEncodeError as error:
        raise OSError(errno.EINVAL, f"a path has no {error.object[error.start]!r}") from error
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
def parent(root_fd: int, path: bytes, *, make: bool = False) -> Iterator[tuple[int, str]]:
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
    with parent(root_fd, path) as (fd, name):
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
    somebody else, the content waits in one of the sandbox's directories for temporary files, and
    `commit` rewrites the file in place.

    Its methods may be called on any thread, also while another runs: whoever is cancelled closes
    it without waiting for the thread that still works for him.
    """

    def __init__(self, root_fd: int, path: bytes) -> None:
        if path.endswith(b"/"):
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        self._lock = threading.Lock()
        """Guards the descriptors: none is closed while it is used."""
        self._fd = -1
        self._mode: int | None = None
        self._in_place = -1
        """The file itself, where it is to be rewritten."""
        self._temporary: str | None = None
        """The name that the new file has before it gets its own, if any."""
        directory, self._name, status = self._target(root_fd, path)
        self._directory = directory
        try:
            if status is not None:
                self._check_writable(status)
                self._mode = stat.S_IMODE(status.st_mode)
            self._open(root_fd, status)
        except BaseException:
            self.close()
            raise

    def _target(self, root_fd: int, path: bytes) -> tuple[int, str, os.stat_result | None]:
        """Follow symlinks to where the file is or will be; return its directory, held open."""
        for _ in range(_MAX_SYMLINKS):
            with parent(root_fd, path, make=True) as (fd, name):
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

    def _open(self, root_fd: int, status: os.stat_result | None) -> None:
        try:
            self._fd, self._temporary = _open_new(self._directory)
            if status is not None:
                self._give_to_owner(status)
        except PermissionError:
            if status is None:
                raise
            self._discard()
            self._in_place = self._open_existing(os.O_WRONLY)
            self._fd = _open_spool(root_fd)

    def _give_to_owner(self, status: os.stat_result) -> None:
        own = os.fstat(self._fd)
        if (status.st_uid, status.st_gid) != (own.st_uid, own.st_gid):
            os.fchown(self._fd, status.st_uid, status.st_gid)

    def append(self, data: bytes) -> None:
        """Add to the content."""
        left = memoryview(data)
        with self._lock:
            while left:
                left = left[os.write(self._fd, left) :]

    def commit(self, mode: int | None) -> None:
        """Put the content in place, in one step unless the file is rewritten."""
        with self._lock:
            if self._in_place >= 0:
                self._rewrite(mode)
            else:
                self._put_in_place(mode)

    def _rewrite(self, mode: int | None) -> None:
        # Nothing ends this midway: the old content is gone, and half of the new is worse than all.
        if mode is not None:
            os.fchmod(self._in_place, mode)
        os.ftruncate(self._in_place, 0)
        copied = 0
        while piece := os.sendfile(self._in_place, self._fd, copied, _PIECE_BYTES):
            copied += piece

    def _put_in_place(self, mode: int | None) -> None:
        wanted = mode if mode is not None else self._mode
        wanted = 0o644 if wanted is None else wanted
        if stat.S_IMODE(os.fstat(self._fd).st_mode) != wanted:  # what the umask took, and others
            os.fchmod(self._fd, wanted)
        if self._temporary is None:
            if self._mode is None and self._link(self._name):
                return
            name = temporary_name()  # what appeared meanwhile is replaced
            self._link(name)
            self._temporary = name
        os.rename(
            self._temporary, self._name, src_dir_fd=self._directory, dst_dir_fd=self._directory
        )
        self._temporary = None

    def _link(self, name: str) -> bool:
        """Give the nameless file a name; False where there is a file of that name."""
        content = f"/proc/self/fd/{self._fd}"
        try:
            os.link(content, name, dst_dir_fd=self._directory, follow_symlinks=True)
        except FileExistsError:
            return False
        return True

    def close(self) -> None:
        """Let go; what was not committed is gone. Idempotent."""
        with self._lock:
            self._discard()
            for fd in (self._in_place, self._directory):
                if fd >= 0:
                    os.close(fd)
            self._in_place = self._directory = -1

    def _discard(self) -> None:
        if self._temporary is not None:
            with contextlib.suppress(FileNotFoundError):  # the sandbox was quicker
                os.unlink(self._temporary, dir_fd=self._directory)
            self._temporary = None
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _open_new(directory: int) -> tuple[int, str | None]:
    """Make a file in a directory: nameless, or where that cannot be, of the name returned."""
    try:
        return openat2(directory, b".", os.O_TMPFILE | os.O_RDWR, mode=0o644), None
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
    name = temporary_name()
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    return openat2(directory, os.fsencode(name), flags, mode=0o600), name


def _open_spool(root_fd: int) -> int:
    """Make a nameless file in the first directory for temporary files that takes one."""
    for path in _SPOOLS:
        try:
            with opened(root_fd, path, os.O_PATH | os.O_DIRECTORY) as directory:
                fd, name = _open_new(directory)
                if name is not None:
                    os.unlink(name, dir_fd=directory)
                return fd
        except OSError:
            continue
    raise OSError(errno.EACCES, "neither its directory nor /tmp takes a new file")


def temporary_name() -> str:
    """Return a name that nothing has, for what is to get its own in one step."""
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
        modified_at=_moment(status.st_mtime),
        target=target,
    )


def _moment(seconds: float) -> datetime:
    """Return a file's time; one beyond the calendar, as tmpfs takes it, is its last day."""
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return datetime.max.replace(tzinfo=UTC) if seconds > 0 else datetime.min.replace(tzinfo=UTC)


def stat_path(root_fd: int, path: bytes, *, follow: bool, uid_base: int) -> FileInfo:
    """Describe one file."""
    text = os.fsdecode(path)
    flags = os.O_PATH if follow else os.O_PATH | os.O_NOFOLLOW
    with opened(root_fd, path, flags) as fd:
        status = os.fstat(fd)
        target = os.readlink("", dir_fd=fd) if stat.S_ISLNK(status.st_mode) else None
    name = text.rstrip("/").rpartition("/")[2] or "/"
    return describe(status, name=name, path=text, uid_base=uid_base, target=target)


def list_directory(root_fd: int, path: bytes, *, uid_base: int, limit: int) -> list[FileInfo]:
    """Describe a directory's entries by name; one that vanishes meanwhile is left out.

    EFBIG for more than `limit` of them.
    """
    infos: list[FileInfo] = []
    top = os.fsdecode(path).rstrip("/")
    with opened(root_fd, path, os.O_RDONLY | os.O_DIRECTORY) as fd, os.scandir(fd) as entries:
        for entry in entries:
            if len(infos) == limit:
                raise OSError(errno.EFBIG, f"has more than {limit} entries")
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


def remove(root_fd: int, path: bytes, *, recursive: bool, check: Callable[[], None]) -> None:
    """Remove a name; with `recursive`, a directory with all below it.

    `check` is called before each entry below; what it raises ends the removal.
    """
    with parent(root_fd, path) as (fd, name):
        status = os.stat(name, dir_fd=fd, follow_symlinks=False)
        if not stat.S_ISDIR(status.st_mode):
            os.unlink(name, dir_fd=fd)
        elif recursive:
            remove_tree(fd, name, check=check)
        else:
            os.rmdir(name, dir_fd=fd)

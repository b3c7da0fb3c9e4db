"""Unpack one layer's tar archive into a directory; run as `python -m hutch.images.unpack`.

What is in an archive is hostile: links that lead out, names with `..`, devices, bombs. So this
runs in a process of its own that has made the target its root directory, has no other directory
open, and has given up every capability but those over file ownership. Within, the archive can
only harm the layer that it is. Standard input is the archive; standard output gets lines of JSON:
progress, and last the result or the problem.

The layer comes out as overlayfs wants it inside a user namespace (`userxattr`): whiteouts are
character devices 0:0, opaque directories have the attribute user.overlay.opaque. The Kernel's
documentation: filesystems/overlayfs. Archive side: OCI image specification, layer.md.
"""

from __future__ import annotations

import bz2
import contextlib
import errno
import gzip
import hashlib
import io
import json
import lzma
import os
import resource
import shutil
import stat
import sys
import tarfile
import zlib
from collections.abc import Callable, Iterator
from typing import IO, TYPE_CHECKING, NoReturn, cast

import zstandard

from hutch.linux.syscalls import (
    CAP_CHOWN,
    CAP_DAC_OVERRIDE,
    CAP_FOWNER,
    CAP_FSETID,
    keep_capabilities,
    set_no_new_privs,
)

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

MAX_ENTRIES = 4_000_000
MAX_BYTES = 128 * 1024**3
MAX_DEPTH = 1024
MAX_ID = 65_535
"""The greatest uid and gid a sandbox's user namespace maps."""

_CHUNK = 1024 * 1024
_BLOCK = 512
_HOST_ERRORS = frozenset(
    {
        errno.EACCES,
        errno.EDQUOT,
        errno.EIO,
        errno.EMFILE,
        errno.ENOMEM,
        errno.ENOSPC,
        errno.EPERM,
        errno.EROFS,
    }
)
"""What this host could not do; whatever else a system call says is about the archive."""
_REPORT_EVERY = 16 * 1024**2
_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"
_OVERLAY_OPAQUE = "user.overlay.opaque"
_XATTR = "SCHILY.xattr."


class UnpackError(Exception):
    """The archive is corrupt or hostile."""


class _Hashing(io.RawIOBase):
    """A stream that hashes and counts what is read through it."""

    def __init__(self, source: IO[bytes], on_read: Callable[[int], None]) -> None:
        self._source = source
        self._hash = hashlib.sha256()
        self._on_read = on_read
        self.count = 0
        self._tail = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        view = memoryview(buffer)
        data = self._source.read(len(view))
        view[: len(data)] = data
        self._hash.update(data)
        self.count += len(data)
        self._tail = (self._tail + data)[-_BLOCK:]
        if self.count > MAX_BYTES:
            raise UnpackError(f"it is larger than {MAX_BYTES} bytes")
        self._on_read(self.count)
        return len(data)

    def hexdigest(self) -> str:
        """Read what is left, which may follow an archive's own end mark, and return the digest."""
        while self.read(_CHUNK):
            pass
        return f"sha256:{self._hash.hexdigest()}"

    def ends_as_an_archive(self) -> bool:
        """Tell whether the last block is zeros, which a truncated archive's is not: tar(5)."""
        return self._tail == b"\0" * _BLOCK


def _decompressed(source: io.BufferedReader[_Hashing]) -> IO[bytes]:
    """Undo the compression that the first bytes tell of."""
    start = source.peek(8)
    if start.startswith(b"\x1f\x8b"):
        return cast("IO[bytes]", gzip.GzipFile(fileobj=source))
    if start.startswith(b"\x28\xb5\x2f\xfd"):
        reader = zstandard.ZstdDecompressor().stream_reader(source, read_across_frames=True)
        return cast("IO[bytes]", reader)
    if start.startswith(b"\xfd7zXZ\x00"):
        return lzma.LZMAFile(source)
    if start.startswith(b"BZh"):
        return bz2.BZ2File(source)
    return source


class _Unpacker:
    """Makes entries below the current root directory."""

    def __init__(self) -> None:
        self.entries = 0
        self.skipped_devices = 0
        self._times: list[tuple[str, float]] = []

    def unpack(self, archive: tarfile.TarFile) -> None:
        for member in archive:
            self.entries += 1
            if self.entries > MAX_ENTRIES:
                raise UnpackError(f"it has more than {MAX_ENTRIES} entries")
            self._make(archive, member)
        for path, mtime in reversed(self._times):  # when nothing changes directories any more
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                os.utime(path, (mtime, mtime), follow_symlinks=False)

    def _make(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        path = _clean(member.name)
        parent, _, name = path.rpartition("/")
        if not (0 <= member.uid <= MAX_ID and 0 <= member.gid <= MAX_ID):
            raise UnpackError(f"{path!r} belongs to {member.uid}:{member.gid}, beyond {MAX_ID}")
        if parent != "":
            os.makedirs(parent, mode=0o755, exist_ok=True)
        if name == _OPAQUE:
            os.setxattr(parent or "/", _OVERLAY_OPAQUE, b"y")
        elif name.startswith(_WHITEOUT):
            self._whiteout(f"{parent}/{name.removeprefix(_WHITEOUT)}")
        elif path == "/":
            self._attributes(path, member)
        else:
            self._entry(archive, member, path)

    def _whiteout(self, path: str) -> None:
        if path.endswith(("/", "/.", "/..")):
            raise UnpackError("a whiteout names nothing")
        if not os.path.lexists(path):  # it hides what is below, not what this layer has itself
            os.mknod(path, stat.S_IFCHR, os.makedev(0, 0))

    def _entry(self, archive: tarfile.TarFile, member: tarfile.TarInfo, path: str) -> None:
        if member.isdir():
            if os.path.islink(path) or not os.path.isdir(path):
                _remove(path)
                os.mkdir(path, 0o755)
        elif member.islnk():
            self._hard_link(member, path)
            return
        elif member.ischr() or member.isblk():
            self.skipped_devices += 1
            return
        else:
            _remove(path)
            if member.issym():
                os.symlink(member.linkname, path)
            elif member.isfifo():
                os.mkfifo(path, 0o600)
            elif member.isfile():
                self._file(archive, member, path)
            else:
                raise UnpackError(f"{path!r} is of the unknown type {member.type!r}")
        self._attributes(path, member)

    def _hard_link(self, member: tarfile.TarInfo, path: str) -> None:
        target = _clean(member.linkname)
        if target == path:
            raise UnpackError(f"{path!r} is a hard link to itself")
        _remove(path)
        try:
            os.link(target, path, follow_symlinks=False)
        except OSError as error:
            raise UnpackError(
                f"{path!r} is a hard link to {target!r}, which the layer does not have before it"
            ) from error

    def _file(self, archive: tarfile.TarFile, member: tarfile.TarInfo, path: str) -> None:
        source = archive.extractfile(member)
        if source is None:
            raise UnpackError(f"{path!r} has no content")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(path, flags, 0o600), "wb") as target:
            if member.issparse():
                _copy_sparse(source, target)
            else:
                shutil.copyfileobj(source, target, _CHUNK)

    def _attributes(self, path: str, member: tarfile.TarInfo) -> None:
        os.chown(path, member.uid, member.gid, follow_symlinks=False)
        if not member.issym():
            os.chmod(path, member.mode & 0o7777)
            for name, value in _xattrs(member):
                os.setxattr(path, name, value, follow_symlinks=False)
        if member.isdir():
            self._times.append((path, member.mtime))
        else:
            os.utime(path, (member.mtime, member.mtime), follow_symlinks=False)


def _clean(name: str) -> str:
    """Return an archive's name as an absolute path of the layer."""
    parts = [part for part in name.split("/") if part not in {"", "."}]
    if ".." in parts:
        raise UnpackError(f"{name!r} leads out of the layer")
    if len(parts) > MAX_DEPTH:
        raise UnpackError(f"{name[:80]!r}… is more than {MAX_DEPTH} directories deep")
    return "/" + "/".join(parts)


def _remove(path: str) -> None:
    """Remove what an earlier entry of the layer has made there."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    except IsADirectoryError:
        shutil.rmtree(path)


def _copy_sparse(source: IO[bytes], target: IO[bytes]) -> None:
    """Copy, leaving holes where there are only zeros."""
    while chunk := source.read(65536):
        if chunk.strip(b"\0"):
            target.write(chunk)
        else:
            target.seek(len(chunk), os.SEEK_CUR)
    target.truncate()


def _xattrs(member: tarfile.TarInfo) -> Iterator[tuple[str, bytes]]:
    """The attributes that mean something in a sandbox and nothing outside: user.* but overlay's."""
    for key, value in member.pax_headers.items():
        name = key.removeprefix(_XATTR)
        if key != name and name.startswith("user.") and not name.startswith("user.overlay."):
            yield name, value.encode("utf-8", "surrogateescape")


def _confine(target: str) -> None:
    """Leave this process nothing but the target directory and its standard streams."""
    os.chdir(target)
    os.chroot(".")
    os.closerange(3, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    keep_capabilities((CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FOWNER, CAP_FSETID))
    set_no_new_privs()
    os.umask(0o022)


def _say(**words: str | int) -> None:
    sys.stdout.write(json.dumps(words) + "\n")
    sys.stdout.flush()


class _Reporter:
    """Says from time to time how much of the archive has been read."""

    def __init__(self) -> None:
        self._next = _REPORT_EVERY

    def __call__(self, count: int) -> None:
        if count >= self._next:
            self._next = count + _REPORT_EVERY
            _say(read=count)


def _unpack(blob: IO[bytes]) -> None:
    compressed = _Hashing(blob, _Reporter())
    buffered = io.BufferedReader(compressed, _CHUNK)
    plain = _Hashing(_decompressed(buffered), lambda _count: None)
    unpacker = _Unpacker()
    with tarfile.open(
        fileobj=io.BufferedReader(plain, _CHUNK), mode="r|", errorlevel=1, bufsize=_CHUNK
    ) as archive:
        unpacker.unpack(archive)
    diff_id = plain.hexdigest()
    if not plain.ends_as_an_archive():
        raise UnpackError("it ends without its end mark: it is truncated")
    _say(
        diff_id=diff_id,
        digest=compressed.hexdigest(),
        size=plain.count,
        entries=unpacker.entries,
        skipped_devices=unpacker.skipped_devices,
    )


def main() -> NoReturn:
    """Unpack standard input into the directory that is the only argument."""
    _confine(sys.argv[1])
    try:
        _unpack(sys.stdin.buffer)
    except (
        UnpackError,
        tarfile.TarError,
        EOFError,
        ValueError,
        lzma.LZMAError,
        zstandard.ZstdError,
        zlib.error,
    ) as error:
        _say(problem=str(error) or type(error).__name__)
        sys.exit(1)
    except OSError as error:
        problem = f"{error.strerror}: {error.filename or ''}"
        if error.errno in _HOST_ERRORS:
            _say(problem=problem, errno=error.errno)
        else:
            _say(problem=problem)
        sys.exit(1)
    sys.exit(0)


if __name__ == "__main__":
    main()

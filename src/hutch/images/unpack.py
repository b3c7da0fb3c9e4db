"""Unpack one layer's tar archive into a directory; run as `python -m hutch.images.unpack`.

What is in an archive is hostile: links that lead out, names with `..`, devices, bombs. So this
runs in a process of its own, confined to the directory (hutch.images.confinement): within, the
archive can only harm the layer that it is. Standard input is the archive; standard output gets
lines of JSON: progress, and last the result or the problem.

Once confined, the layer's files are where the interpreter's own were. So nothing may be imported
from then on, and no traceback be printed, which would read a source file, decode it with a codec
that the file names, and import that (`_seal_interpreter`).

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
import stat
import sys
import warnings
from collections.abc import Callable
from typing import IO, TYPE_CHECKING, NoReturn, cast

import zstandard

from hutch.images.confinement import MAX_ID, MAX_MEMORY, confine
from hutch.linux.tar import Kind, Member, TarError, TarReader
from hutch.linux.tree import make_directories, remove_tree

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

MAX_BYTES = 128 * 1024**3
MAX_DEPTH = 1024
MAX_RATIO = 1000
"""How many times larger than its blob an archive may be, beyond `FREE_OF_RATIO`: gzip's most."""
FREE_OF_RATIO = 1024**3
DISK_RESERVE = 1024**3
"""Bytes of the disk that are left free, or a twentieth of it if that is less."""

_CHUNK = 1024 * 1024
_HOST_ERRORS = frozenset(
    {
        errno.EACCES,
        errno.EDQUOT,
        errno.EIO,
        errno.EMFILE,
        errno.ENOMEM,
        errno.ENOSPC,
        errno.ENOSYS,
        errno.EPERM,
        errno.EROFS,
        errno.EUSERS,
    }
)
"""What this host could not do; whatever else a system call says is about the archive."""
_MAX_PROBLEM = 500
"""Characters said of a problem: names in archives are as long as they like."""
_REPORT_EVERY = 16 * 1024**2
_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"
_OVERLAY_OPAQUE = "user.overlay.opaque"


class _Counted(io.RawIOBase):
    """A stream that hashes and counts what is read through it."""

    def __init__(self, source: IO[bytes], on_read: Callable[[int], None]) -> None:
        self._source = source
        self._hash = hashlib.sha256()
        self._on_read = on_read
        self.count = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        view = memoryview(buffer)
        data = self._source.read(len(view))
        view[: len(data)] = data
        self._hash.update(data)
        self.count += len(data)
        self._on_read(self.count)
        return len(data)

    def hexdigest(self) -> str:
        """Read what is left, which may follow an archive's own end mark, and return the digest."""
        while self.read(_CHUNK):
            pass
        return f"sha256:{self._hash.hexdigest()}"


def _decompressed(source: io.BufferedReader[_Counted]) -> IO[bytes]:
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
    """Makes members below the current root directory."""

    def __init__(self, reader: TarReader) -> None:
        self._reader = reader
        self._times: list[tuple[str, int]] = []
        self.entries = 0
        self.skipped_devices = 0

    def unpack(self) -> None:
        for member in self._reader:
            self.entries += 1
            self._make(member)
        for path, mtime_ns in reversed(self._times):  # when nothing changes directories any more
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                os.utime(path, ns=(mtime_ns, mtime_ns), follow_symlinks=False)

    def _make(self, member: Member) -> None:
        path = _clean(member.name)
        parent, _, name = path.rpartition("/")
        if not (0 <= member.uid <= MAX_ID and 0 <= member.gid <= MAX_ID):
            raise TarError(f"{path!r} belongs to {member.uid}:{member.gid}, beyond {MAX_ID}")
        make_directories(parent)
        if name == _OPAQUE:
            os.setxattr(parent or "/", _OVERLAY_OPAQUE, b"y")
        elif name.startswith(_WHITEOUT):
            self._whiteout(f"{parent}/{name.removeprefix(_WHITEOUT)}")
        elif path == "/":
            self._attributes(path, member)
        else:
            self._entry(member, path)

    def _whiteout(self, path: str) -> None:
        if path.endswith(("/", "/.", "/..")):
            raise TarError("a whiteout names nothing")
        if not os.path.lexists(path):  # it hides what is below, not what this layer has itself
            os.mknod(path, stat.S_IFCHR, os.makedev(0, 0))

    def _entry(self, member: Member, path: str) -> None:
        match member.kind:
            case Kind.DIRECTORY:
                if os.path.islink(path) or not os.path.isdir(path):
                    _remove(path)
                    os.mkdir(path, 0o755)
            case Kind.HARD_LINK:
                return self._hard_link(member, path)
            case Kind.CHARACTER_DEVICE if member.device == (0, 0):
                return self._whiteout(path)  # as overlayfs itself has them
            case Kind.CHARACTER_DEVICE | Kind.BLOCK_DEVICE:
                self.skipped_devices += 1
                return None
            case Kind.SYMLINK:
                _remove(path)
                os.symlink(member.link, path)
            case Kind.FIFO:
                _remove(path)
                os.mkfifo(path, 0o600)
            case Kind.FILE:
                _remove(path)
                self._file(path)
        return self._attributes(path, member)

    def _hard_link(self, member: Member, path: str) -> None:
        target = _clean(member.link)
        if target == path:
            raise TarError(f"{path!r} is a hard link to itself")
        _remove(path)
        try:
            os.link(target, path, follow_symlinks=False)
        except OSError as error:
            raise TarError(
                f"{path!r} is a hard link to {target!r}, which the layer does not have before it"
            ) from error

    def _file(self, path: str) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(path, flags, 0o600)
        try:
            self._reader.copy_to(fd)
        finally:
            os.close(fd)

    def _attributes(self, path: str, member: Member) -> None:
        os.chown(path, member.uid, member.gid, follow_symlinks=False)
        if member.kind is not Kind.SYMLINK:
            os.chmod(path, member.mode)
            for name, value in member.xattrs.items():
                # What means something in a sandbox and nothing outside.
                if name.startswith("user.") and not name.startswith("user.overlay."):
                    os.setxattr(path, name, value, follow_symlinks=False)
        if member.kind is Kind.DIRECTORY:
            self._times.append((path, member.mtime_ns))
        else:
            os.utime(path, ns=(member.mtime_ns, member.mtime_ns), follow_symlinks=False)


def _clean(name: str) -> str:
    """Return an archive's name as an absolute path of the layer."""
    parts = [part for part in name.split("/") if part not in {"", "."}]
    if ".." in parts:
        raise TarError(f"{name!r} leads out of the layer")
    if len(parts) > MAX_DEPTH:
        raise TarError(f"{name[:80]!r}… is more than {MAX_DEPTH} directories deep")
    return "/" + "/".join(parts)


def _remove(path: str) -> None:
    """Remove what an earlier member of the layer has made there."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    except IsADirectoryError:
        fd = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            remove_tree(fd, os.path.basename(path))
        finally:
            os.close(fd)


class _Bounds:
    """Stops an archive that is a bomb, or larger than the disk."""

    def __init__(self, compressed: _Counted) -> None:
        self._compressed = compressed

    def __call__(self, count: int) -> None:
        if count > MAX_BYTES:
            raise TarError(f"it is larger than {MAX_BYTES} bytes")
        if count > FREE_OF_RATIO + MAX_RATIO * self._compressed.count:
            raise TarError(f"it is a bomb: more than {MAX_RATIO} times larger than its blob")
        disk = os.statvfs("/")
        reserve = min(DISK_RESERVE, disk.f_blocks * disk.f_frsize // 20)
        if disk.f_bavail * disk.f_frsize < reserve:
            raise OSError(errno.ENOSPC, f"less than {reserve} bytes of the disk are free")


class _Reporter:
    """Says from time to time how much of the archive has been read."""

    def __init__(self) -> None:
        self._next = _REPORT_EVERY

    def __call__(self, count: int) -> None:
        if count >= self._next:
            self._next = count + _REPORT_EVERY
            _say(read=count)


def _say(**words: str | int) -> None:
    line = json.dumps(words).encode() + b"\n"
    while line:
        line = line[os.write(1, line) :]


def _unpack(blob: IO[bytes]) -> None:
    compressed = _Counted(blob, _Reporter())
    buffered = io.BufferedReader(compressed, _CHUNK)
    plain = _Counted(_decompressed(buffered), _Bounds(compressed))
    unpacker = _Unpacker(TarReader(io.BufferedReader(plain, _CHUNK)))
    unpacker.unpack()
    _say(
        diff_id=plain.hexdigest(),
        digest=compressed.hexdigest(),
        size=plain.count,
        entries=unpacker.entries,
        skipped_devices=unpacker.skipped_devices,
    )


def _seal_interpreter() -> None:
    """Have the interpreter read no file of its own any more, whatever happens."""
    hashlib.sha256(b"")  # OpenSSL reads its configuration when it is first used
    warnings.simplefilter("ignore")
    sys.excepthook = lambda *_: None
    sys.unraisablehook = lambda *_: None
    for places in (sys.path, sys.path_hooks, sys.meta_path):
        places.clear()
    sys.path_importer_cache.clear()


def _tell(error: BaseException) -> None:
    """Say what went wrong, as the archive's problem or as the host's (then with an errno)."""
    problem = str(error) or type(error).__name__
    if isinstance(error, MemoryError):
        problem = f"it takes more than {MAX_MEMORY} bytes of memory to unpack"
    elif isinstance(error, OSError) and error.strerror:
        problem = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    if isinstance(error, OSError) and error.errno in _HOST_ERRORS:
        _say(problem=problem[:_MAX_PROBLEM], errno=error.errno)
    else:
        _say(problem=problem[:_MAX_PROBLEM])


def main() -> NoReturn:
    """Unpack standard input into the directory that is the only argument.

    Whatever is raised ends here, without a traceback: see above.
    """
    status = 1
    try:
        _seal_interpreter()
        confine(sys.argv[1])
        _unpack(sys.stdin.buffer)
        status = 0
    except BaseException as error:
        _tell(error.with_traceback(None))  # whose frames may hold all the memory there is
    finally:
        os._exit(status)


if __name__ == "__main__":
    main()

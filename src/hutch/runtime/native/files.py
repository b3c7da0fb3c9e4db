"""A running sandbox's files, served from the host through its init's root directory."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
import threading
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

from hutch.abc.runtime import Files
from hutch.errors import (
    DirectoryNotEmptyError,
    FileAccessError,
    FileConflictError,
    FileError,
    FileIsDirectoryError,
    FileMissingError,
    FileNotDirectoryError,
    FileTooLargeError,
    InvalidPathError,
    InvalidRequestError,
    NoSpaceError,
    NotRegularFileError,
    SandboxUnavailableError,
)
from hutch.linux.tree import disk_usage
from hutch.models import FileInfo, WriteReceipt
from hutch.runtime.native import paths
from hutch.runtime.native.copies import CopyRules, TargetError
from hutch.runtime.native.identity import MAX_ID, Accounts, acting_as
from hutch.runtime.native.moves import move

_CHUNK = 256 * 1024
_LARGE = 1024**2
_THREADS = 32
_AT_ONCE = 4  # of one sandbox: its long work leaves threads to others
_BY_ERRNO: dict[int, type[FileError]] = {
    errno.ENOENT: FileMissingError,
    errno.EISDIR: FileIsDirectoryError,
    errno.ENOTDIR: FileNotDirectoryError,
    errno.EACCES: FileAccessError,
    errno.EPERM: FileAccessError,
    errno.EROFS: FileAccessError,
    errno.EEXIST: FileConflictError,
    errno.ENOTEMPTY: DirectoryNotEmptyError,
    errno.EFBIG: FileTooLargeError,
    errno.ENXIO: NotRegularFileError,
    errno.ENODEV: NotRegularFileError,
    errno.ELOOP: InvalidPathError,
    errno.ENAMETOOLONG: InvalidPathError,
    errno.EINVAL: InvalidPathError,
    errno.EXDEV: InvalidPathError,
    errno.ENOSPC: NoSpaceError,
    errno.EDQUOT: NoSpaceError,
}

T = TypeVar("T")


class FileThreads:
    """Threads of a runtime whose credentials come and go; nothing else runs on them."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(_THREADS, thread_name_prefix="hutch-files")

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Let blocking file work begin as soon as there is a thread."""
        return self._executor.submit(work)

    def close(self) -> None:
        """Wait for what runs, and end. Idempotent."""
        self._executor.shutdown()


class _Share:
    """What one sandbox has of the threads: a few at once, the rest of its work waits."""

    def __init__(self, threads: FileThreads) -> None:
        self._threads = threads
        self._free = asyncio.Semaphore(_AT_ONCE)

    async def run(
        self,
        work: Callable[[], T],
        *,
        abandon: Callable[[], None] | None = None,
        discard: Callable[[T], None] | None = None,
    ) -> T:
        """Run blocking file work.

        When the caller is cancelled, `abandon` is called; the work goes on until it heeds that,
        and its result goes to `discard`.
        """
        await self._free.acquire()
        future = self._threads.submit(work)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if abandon is not None:
                abandon()
            if discard is not None:
                future.add_done_callback(lambda done: _discard(done, discard))
            raise
        finally:
            self._release_after(future)

    def _release_after(self, future: Future[T]) -> None:
        if future.done():
            self._free.release()
            return
        loop = asyncio.get_running_loop()
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._free.release))

    async def close(self, close: Callable[[], None]) -> None:
        """Close what work may still use, without waiting for the sandbox's other work."""
        try:
            future = self._threads.submit(close)
        except RuntimeError:  # the threads have ended, and with them what used it
            close()
            return
        await asyncio.shield(asyncio.wrap_future(future))


def _discard(done: Future[T], discard: Callable[[T], None]) -> None:
    if not done.cancelled() and done.exception() is None:
        discard(done.result())


@contextlib.contextmanager
def translated(path: str) -> Iterator[None]:
    """Turn an OSError about `path` into the FileError for it."""
    try:
        yield
    except FileError:
        raise
    except OSError as error:
        kind = _BY_ERRNO.get(error.errno or 0, FileError)
        raise kind(path, error.strerror or str(error)) from error


class _Errand:
    """Long work for one caller, and whether it is of use any more; asked on its thread."""

    def __init__(self, check_alive: Callable[[], None]) -> None:
        self._abandoned = False
        self._check_alive = check_alive

    def abandon(self) -> None:
        """Let the work end: nobody waits for it."""
        self._abandoned = True

    def check(self) -> None:
        """Raise if the caller has gone or the sandbox has ended."""
        if self._abandoned:
            raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))
        self._check_alive()

    def check_alive(self) -> None:
        """Raise if the sandbox has ended."""
        self._check_alive()


class _Reader:
    """A file that is read on threads; closing waits for a thread that still reads."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lock = threading.Lock()
        """Guards the descriptor: it is not closed while it is used."""

    def read(self, offset: int) -> bytes:
        with self._lock:
            return os.pread(self._fd, _CHUNK, offset)

    def close(self) -> None:
        """Idempotent."""
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1


class NativeFiles(Files):
    """The files of one running sandbox.

    Args:
        pid: its init's.
        is_alive: whether that pid still is its init.
        uid_base: the host uid that is root inside.
    """

    def __init__(
        self,
        sandbox_id: str,
        pid: int,
        is_alive: Callable[[], bool],
        *,
        uid_base: int,
        threads: FileThreads,
    ) -> None:
        self._sandbox_id = sandbox_id
        self._pid = pid
        self._is_alive = is_alive
        self._uid_base = uid_base
        self._share = _Share(threads)
        self._accounts = Accounts()

    def _check_alive(self) -> None:
        if not self._is_alive():
            raise SandboxUnavailableError(self._sandbox_id, "it ended")

    @contextlib.contextmanager
    def _as_user(self, user: str) -> Iterator[int]:
        """Hold the sandbox's root directory and act as `user`. On a file thread only."""
        flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
        try:
            root_fd = os.open(f"/proc/{self._pid}/root", flags)
        except OSError as error:
            raise SandboxUnavailableError(self._sandbox_id, "it ended") from error
        try:
            self._check_alive()  # after the open: the pid was its init's all along
            with acting_as(self._accounts.lookup(root_fd, user), self._uid_base):
                yield root_fd
        except (OSError, FileError) as error:
            if self._is_alive():
                raise
            raise SandboxUnavailableError(self._sandbox_id, "it ended meanwhile") from error
        finally:
            os.close(root_fd)

    async def _do(
        self,
        path: str,
        user: str,
        work: Callable[[int, bytes], T],
        *,
        abandon: Callable[[], None] | None = None,
        discard: Callable[[T], None] | None = None,
    ) -> T:
        def run() -> T:
            with translated(path):
                encoded = paths.encode(path)
                with self._as_user(user) as root_fd:
                    return work(root_fd, encoded)

        return await self._share.run(run, abandon=abandon, discard=discard)

    async def open_read(self, path: str, *, user: str, offset: int = 0) -> AsyncIterator[bytes]:
        reader = _Reader(await self._do(path, user, paths.open_regular, discard=os.close))
        try:
            while True:
                self._check_alive()
                with translated(path):
                    chunk = await self._share.run(partial(reader.read, offset))
                if not chunk:
                    return
                offset += len(chunk)
                yield chunk
        finally:
            await self._share.close(reader.close)

    async def read(self, path: str, *, user: str, max_bytes: int) -> bytes:
        def read(root_fd: int, encoded: bytes) -> bytes:
            fd = paths.open_regular(root_fd, encoded)
            try:
                return _read_all(fd, path, max_bytes)
            finally:
                os.close(fd)

        return await self._do(path, user, read)

    async def write(
        self, path: str, data: bytes | AsyncIterable[bytes], *, user: str, mode: int | None = None
    ) -> WriteReceipt:
        if isinstance(data, bytes):
            return await self._write_at_once(path, data, user, mode)
        discard = paths.Replacement.close
        replacement = await self._do(path, user, paths.Replacement, discard=discard)
        digest = hashlib.sha256()
        size = 0
        try:
            async for chunk in data:
                piece = _as_bytes(chunk)
                size += len(piece)
                self._check_alive()
                await self._share.run(partial(_append, path, replacement, piece, digest))
            await self._do(path, user, lambda *_: replacement.commit(mode))
        finally:
            await self._share.close(replacement.close)
        return WriteReceipt(path, size, digest.hexdigest())

    async def _write_at_once(
        self, path: str, data: bytes, user: str, mode: int | None
    ) -> WriteReceipt:
        def write(root_fd: int, encoded: bytes) -> None:
            replacement = paths.Replacement(root_fd, encoded)
            try:
                replacement.append(data)
                replacement.commit(mode)
            finally:
                replacement.close()

        if len(data) < _LARGE:
            await self._do(path, user, write)
            digest = hashlib.sha256(data)
        else:  # hashing takes longer than writing: side by side
            writing = self._do(path, user, write)
            _, digest = await asyncio.gather(writing, asyncio.to_thread(hashlib.sha256, data))
        return WriteReceipt(path, len(data), digest.hexdigest())

    async def stat(self, path: str, *, user: str, follow: bool = True) -> FileInfo:
        return await self._do(
            path,
            user,
            lambda root, encoded: paths.stat_path(
                root, encoded, follow=follow, uid_base=self._uid_base
            ),
        )

    async def list_dir(self, path: str, *, user: str, limit: int) -> list[FileInfo]:
        return await self._do(
            path,
            user,
            lambda root, encoded: paths.list_directory(
                root, encoded, uid_base=self._uid_base, limit=limit
            ),
        )

    async def measure(self, top: Path) -> int:
        """Return the bytes that a directory of the host's, full of the sandbox's files, takes."""
        return await self._share.run(partial(disk_usage, top))

    async def make_workdir(self, path: str, owner: str) -> None:
        """Make a directory and the parents it lacks, for a user; what is there already stays."""

        def make(root_fd: int, encoded: bytes) -> None:
            with contextlib.suppress(FileNotFoundError):
                os.close(paths.open_existing(root_fd, encoded, os.O_PATH))
                return
            identity = self._accounts.lookup(root_fd, owner)
            paths.make_directories(root_fd, encoded, 0o755)
            with paths.opened(root_fd, encoded, os.O_RDONLY | os.O_DIRECTORY) as fd:
                os.fchown(fd, self._uid_base + identity.uid, self._uid_base + identity.gid)

        await self._do(path, "0", make)

    async def real_path(self, path: str, *, user: str) -> str:
        return await self._do(path, user, paths.real_path)

    async def mkdir(self, path: str, *, user: str, parents: bool = True, mode: int = 0o755) -> None:
        make = paths.make_directories if parents else paths.make_directory
        await self._do(path, user, lambda root, encoded: make(root, encoded, mode))

    async def move(self, source: str, target: str, *, user: str) -> None:
        with translated(target):
            encoded_target = paths.encode(target)
        errand = _Errand(self._check_alive)
        ids = range(self._uid_base, self._uid_base + MAX_ID + 1)
        rules = CopyRules(check=errand.check, ids=ids)

        def work(root_fd: int, encoded: bytes) -> None:
            try:
                move(root_fd, encoded, encoded_target, rules, check_committed=errand.check_alive)
            except TargetError:
                with translated(target):
                    raise

        await self._do(source, user, work, abandon=errand.abandon)

    async def remove(self, path: str, *, user: str, recursive: bool = False) -> None:
        errand = _Errand(self._check_alive)
        await self._do(
            path,
            user,
            lambda root, encoded: paths.remove(
                root, encoded, recursive=recursive, check=errand.check
            ),
            abandon=errand.abandon,
        )


def _read_all(fd: int, path: str, max_bytes: int) -> bytes:
    size = os.fstat(fd).st_size
    if size > max_bytes:
        raise FileTooLargeError(
            path,
            f"has {size} bytes, of which at most {max_bytes} are read at once",
            hint="read it as a stream",
        )
    parts = []
    left = max_bytes + 1
    while left > 0 and (part := os.read(fd, min(left, max(size + 1, 4096)))):
        parts.append(part)
        left -= len(part)
    if left <= 0:
        raise FileTooLargeError(path, f"grew beyond {max_bytes} bytes while it was read")
    return b"".join(parts)


def _as_bytes(chunk: object) -> bytes:
    if not isinstance(chunk, bytes | bytearray | memoryview):
        raise InvalidRequestError("data", f"a stream of bytes gave {type(chunk).__name__}")
    return bytes(chunk)


def _append(path: str, replacement: paths.Replacement, piece: bytes, digest: hashlib._Hash) -> None:
    with translated(path):
        replacement.append(piece)
    digest.update(piece)

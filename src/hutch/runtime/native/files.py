"""A running sandbox's files, served from the host through its init's root directory."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
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
    NoSpaceError,
    NotRegularFileError,
    SandboxUnavailableError,
)
from hutch.models import FileInfo, WriteReceipt
from hutch.runtime.native import paths
from hutch.runtime.native.identity import acting_as, lookup

_CHUNK = 256 * 1024
_THREADS = 16
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

    async def run(self, work: Callable[[], T], discard: Callable[[T], None] | None = None) -> T:
        """Run blocking file work.

        When the caller is cancelled the work goes on, and its result goes to `discard`.
        """
        future = self._executor.submit(work)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if discard is not None:
                future.add_done_callback(lambda done: _discard(done, discard))
            raise

    def close(self) -> None:
        """Wait for what runs, and end. Idempotent."""
        self._executor.shutdown()


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
        self._threads = threads

    @contextlib.contextmanager
    def _as_user(self, user: str) -> Iterator[int]:
        """Hold the sandbox's root directory and act as `user`. On a file thread only."""
        flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
        try:
            root_fd = os.open(f"/proc/{self._pid}/root", flags)
        except OSError as error:
            raise SandboxUnavailableError(self._sandbox_id, "it ended") from error
        try:
            if not self._is_alive():  # checked after the open: the pid was its init's all along
                raise SandboxUnavailableError(self._sandbox_id, "it ended")
            with acting_as(lookup(root_fd, user), self._uid_base):
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
        discard: Callable[[T], None] | None = None,
    ) -> T:
        def run() -> T:
            with translated(path):
                encoded = paths.encode(path)
                with self._as_user(user) as root_fd:
                    return work(root_fd, encoded)

        return await self._threads.run(run, discard)

    async def open_read(self, path: str, *, user: str, offset: int = 0) -> AsyncIterator[bytes]:
        fd = await self._do(path, user, paths.open_regular, os.close)
        try:
            while True:
                with translated(path):
                    chunk = await self._threads.run(partial(os.pread, fd, _CHUNK, offset))
                if not chunk:
                    return
                offset += len(chunk)
                yield chunk
        finally:
            os.close(fd)

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
        replacement = await self._do(path, user, paths.Replacement, paths.Replacement.close)
        digest = hashlib.sha256()
        size = 0
        try:
            async for chunk in data:
                size += len(chunk)
                await self._threads.run(lambda: _append(path, replacement.fd, chunk, digest))  # noqa: B023  # awaited at once
            await self._do(path, user, lambda *_: replacement.commit(mode))
        finally:
            await asyncio.shield(self._threads.run(replacement.close))
        return WriteReceipt(path, size, digest.hexdigest())

    async def _write_at_once(
        self, path: str, data: bytes, user: str, mode: int | None
    ) -> WriteReceipt:
        def write(root_fd: int, encoded: bytes) -> WriteReceipt:
            replacement = paths.Replacement(root_fd, encoded)
            try:
                _write_all(replacement.fd, data)
                replacement.commit(mode)
            finally:
                replacement.close()
            return WriteReceipt(path, len(data), hashlib.sha256(data).hexdigest())

        return await self._do(path, user, write)

    async def stat(self, path: str, *, user: str, follow: bool = True) -> FileInfo:
        return await self._do(
            path,
            user,
            lambda root, encoded: paths.stat_path(
                root, encoded, follow=follow, uid_base=self._uid_base
            ),
        )

    async def list_dir(self, path: str, *, user: str) -> list[FileInfo]:
        return await self._do(
            path,
            user,
            lambda root, encoded: paths.list_directory(root, encoded, uid_base=self._uid_base),
        )

    async def real_path(self, path: str, *, user: str) -> str:
        return await self._do(path, user, paths.real_path)

    async def mkdir(self, path: str, *, user: str, parents: bool = True, mode: int = 0o755) -> None:
        make = paths.make_directories if parents else paths.make_directory
        await self._do(path, user, lambda root, encoded: make(root, encoded, mode))

    async def move(self, source: str, target: str, *, user: str) -> None:
        with translated(target):
            encoded_target = paths.encode(target)
        await self._do(
            source, user, lambda root, encoded: paths.move(root, encoded, encoded_target)
        )

    async def remove(self, path: str, *, user: str, recursive: bool = False) -> None:
        await self._do(
            path, user, lambda root, encoded: paths.remove(root, encoded, recursive=recursive)
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


def _write_all(fd: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(fd, left) :]


def _append(path: str, fd: int, chunk: bytes, digest: hashlib._Hash) -> None:
    with translated(path):
        _write_all(fd, chunk)
    digest.update(chunk)

"""Files of sandboxes, and trees of them as archives."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator
from contextlib import asynccontextmanager

from hutch.abc.runtime import Instance
from hutch.engine.access import absolute
from hutch.engine.commands import CommandOperations
from hutch.errors import FileError, FileNotDirectoryError, InvalidPathError, InvalidRequestError
from hutch.models import FileInfo, FileType, MessageType, WriteReceipt


class FileOperations(CommandOperations):
    """The engine's files; trees are packed and unpacked by commands."""

    @asynccontextmanager
    async def _files(
        self, sandbox_id: str, path: str, user: str | None
    ) -> AsyncIterator[tuple[Instance, str, str]]:
        """Give the instance, the absolute path, and the user; errors say `path` as it was given."""
        record, instance = await self._running(sandbox_id)
        if not isinstance(path, str):
            raise InvalidRequestError("path", "must be text")
        if not path:
            raise InvalidPathError(path, "a path is not empty")
        where = absolute(path, record.spec.workdir)
        try:
            yield instance, where, user or record.spec.user
        except FileError as error:
            if error.path == where:
                error.path = path
            raise

    async def read_file(self, sandbox_id: str, path: str, *, user: str | None = None) -> bytes:
        """Return a regular file's content. A relative path is below the sandbox's workdir.

        Raises:
            FileError: by kind; `FileTooLargeError` beyond the setting `read_limit`.
        """
        async with self._files(sandbox_id, path, user) as (instance, where, who):
            limit = self.settings.read_limit
            return await instance.files.read(where, user=who, max_bytes=limit)

    async def read_file_stream(
        self, sandbox_id: str, path: str, *, user: str | None = None, offset: int = 0
    ) -> AsyncIterator[bytes]:
        """Yield a regular file's content in chunks, of whatever size it is."""
        async with self._files(sandbox_id, path, user) as (instance, where, who):
            async for chunk in instance.files.open_read(where, user=who, offset=offset):
                yield chunk

    async def write_file(
        self,
        sandbox_id: str,
        path: str,
        data: bytes | bytearray | memoryview | str | AsyncIterable[bytes],
        *,
        user: str | None = None,
        mode: int | None = None,
    ) -> WriteReceipt:
        """Put a file in place in one step, as `user`; missing parent directories are made.

        Readers see the old content or the new. `data` may be a stream of any size. Only where
        the user may write the file but not its directory, the file is rewritten: once all of
        `data` is there, but not in one step.
        """
        content = _content(data)
        async with self._files(sandbox_id, path, user) as (instance, where, who):
            return await instance.files.write(where, content, user=who, mode=mode)

    async def list_dir(
        self, sandbox_id: str, path: str = ".", *, user: str | None = None
    ) -> list[FileInfo]:
        """Describe a directory's entries, sorted by name.

        Raises:
            FileError: by kind; `FileTooLargeError` beyond the setting `list_limit`.
        """
        async with self._files(sandbox_id, path, user) as (instance, where, who):
            limit = self.settings.list_limit
            return await instance.files.list_dir(where, user=who, limit=limit)

    async def stat(
        self, sandbox_id: str, path: str, *, user: str | None = None, follow: bool = True
    ) -> FileInfo:
        """Describe one file; with `follow`, what a symlink leads to."""
        async with self._files(sandbox_id, path, user) as (instance, where, who):
            return await instance.files.stat(where, user=who, follow=follow)

    async def real_path(self, sandbox_id: str, path: str, *, user: str | None = None) -> str:
        """Resolve symlinks: the canonical path of an existing file."""
        async with self._files(sandbox_id, path, user) as (instance, where, who):
            return await instance.files.real_path(where, user=who)

    async def mkdir(
        self, sandbox_id: str, path: str, *, user: str | None = None, parents: bool = True
    ) -> None:
        """Make a directory; with `parents`, those above too, and an existing one is fine."""
        async with self._files(sandbox_id, path, user) as (instance, where, who):
            await instance.files.mkdir(where, user=who, parents=parents)

    async def move(
        self, sandbox_id: str, source: str, target: str, *, user: str | None = None
    ) -> None:
        """Rename as rename(2) does: a file or an empty directory at `target` is replaced.

        Between filesystems, and for directories of the image, it copies. A call that fails or is
        cancelled leaves both as they were; it may take effect when it is cancelled late.
        """
        async with (
            self._files(sandbox_id, source, user) as (instance, where, who),
            self._files(sandbox_id, target, user) as (_, destination, _),
        ):
            await instance.files.move(where, destination, user=who)

    async def remove_file(
        self, sandbox_id: str, path: str, *, user: str | None = None, recursive: bool = False
    ) -> None:
        """Remove a file, an empty directory, or with `recursive` a whole tree."""
        async with self._files(sandbox_id, path, user) as (instance, where, who):
            await instance.files.remove(where, user=who, recursive=recursive)

    async def read_tree(
        self, sandbox_id: str, path: str, *, user: str | None = None
    ) -> AsyncIterator[bytes]:
        """Yield a directory's content as a tar archive, made inside the sandbox.

        Raises:
            FileMissingError, FileNotDirectoryError: there is no such directory.
            FileError: tar refused; the message is its own.
        """
        info = await self.stat(sandbox_id, path, user=user)
        if info.type is not FileType.DIRECTORY:
            raise FileNotDirectoryError(path)
        argv = ["tar", "-C", path, "-cf", "-", "."]
        errors = bytearray()
        async with self.exec_stream(sandbox_id, argv, user=user) as stream:
            async for message in stream:
                if message.type is MessageType.STDOUT:
                    yield message.data
                elif message.type is MessageType.STDERR:
                    errors += message.data[: 4096 - len(errors)]
                elif message.data != b"0":
                    raise FileError(path, errors.decode(errors="replace").strip())

    async def write_tree(
        self,
        sandbox_id: str,
        path: str,
        archive: AsyncIterable[bytes],
        *,
        user: str | None = None,
    ) -> None:
        """Unpack a tar archive, inside the sandbox, below a directory that is made if missing.

        Raises:
            FileError: tar refused; the message is its own.
        """
        await self.mkdir(sandbox_id, path, user=user)
        argv = ["tar", "-C", path, "-xf", "-"]
        result = await self.exec(sandbox_id, argv, user=user, stdin=archive, output_limit=4096)
        if result.exit_code != 0:
            raise FileError(path, result.stderr.strip() or f"tar ended with {result.exit_code}")


def _content(data: object) -> bytes | AsyncIterable[bytes]:
    match data:
        case bytes() | bytearray() | memoryview():
            return bytes(data)
        case str():
            try:
                return data.encode()
            except UnicodeEncodeError as error:
                raise InvalidRequestError("data", "has lone surrogates") from error
        case AsyncIterable():
            return data
    raise InvalidRequestError("data", "must be bytes, text or an async iterable of bytes")

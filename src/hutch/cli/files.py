"""Copying files and trees into and out of sandboxes.

A tree comes out of a sandbox into a fresh directory that is moved to its place as a whole.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import sys
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Annotated, cast

import typer

from hutch.cli.session import find_sandbox, run
from hutch.cli.transfer import metered, size_here, size_inside
from hutch.cli.untar import untar
from hutch.engine.engine import Engine
from hutch.errors import FileError, FileMissingError, InvalidRequestError
from hutch.linux.holes import write_with_holes
from hutch.linux.tree import remove_tree
from hutch.models import FileType

_CHUNK = 1024 * 1024
_LOOK_AGAIN_S = 0.05


def cp(
    source: Annotated[str, typer.Argument(metavar="SOURCE")],
    target: Annotated[str, typer.Argument(metavar="TARGET")],
    user: Annotated[str | None, typer.Option("-u", "--user", help="As whom, inside.")] = None,
) -> None:
    """Copy files and trees: one of SOURCE and TARGET is ID:PATH, the other a path here.

    A target that is a directory gets the source inside it. `-` is a tar archive on standard
    input or output.
    """

    async def body(engine: Engine) -> None:
        inside_from, inside_to = _split(source), _split(target)
        if (inside_from is None) == (inside_to is None):
            raise InvalidRequestError(
                "cp", "one of the two must be in a sandbox", hint="hutch cp a.txt ID:/tmp/"
            )
        if inside_from is not None:
            sandbox_id, path = await find_sandbox(engine, inside_from[0]), inside_from[1]
            _check_target(target)
            with metered(engine, await size_inside(engine, sandbox_id, path, user)) as counting:
                await _Download(counting, sandbox_id, user).copy(path, target)
        elif inside_to is not None:
            sandbox_id = await find_sandbox(engine, inside_to[0])
            with metered(engine, size_here(source)) as counting:
                await _Upload(counting, sandbox_id, user).copy(source, inside_to[1])

    run(body)


def _check_target(target: str) -> None:
    """Find out before anything is fetched that there is no place for it.

    Raises:
        FileMissingError: its directory does not exist.
    """
    directory = os.path.dirname(target) or "."
    if target != "-" and not os.path.isdir(directory):
        raise FileMissingError(directory)


def _split(argument: str) -> tuple[str, str] | None:
    """ID and path of what is in a sandbox; None for a path here: `./a:b` is one."""
    name, colon, path = argument.partition(":")
    if not colon or "/" in name or name in {"", "."}:
        return None
    return name, path or "."


class _Upload:
    def __init__(self, engine: Engine, sandbox_id: str, user: str | None) -> None:
        self._engine = engine
        self._id = sandbox_id
        self._user = user

    async def copy(self, source: str, target: str) -> None:
        if source == "-":
            await self._engine.write_tree(self._id, target, _read_archive(), user=self._user)
            return
        path = Path(source)
        if path.is_dir():
            inside = await self._inside(target, path.resolve().name)
            await self._engine.write_tree(self._id, inside, _make_archive(path), user=self._user)
        elif path.is_file():
            mode = path.stat().st_mode & 0o777
            await self._engine.write_file(
                self._id,
                await self._inside(target, path.name),
                _read_file(path),
                user=self._user,
                mode=mode,
            )
        else:
            raise InvalidRequestError("cp", f"{source} is no file or directory")

    async def _inside(self, target: str, name: str) -> str:
        """The target itself, or below it if it is a directory."""
        if target.endswith("/"):
            return f"{target}{name}"
        with contextlib.suppress(FileError):
            if (
                await self._engine.stat(self._id, target, user=self._user)
            ).type is FileType.DIRECTORY:
                return f"{target}/{name}"
        return target


class _Download:
    def __init__(self, engine: Engine, sandbox_id: str, user: str | None) -> None:
        self._engine = engine
        self._id = sandbox_id
        self._user = user

    async def copy(self, source: str, target: str) -> None:
        info = await self._engine.stat(self._id, source, user=self._user)
        if target == "-":
            await self._to_stdout(source)
            return
        name = os.path.basename(await self._engine.real_path(self._id, source, user=self._user))
        place = Path(target)
        if place.is_dir() or target.endswith("/"):
            place = place / (name or "root")
        if info.type is FileType.DIRECTORY:
            await self._tree(source, place)
        else:
            await self._file(source, place, info.mode & 0o777)

    async def _to_stdout(self, source: str) -> None:
        async for chunk in self._engine.read_tree(self._id, source, user=self._user):
            await asyncio.to_thread(sys.stdout.buffer.write, chunk)
        sys.stdout.buffer.flush()

    async def _file(self, source: str, place: Path, mode: int) -> None:
        async with _closing(
            self._engine.read_file_stream(self._id, source, user=self._user)
        ) as chunks:
            if place.exists() and not place.is_file():
                await _write_into(chunks, place)
            else:
                await _replace(chunks, _followed(place), mode)

    async def _tree(self, source: str, place: Path) -> None:
        if os.path.lexists(place):
            raise InvalidRequestError("cp", f"{place} exists already")
        workspace = Path(await asyncio.to_thread(tempfile.mkdtemp, dir=place.parent))
        try:
            async with _closing(
                self._engine.read_tree(self._id, source, user=self._user)
            ) as chunks:
                await _unpack(chunks, workspace / "tree")
            await asyncio.to_thread((workspace / "tree").rename, place)
        finally:
            await asyncio.to_thread(_remove, workspace)


def _closing(
    chunks: AsyncIterator[bytes],
) -> contextlib.aclosing[AsyncGenerator[bytes, None]]:
    """End a stream of the engine's, which is a generator, where its reader ends."""
    return contextlib.aclosing(cast("AsyncGenerator[bytes, None]", chunks))


def _followed(place: Path) -> Path:
    """Where a symlink leads to in the end, which need not exist."""
    if not place.is_symlink():
        return place
    followed = Path(os.path.realpath(place))
    if followed.is_symlink():
        raise InvalidRequestError("cp", f"{place} is a symlink that leads in a circle")
    return followed


async def _replace(chunks: AsyncIterator[bytes], place: Path, mode: int) -> None:
    """Write beside the place, then rename: the old file or the whole new one."""
    fd, temporary = await asyncio.to_thread(tempfile.mkstemp, dir=place.parent)
    try:
        os.fchmod(fd, mode)
        size = 0
        async for chunk in chunks:
            await asyncio.to_thread(write_with_holes, fd, chunk, size)
            size += len(chunk)
        await asyncio.to_thread(os.ftruncate, fd, size)
        await asyncio.to_thread(os.replace, temporary, place)
    except BaseException:
        os.unlink(temporary)
        raise
    finally:
        os.close(fd)


async def _write_into(chunks: AsyncIterator[bytes], place: Path) -> None:
    """Write into a device or FIFO, as cp(1) does: what it is stays."""
    fd = await _open_special(place)
    with os.fdopen(fd, "wb", buffering=0) as file:
        async for chunk in chunks:
            rest = memoryview(chunk)
            while rest:
                rest = rest[await asyncio.to_thread(file.write, rest) or 0 :]


async def _open_special(place: Path) -> int:
    """Open what is no regular file for writing; a FIFO is waited for until somebody reads it."""
    flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    while True:
        try:
            fd = os.open(place, flags)
        except OSError as error:
            if error.errno != errno.ENXIO or not place.is_fifo():
                raise FileError(str(place), error.strerror or "") from error
            await asyncio.sleep(_LOOK_AGAIN_S)
        else:
            os.set_blocking(fd, True)
            return fd


async def _unpack(chunks: AsyncIterator[bytes], target: Path) -> None:
    """Unpack an archive as it comes: it goes through a pipe to a thread."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    unpacking = asyncio.create_task(asyncio.to_thread(_untar, reader, target))
    try:
        async for chunk in chunks:
            await _write_nonblocking(writer, chunk)
    except BrokenPipeError:
        pass  # the thread has ended, and says why
    finally:
        os.close(writer)
        await asyncio.gather(unpacking, return_exceptions=True)
    await unpacking


def _untar(reader: int, target: Path) -> None:
    with os.fdopen(reader, "rb") as archive:
        untar(archive, target)


async def _write_nonblocking(fd: int, data: bytes) -> None:
    loop = asyncio.get_running_loop()
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(fd, rest) :]
        except BlockingIOError:
            writable = asyncio.Event()
            loop.add_writer(fd, writable.set)
            try:
                await writable.wait()
            finally:
                loop.remove_writer(fd)


def _remove(workspace: Path) -> None:
    """Remove what is left of an archive that was refused, however deep it is."""
    fd = os.open(workspace.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        remove_tree(fd, workspace.name)
    finally:
        os.close(fd)


async def _read_file(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while chunk := await asyncio.to_thread(file.read, _CHUNK):
            yield chunk


async def _read_archive() -> AsyncIterator[bytes]:
    from hutch.cli.stdio import read_stdin

    async for chunk in read_stdin():
        yield chunk


async def _make_archive(path: Path) -> AsyncIterator[bytes]:
    """Pack a tree here; owners are left to whoever unpacks it."""
    process = await asyncio.create_subprocess_exec(
        "tar", "-C", path, "-cf", "-", ".", stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        while chunk := await process.stdout.read(_CHUNK):
            yield chunk
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()
        raise
    status = await process.wait()
    if status != 0:
        raise FileError(str(path), f"tar ended with {status}")

"""Detached commands: what their supervisors keep in files, and their control sockets.

The log and its index are written by the supervisor alone, in the order: index entry, then the
output it describes; so every byte of the log belongs to the last entry at or before it. The exit
record is one write. Hence everything here is right whichever engine reads it, and after all of
them have died.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from hutch.abc.runtime import Commands, LogChunk
from hutch.errors import CommandNotFoundError, ConflictError
from hutch.linux.inotify import Watch
from hutch.models import (
    Command,
    CommandStatus,
    ExecOptions,
    ExitReason,
    ExitStatus,
    TerminalSize,
)
from hutch.runtime.native.layout import Layout
from hutch.runtime.native.process import OomCounter, exec_items, exit_status, start_program
from hutch.runtime.native.wire import (
    EXITED,
    INDEX_ENTRY,
    SIZE,
    Connection,
    ExecFlag,
    ExecTag,
    InitError,
    MessageType,
    u64,
)
from hutch.wire import time_from_json

_CHUNK = 65536
_STREAMS = {1: "stdout", 2: "stderr"}
_BACKLOG = 32
_STDIN_PIECE = 32 * 1024
_RECHECK_S = 1.0
"""How often a follower looks for a supervisor that died without a word."""
_LOST = ExitStatus(128 + signal.SIGKILL, ExitReason.LOST, signal.SIGKILL)


@dataclass(frozen=True, slots=True)
class _Meta:
    argv: tuple[str, ...]
    created_at: datetime
    oom_kills: int


def _names(top: Path) -> list[str]:
    return [path.name for path in top.iterdir()] if top.is_dir() else []


def _read_meta(directory: Path) -> _Meta:
    try:
        data = json.loads((directory / "meta.json").read_text())
    except FileNotFoundError as error:
        raise CommandNotFoundError(directory.name) from error
    argv = tuple(os.fsdecode(bytes.fromhex(argument)) for argument in data["argv"])
    return _Meta(argv, time_from_json(data["created_at"]), data["oom_kills"])


def _write_meta(directory: Path, meta: _Meta) -> None:
    data = {
        "argv": [os.fsencode(argument).hex() for argument in meta.argv],  # any bytes survive
        "created_at": meta.created_at.isoformat(),
        "oom_kills": meta.oom_kills,
    }
    (directory / "meta.json").write_text(json.dumps(data))


async def start_command(
    layout: Layout,
    sandbox_id: str,
    command_id: str,
    options: ExecOptions,
    *,
    log_limit: int,
    oom_kills: int,
    main: bool = False,
) -> bool:
    """Start a detached command in a running sandbox; False if its supervisor ended before that.

    Raises:
        ConflictError: there is one of that id.
        Others as `process.start_program` does; nothing is left then.
    """
    directory = layout.commands(sandbox_id) / command_id
    loop = asyncio.get_running_loop()
    meta = _Meta(options.argv, datetime.now(UTC), oom_kills)
    address = layout.control_socket(sandbox_id, command_id)
    fds = await loop.run_in_executor(None, _prepare, directory, address, meta)
    items = exec_items(options, ExecFlag.DETACHED | (ExecFlag.MAIN if main else ExecFlag(0)))
    items.append((ExecTag.LOG_LIMIT, u64(log_limit)))
    connection = None
    try:
        connection = await Connection.open(layout.init_socket(sandbox_id))
        return await start_program(connection, items, tuple(fds)) is not None
    except BaseException:
        await loop.run_in_executor(None, shutil.rmtree, directory, True)
        raise
    finally:
        for fd in fds:
            os.close(fd)
        if connection is not None:
            connection.close()


def _prepare(directory: Path, address: str, meta: _Meta) -> list[int]:
    """Make a command's files; return log, index, exit record and control socket."""
    try:
        directory.mkdir(mode=0o700)
    except FileExistsError as error:
        raise ConflictError(f"there is a command {directory.name} already") from error
    _write_meta(directory, meta)
    fds = [
        os.open(directory / name, os.O_WRONLY | os.O_CREAT | extra | os.O_CLOEXEC, 0o600)
        for name, extra in (("log", os.O_APPEND), ("index", os.O_APPEND), ("exit", 0))
    ]
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as control:
        control.bind(address)
        control.listen(_BACKLOG)
        fds.append(control.detach())
    return fds


class NativeCommands(Commands):
    """The detached commands of one sandbox.

    Args:
        oom_kills: how often the sandbox's processes were killed for lack of memory.
    """

    def __init__(self, layout: Layout, sandbox_id: str, oom_kills: OomCounter) -> None:
        self._layout = layout
        self._sandbox_id = sandbox_id
        self._oom_kills = oom_kills

    def _directory(self, command_id: str) -> Path:
        if not command_id or "/" in command_id or command_id.startswith("."):
            raise CommandNotFoundError(command_id)
        return self._layout.commands(self._sandbox_id) / command_id

    async def list(self) -> list[Command]:
        names = await asyncio.to_thread(_names, self._layout.commands(self._sandbox_id))
        commands = [await self.get(name) for name in names]
        return sorted(commands, key=lambda command: command.created_at)

    async def get(self, command_id: str) -> Command:
        directory = self._directory(command_id)
        found = await asyncio.to_thread(_read_files, directory)
        status = self._status(found.meta, found.exit)
        if status is None and not await self._is_running(command_id):
            found = await asyncio.to_thread(_read_files, directory)
            status = self._status(found.meta, found.exit) or _LOST
        return Command(
            id=command_id,
            sandbox_id=self._sandbox_id,
            argv=found.meta.argv,
            status=CommandStatus.RUNNING if status is None else CommandStatus.EXITED,
            created_at=found.meta.created_at,
            log_size=found.log_size,
            log_truncated=found.log_dropped > 0,
            exit=status,
        )

    def _status(self, meta: _Meta, body: bytes | None) -> ExitStatus | None:
        if body is None:
            return None
        return exit_status(body, lambda: self._oom_kills() > meta.oom_kills)

    async def _is_running(self, command_id: str) -> bool:
        try:
            connection = await self._open(command_id)
        except OSError:
            return False
        connection.close()
        return True

    async def _open(self, command_id: str) -> Connection:
        return await Connection.open(self._layout.control_socket(self._sandbox_id, command_id))

    @asynccontextmanager
    async def _control(self, command_id: str) -> AsyncIterator[Connection | None]:
        """Connect to the command's supervisor; None when the command is over."""
        await asyncio.to_thread(_read_meta, self._directory(command_id))
        try:
            connection = await self._open(command_id)
        except OSError:
            yield None
            return
        try:
            yield connection
        finally:
            connection.close()

    async def read_log(
        self, command_id: str, *, offset: int = 0, follow: bool
    ) -> AsyncIterator[LogChunk]:
        directory = self._directory(command_id)
        await asyncio.to_thread(_read_meta, directory)
        with Watch(directory / "log", directory / "exit") as watch:
            while True:
                over = not follow or (await self.get(command_id)).exit is not None
                while chunks := await asyncio.to_thread(_log_chunks, directory, offset):
                    for chunk in chunks:
                        yield chunk
                        offset = chunk.end_offset
                if over:
                    return
                await watch.wait(_RECHECK_S)

    async def wait(self, command_id: str) -> ExitStatus:
        async with self._control(command_id) as connection:
            while connection is not None and (message := await connection.receive()):
                if message.type is MessageType.EXITED:
                    break
        return (await self.get(command_id)).exit or _LOST

    async def write_stdin(self, command_id: str, data: bytes) -> None:
        async with self._control(command_id) as connection:
            for start in range(0, len(data), _STDIN_PIECE):
                piece = data[start : start + _STDIN_PIECE]
                await self._ask(connection, MessageType.STDIN_DATA, piece)

    async def close_stdin(self, command_id: str) -> None:
        async with self._control(command_id) as connection:
            if connection is not None:
                await self._ask(connection, MessageType.STDIN_CLOSE)

    async def _ask(
        self, connection: Connection | None, type_: MessageType, body: bytes = b""
    ) -> None:
        if connection is None:
            raise BrokenPipeError("the command is over")
        await connection.send(type_, body)
        while message := await connection.receive():
            if message.type is MessageType.OK:
                return
            if message.type is MessageType.ERROR:
                raise BrokenPipeError(str(InitError.parse(message.body)))
        raise BrokenPipeError("the command is over")

    async def signal(self, command_id: str, signum: int) -> None:
        await self._tell(command_id, MessageType.SIGNAL, struct.pack("=i", signum))

    async def kill(self, command_id: str) -> None:
        await self._tell(command_id, MessageType.KILL)

    async def resize(self, command_id: str, size: TerminalSize) -> None:
        await self._tell(command_id, MessageType.RESIZE, SIZE.pack(size.rows, size.columns))

    async def _tell(self, command_id: str, type_: MessageType, body: bytes = b"") -> None:
        async with self._control(command_id) as connection:
            if connection is not None:
                await connection.receive()  # its greeting: the supervisor now serves us
                await connection.send(type_, body)


@dataclass(frozen=True, slots=True)
class _Found:
    meta: _Meta
    exit: bytes | None
    log_size: int
    log_dropped: int


def _read_files(directory: Path) -> _Found:
    meta = _read_meta(directory)
    try:
        record = (directory / "exit").read_bytes()
        size = (directory / "log").stat().st_size
    except FileNotFoundError:  # its start was interrupted
        return _Found(meta, None, 0, 0)
    if len(record) < EXITED.size:
        return _Found(meta, None, size, 0)
    return _Found(meta, record, size, EXITED.unpack_from(record)[-1])


def _log_chunks(directory: Path, offset: int) -> list[LogChunk]:
    """Read what the log has from `offset` on, a bounded piece of it, split by stream."""
    with (directory / "log").open("rb") as log:
        log.seek(offset)
        data = log.read(_CHUNK)
    index = (directory / "index").read_bytes()
    whole = len(index) - len(index) % INDEX_ENTRY.size
    starts = [(entry[0], entry[1]) for entry in INDEX_ENTRY.iter_unpack(index[:whole])]
    chunks: list[LogChunk] = []
    end = offset + len(data)
    if not starts:
        return chunks
    for (start, stream), (following, _) in zip(starts, [*starts[1:], (end, 0)], strict=True):
        low, high = max(start, offset), min(following, end)
        if low < high:
            chunks.append(LogChunk(_STREAMS[stream], data[low - offset : high - offset], high))
    return chunks

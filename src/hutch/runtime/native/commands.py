"""Detached commands: started once, then found again by any engine, by their files and socket."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
import signal
import struct
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

from hutch.abc.runtime import Commands, Content, LogChunk
from hutch.errors import CommandNotFoundError, SandboxUnavailableError
from hutch.linux.inotify import Change, Watcher
from hutch.models import (
    Command,
    CommandStatus,
    ExecOptions,
    ExitReason,
    ExitStatus,
    TerminalSize,
)
from hutch.runtime.native import command_files
from hutch.runtime.native.command_files import EXIT, LOG, Kept
from hutch.runtime.native.layout import Layout
from hutch.runtime.native.process import OomCounter, exec_items, exit_status, start_program
from hutch.runtime.native.wire import (
    SIZE,
    Connection,
    ExecFlag,
    ExecTag,
    InitError,
    MessageType,
    is_listening,
    u64,
)
from hutch.wire import fingerprint

_STDIN_PIECE = 32 * 1024
_RECHECK_S = 1.0
"""How often a follower looks for a supervisor that died without a word."""
_LOST = ExitStatus(128 + signal.SIGKILL, ExitReason.LOST, signal.SIGKILL)

T = TypeVar("T")


async def start_command(
    layout: Layout,
    sandbox_id: str,
    command_id: str,
    options: ExecOptions,
    *,
    log_limit: int,
    oom_kills: int,
    stdin: Content | None = None,
    main: bool = False,
) -> bool | None:
    """Start a detached command in a running sandbox.

    Returns:
        True; False if an equal request has started it already; None if its supervisor ended
        before it had started.

    Raises:
        IdempotencyError: another request has used its id.
        Others as `process.start_program` does; nothing is left then.
    """
    loop = asyncio.get_running_loop()
    directory = layout.commands(sandbox_id) / command_id
    flags = ExecFlag.DETACHED | (ExecFlag.MAIN if main else ExecFlag(0))
    with contextlib.ExitStack() as stack:
        reads, digest = None, ""
        if stdin is not None:
            file = stack.enter_context(command_files.spool(layout.sandbox(sandbox_id)))
            digest = await _fill(file.write, stdin)
            reads = command_files.reading_end(file)
            stack.callback(os.close, reads)
            flags |= ExecFlag.STDIN_FILE
        meta = command_files.new_meta(
            options.argv, oom_kills=oom_kills, fingerprint=fingerprint([options, digest])
        )
        control = partial(layout.control_socket, sandbox_id)
        fds = await loop.run_in_executor(None, command_files.prepare, directory, control, meta)
        if fds is None:
            return False
        for fd in fds:
            stack.callback(os.close, fd)
        items = exec_items(options, flags)
        items.append((ExecTag.LOG_LIMIT, u64(log_limit)))
        passed = (*fds, *([] if reads is None else [reads]))
        try:
            connection = await Connection.open(layout.init_socket(sandbox_id))
            stack.callback(connection.close)
            return True if await start_program(connection, items, passed) is not None else None
        except BaseException:
            await loop.run_in_executor(None, shutil.rmtree, directory, True)
            raise


async def _fill(write: Callable[[bytes], object], content: Content) -> str:
    """Write all of a content, off the event loop; return its digest."""
    digest = hashlib.sha256()

    def add(data: bytes) -> None:
        write(data)
        digest.update(data)

    if isinstance(content, bytes):
        await asyncio.to_thread(add, content)
    else:
        async for chunk in content:
            await asyncio.to_thread(add, chunk)
    return digest.hexdigest()


class NativeCommands(Commands):
    """The detached commands of one sandbox.

    Args:
        oom_kills: how often the sandbox's processes were killed for lack of memory.
        watcher: tells of changes of their files.
    """

    def __init__(
        self, layout: Layout, sandbox_id: str, oom_kills: OomCounter, watcher: Watcher
    ) -> None:
        self._layout = layout
        self._sandbox_id = sandbox_id
        self._oom_kills = oom_kills
        self._watcher = watcher

    def _directory(self, command_id: str) -> Path:
        if not command_id or "/" in command_id or command_id.startswith("."):
            raise CommandNotFoundError(command_id)
        return self._layout.commands(self._sandbox_id) / command_id

    async def _read(self, command_id: str, read: Callable[[Path], T]) -> T:
        """Read a command's files, off the event loop.

        Raises:
            CommandNotFoundError: there are none.
        """
        try:
            return await asyncio.to_thread(read, self._directory(command_id))
        except FileNotFoundError as error:
            raise CommandNotFoundError(command_id) from error

    async def list(self) -> list[Command]:
        names = await asyncio.to_thread(_names, self._layout.commands(self._sandbox_id))
        commands = []
        for name in names:
            with contextlib.suppress(CommandNotFoundError):  # its sandbox is being destroyed
                commands.append(await self.get(name))
        return sorted(commands, key=lambda command: command.created_at)

    async def get(self, command_id: str) -> Command:
        kept, status = await self._look(command_id)
        return Command(
            id=command_id,
            sandbox_id=self._sandbox_id,
            argv=kept.meta.argv,
            status=CommandStatus.RUNNING if status is None else CommandStatus.EXITED,
            created_at=kept.meta.created_at,
            log_size=kept.log_size,
            log_truncated=kept.log_dropped > 0,
            exit=status,
        )

    async def _look(self, command_id: str) -> tuple[Kept, ExitStatus | None]:
        """What is kept of it, and how it ended if it has."""
        kept = await self._read(command_id, command_files.read_kept)
        status = self._status(kept)
        if status is None and not is_listening(self._control(command_id)):
            kept = await self._read(command_id, command_files.read_kept)
            status = self._status(kept) or _LOST
        return kept, status

    def _status(self, kept: Kept) -> ExitStatus | None:
        if kept.exit is None:
            return None
        return exit_status(kept.exit, lambda: self._oom_kills() > kept.meta.oom_kills)

    def _control(self, command_id: str) -> str:
        return self._layout.control_socket(self._sandbox_id, command_id)

    async def _look_again(self, command_id: str) -> ExitStatus | None:
        """How a command ended that ran at the last look.

        Raises:
            SandboxUnavailableError: with its sandbox.
        """
        try:
            _, status = await self._look(command_id)
        except CommandNotFoundError as error:
            raise self._gone() from error
        if status is _LOST and not is_listening(self._layout.init_socket(self._sandbox_id)):
            raise self._gone()
        return status

    def _gone(self) -> SandboxUnavailableError:
        return SandboxUnavailableError(self._sandbox_id, "it ended while the command ran")

    @asynccontextmanager
    async def _connected(self, command_id: str) -> AsyncIterator[Connection | None]:
        """Connect to the command's supervisor; None when the command is over."""
        await self._read(command_id, command_files.read_meta)
        try:
            connection = await Connection.open(self._control(command_id))
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
        kept, status = await self._look(command_id)
        if status is _LOST and kept.log_size == 0:
            return  # its start may have been interrupted before there was a log
        directory = self._directory(command_id)
        with contextlib.ExitStack() as stack:
            change = None
            if status is None and follow:
                change = stack.enter_context(self._watching(directory))
            while True:
                while chunks := await self._log_chunks(directory, offset):
                    for chunk in chunks:
                        yield chunk
                        offset = chunk.end_offset
                if change is None or status is not None:
                    return
                await change.wait(_RECHECK_S)
                status = await self._look_again(command_id)

    async def _log_chunks(self, directory: Path, offset: int) -> Sequence[LogChunk]:
        try:
            return await asyncio.to_thread(command_files.log_chunks, directory, offset)
        except FileNotFoundError as error:
            raise self._gone() from error

    @contextlib.contextmanager
    def _watching(self, directory: Path) -> Iterator[Change]:
        """Tell when a running command prints, or ends however it ends.

        Its supervisor alone has these files open for writing, and lets go of them with its life.
        """
        with contextlib.ExitStack() as stack:
            try:
                watching = self._watcher.watching(directory / LOG, directory / EXIT)
                change = stack.enter_context(watching)
            except FileNotFoundError as error:
                raise self._gone() from error
            yield change

    async def wait(self, command_id: str) -> ExitStatus:
        _, status = await self._look(command_id)
        if status is not None:
            return status
        with self._watching(self._directory(command_id)) as change:
            while (status := await self._look_again(command_id)) is None:
                await change.wait(_RECHECK_S)
        return status

    async def write_stdin(self, command_id: str, data: bytes) -> None:
        async with self._connected(command_id) as connection:
            for start in range(0, len(data), _STDIN_PIECE):
                piece = data[start : start + _STDIN_PIECE]
                await self._ask(connection, MessageType.STDIN_DATA, piece)

    async def close_stdin(self, command_id: str) -> None:
        async with self._connected(command_id) as connection:
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
        async with self._connected(command_id) as connection:
            if connection is not None:
                await connection.receive()  # its greeting: the supervisor now serves us
                await connection.send(type_, body)


def _names(top: Path) -> list[str]:
    return [path.name for path in top.iterdir()] if top.is_dir() else []

"""Running one command to its end, or as a stream of messages."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from hutch.abc.runtime import ByteReader, ByteWriter, Content, LogChunk, Process
from hutch.checks import check_text
from hutch.errors import InvalidRequestError
from hutch.models import (
    ExecMessage,
    ExecResult,
    ExitReason,
    ExitStatus,
    MessageType,
    TerminalSize,
)

Stdin = bytes | str | AsyncIterable[bytes] | None
"""What a command reads: nothing, all of this, or these chunks as they come."""

_PATIENCE_S = 15.0
"""How long past its timeout and grace a command is believed to end by its supervisor's hand."""
_PIPE_BYTES = 1024**2
"""The most a pipe holds (pipe-max-size): what may be in it when a command ends."""


_HELD_UP = ExitStatus(128 + signal.SIGKILL, ExitReason.TIMED_OUT, signal.SIGKILL)


@dataclass(slots=True)
class _Capture:
    """The first `limit` bytes of a stream."""

    limit: int
    data: bytearray = field(default_factory=bytearray)
    truncated: bool = False

    def add(self, chunk: bytes) -> None:
        room = self.limit - len(self.data)
        self.data += chunk[:room]
        self.truncated = self.truncated or len(chunk) > room

    async def drain(self, reader: ByteReader | None) -> None:
        """Take all until the end, dropping what is beyond the limit."""
        while reader is not None and (chunk := await reader.read()):
            self.add(chunk)

    def drain_nowait(self, reader: ByteReader | None) -> None:
        """Take what a full pipe holds: all that was written before the command's end."""
        left = _PIPE_BYTES
        with contextlib.suppress(BlockingIOError):
            while reader is not None and left > 0 and (chunk := reader.read_nowait()):
                self.add(chunk)
                left -= len(chunk)


def as_content(stdin: Stdin) -> Content | None:
    """Return what a command reads as bytes.

    Raises:
        InvalidRequestError: it is no such thing.
    """
    if isinstance(stdin, str):
        check_text("stdin", stdin, empty=True, nul=True)
        return stdin.encode("utf-8", "surrogateescape")
    if isinstance(stdin, bytearray | memoryview):
        return bytes(stdin)
    if stdin is not None and not isinstance(stdin, bytes | AsyncIterable):
        raise InvalidRequestError(
            "stdin", f"must be bytes, a string or chunks of bytes, not {type(stdin).__name__}"
        )
    return stdin


async def _feed(writer: ByteWriter | None, stdin: Content | None) -> None:
    """Write a command's input and close it; a command that does not read it is no error."""
    if writer is None or stdin is None:
        return
    try:
        if isinstance(stdin, bytes):
            await writer.write(stdin)
        else:
            async for chunk in stdin:
                await writer.write(chunk)
    except BrokenPipeError:
        pass
    finally:
        if isinstance(stdin, AsyncGenerator):
            await stdin.aclose()
    await writer.aclose()


async def run_to_end(
    process: Process,
    stdin: Content | None,
    *,
    limit: int,
    started: float,
    longest: float | None,
) -> ExecResult:
    """Collect a command's output until the command itself is over.

    Args:
        longest: seconds that it should take at most, its timeout and grace; None is no bound. What
            keeps it beyond that is hostile: it has timed out, whatever happens inside.

    What it left in the background may go on and hold the pipes open; its output counts up to
    this moment. When cancelled, the caller closes the process, which ends its tree.
    """
    stdout, stderr = _Capture(limit), _Capture(limit)
    over = asyncio.ensure_future(process.wait())
    pumps = [
        asyncio.ensure_future(stdout.drain(process.stdout)),
        asyncio.ensure_future(stderr.drain(process.stderr)),
        asyncio.ensure_future(_feed(process.stdin, stdin)),
    ]
    futures: list[asyncio.Future[ExitStatus] | asyncio.Future[None]] = [over, *pumps]
    patience = asyncio.timeout(None if longest is None else longest + _PATIENCE_S)
    try:
        async with patience:
            status = await _first_of_all(over, pumps)
    except TimeoutError:
        if not patience.expired():
            raise  # the input's source's own
        status = _HELD_UP
    finally:
        for future in futures:
            future.cancel()
        await asyncio.gather(*futures, return_exceptions=True)
    stdout.drain_nowait(process.stdout)
    stderr.drain_nowait(process.stderr)
    return _result(status, stdout, stderr, started)


async def _first_of_all(
    over: asyncio.Future[ExitStatus], pumps: Sequence[asyncio.Future[None]]
) -> ExitStatus:
    """Wait for the end; a pump's failure, such as that of the input's source, comes first."""
    pending: set[asyncio.Future[ExitStatus] | asyncio.Future[None]] = {over, *pumps}
    while not over.done():
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        for future in done:
            future.result()
    return over.result()


def _result(status: ExitStatus, stdout: _Capture, stderr: _Capture, started: float) -> ExecResult:
    return ExecResult(
        exit_code=status.exit_code,
        stdout_bytes=bytes(stdout.data),
        stderr_bytes=bytes(stderr.data),
        duration=time.monotonic() - started,
        reason=status.reason,
        signal=status.signal,
        stdout_truncated=stdout.truncated,
        stderr_truncated=stderr.truncated,
        receipt=status.receipt,
    )


async def result_from_log(
    log: AsyncIterator[LogChunk], status: ExitStatus, *, limit: int, cut: bool, started: float
) -> ExecResult:
    """Make the result of a detached command that is over from its log.

    Args:
        cut: the log lacks something, be it of one stream or of both.
    """
    captures = {"stdout": _Capture(limit), "stderr": _Capture(limit)}
    async for chunk in log:
        captures[chunk.stream].add(chunk.data)
    if cut and not any(capture.truncated for capture in captures.values()):
        for capture in captures.values():
            capture.truncated = True
    return _result(status, captures["stdout"], captures["stderr"], started)


class ExecStream:
    """A running command as messages: `async with`, then `async for`.

    At most one unread chunk per stream is held: a reader that is slow slows the command. Leaving
    the block before the exit message ends the command's whole tree.
    """

    def __init__(self, process: Process) -> None:
        self._process = process
        self._readers: dict[asyncio.Future[bytes], tuple[MessageType, ByteReader]] = {}
        self._exit: asyncio.Future[ExitStatus] | None = None
        self._left = {MessageType.STDOUT: _PIPE_BYTES, MessageType.STDERR: _PIPE_BYTES}
        self._done = False

    @property
    def pid(self) -> int:
        """The command's process id, as seen in the sandbox."""
        return self._process.pid

    async def __aenter__(self) -> Self:
        self._exit = asyncio.ensure_future(self._process.wait())
        self._next(MessageType.STDOUT, self._process.stdout)
        if self._process.stderr is not None:
            self._next(MessageType.STDERR, self._process.stderr)
        return self

    def _next(self, kind: MessageType, reader: ByteReader) -> None:
        self._readers[asyncio.ensure_future(reader.read())] = (kind, reader)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        pending: list[asyncio.Future[bytes] | asyncio.Future[ExitStatus]] = [*self._readers]
        if self._exit is not None:
            pending.append(self._exit)
        for future in pending:
            future.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        await self._process.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ExecMessage:
        assert self._exit is not None, "enter the stream with `async with` first"
        while not self._done:
            if not self._exit.done() and self._readers:
                futures: list[asyncio.Future[bytes] | asyncio.Future[ExitStatus]]
                futures = [self._exit, *self._readers]
                await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
            if (message := self._take()) is not None:
                return message
            if self._exit.done() or not self._readers:
                if (left := self._take_rest()) is not None:
                    return left
                status = await asyncio.shield(self._exit)
                self._done = True
                return ExecMessage(MessageType.EXIT, b"%d" % status.exit_code, status=status)
        raise StopAsyncIteration

    def _take(self) -> ExecMessage | None:
        """Return a chunk that has been read, and start to read the next one."""
        for future in [*self._readers]:
            if future.done():
                kind, reader = self._readers.pop(future)
                if data := future.result():
                    self._left[kind] -= len(data) if self._is_over() else 0
                    if self._left[kind] > 0:
                        self._next(kind, reader)
                    return ExecMessage(kind, data)
        return None

    def _is_over(self) -> bool:
        return self._exit is not None and self._exit.done()

    def _take_rest(self) -> ExecMessage | None:
        """After the exit: return what is still in a pipe, without waiting for its end."""
        for future in [*self._readers]:
            kind, reader = self._readers[future]
            with contextlib.suppress(BlockingIOError):
                if self._left[kind] > 0 and (data := reader.read_nowait()):
                    self._left[kind] -= len(data)
                    return ExecMessage(kind, data)
        return None

    async def write_stdin(self, data: bytes) -> None:
        """Write to the command's standard input, or type into its terminal.

        Raises:
            BrokenPipeError: it reads no more, or was started without stdin.
        """
        if self._process.stdin is None:
            raise BrokenPipeError("the command was started without stdin")
        await self._process.stdin.write(data)

    async def close_stdin(self) -> None:
        """Let the command see the end of its standard input."""
        if self._process.stdin is not None:
            await self._process.stdin.aclose()

    async def signal(self, signum: int) -> None:
        """Send a signal to the command's process group."""
        await self._process.signal(signum)

    async def kill(self) -> None:
        """End the command's whole tree: SIGTERM, then after the grace SIGKILL."""
        await self._process.kill()

    async def resize(self, size: TerminalSize) -> None:
        """Tell the command's terminal its new size."""
        await self._process.resize(size)

"""This process's standard streams, terminal and signals, joined to a command in a sandbox."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import struct
import termios
import tty
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import ExitStack, contextmanager

from hutch.cli.output import tell
from hutch.cli.signals import handled
from hutch.engine.execution import ExecStream
from hutch.models import ExitReason, ExitStatus, MessageType, TerminalSize

_CHUNK = 65536
_PASSED_ON = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
_UNREAD = ExitStatus(128 + signal.SIGPIPE, ExitReason.KILLED, signal.SIGPIPE)
"""What a shell would report where nobody reads the output any more."""


def terminal_size() -> TerminalSize:
    """The size of the terminal at standard input; 24 by 80 where there is none."""
    try:
        packed = fcntl.ioctl(0, termios.TIOCGWINSZ, b"\0" * 8)
    except OSError:
        return TerminalSize(24, 80)
    rows, columns, _, _ = struct.unpack("HHHH", packed)
    return TerminalSize(rows or 24, columns or 80)


@contextmanager
def _raw_terminal() -> Iterator[None]:
    """Let every key through: the terminal in the sandbox does what this one would."""
    if not os.isatty(0):
        yield
        return
    before = termios.tcgetattr(0)
    tty.setraw(0, termios.TCSADRAIN)  # what was typed ahead is not lost
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


async def join(stream: ExecStream, *, stdin: bool, terminal: bool) -> ExitStatus:
    """Pass everything both ways until the command is over, or nobody reads its output."""
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()

    def start(work: Coroutine[None, None, None]) -> None:
        task = loop.create_task(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    with ExitStack() as stack:
        if terminal:
            stack.enter_context(_raw_terminal())
            resize = handled([signal.SIGWINCH], lambda _: start(stream.resize(terminal_size())))
            stack.enter_context(resize)
        stack.enter_context(handled(_PASSED_ON, lambda number: start(stream.signal(number))))
        if stdin:
            start(_pump_in(stream))
        try:
            return await _pump_out(stream)
        except BrokenPipeError:
            return _UNREAD
        finally:
            for task in [*tasks]:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def _pump_out(stream: ExecStream) -> ExitStatus:
    async for message in stream:
        if message.status is not None:
            return message.status
        await write_all(1 if message.type is MessageType.STDOUT else 2, message.data)
    raise AssertionError("a stream ends with its exit message")


async def write_all(fd: int, data: bytes) -> None:
    """Write to a standard stream as fast as its reader takes it.

    Raises:
        OSError: it cannot be written to; the error names it.
    """
    view = memoryview(data)
    while view:
        try:
            written = await asyncio.to_thread(os.write, fd, view)
        except OSError as error:
            error.filename = "standard output" if fd == 1 else "standard error"
            raise
        view = view[written:]


async def _pump_in(stream: ExecStream) -> None:
    try:
        async for data in read_stdin():
            await stream.write_stdin(data)
        await stream.close_stdin()
    except (BrokenPipeError, ConnectionResetError):
        return  # the command reads no more
    except OSError as error:
        tell(error)
        await stream.close_stdin()


async def read_stdin() -> AsyncIterator[bytes]:
    """Yield what comes in. A read is begun only when it will not block, so it can be given up.

    Raises:
        OSError: it cannot be read; the error names it.
    """
    while True:
        try:
            data = await _read_when_ready()
        except OSError as error:
            error.filename = "standard input"
            raise
        if not data:
            return
        yield data


async def _read_when_ready() -> bytes:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    try:
        loop.add_reader(0, _resolve, ready)
    except PermissionError:  # a file, which never blocks, and which epoll(7) refuses
        return await asyncio.to_thread(os.read, 0, _CHUNK)
    try:
        await ready
    finally:
        loop.remove_reader(0)
    return os.read(0, _CHUNK)

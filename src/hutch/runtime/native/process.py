"""A program that runs in a sandbox, held by one connection to its supervisor."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import signal
import struct
import termios
from collections.abc import Callable
from typing import TypeVar

from hutch.abc.runtime import ByteReader, ByteWriter, Process
from hutch.errors import InvalidRequestError, LimitReachedError, SandboxUnavailableError
from hutch.models import ExecOptions, ExitReason, ExitStatus, Receipt, TerminalSize
from hutch.runtime.native.streams import FdReader, FdWriter, TerminalWriter
from hutch.runtime.native.wire import (
    EXITED,
    SIZE,
    UNKNOWN,
    Connection,
    ExecFlag,
    ExecTag,
    ExitedFlag,
    InitError,
    Item,
    Kind,
    Message,
    MessageType,
    u32,
    u64,
)

OomCounter = Callable[[], int]
"""How often the sandbox's processes were killed for lack of memory, so far."""

_END_TIMEOUT_S = 2.0
S = TypeVar("S", FdReader, FdWriter, TerminalWriter)
_NO_FLAGS = ExecFlag(0)
_LOST = ExitStatus(128 + signal.SIGKILL, ExitReason.LOST, signal.SIGKILL)


def exec_items(options: ExecOptions, flags: ExecFlag = _NO_FLAGS) -> list[Item]:
    """Encode a command for WIRE_EXEC."""
    if options.stdin:
        flags |= ExecFlag.STDIN
    if options.terminal is not None:
        flags |= ExecFlag.TERMINAL
    items: list[Item] = [(ExecTag.ARGV, os.fsencode(argument)) for argument in options.argv]
    items += [(ExecTag.ENV, os.fsencode(f"{k}={v}")) for k, v in options.env.items()]
    items += [
        (ExecTag.CWD, os.fsencode(options.workdir)),
        (ExecTag.USER, options.user.encode()),
        (ExecTag.FLAGS, u32(flags)),
        (ExecTag.GRACE, u64(round(options.grace * 1000))),
    ]
    if options.terminal is not None:
        items.append((ExecTag.SIZE, SIZE.pack(options.terminal.rows, options.terminal.columns)))
    if options.timeout is not None:
        items.append((ExecTag.TIMEOUT, u64(max(1, round(options.timeout * 1000)))))
    return items


async def start_program(
    connection: Connection, items: list[Item], fds: tuple[int, ...] = ()
) -> Message | None:
    """Ask for a program and return its WIRE_STARTED; None if its supervisor ended before that.

    Raises:
        InvalidRequestError: no such user or working directory, or the request is too large.
        LimitReachedError: the sandbox has no room for another process.
    """
    try:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # answered already
            await connection.send_request(Kind.EXEC, items, fds)
        answer = await connection.receive()
    except ValueError as error:
        raise InvalidRequestError("argv", str(error)) from error
    if answer is not None and answer.type is MessageType.ERROR:
        raise _exec_error(InitError.parse(answer.body))
    return answer


def _exec_error(error: InitError) -> InvalidRequestError | LimitReachedError:
    if error.step == "user" and error.errno == errno.ENOENT:
        who = "user or group" if ":" in error.subject else "user"
        return InvalidRequestError("user", f"the sandbox has no {who} {error.subject!r}")
    if error.step in {"user", "workdir"}:
        return InvalidRequestError(error.step, f"{error.subject}: {error.reason}")
    return LimitReachedError(
        f"the sandbox could not start another process ({error})",
        hint="end some of its processes, or raise its pid or memory limit",
    )


def exit_status(body: bytes, out_of_memory: Callable[[], bool]) -> ExitStatus:
    """Read the body of a WIRE_EXITED."""
    status, flags, cpu_us, peak, read, written, _ = EXITED.unpack_from(body)
    code = os.waitstatus_to_exitcode(status)
    number = -code if code < 0 else None
    if flags & ExitedFlag.TIMED_OUT:
        reason = ExitReason.TIMED_OUT
    elif flags & ExitedFlag.KILLED:
        reason = ExitReason.KILLED
    elif code in {-signal.SIGKILL, 128 + signal.SIGKILL} and out_of_memory():
        reason = ExitReason.OUT_OF_MEMORY
    else:
        reason = ExitReason.SIGNALLED if number else ExitReason.EXITED
    receipt = Receipt(
        cpu_time=cpu_us / 1e6,
        peak_memory=peak,
        bytes_read=None if read == UNKNOWN else read,
        bytes_written=None if written == UNKNOWN else written,
    )
    return ExitStatus(128 + number if number else code, reason, number, receipt)


class NativeProcess(Process):
    """The client's end of one WIRE_EXEC.

    Args:
        started: None for a command that was lost at once, its supervisor killed from inside.
    """

    def __init__(
        self,
        connection: Connection,
        started: Message | None,
        options: ExecOptions,
        sandbox_id: str,
        *,
        is_serving: Callable[[], bool],
        oom_kills: OomCounter,
        oom_kills_before: int,
    ) -> None:
        self._connection = connection
        self._sandbox_id = sandbox_id
        self._is_serving = is_serving
        self._oom_kills = oom_kills
        self._oom_kills_before = oom_kills_before
        self._status: ExitStatus | None = None
        self._closed = False
        self._waiting = asyncio.Lock()  # guards reading the connection
        self.stdin: ByteWriter | None = None
        self.stderr: ByteReader | None = None
        self._terminal = -1
        self._streams: list[FdReader | FdWriter] = []
        if started is None:
            self.pid = 0
            self.stdout = self._own(FdReader(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)))
            return
        (self.pid,) = struct.unpack("=i", started.body)
        if options.terminal is not None:
            (self._terminal,) = started.fds
            self.stdin = self._own(TerminalWriter(os.dup(self._terminal)))
            self.stdout = self._own(FdReader(os.dup(self._terminal)))
        else:
            *stdin, stdout, stderr = started.fds
            if stdin:
                self.stdin = self._own(FdWriter(stdin[0]))
            self.stdout = self._own(FdReader(stdout))
            self.stderr = self._own(FdReader(stderr))

    def _own(self, stream: S) -> S:
        self._streams.append(stream)
        return stream

    async def wait(self) -> ExitStatus:
        async with self._waiting:
            while self._status is None:
                message = await self._connection.receive()
                if message is None:  # its supervisor was killed, from inside or with all else
                    self._check_sandbox()
                    self._status = _LOST
                elif message.type is MessageType.EXITED:
                    status = exit_status(message.body, self._was_out_of_memory)
                    if status.signal == signal.SIGKILL and status.reason is ExitReason.SIGNALLED:
                        self._check_sandbox()
                    self._status = status
        return self._status

    def _check_sandbox(self) -> None:
        """Tell a command that was killed from one that died with its sandbox.

        An init that ends closes its socket before the kernel kills the rest of its namespace.
        """
        if not self._is_serving():
            raise SandboxUnavailableError(self._sandbox_id, "it ended while the command ran")

    def _was_out_of_memory(self) -> bool:
        return self._oom_kills() > self._oom_kills_before

    async def signal(self, signum: int) -> None:
        await self._tell(MessageType.SIGNAL, struct.pack("=i", signum))

    async def kill(self) -> None:
        await self._tell(MessageType.KILL)

    async def _tell(self, type_: MessageType, body: bytes = b"") -> None:
        try:
            await self._connection.send(type_, body)
        except (BrokenPipeError, ConnectionResetError):
            return  # it is over, and `wait` says how

    async def resize(self, size: TerminalSize) -> None:
        if self._terminal >= 0:
            packed = struct.pack("HHHH", size.rows, size.columns, 0, 0)
            fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, packed)

    async def aclose(self) -> None:
        closed, self._closed = self._closed, True
        try:
            if self._status is None and not closed:
                await self._end_tree()
        finally:
            self._release()

    async def _end_tree(self) -> None:
        """Have the whole tree killed and see it gone, unless root inside holds its supervisor."""
        self._connection.close_writing()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_END_TIMEOUT_S):
                while await self._connection.receive() is not None:
                    pass

    def _release(self) -> None:
        self._connection.close()
        for stream in self._streams:
            stream.close()
        if self._terminal >= 0:
            os.close(self._terminal)
            self._terminal = -1

"""Requests and messages as hutch-init speaks them: the Python side of native/wire.h."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Self

MAGIC = 0x31545548
MAX_REQUEST = 8 * 1024**2
MAX_MESSAGE = 64 * 1024
MAX_FDS = 240
UNKNOWN = 2**64 - 1

_REQUEST = struct.Struct("=III")
_ITEM = struct.Struct("=II")
_MESSAGE = struct.Struct("=II")
ERROR = struct.Struct("=32si")
EXITED = struct.Struct("=iIQQQQQ")
INDEX_ENTRY = struct.Struct("=QII")
SIZE = struct.Struct("=HH")


class Kind(IntEnum):
    """enum wire_request_kind."""

    LAUNCH = 1
    EXEC = 2
    DEADLINE = 3


class LaunchTag(IntEnum):
    """enum wire_launch_tag."""

    ID = 1
    FLAGS = 2
    UID_MAP = 3
    GID_MAP = 4
    LAYERS = 5
    CGROUP1 = 6
    CGROUP2 = 7
    TMPFS = 8
    SECCOMP = 9
    RLIMIT = 10
    DEADLINE = 11
    SHM_SIZE = 12
    HOSTNAME = 13
    BIND = 14
    OWNER = 15


class LaunchFlag(IntFlag):
    """enum wire_launch_flag."""

    READ_ONLY = 1
    ALLOW_ESCALATION = 2
    IDMAP_LAYERS = 4
    OOM_RESET = 8
    DISK = 16
    OWN_DEVICES = 32


class ExecTag(IntEnum):
    """enum wire_exec_tag."""

    ARGV = 1
    ENV = 2
    CWD = 3
    USER = 4
    FLAGS = 5
    SIZE = 6
    TIMEOUT = 7
    GRACE = 8
    LOG_LIMIT = 9


class ExecFlag(IntFlag):
    """enum wire_exec_flag."""

    STDIN = 1
    TERMINAL = 2
    DETACHED = 4
    MAIN = 8
    STDIN_FILE = 16


class DeadlineTag(IntEnum):
    """enum wire_deadline_tag."""

    AT = 1


class MessageType(IntEnum):
    """enum wire_message_type."""

    READY = 1
    ERROR = 2
    STARTED = 3
    EXITED = 4
    OK = 5
    SIGNAL = 16
    KILL = 17
    RESIZE = 18
    STDIN_DATA = 19
    STDIN_CLOSE = 20


class ExitedFlag(IntFlag):
    """enum wire_exited_flag."""

    TIMED_OUT = 1
    KILLED = 2


Item = tuple[int, bytes]


def u32(value: int) -> bytes:
    """Encode an unsigned 32-bit integer."""
    return struct.pack("=I", value)


def u64(*values: int) -> bytes:
    """Encode unsigned 64-bit integers."""
    return struct.pack(f"={len(values)}Q", *values)


def i64(value: int) -> bytes:
    """Encode a signed 64-bit integer."""
    return struct.pack("=q", value)


def request(kind: Kind, items: Sequence[Item]) -> bytes:
    """Encode a request.

    Raises:
        ValueError: it is larger than hutch-init takes.
    """
    parts = [b""]
    for tag, value in items:
        parts.append(_ITEM.pack(tag, len(value)))
        parts.append(value)
    length = sum(map(len, parts))
    if length > MAX_REQUEST:
        raise ValueError(f"the request has {length} bytes, of which {MAX_REQUEST} are possible")
    parts[0] = _REQUEST.pack(MAGIC, kind, length)
    return b"".join(parts)


@dataclass(frozen=True, slots=True)
class Message:
    """One message of hutch-init. Whoever gets it owns its descriptors."""

    type: MessageType
    body: bytes
    fds: tuple[int, ...] = ()


class InitError(Exception):
    """hutch-init could not do what was asked: WIRE_ERROR."""

    def __init__(self, step: str, errno: int, subject: str) -> None:
        reason = os.strerror(errno) if errno else "failed"
        super().__init__(f"{step}: {subject + ': ' if subject else ''}{reason}")
        self.step = step
        self.errno = errno
        self.subject = subject
        self.reason = reason

    @classmethod
    def parse(cls, body: bytes) -> Self:
        """Read the body of a WIRE_ERROR."""
        step, errno = ERROR.unpack_from(body)
        subject = body[ERROR.size :].rstrip(b"\0").decode("utf-8", "replace")
        return cls(step.rstrip(b"\0").decode("utf-8", "replace"), errno, subject)


def _receive(sock: socket.socket) -> tuple[bytes, list[int]]:
    """Receive once; the descriptors that come along are for no program that this one starts."""
    data, fds, _, _ = socket.recv_fds(sock, MAX_MESSAGE, MAX_FDS, socket.MSG_CMSG_CLOEXEC)
    return data, fds


class _Reassembly:
    """Messages out of a byte stream; descriptors go to the message that follows them."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._fds: list[int] = []

    def feed(self, data: bytes, fds: Sequence[int]) -> None:
        self._bytes += data
        self._fds += fds

    def take(self) -> Message | None:
        if len(self._bytes) < _MESSAGE.size:
            return None
        type_, length = _MESSAGE.unpack_from(self._bytes)
        if length > MAX_MESSAGE:
            raise ConnectionError(f"hutch-init announced a message of {length} bytes")
        end = _MESSAGE.size + length
        if len(self._bytes) < end:
            return None
        body = bytes(self._bytes[_MESSAGE.size : end])
        del self._bytes[:end]
        fds, self._fds = tuple(self._fds), []
        return Message(MessageType(type_), body, fds)

    def close(self) -> None:
        for fd in self._fds:
            os.close(fd)
        self._fds = []


def is_listening(path: str) -> bool:
    """Whether somebody listens on the unix socket at `path`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.setblocking(False)
        try:
            sock.connect(path)
        except BlockingIOError:  # somebody does, and has many callers
            return True
        except OSError:
            return False
    return True


class Connection:
    """One connection to hutch-init, on the event loop or, before any of that, blocking."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._incoming = _Reassembly()

    @classmethod
    async def open(cls, path: str) -> Self:
        """Connect to the socket at `path`.

        Raises:
            OSError: nobody listens there.
        """
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.setblocking(False)
        try:
            while True:
                try:
                    sock.connect(path)
                except BlockingIOError:  # the backlog is full: unix(7) has no other way to wait
                    await asyncio.sleep(0.001)
                else:
                    return cls(sock)
        except BaseException:
            sock.close()
            raise

    async def send_request(
        self, kind: Kind, items: Sequence[Item], fds: Sequence[int] = ()
    ) -> None:
        """Send a request with its descriptors, which stay the caller's."""
        await self._send(request(kind, items), fds)

    async def send(self, type_: MessageType, body: bytes = b"") -> None:
        """Send a message."""
        await self._send(_MESSAGE.pack(type_, len(body)) + body)

    async def _send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        try:
            sent = socket.send_fds(self._socket, [data], fds) if fds else self._socket.send(data)
        except BlockingIOError:
            if fds:
                raise  # they go with the first byte, and a new connection has room for it
            sent = 0
        if sent < len(data):
            await asyncio.get_running_loop().sock_sendall(self._socket, memoryview(data)[sent:])

    async def receive(self) -> Message | None:
        """Return the next message, None at the end of the stream. Cancellation loses nothing."""
        while (message := self._incoming.take()) is None:
            try:
                data, fds = _receive(self._socket)
            except BlockingIOError:
                await wait_readable(self._socket.fileno())
                continue
            except ConnectionResetError:
                return None
            self._incoming.feed(data, fds)
            if not data:
                return None
        return message

    def close_writing(self) -> None:
        """Tell the other end that nothing more will come."""
        with contextlib.suppress(OSError):  # it has ended itself
            self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close. Idempotent."""
        self._socket.close()
        self._incoming.close()


def exchange_launch(sock: socket.socket, items: Sequence[Item], fds: Sequence[int]) -> Message:
    """Send a WIRE_LAUNCH over a blocking socket and return the answer.

    Raises:
        ConnectionError: hutch-init ended without one.
    """
    data = request(Kind.LAUNCH, items)
    sent = socket.send_fds(sock, [data], fds)
    if sent < len(data):  # sending nothing would fail where the answer is there already
        sock.sendall(memoryview(data)[sent:])
    incoming = _Reassembly()
    try:
        while (message := incoming.take()) is None:
            received, passed = _receive(sock)
            incoming.feed(received, passed)
            if not received:
                raise ConnectionError("hutch-init ended before it was ready")
        return message
    finally:
        incoming.close()


async def wait_readable(fd: int) -> None:
    """Wait until a read of `fd` would not block."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    loop.add_reader(fd, _resolve, ready)
    try:
        await ready
    finally:
        loop.remove_reader(fd)


async def wait_writable(fd: int) -> None:
    """Wait until a write to `fd` would not block."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    loop.add_writer(fd, _resolve, ready)
    try:
        await ready
    finally:
        loop.remove_writer(fd)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)

"""Pipe and terminal ends as byte streams on the event loop."""

from __future__ import annotations

import errno
import os

from hutch.abc.runtime import ByteReader, ByteWriter
from hutch.runtime.native.wire import wait_readable, wait_writable

_END_OF_FILE = b"\x04"


class FdReader(ByteReader):
    """Reads from a descriptor it owns."""

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self._fd = fd

    def read_nowait(self, max_bytes: int = 65536) -> bytes:
        if self._fd < 0:
            return b""
        try:
            return os.read(self._fd, max_bytes)
        except OSError as error:
            if error.errno == errno.EIO:  # a terminal whose other side is closed: pty(7)
                return b""
            raise

    async def read(self, max_bytes: int = 65536) -> bytes:
        while True:
            try:
                return self.read_nowait(max_bytes)
            except BlockingIOError:
                await wait_readable(self._fd)

    async def aclose(self) -> None:
        self.close()

    def close(self) -> None:
        """Close; idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class FdWriter(ByteWriter):
    """Writes to a descriptor it owns."""

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self._fd = fd

    async def write(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            if self._fd < 0:
                raise BrokenPipeError(errno.EPIPE, "standard input is closed")
            try:
                left = left[os.write(self._fd, left) :]
            except BlockingIOError:
                await wait_writable(self._fd)

    async def aclose(self) -> None:
        self.close()

    def close(self) -> None:
        """Close; idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class TerminalWriter(FdWriter):
    """Types into a terminal; what ends the input there is a character: termios(3), VEOF."""

    async def aclose(self) -> None:
        if self._fd >= 0:
            try:
                await self.write(_END_OF_FILE)
            except OSError as error:
                if error.errno != errno.EIO:  # the other side is closed
                    raise
            self.close()

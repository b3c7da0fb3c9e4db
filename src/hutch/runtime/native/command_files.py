"""What is kept of a detached command: files of the host that its supervisor alone writes.

::

    meta.json      what was asked for; written before the command starts
    log            its output, both streams as they came
    index          an entry for each change of stream, written before the output it describes
    exit           one record, in one write, when it is over
    control.sock   where its supervisor listens while it lives

So every byte of the log belongs to the last entry at or before it, and all is right whichever
engine reads it, and after all of them have died.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from hutch.abc.runtime import LogChunk
from hutch.errors import IdempotencyError
from hutch.runtime.native.wire import EXITED, INDEX_ENTRY
from hutch.wire import time_from_json

LOG, EXIT = "log", "exit"
_META, _INDEX = "meta.json", "index"
_CHUNK = 65536
_STREAMS = {1: "stdout", 2: "stderr"}
_BACKLOG = 1024


@dataclass(frozen=True, slots=True)
class Meta:
    """What was asked for."""

    argv: tuple[str, ...]
    created_at: datetime
    oom_kills: int
    """Of the sandbox, before this command."""
    fingerprint: str
    """Equal for equal requests."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What there is of a command now."""

    meta: Meta
    exit: bytes | None
    """The body of a WIRE_EXITED, once it is over."""
    log_size: int
    log_dropped: int


def new_meta(argv: tuple[str, ...], *, oom_kills: int, fingerprint: str) -> Meta:
    """What is to be kept of a command that is asked for now."""
    return Meta(argv, datetime.now(UTC), oom_kills, fingerprint)


def prepare(directory: Path, control: Callable[[str], str], meta: Meta) -> list[int] | None:
    """Make a command's files; return log, index, exit record and control socket, the caller's.

    They appear all at once: whoever finds a command finds it listening, or over. None means that
    an equal request has made them already.

    Args:
        directory: the command's, which is named by its id.
        control: gives the address of the control socket in a directory of that name.

    Raises:
        IdempotencyError: another request has made them.
    """
    directory.parent.mkdir(mode=0o700, exist_ok=True)  # with the sandbox's first command
    if _is_made(directory, meta):
        return None
    made = directory.with_name(f".{secrets.token_hex(8)}")
    made.mkdir(mode=0o700)
    fds: list[int] = []
    try:
        _make(made, control(made.name), meta, fds)
        made.rename(directory)
    except BaseException as error:
        for fd in fds:
            os.close(fd)
        shutil.rmtree(made)
        taken = isinstance(error, OSError) and error.errno in {errno.EEXIST, errno.ENOTEMPTY}
        if taken and _is_made(directory, meta):
            return None
        raise
    return fds


def _is_made(directory: Path, meta: Meta) -> bool:
    """Whether an equal request has made a command.

    Raises:
        IdempotencyError: another request has.
    """
    try:
        known = read_meta(directory)
    except FileNotFoundError:
        return False
    if known.fingerprint != meta.fingerprint:
        raise IdempotencyError("the idempotency key was used for another command in this sandbox")
    return True


def _make(directory: Path, control: str, meta: Meta, fds: list[int]) -> None:
    """Fill a directory; what is opened is added to `fds`."""
    _write_meta(directory, meta)
    for name, extra in ((LOG, os.O_APPEND), (_INDEX, os.O_APPEND), (EXIT, 0)):
        flags = os.O_WRONLY | os.O_CREAT | extra | os.O_CLOEXEC
        fds.append(os.open(directory / name, flags, 0o600))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(control)
        listener.listen(_BACKLOG)
        fds.append(listener.detach())


def spool(directory: Path) -> BinaryIO:
    """Open a nameless file beside the sandboxes' own, for what a command is to read."""
    return tempfile.TemporaryFile(dir=directory)


def reading_end(file: BinaryIO) -> int:
    """Open a spooled file from its beginning, for reading alone; the descriptor is the caller's."""
    file.flush()
    return os.open(f"/proc/self/fd/{file.fileno()}", os.O_RDONLY | os.O_CLOEXEC)


def read_meta(directory: Path) -> Meta:
    """Read what was asked for.

    Raises:
        FileNotFoundError: there is no such command.
    """
    data = json.loads((directory / _META).read_text())
    argv = tuple(os.fsdecode(bytes.fromhex(argument)) for argument in data["argv"])
    created_at = time_from_json(data["created_at"])
    return Meta(argv, created_at, data["oom_kills"], data["fingerprint"])


def _write_meta(directory: Path, meta: Meta) -> None:
    data = {
        "argv": [os.fsencode(argument).hex() for argument in meta.argv],  # any bytes survive
        "created_at": meta.created_at.isoformat(),
        "oom_kills": meta.oom_kills,
        "fingerprint": meta.fingerprint,
    }
    (directory / _META).write_text(json.dumps(data))


def read_kept(directory: Path) -> Kept:
    """Read what there is of a command now.

    Raises:
        FileNotFoundError: there is no such command.
    """
    meta = read_meta(directory)
    try:
        record = (directory / EXIT).read_bytes()
        size = (directory / LOG).stat().st_size
    except FileNotFoundError:  # its start was interrupted
        return Kept(meta, None, 0, 0)
    if len(record) < EXITED.size:
        return Kept(meta, None, size, 0)
    return Kept(meta, record, size, EXITED.unpack_from(record)[-1])


def log_chunks(directory: Path, offset: int) -> list[LogChunk]:
    """Read what the log has from `offset` on, a bounded piece of it, split by stream.

    Raises:
        FileNotFoundError: there is no such command.
    """
    with (directory / LOG).open("rb") as log:
        log.seek(offset)
        data = log.read(_CHUNK)
    if not data:
        return []
    end = offset + len(data)
    with (directory / _INDEX).open("rb", buffering=0) as index:
        entries = [*_entries(index, offset, end)]
    following = [start for start, _ in entries[1:]] + [end]
    return [
        LogChunk(_STREAMS[stream], data[max(start, offset) - offset : stop - offset], stop)
        for (start, stream), stop in zip(entries, following, strict=True)
    ]


def _entries(index: BinaryIO, offset: int, end: int) -> Iterator[tuple[int, int]]:
    """The index's entries that are about the log from `offset` to `end`: where, and which."""
    fd = index.fileno()
    count = os.fstat(fd).st_size // INDEX_ENTRY.size

    def entry(number: int) -> tuple[int, int]:
        start, stream, _ = INDEX_ENTRY.unpack(
            os.pread(fd, INDEX_ENTRY.size, number * INDEX_ENTRY.size)
        )
        return start, stream

    low, high = 0, count  # the last entry at or before `offset`
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if entry(middle)[0] <= offset else (low, middle)
    wanted = os.pread(fd, (end - offset + 1) * INDEX_ENTRY.size, low * INDEX_ENTRY.size)
    whole = len(wanted) - len(wanted) % INDEX_ENTRY.size
    for start, stream, _ in INDEX_ENTRY.iter_unpack(wanted[:whole]):
        if start >= end:
            return
        yield start, stream

"""The contract of a runtime: what makes sandboxes and runs programs in them.

A runtime knows nothing of names, expiry policy or limits on how many; the engine does. Every
method may be called concurrently for different sandboxes; the engine serialises `create`,
`start`, `stop` and `delete` of one sandbox. A cancelled call leaves either the old state or
something that `delete` removes.

The terms are the OCI runtime specification's (create, start, delete, state) and containerd's
(Task and Process as handles).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncIterable, AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from hutch.models import (
    Capabilities,
    Command,
    ExecOptions,
    ExitStatus,
    FileInfo,
    SandboxSpec,
    SandboxStats,
    TerminalSize,
    WriteReceipt,
)

Content = bytes | AsyncIterable[bytes]
"""Something to be read to its end: all of it, or chunks as they come."""


@dataclass(frozen=True, slots=True)
class InstanceRecord:
    """What a runtime needs to find an instance again after a restart of the engine."""

    runtime: str
    data: Mapping[str, str | int] = field(default_factory=dict)
    """The driver's own; JSON scalars only."""


@dataclass(frozen=True, slots=True)
class Death:
    """Why an instance no longer runs: `Sandbox.reason` in parts."""

    reason: str
    """`exited(N)`, `signalled(NAME)`, `out_of_memory`, `expired`, `killed`, `host_restarted`."""


class ByteReader(Protocol):
    """The reading end of a stream of bytes."""

    @abstractmethod
    def read_nowait(self, max_bytes: int = 65536) -> bytes:
        """Return what is there now; `b""` is the end.

        Raises:
            BlockingIOError: nothing is there yet.
        """

    @abstractmethod
    async def read(self, max_bytes: int = 65536) -> bytes:
        """Return the next bytes, at least one; `b""` is the end. Cancellation loses nothing."""

    @abstractmethod
    async def aclose(self) -> None:
        """Close; idempotent. The writer sees EPIPE."""


class ByteWriter(Protocol):
    """The writing end of a stream of bytes."""

    @abstractmethod
    async def write(self, data: bytes) -> None:
        """Write all of `data`, waiting while the reader is slow.

        A cancelled call has written an unknown amount.

        Raises:
            BrokenPipeError: the reader is gone.
        """

    @abstractmethod
    async def aclose(self) -> None:
        """Close; idempotent. The reader sees the end."""


class Process(Protocol):
    """A command that runs and whose streams this handle holds.

    `aclose` without a preceding `wait` kills the whole tree the command started: a handle that
    goes away never leaves an orphan.
    """

    pid: int
    """As seen in the sandbox."""
    stdin: ByteWriter | None
    """None unless asked for; on a terminal, the terminal."""
    stdout: ByteReader
    """On a terminal, the terminal."""
    stderr: ByteReader | None
    """None on a terminal."""

    @abstractmethod
    async def wait(self) -> ExitStatus:
        """Wait for the command itself, not for what it left in the background.

        Raises:
            SandboxUnavailableError: the sandbox died first.
        """

    @abstractmethod
    async def signal(self, signum: int) -> None:
        """Send a signal to the command's process group; nothing happens when it is over."""

    @abstractmethod
    async def kill(self) -> None:
        """End the whole tree: SIGTERM, then after the grace SIGKILL. Returns at once."""

    @abstractmethod
    async def resize(self, size: TerminalSize) -> None:
        """Tell the terminal its new size; nothing happens without a terminal."""

    @abstractmethod
    async def aclose(self) -> None:
        """Close all streams; kill the tree if it still runs, and see it gone. Idempotent.

        A cancelled call has closed everything, and the tree is being killed.
        """


@dataclass(frozen=True, slots=True)
class LogChunk:
    """A piece of a detached command's output."""

    stream: str
    """`stdout` or `stderr`."""
    data: bytes
    end_offset: int


class Files(Protocol):
    """A sandbox's files, as `user` (a name or uid of the sandbox) may use them.

    Paths are absolute in the sandbox. Symlinks are followed inside the sandbox only. Nothing
    here blocks on a FIFO or a device. Errors are `FileError`s carrying the path that they are
    about, as given; `SandboxUnavailableError` when the sandbox is gone, or goes meanwhile.

    A cancelled call may still take effect. `move` and `remove` end soon after it, and after the
    sandbox.
    """

    @abstractmethod
    def open_read(self, path: str, *, user: str, offset: int = 0) -> AsyncIterator[bytes]:
        """Yield the regular file's content from `offset` in chunks, memory flat."""

    @abstractmethod
    async def read(self, path: str, *, user: str, max_bytes: int) -> bytes:
        """Return the whole content of a regular file.

        Raises:
            FileTooLargeError: it has more than `max_bytes`.
        """

    @abstractmethod
    async def write(
        self, path: str, data: bytes | AsyncIterable[bytes], *, user: str, mode: int | None = None
    ) -> WriteReceipt:
        """Replace or create the file in one step; missing parents are made.

        Readers see the old content or the new, never a part; except of a file that `user` may
        write in a directory that he may not, which is rewritten once all of `data` is there. An
        existing file keeps its mode unless `mode` is given; a new one is 0o644.
        """

    @abstractmethod
    async def stat(self, path: str, *, user: str, follow: bool = True) -> FileInfo:
        """Describe one file; with `follow`, what a symlink leads to."""

    @abstractmethod
    async def list_dir(self, path: str, *, user: str, limit: int) -> list[FileInfo]:
        """Describe a directory's entries, sorted by name; symlinks are not followed."""

    @abstractmethod
    async def real_path(self, path: str, *, user: str) -> str:
        """Resolve symlinks and return the canonical path of an existing file."""

    @abstractmethod
    async def mkdir(self, path: str, *, user: str, parents: bool = True, mode: int = 0o755) -> None:
        """Make a directory; with `parents`, an existing one is fine."""

    @abstractmethod
    async def move(self, source: str, target: str, *, user: str) -> None:
        """Rename as rename(2) does; across filesystems it copies, with owners, times and holes.

        What fails or ends before `target` is in place leaves both as they were.

        Raises:
            NotRegularFileError: a socket or device would have to be copied.
            FileAccessError: `user` may not do it, or may not give a copy to the owner and group
                of what is copied.
        """

    @abstractmethod
    async def remove(self, path: str, *, user: str, recursive: bool = False) -> None:
        """Remove a file, an empty directory, or with `recursive` a whole tree.

        What ends in between has removed a part.
        """


class Instance(Protocol):
    """A running sandbox."""

    record: InstanceRecord
    files: Files

    @abstractmethod
    def is_alive(self) -> bool:
        """Whether it runs at this moment."""

    @abstractmethod
    async def wait_ended(self) -> None:
        """Return when it no longer runs, or when this handle is closed."""

    @abstractmethod
    async def stop(self, grace: float) -> None:
        """End all its processes, the main one with SIGTERM and `grace` seconds first.

        The filesystem stays. Idempotent.
        """

    @abstractmethod
    def close(self) -> None:
        """Release this handle; the sandbox runs on. Idempotent."""

    @abstractmethod
    async def exec(self, options: ExecOptions) -> Process:
        """Start a command.

        Raises:
            SandboxUnavailableError: the sandbox is gone.
            InvalidRequestError: no such user or working directory in the sandbox.
            LimitReachedError: the sandbox's process limit leaves no room.
        """

    @abstractmethod
    async def start_command(
        self,
        command_id: str,
        options: ExecOptions,
        *,
        log_limit: int,
        stdin: Content | None = None,
    ) -> bool:
        """Start a detached command that keeps its own output log.

        Args:
            command_id: letters, digits, `-` and `_`.
            options: its request.
            log_limit: bytes that are kept of each stream.
            stdin: all that it is to read, taken before it starts; not with `options.stdin`.

        Returns:
            False if there is one of that id already, from an equal request.

        Raises:
            IdempotencyError: there is one of that id from another request.
            Others as `exec` does.
        """

    @abstractmethod
    async def set_deadline(self, expires_at: float | None) -> None:
        """Move the moment (seconds since the epoch) at which the sandbox ends itself."""

    @abstractmethod
    async def stats(self) -> SandboxStats:
        """What it uses now."""


class Commands(Protocol):
    """The detached commands of one sandbox, running or not, as the runtime keeps them.

    A call that waits for a running command raises SandboxUnavailableError when the sandbox ends.
    """

    @abstractmethod
    async def list(self) -> list[Command]:
        """All of them, oldest first."""

    @abstractmethod
    async def get(self, command_id: str) -> Command:
        """One.

        Raises:
            CommandNotFoundError: there is none.
        """

    @abstractmethod
    def read_log(
        self, command_id: str, *, offset: int = 0, follow: bool
    ) -> AsyncIterator[LogChunk]:
        """Yield output from byte `offset` on; with `follow`, until the command is over."""

    @abstractmethod
    async def wait(self, command_id: str) -> ExitStatus:
        """Wait for its end."""

    @abstractmethod
    async def write_stdin(self, command_id: str, data: bytes) -> None:
        """Write to its standard input.

        Raises:
            BrokenPipeError: it is over or has closed its input.
        """

    @abstractmethod
    async def close_stdin(self, command_id: str) -> None:
        """Let it see the end of its standard input."""

    @abstractmethod
    async def signal(self, command_id: str, signum: int) -> None:
        """Send a signal to its process group."""

    @abstractmethod
    async def kill(self, command_id: str) -> None:
        """End its whole tree: SIGTERM, then after its grace SIGKILL. Returns at once."""

    @abstractmethod
    async def resize(self, command_id: str, size: TerminalSize) -> None:
        """Tell its terminal the new size."""


class Runtime(Protocol):
    """A way of making sandboxes."""

    @abstractmethod
    async def probe(self) -> Capabilities:
        """Find out what this host offers; cheap after the first call."""

    @abstractmethod
    async def create(self, spec: SandboxSpec) -> Instance:
        """Make a sandbox and start it, its main process included.

        On any failure no process is left, and `delete` removes what else was made.

        Raises:
            IsolationError: a layer could not be applied.
            UnsupportedError: the spec asks for what this host lacks; nothing was made.
            ImageNotFoundError: a layer of the image is gone.
        """

    @abstractmethod
    async def start(self, spec: SandboxSpec) -> Instance:
        """Start a stopped sandbox on the filesystem it left. Raises as `create` does."""

    @abstractmethod
    async def attach(
        self, sandbox_id: str, record: InstanceRecord, spec: SandboxSpec
    ) -> Instance | None:
        """Return the handle of an instance that another engine made; None when it is dead."""

    @abstractmethod
    async def reap(self, sandbox_id: str, record: InstanceRecord) -> Death:
        """Say why an instance that no longer runs ended, and release what the kernel keeps of it.

        The filesystem stays. Idempotent.
        """

    @abstractmethod
    def commands(self, sandbox_id: str) -> Commands:
        """The sandbox's detached commands."""

    @abstractmethod
    async def halt(self, sandbox_id: str) -> None:
        """End every process of a sandbox, known or not; the filesystem stays. Idempotent."""

    @abstractmethod
    async def delete(self, sandbox_id: str) -> None:
        """End and remove everything of a sandbox: processes, cgroups, files. Idempotent."""

    @abstractmethod
    async def list(self) -> list[str]:
        """The ids of all sandboxes of which anything is left on this host."""

    @abstractmethod
    async def aclose(self) -> None:
        """Release handles and threads; sandboxes go on. Idempotent."""

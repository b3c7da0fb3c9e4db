"""The values that cross a boundary: frozen, slotted, validated where they are made.

Three types for three roles: `SandboxConfig` is what a caller asks for, `SandboxSpec` is what a
driver gets once every default is resolved, and `Sandbox` is the view a caller gets back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path, PurePosixPath
from types import MappingProxyType

from hutch.checks import (
    MAX_PIDS,
    check_argv,
    check_count,
    check_env,
    check_labels,
    check_path,
    check_seconds,
    check_text,
    check_user,
    shown,
)
from hutch.errors import InvalidRequestError
from hutch.lifecycle import SandboxStatus


@dataclass(frozen=True, slots=True)
class Tmpfs:
    """A memory-backed filesystem at `path`, at most `size` bytes; charged to the sandbox."""

    path: str
    size: int = 64 * 1024**2

    def __post_init__(self) -> None:
        check_path("tmpfs.path", self.path)
        check_count("tmpfs.size", self.size, 4096)
        parts = PurePosixPath(self.path).parts[1:]
        if not parts or parts[0] in {"proc", "sys", "dev"}:
            raise InvalidRequestError("tmpfs.path", f"cannot be {self.path}")
        if ".." in parts:
            raise InvalidRequestError("tmpfs.path", "must not contain '..'")


@dataclass(frozen=True, slots=True)
class Resources:
    """What a sandbox may use at most; `None` is no limit of its own."""

    cpu: float | None = None
    """Cores, fractions allowed."""
    memory: int | None = None
    """Bytes of memory, tmpfs and page cache included; swap is not added to it."""
    disk_limit: int | None = None
    """Bytes that may be written beyond the image, what the filesystem needs for itself included."""
    pid_limit: int | None = None
    """Processes and threads."""

    def __post_init__(self) -> None:
        if self.cpu is not None:
            if isinstance(self.cpu, bool) or not isinstance(self.cpu, int | float):
                raise InvalidRequestError("cpu", "must be a number of cores")
            if not 0.01 <= self.cpu <= 4096:
                raise InvalidRequestError(
                    "cpu", f"must be between 0.01 and 4096 cores, not {shown(self.cpu)}"
                )
        if self.memory is not None:
            check_count("memory", self.memory, 4 * 1024**2)
        if self.disk_limit is not None:
            check_count("disk_limit", self.disk_limit, 1024**2)
        if self.pid_limit is not None:
            check_count("pid_limit", self.pid_limit, 4, MAX_PIDS)


@dataclass(frozen=True, slots=True)
class SandboxConfig:
    """What a caller asks for. `None` means: as the image or the settings say.

    Raises:
        InvalidRequestError: a field is bad; the error's `field` names it.
    """

    image: str = "debian"
    """An image reference: docs/images.md lists the forms."""
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Added to the image's environment, for every command."""
    workdir: str | None = None
    """Where commands start; made, for `user`, if the image does not have it."""
    user: str | None = None
    """NAME, UID, NAME:GROUP or UID:GID, as the sandbox's own /etc/passwd has them."""
    cmd: tuple[str, ...] | None = None
    """A main process: its end ends the sandbox. Without one the sandbox idles until used."""
    cpu: float | None = None
    memory: int | None = None
    disk_limit: int | None = None
    pid_limit: int | None = None
    timeout: float | None = None
    """Seconds from creation to automatic destruction; it can be extended later."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """The caller's own names and values, to filter listings by."""
    read_only: bool = False
    """Make the root filesystem read-only; tmpfs mounts stay writable."""
    tmpfs: tuple[Tmpfs, ...] = ()
    allow_privilege_escalation: bool = False
    """Lift no_new_privs and nosuid so that sudo and the like work inside."""

    def __post_init__(self) -> None:
        check_text("image", self.image)
        check_env("env", self.env)
        if self.workdir is not None:
            check_path("workdir", self.workdir)
        if self.user is not None:
            check_user("user", self.user)
        if self.cmd is not None:
            self._check_cmd(self.cmd)
        if self.timeout is not None:
            check_seconds("timeout", self.timeout)
        check_labels("labels", self.labels)
        for name in ("read_only", "allow_privilege_escalation"):
            if not isinstance(getattr(self, name), bool):
                raise InvalidRequestError(name, "must be true or false")
        self._check_tmpfs()
        _ = self.resources
        object.__setattr__(self, "env", MappingProxyType(dict(self.env)))
        object.__setattr__(self, "labels", MappingProxyType(dict(self.labels)))

    def _check_cmd(self, cmd: object) -> None:
        object.__setattr__(self, "cmd", check_argv("cmd", cmd))
        if not self.cmd:
            raise InvalidRequestError("cmd", "must not be empty; leave it out for none")

    def _check_tmpfs(self) -> None:
        if isinstance(self.tmpfs, list):
            object.__setattr__(self, "tmpfs", tuple(self.tmpfs))
        if not isinstance(self.tmpfs, tuple) or not all(isinstance(t, Tmpfs) for t in self.tmpfs):
            raise InvalidRequestError("tmpfs", "must be a sequence of Tmpfs")
        if len({PurePosixPath(t.path) for t in self.tmpfs}) != len(self.tmpfs):
            raise InvalidRequestError("tmpfs", "has the same path twice")

    @property
    def resources(self) -> Resources:
        """The limits asked for, as one value."""
        return Resources(self.cpu, self.memory, self.disk_limit, self.pid_limit)


@dataclass(frozen=True, slots=True)
class Port:
    """A port of the sandbox that is reachable on the host."""

    sandbox_port: int
    host_port: int
    protocol: str = "tcp"


@dataclass(frozen=True, slots=True)
class Sandbox:
    """What a caller sees of one sandbox: a view, true when it was taken."""

    id: str
    image: str
    """The reference it was created from, as given."""
    status: SandboxStatus
    config: SandboxConfig
    created_at: datetime
    expires_at: datetime | None
    reason: str | None = None
    """Why it is stopped or in error: `stopped`, `exited(3)`, `signalled(SIGSEGV)`, `out_of_memory`,
    `killed`, `host_restarted`, or the failure's message."""
    ports: tuple[Port, ...] = ()
    enforced: tuple[str, ...] = ()
    """Which limits and optional layers the host enforces for it; docs/security.md names them."""

    @property
    def labels(self) -> Mapping[str, str]:
        """The caller's labels."""
        return self.config.labels


@dataclass(frozen=True, slots=True)
class SandboxCount:
    """How many sandboxes there are."""

    total: int
    running: int


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """What an image says about how its programs are run."""

    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    workdir: str = "/"
    user: str = ""
    """Empty for root."""
    cmd: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    host_paths: tuple[str, ...] = ()
    """Directories of the host that are shown, read-only, at the same place. Only the image `host`
    has any; what an image says of itself cannot set this."""


@dataclass(frozen=True, slots=True)
class Image:
    """An image in the store: ordered read-only layers and how to run what is in them."""

    id: str
    """`sha256:…` of its configuration and layers."""
    names: tuple[str, ...]
    """The references it is known by."""
    layers: tuple[Path, ...]
    """Unpacked layer directories, lowest first."""
    config: ImageConfig
    size: int
    """Bytes on disk, shared layers counted in full."""
    created_at: datetime
    source: str
    """The reference it was made from."""


@dataclass(frozen=True, slots=True)
class PullProgress:
    """How far obtaining an image has come."""

    step: str
    """`resolving`, `downloading`, `building`, `unpacking`, `done`."""
    detail: str = ""
    done: int = 0
    total: int | None = None
    """Same unit as `done` (bytes, or packages when building); None while it is unknown."""


@dataclass(frozen=True, slots=True)
class SandboxSpec:
    """What a runtime gets: a request with every default resolved."""

    id: str
    layers: tuple[Path, ...]
    """Lowest first."""
    env: Mapping[str, str] = field(repr=False)
    workdir: str
    user: str
    cmd: tuple[str, ...]
    """The main process; empty for none."""
    resources: Resources
    make_workdir: bool
    """Make the working directory, its user's, if the image has none."""
    uid_base: int
    """First of the 65,536 host uids and gids that are the sandbox's own (root mode)."""
    read_only: bool = False
    tmpfs: tuple[Tmpfs, ...] = ()
    host_paths: tuple[str, ...] = ()
    """Directories of the host to show, read-only, at the same place."""
    allow_privilege_escalation: bool = False
    expires_at: float | None = None
    """Seconds since the epoch."""


class ExitReason(StrEnum):
    """Why a command is over."""

    EXITED = "exited"
    SIGNALLED = "signalled"
    TIMED_OUT = "timed_out"
    OUT_OF_MEMORY = "out_of_memory"
    KILLED = "killed"
    """By the caller: kill, disconnect, or the end of its sandbox at the caller's request."""
    LOST = "lost"
    """Its supervisor or its sandbox died and nobody saw its end."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a command used, children it waited for included; None is: not known."""

    cpu_time: float | None = None
    """Seconds, user and system."""
    peak_memory: int | None = None
    """Bytes of the largest single process."""
    bytes_read: int | None = None
    """By read-like calls, from any source."""
    bytes_written: int | None = None


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """How a command ended."""

    exit_code: int
    """The shell's convention: 0-255, 126 not executable, 127 not found, 128+n for signal n."""
    reason: ExitReason
    signal: int | None = None
    receipt: Receipt = Receipt()


@dataclass(frozen=True, slots=True)
class ExecResult:
    """What a command left when it was over."""

    exit_code: int
    stdout_bytes: bytes
    stderr_bytes: bytes
    duration: float
    """Seconds from request to end."""
    reason: ExitReason
    signal: int | None
    stdout_truncated: bool
    stderr_truncated: bool
    receipt: Receipt

    @property
    def stdout(self) -> str:
        """Standard output as UTF-8; other bytes are kept as lone surrogates (PEP 383)."""
        return self.stdout_bytes.decode("utf-8", "surrogateescape")

    @property
    def stderr(self) -> str:
        """Standard error, decoded as `stdout` is."""
        return self.stderr_bytes.decode("utf-8", "surrogateescape")


class MessageType(StrEnum):
    """What an `ExecMessage` carries."""

    STDOUT = "stdout"
    STDERR = "stderr"
    EXIT = "exit"


@dataclass(frozen=True, slots=True)
class ExecMessage:
    """One item of a streamed command."""

    type: MessageType
    data: bytes
    """Output; for `exit` the exit code in decimal."""
    offset: int | None = None
    """For a detached command: where `data` ends in its log, to go on from later."""
    status: ExitStatus | None = None
    """For `exit`."""


@dataclass(frozen=True, slots=True)
class TerminalSize:
    """Rows and columns of a terminal."""

    rows: int = 24
    columns: int = 80

    def __post_init__(self) -> None:
        for name in ("rows", "columns"):
            if not 1 <= getattr(self, name) <= 65535:
                raise InvalidRequestError(name, "must be between 1 and 65535")


@dataclass(frozen=True, slots=True)
class ExecOptions:
    """A command to execute. Bad values raise `InvalidRequestError` naming the field."""

    argv: tuple[str, ...]
    """Program and arguments; looked up in the command's PATH when it has no slash."""
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    workdir: str = "/"
    user: str = "root"
    timeout: float | None = None
    """Seconds until the whole tree it started is ended; None is no deadline."""
    grace: float = 2.0
    """Seconds between SIGTERM and SIGKILL when it is ended."""
    stdin: bool = False
    """Whether standard input is a pipe to write to; otherwise it is at its end from the start."""
    terminal: TerminalSize | None = None
    """Run on a terminal of this size instead of pipes."""

    def __post_init__(self) -> None:
        check_argv("argv", self.argv)
        if not self.argv:
            raise InvalidRequestError("argv", "must not be empty")
        check_env("env", self.env)
        check_path("workdir", self.workdir)
        check_user("user", self.user)
        if self.timeout is not None:
            check_seconds("timeout", self.timeout)
        check_seconds("grace", self.grace, zero=True)


class CommandStatus(StrEnum):
    """Where a detached command is."""

    RUNNING = "running"
    EXITED = "exited"


@dataclass(frozen=True, slots=True)
class Command:
    """A detached command: it has an id and an output log that outlive clients and engines."""

    id: str
    sandbox_id: str
    argv: tuple[str, ...]
    status: CommandStatus
    created_at: datetime
    log_size: int
    """Bytes of output so far: the offset at which the log ends now."""
    log_truncated: bool = False
    """Output beyond the log's cap was read from the command and dropped."""
    exit: ExitStatus | None = None


class FileType(StrEnum):
    """What a directory entry is."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class FileInfo:
    """One file, as `lstat` in the sandbox shows it."""

    name: str
    path: str
    type: FileType
    size: int
    mode: int
    """Permission bits, 0-0o7777."""
    uid: int
    """As seen in the sandbox."""
    gid: int
    modified_at: datetime
    target: str | None = None
    """A symlink's text."""

    @property
    def is_dir(self) -> bool:
        """Whether it is a directory."""
        return self.type is FileType.DIRECTORY


@dataclass(frozen=True, slots=True)
class WriteReceipt:
    """What a finished write put in place."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class SandboxStats:
    """What a sandbox uses now; None is: this host does not count it."""

    timestamp: datetime
    cpu_time: float | None
    """Seconds of CPU since its start."""
    memory: int | None
    memory_peak: int | None
    memory_limit: int | None
    pids: int | None
    pid_limit: int | None
    disk: int | None
    """Bytes written beyond the image, as allocated on disk."""
    disk_limit: int | None
    oom_kills: int | None


@dataclass(frozen=True, slots=True)
class Event:
    """One change of state, in the order it was committed."""

    sequence: int
    timestamp: datetime
    type: str
    """`sandbox.created`, `.started`, `.stopped`, `.destroyed`, `.died`, `.expired`, `.failed`,
    `.updated`; `command.started`."""
    sandbox_id: str | None
    data: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a runtime can do on this host; each absent one has its reason in `missing`."""

    name: str
    rootless: bool
    memory_limit: bool
    cpu_limit: bool
    pid_limit: bool
    disk_limit: bool
    privilege_escalation: bool
    per_sandbox_uids: bool
    missing: Mapping[str, str] = field(default_factory=dict)

"""Launching hutch-init: a resolved specification in, a running PID 1 out."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from hutch.errors import ImageNotFoundError, IsolationError
from hutch.linux.cgroups import SandboxCgroup
from hutch.linux.userns import why_refused
from hutch.models import SandboxSpec
from hutch.runtime.native.layout import Layout
from hutch.runtime.native.wire import (
    InitError,
    Item,
    LaunchFlag,
    LaunchTag,
    Message,
    MessageType,
    exchange_launch,
    i64,
    u32,
    u64,
)

_UIDS = 65_536
_BACKLOG = 1024
_LAUNCH_TIMEOUT_S = 30.0
_HOSTNAME = b"hutch"
_ROOM_FOR_ID = "-" * 64


@dataclass(frozen=True, slots=True)
class LaunchPolicy:
    """What is the same for every sandbox of an engine."""

    id_mapped: bool
    """Give each sandbox uids of its own; False where this process may not (rootless)."""
    oom_reset: bool
    seccomp: bytes
    shm_size: int
    open_files: int


@dataclass(frozen=True, slots=True)
class Launched:
    """A running hutch-init; the descriptor is the caller's."""

    pid: int
    pidfd: int


def boottime_ns(expires_at: float | None) -> int:
    """Turn a time since the epoch into CLOCK_BOOTTIME nanoseconds, as hutch-init takes it."""
    if expires_at is None:
        return 0
    left = expires_at - time.time()
    return max(1, time.clock_gettime_ns(time.CLOCK_BOOTTIME) + round(left * 1e9))


class Launcher:
    """The launch phase of hutch-init: one process for all sandboxes, started with the first.

    It forks for each launch, and ends when this process does. Methods may be called from any
    thread.
    """

    def __init__(self, binary_fd: int) -> None:
        self._binary_fd = binary_fd
        self._lock = threading.Lock()
        self._pid = 0
        self._control: socket.socket | None = None

    def connect(self) -> socket.socket:
        """Return a socket that takes one WIRE_LAUNCH.

        Raises:
            OSError: the process could not be started.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with theirs, self._lock:
                try:
                    self._pass_on(theirs)
                except (BrokenPipeError, ConnectionResetError):  # somebody has killed it
                    self._end()
                    self._pass_on(theirs)
        except BaseException:
            ours.close()
            raise
        return ours

    def _pass_on(self, sock: socket.socket) -> None:
        if self._control is None:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                self._pid = _spawn(self._binary_fd, theirs)
            self._control = ours
        socket.send_fds(self._control, [b"\0"], [sock.fileno()])

    def _end(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None
            os.waitpid(self._pid, 0)

    def close(self) -> None:
        """End the process. Idempotent."""
        with self._lock:
            self._end()


def launch(
    spec: SandboxSpec,
    *,
    layout: Layout,
    cgroup: SandboxCgroup,
    launcher: Launcher,
    policy: LaunchPolicy,
) -> Launched:
    """Start a sandbox's init and wait until it is ready. Blocks; for a worker thread.

    Raises:
        IsolationError: a layer could not be applied; no process is left.
        ImageNotFoundError: a layer of the image is gone.
    """
    with ExitStack() as stack:
        fds = [
            stack.enter_context(_listener(layout, spec.id)).fileno(),
            stack.enter_context(
                _opened(layout.status(spec.id), os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            ),
            stack.enter_context(_writable(layout, spec)),
            *(stack.enter_context(_layer(path)) for path in spec.layers),
            *(stack.enter_context(_host_path(path)) for path in spec.host_paths),
        ]
        v1, v2 = cgroup.join_files()
        joined = [*v1, *([] if v2 is None else [v2])]
        for fd in joined:
            stack.callback(os.close, fd)
        items = _items(spec, policy, cgroup1=len(v1), cgroup2=len(joined) - len(v1))
        try:
            with launcher.connect() as sock:
                sock.settimeout(_LAUNCH_TIMEOUT_S)
                answer = exchange_launch(sock, items, [*fds, *joined])
        except OSError as error:
            raise IsolationError("hutch-init", f"did not start: {error}") from error
        return _launched(answer)


def _launched(answer: Message) -> Launched:
    if answer.type is MessageType.ERROR:
        error = InitError.parse(answer.body)
        problem = f"{error.subject}: {error.reason}" if error.subject else error.reason
        refused = error.step == "namespaces" and error.errno in {errno.EPERM, errno.ENOSPC}
        hint = why_refused() if refused else "`hutch doctor` says what this host lacks"
        raise IsolationError(error.step, problem, errno=error.errno, hint=hint)
    (pid,) = struct.unpack("=i", answer.body)
    (pidfd,) = answer.fds
    return Launched(pid, pidfd)


def _spawn(binary_fd: int, sock: socket.socket) -> int:
    high = fcntl.fcntl(sock.fileno(), fcntl.F_DUPFD_CLOEXEC, 10)
    try:
        return os.posix_spawn(
            f"/proc/self/fd/{binary_fd}",
            ["hutch-init", "launch", _ROOM_FOR_ID],
            {},
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDWR, 0),
                (os.POSIX_SPAWN_DUP2, 0, 1),
                (os.POSIX_SPAWN_DUP2, 0, 2),
                (os.POSIX_SPAWN_DUP2, high, 3),
            ],
            setsigmask=[],
            setsigdef=list(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}),
        )
    finally:
        os.close(high)


def _items(spec: SandboxSpec, policy: LaunchPolicy, *, cgroup1: int, cgroup2: int) -> list[Item]:
    flags = LaunchFlag(0)
    if spec.read_only:
        flags |= LaunchFlag.READ_ONLY
    if spec.allow_privilege_escalation:
        flags |= LaunchFlag.ALLOW_ESCALATION
    if spec.resources.disk_limit is not None:
        flags |= LaunchFlag.DISK
    if policy.id_mapped:
        flags |= LaunchFlag.IDMAP_LAYERS | LaunchFlag.OWN_DEVICES
    if policy.oom_reset:
        flags |= LaunchFlag.OOM_RESET
    id_map = _id_map(spec.uid_base if policy.id_mapped else None)
    items: list[Item] = [
        (LaunchTag.ID, spec.id.encode()),
        (LaunchTag.HOSTNAME, _HOSTNAME),
        (LaunchTag.FLAGS, u32(flags)),
        (LaunchTag.UID_MAP, id_map),
        (LaunchTag.GID_MAP, id_map),
        (LaunchTag.LAYERS, u32(len(spec.layers))),
        (LaunchTag.CGROUP1, u32(cgroup1)),
        (LaunchTag.CGROUP2, u32(cgroup2)),
        (LaunchTag.SECCOMP, policy.seccomp),
        (LaunchTag.SHM_SIZE, u64(policy.shm_size)),
        (LaunchTag.DEADLINE, i64(boottime_ns(spec.expires_at))),
    ]
    items += [(LaunchTag.TMPFS, u64(mount.size) + os.fsencode(mount.path)) for mount in spec.tmpfs]
    if policy.id_mapped:
        items.append((LaunchTag.OWNER, u32(spec.uid_base)))
    items += [(LaunchTag.BIND, os.fsencode(path)) for path in spec.host_paths]
    items += [(LaunchTag.RLIMIT, u64(*limit)) for limit in _rlimits(policy.open_files)]
    return items


def _id_map(base: int | None) -> bytes:
    """Map a sandbox's ids to those from `base` on; rootless to the same ones outside.

    There root is an extent of its own, as in the namespace around: user_namespaces(7) wants each
    extent to lie within one of the parent's.
    """
    if base is None:
        return f"0 0 1\n1 1 {_UIDS - 1}\n".encode()
    return f"0 {base} {_UIDS}\n".encode()


def _rlimits(open_files: int) -> list[tuple[int, int, int]]:
    """What limits no cgroup counts: setrlimit(2). Where this process has less, that is it."""
    wanted = [
        (resource.RLIMIT_NOFILE, 1024, open_files),
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_MEMLOCK, 8 * 1024**2, 8 * 1024**2),
        (resource.RLIMIT_MSGQUEUE, 819_200, 819_200),
        (resource.RLIMIT_SIGPENDING, 16_384, 16_384),
        (resource.RLIMIT_NICE, 0, 0),
        (resource.RLIMIT_RTPRIO, 0, 0),
    ]
    limits = []
    for kind, soft, hard in wanted:
        _, most = resource.getrlimit(kind)
        bound = hard if most == resource.RLIM_INFINITY else min(hard, most)
        limits.append((kind, min(soft, bound), bound))
    return limits


@contextlib.contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    fd = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


def _writable(layout: Layout, spec: SandboxSpec) -> contextlib.AbstractContextManager[int]:
    if spec.resources.disk_limit is not None:
        return _opened(layout.disk(spec.id), os.O_RDWR)
    return _opened(layout.rw(spec.id), os.O_PATH | os.O_DIRECTORY)


@contextlib.contextmanager
def _layer(path: Path) -> Iterator[int]:
    try:
        fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise ImageNotFoundError(
            str(path), hint="its layer was removed; pull the image again"
        ) from error
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def _host_path(path: str) -> Iterator[int]:
    try:
        fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise IsolationError("bind", f"{path}: {error.strerror}", errno=error.errno or 0) from error
    try:
        yield fd
    finally:
        os.close(fd)


def _listener(layout: Layout, sandbox_id: str) -> socket.socket:
    address = layout.init_socket(sandbox_id)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        (layout.sandbox(sandbox_id) / "init.sock").unlink(missing_ok=True)
        sock.bind(address)
        os.chmod(address, 0o600)
        sock.listen(_BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock

"""Rootless mode: an ordinary user's engines are root of one user namespace that they share.

A small process, `hutch-init hold`, keeps the namespace, and a mount namespace in it, for all
engines of that user on one data directory. What it maps is the user's own uid to 0 and a range
from /etc/subuid to the others: user_namespaces(7), newuidmap(1).
"""

from __future__ import annotations

import fcntl
import json
import os
import pwd
import shutil
import socket
import subprocess
from pathlib import Path

from hutch.errors import IsolationError
from hutch.linux.procfs import boot_id, start_time
from hutch.linux.syscalls import CLONE_NEWNS, CLONE_NEWUSER, setns

_IDS = 65_535
"""How many ids besides root a sandbox has: all that 16 bits can name."""
_HOLDER_TIMEOUT_S = 10.0
_CONTAINER_MARKS = ("/.dockerenv", "/run/.containerenv")


def needs_userns() -> bool:
    """Tell whether this process is not root, of the host or of a namespace of its own."""
    return os.geteuid() != 0


def join_or_create(directory: Path, init_binary: Path) -> None:
    """Make this process root of the user namespace kept in `directory`, made if there is none.

    Raises:
        IsolationError: the host does not allow it, with what would; or this process has threads,
            which the kernel does not let into a namespace.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    working_directory = os.getcwd()
    with open(directory / "lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        holder = directory / "holder.json"
        pidfd = _open_holder(holder)
        if pidfd is None:
            pidfd = _start_holder(holder, init_binary)
    try:
        _enter(pidfd)
    finally:
        os.close(pidfd)
    os.chdir(working_directory)


def _enter(pidfd: int) -> None:
    try:
        setns(pidfd, CLONE_NEWUSER | CLONE_NEWNS)
    except OSError as error:
        raise IsolationError(
            "user namespace",
            f"this process could not enter it: {error.strerror}",
            errno=error.errno or 0,
            hint="open the engine before the process starts threads, or run it as root",
        ) from error
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    os.setgroups([])


def _open_holder(record: Path) -> int | None:
    """Open the process that keeps the namespace; None if it is gone."""
    try:
        data = json.loads(record.read_text())
        if data["boot_id"] != boot_id():
            return None
        pidfd = os.pidfd_open(data["pid"])
    except (FileNotFoundError, ProcessLookupError, ValueError, KeyError):
        return None
    try:
        if start_time(data["pid"]) == data["start_time"]:
            return pidfd
    except ProcessLookupError:
        pass
    os.close(pidfd)
    return None


def _start_holder(record: Path, init_binary: Path) -> int:
    user = pwd.getpwuid(os.getuid()).pw_name
    if shutil.which("newuidmap") is None:
        raise IsolationError(
            "uid map",
            "newuidmap is not installed",
            hint="an administrator can install it: apt-get install uidmap",
        )
    uids, gids = _range("/etc/subuid", user), _range("/etc/subgid", user)
    ours, theirs = socket.socketpair()
    ours.settimeout(_HOLDER_TIMEOUT_S)
    with ours:
        with theirs:
            pid = _spawn(init_binary, theirs)
        pidfd = os.pidfd_open(pid)
        try:
            _map_holder(ours, pid, uids, gids)
        except BaseException:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
            os.close(pidfd)
            raise
    data = {"pid": pid, "start_time": start_time(pid), "boot_id": boot_id()}
    temporary = record.with_suffix(".new")
    temporary.write_text(json.dumps(data))
    temporary.replace(record)
    return pidfd


def _spawn(init_binary: Path, theirs: socket.socket) -> int:
    high = fcntl.fcntl(theirs.fileno(), fcntl.F_DUPFD_CLOEXEC, 10)
    try:
        return os.posix_spawn(
            init_binary,
            ["hutch-init", "hold"],
            {},
            file_actions=[(os.POSIX_SPAWN_DUP2, high, 3)],
        )
    finally:
        os.close(high)


def _map_holder(
    ours: socket.socket, pid: int, uids: tuple[int, int], gids: tuple[int, int]
) -> None:
    """Wait for its namespaces, map their ids, wait until it is root of them."""
    if not ours.recv(1):
        raise IsolationError("user namespace", "the kernel refused one", hint=why_refused())
    for tool, own, (first, count) in (
        ("newuidmap", os.getuid(), uids),
        ("newgidmap", os.getgid(), gids),
    ):
        result = subprocess.run(
            [tool, str(pid), "0", str(own), "1", "1", str(first), str(min(count, _IDS))],
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode != 0:
            raise IsolationError("uid map", f"{tool}: {result.stderr.strip()}")
    ours.sendall(b"\0")
    if not ours.recv(1):
        raise IsolationError("user namespace", "it could not be set up", hint=why_refused())


def _range(file: str, user: str) -> tuple[int, int]:
    """The user's greatest range of subordinate ids: subuid(5)."""
    path = Path(file)
    found: list[tuple[int, int]] = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        name, _, rest = line.partition(":")
        first, _, count = rest.partition(":")
        if name in {user, str(os.getuid())} and first.isdigit() and count.isdigit():
            found.append((int(first), int(count)))
    first_id, size = max(found, key=lambda entry: entry[1], default=(0, 0))
    if size < _IDS:
        raise IsolationError(
            "uid map",
            f"{file} gives {user} {size} of {_IDS} ids",
            hint="an administrator can give them: usermod --add-subuids 100000-165535 "
            f"--add-subgids 100000-165535 {user}",
        )
    return first_id, size


def why_refused() -> str:
    """Say why this host lets this process make no user namespace, and what would help."""
    if _is_chrooted():
        return "in a chroot(2) the kernel allows none: enter the directory by pivot_root(2) instead"
    for name, blocked in (
        ("kernel.unprivileged_userns_clone", "0"),
        ("kernel.apparmor_restrict_unprivileged_userns", "1"),
        ("user.max_user_namespaces", "0"),
    ):
        path = Path("/proc/sys", *name.split("."))
        if path.is_file() and path.read_text().strip() == blocked:
            wanted = {"0": "1", "1": "0"}[blocked] if name.startswith("kernel") else "10000"
            return f"an administrator can allow them: sysctl -w {name}={wanted}"
    if any(Path(mark).exists() for mark in _CONTAINER_MARKS):
        return "the container around this process forbids them: docker run --privileged allows them"
    return "a container or security module around this process may forbid user namespaces"


def _is_chrooted() -> bool:
    """Whether this process's root directory is none of a mount, as only chroot(2) leaves it."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return not any(line.split(" ")[4] == "/" for line in lines)

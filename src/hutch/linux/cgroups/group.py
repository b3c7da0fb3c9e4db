"""One sandbox's control groups: the same name in every hierarchy it is in."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hutch.errors import IsolationError
from hutch.models import Resources

_PERIOD_US = 100_000
_LEAST_QUOTA_US = 1_000  # what the kernel takes
_EMPTY_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class CgroupStats:
    """What a group has used; None where its controller is missing."""

    cpu_time: float | None
    """Seconds."""
    memory: int | None
    """Bytes, page cache included."""
    memory_peak: int | None
    pids: int | None
    oom_kills: int


class SandboxCgroup:
    """The groups of one sandbox. Nothing is read or made until a method is called.

    Args:
        v1: its directory by controller.
        v2: its directory in the unified hierarchy.
        v2_controllers: the controllers that hierarchy has, and version 1 therefore has not.
    """

    def __init__(
        self, v1: Mapping[str, Path], v2: Path | None, v2_controllers: frozenset[str]
    ) -> None:
        self._v1 = v1
        self._v2 = v2
        self._v2_controllers = v2_controllers

    def _directories(self) -> list[Path]:
        """Each once: controllers that are mounted together share one."""
        return list(dict.fromkeys([*self._v1.values(), *([self._v2] if self._v2 else [])]))

    def make(self, resources: Resources) -> None:
        """Make the groups and set their limits; on failure there are none.

        Raises:
            FileNotFoundError: the parent group is not there.
            IsolationError: the kernel refused.
        """
        made: list[Path] = []
        try:
            for directory in self._directories():
                directory.mkdir()
                made.append(directory)
            self._limit(resources)
        except OSError as error:
            for directory in made:
                directory.rmdir()
            if isinstance(error, FileNotFoundError):
                raise
            raise IsolationError(
                "cgroup", f"{error.filename}: {error.strerror}", errno=error.errno or 0
            ) from error

    def _limit(self, resources: Resources) -> None:
        if resources.memory is not None:
            if "memory" in self._v2_controllers:
                self._write("memory", "memory.max", resources.memory)
                self._write("memory", "memory.swap.max", 0, optional=True)
            else:
                self._write("memory", "memory.limit_in_bytes", resources.memory)
                for name in ("memsw.limit_in_bytes", "kmem.tcp.limit_in_bytes"):
                    self._write("memory", f"memory.{name}", resources.memory, optional=True)
        if resources.pid_limit is not None:
            self._write("pids", "pids.max", resources.pid_limit)
        if resources.cpu is not None:
            quota = max(_LEAST_QUOTA_US, round(resources.cpu * _PERIOD_US))
            if "cpu" in self._v2_controllers:
                self._write("cpu", "cpu.max", f"{quota} {_PERIOD_US}")
            else:
                self._write("cpu", "cpu.cfs_period_us", _PERIOD_US)
                self._write("cpu", "cpu.cfs_quota_us", quota)

    def _file(self, controller: str, name: str) -> Path | None:
        directory = self._v2 if controller in self._v2_controllers else self._v1.get(controller)
        return None if directory is None else directory / name

    def _write(
        self, controller: str, name: str, value: int | str, *, optional: bool = False
    ) -> None:
        """Write a control file; optional ones are missing where the kernel does not count that."""
        path = self._file(controller, name)
        assert path is not None, "the host was asked whether it supports the limit"
        try:
            write_control(path, str(value))
        except FileNotFoundError:
            if not optional:
                raise

    def _read(self, controller: str, name: str) -> str | None:
        path = self._file(controller, name)
        return None if path is None else _read(path)

    def _read_number(self, controller: str, name: str) -> int | None:
        text = self._read(controller, name)
        return None if text is None else int(text)

    def join_files(self) -> tuple[list[int], int | None]:
        """Open what a process joins by: the caller's descriptors.

        The first are `tasks` of version 1, to be written "0": a thread that moves itself takes
        no lock of the whole host, where `cgroup.procs` waits for an RCU grace period. The second
        is the directory of version 2 for CLONE_INTO_CGROUP, clone3(2).
        """
        v1 = [
            os.open(directory / "tasks", os.O_WRONLY | os.O_CLOEXEC)
            for directory in dict.fromkeys(self._v1.values())
        ]
        if self._v2 is None:
            return v1, None
        return v1, os.open(self._v2, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def stats(self) -> CgroupStats:
        """Read what the sandbox has used so far."""
        v2 = "memory" in self._v2_controllers
        return CgroupStats(
            cpu_time=self._cpu_time(),
            memory=self._read_number("memory", "memory.current" if v2 else "memory.usage_in_bytes"),
            memory_peak=self._read_number(
                "memory", "memory.peak" if v2 else "memory.max_usage_in_bytes"
            ),
            pids=self._read_number("pids", "pids.current"),
            oom_kills=self.oom_kills(),
        )

    def _cpu_time(self) -> float | None:
        if "cpu" in self._v2_controllers:
            used = _field(self._read("cpu", "cpu.stat"), "usage_usec")
            return None if used is None else used / 1e6
        nanoseconds = self._read_number("cpuacct", "cpuacct.usage")
        return None if nanoseconds is None else nanoseconds / 1e9

    def oom_kills(self) -> int:
        """Count the processes killed because the sandbox was at its memory limit; 0 if unknown."""
        v2 = "memory" in self._v2_controllers
        text = self._read("memory", "memory.events" if v2 else "memory.oom_control")
        return _field(text, "oom_kill") or 0

    def pids(self) -> set[int]:
        """The processes in it."""
        found: set[int] = set()
        for directory in self._directories():
            found.update(map(int, (_read(directory / "cgroup.procs") or "").split()))
        return found

    def kill(self) -> None:
        """End every process in it, and return when they are gone.

        Raises:
            IsolationError: one of them does not end.
        """
        deadline = time.monotonic() + _EMPTY_TIMEOUT_S
        while pids := self.pids():
            if not self._kill_unified():
                for pid in pids:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            self._pause(deadline, f"processes {sorted(pids)[:5]} do not end")

    def _kill_unified(self) -> bool:
        """Use cgroup.kill, which a fork cannot outrun, where there is one (Linux 5.14)."""
        if self._v2 is None:
            return False
        try:
            write_control(self._v2 / "cgroup.kill", "1")
        except FileNotFoundError:
            return False
        return True

    def remove(self) -> None:
        """Remove the groups. Idempotent.

        Raises:
            IsolationError: there are still processes in one.
        """
        deadline = time.monotonic() + _EMPTY_TIMEOUT_S
        for directory in self._directories():
            while True:
                try:
                    directory.rmdir()
                except FileNotFoundError:
                    break
                except OSError as error:  # EBUSY: a process that is dead is not yet gone
                    self._pause(deadline, f"{directory}: {error.strerror}")
                else:
                    break

    def _pause(self, deadline: float, problem: str) -> None:
        if time.monotonic() > deadline:
            raise IsolationError("cgroup", problem)
        time.sleep(0.001)


def _read(path: Path) -> str | None:
    """Read a control file; None when its group is gone, or goes right now."""
    try:
        return path.read_text()
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ENODEV}:
            return None
        raise


def write_control(path: Path, text: str) -> None:
    """Write a control file in one call; unlike `open(…, "w")` never make or truncate one."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        os.close(fd)


def _field(text: str | None, name: str) -> int | None:
    """Read one value of a flat keyed file."""
    for line in (text or "").splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    return None

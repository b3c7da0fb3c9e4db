"""The native runtime: makes, finds again and removes sandboxes on this host."""

from __future__ import annotations

import asyncio
import os
import select
import signal
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from hutch.abc.runtime import Commands, Death, InstanceRecord, Runtime
from hutch.errors import SandboxUnavailableError
from hutch.linux.cgroups import CgroupHost, SandboxCgroup
from hutch.linux.disk import missing_for_disks
from hutch.linux.inotify import Watcher
from hutch.linux.procfs import boot_id, pids_by_name, start_time
from hutch.models import Capabilities, ExecOptions, SandboxSpec
from hutch.runtime.native.binary import sealed_copy
from hutch.runtime.native.commands import NativeCommands
from hutch.runtime.native.files import FileThreads
from hutch.runtime.native.instance import MAIN_COMMAND, NativeInstance, death_of
from hutch.runtime.native.launcher import Launched, Launcher, LaunchPolicy, launch
from hutch.runtime.native.layout import Layout

NAME = "native"
_THREADS = 16

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class NativeOptions:
    """What a native runtime is made with.

    `directory` is the runtime's own; `tag` tells its cgroups from those of other data
    directories; `rootless`: this process is root of a user namespace, not of the host.
    """

    directory: Path
    tag: str
    binary: Path
    seccomp: bytes
    rootless: bool
    shm_size: int
    open_files: int
    log_limit: int


class NativeRuntime(Runtime):
    """Sandboxes in namespaces, cgroups and an overlay: docs/architecture.md.

    `async with` holds threads and descriptors; the sandboxes do not depend on it.
    """

    def __init__(self, options: NativeOptions) -> None:
        self._options = options
        self._layout = Layout(options.directory)
        self._instances: dict[str, NativeInstance] = {}
        self._watcher = Watcher()

    async def __aenter__(self) -> Self:
        self._executor = ThreadPoolExecutor(_THREADS, thread_name_prefix="hutch-native")
        self._threads = FileThreads()
        await self._run(self._open)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def _run(self, work: Callable[[], T], discard: Callable[[T], None] | None = None) -> T:
        """Run blocking work to its end: a cancelled caller waits, and discards the result."""
        future = asyncio.get_running_loop().run_in_executor(self._executor, work)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            await asyncio.wait([future])
            if discard is not None and future.exception() is None:
                discard(future.result())
            raise

    def _open(self) -> None:
        self._layout.open()
        self._binary_fd = sealed_copy(self._options.binary)
        self._launcher = Launcher(self._binary_fd)
        self._cgroups = CgroupHost.probe(self._options.tag, whole_host=not self._options.rootless)
        self._policy = LaunchPolicy(
            id_mapped=not self._options.rootless,
            oom_reset=not self._options.rootless,
            seccomp=self._options.seccomp,
            shm_size=self._options.shm_size,
            open_files=self._options.open_files,
        )

    async def aclose(self) -> None:
        for instance in self._instances.values():
            instance.close()
        self._instances.clear()
        self._watcher.close()
        if self._binary_fd >= 0:
            await self._run(self._launcher.close)
            os.close(self._binary_fd)
            self._binary_fd = -1
            self._layout.close()
            await self._run(self._cgroups.remove_parent)
            self._executor.shutdown()
            self._threads.close()

    async def probe(self) -> Capabilities:
        missing = dict(self._cgroups.missing)
        if self._options.rootless:
            missing["uids"] = "without root all sandboxes share one range of uids"
        if (why := self._missing_for_disks()) is not None:
            missing["disk"] = why
        return Capabilities(
            name=NAME,
            rootless=self._options.rootless,
            memory_limit=self._cgroups.supports("memory"),
            cpu_limit=self._cgroups.supports("cpu"),
            pid_limit=self._cgroups.supports("pids"),
            disk_limit="disk" not in missing,
            privilege_escalation=True,
            per_sandbox_uids=not self._options.rootless,
            missing=missing,
        )

    async def create(self, spec: SandboxSpec) -> NativeInstance:
        def make() -> tuple[SandboxCgroup, Launched]:
            self._layout.make(spec.id, disk_limit=spec.resources.disk_limit)
            return self._launch(spec)

        return await self._bring_up(spec, make)

    def _missing_for_disks(self) -> str | None:
        if self._options.rootless:
            return "without root no filesystem can be mounted that bounds what is written"
        return missing_for_disks()

    async def start(self, spec: SandboxSpec) -> NativeInstance:
        return await self._bring_up(spec, lambda: self._launch(spec))

    async def _bring_up(
        self, spec: SandboxSpec, work: Callable[[], tuple[SandboxCgroup, Launched]]
    ) -> NativeInstance:
        cgroup, launched = await self._run(work, discard=lambda made: os.close(made[1].pidfd))
        try:
            record = _record(launched)
        except ProcessLookupError as error:
            os.close(launched.pidfd)
            raise SandboxUnavailableError(spec.id, "its init was killed") from error
        instance = self._hold(spec, launched, cgroup, record)
        if spec.make_workdir:
            await instance.files.make_workdir(spec.workdir, spec.user)
        if spec.cmd:
            await self._run(lambda: self._layout.remove_command(spec.id, MAIN_COMMAND))
            options = ExecOptions(spec.cmd, env=spec.env, workdir=spec.workdir, user=spec.user)
            await instance.start_main(options, log_limit=self._options.log_limit)
        return instance

    def _launch(self, spec: SandboxSpec) -> tuple[SandboxCgroup, Launched]:
        cgroup = self._cgroups.create(spec.id, spec.resources)
        launched = launch(
            spec,
            layout=self._layout,
            cgroup=cgroup,
            launcher=self._launcher,
            policy=self._policy,
        )
        return cgroup, launched

    def _hold(
        self,
        spec: SandboxSpec,
        launched: Launched,
        cgroup: SandboxCgroup,
        record: InstanceRecord,
    ) -> NativeInstance:
        instance = NativeInstance(
            spec,
            record,
            pid=launched.pid,
            pidfd=launched.pidfd,
            layout=self._layout,
            cgroup=cgroup,
            threads=self._threads,
            commands=self.commands(spec.id),
            id_mapped=self._policy.id_mapped,
        )
        if (old := self._instances.get(spec.id)) is not None:
            old.close()
        self._instances[spec.id] = instance
        return instance

    async def attach(
        self, sandbox_id: str, record: InstanceRecord, spec: SandboxSpec
    ) -> NativeInstance | None:
        known = self._instances.get(sandbox_id)
        if known is not None and known.record == record:
            return known if known.is_alive() else None
        launched = _open_pid(record.data)
        if launched is None:
            return None
        return self._hold(spec, launched, self._cgroups.get(sandbox_id), record)

    async def reap(self, sandbox_id: str, record: InstanceRecord) -> Death:
        self._drop(sandbox_id)
        if record.data["boot_id"] != boot_id():
            return Death("host_restarted")

        def reap() -> Death:
            cgroup = self._cgroups.get(sandbox_id)
            status = self._layout.status(sandbox_id)
            try:
                said = status.read_text()
                if said in {"", f"main {signal.SIGKILL:d}"}:
                    said = "out_of_memory" if cgroup.oom_kills() else said or "killed"
                    status.write_text(said)  # whoever asks next finds no cgroup any more
            except FileNotFoundError:
                said = "killed"  # by a process that has destroyed it
            cgroup.remove()
            return death_of(said)

        return await self._run(reap)

    def _drop(self, sandbox_id: str) -> None:
        instance = self._instances.pop(sandbox_id, None)
        if instance is not None:
            instance.close()

    def commands(self, sandbox_id: str) -> Commands:
        return NativeCommands(
            self._layout,
            sandbox_id,
            lambda: self._cgroups.get(sandbox_id).oom_kills(),
            self._watcher,
        )

    async def halt(self, sandbox_id: str) -> None:
        known = await self._kill_known(sandbox_id)
        await self._run(lambda: self._halt(sandbox_id, killed=known))

    async def _kill_known(self, sandbox_id: str) -> bool:
        """Kill a sandbox that this engine has a handle of; False if it has none."""
        instance = self._instances.get(sandbox_id)
        if instance is None:
            return False
        await instance.kill()
        self._drop(sandbox_id)
        return True

    def _halt(self, sandbox_id: str, *, killed: bool) -> None:
        cgroup = self._cgroups.get(sandbox_id)
        if not killed:
            _kill_unknown(sandbox_id)
            cgroup.kill()
        cgroup.remove()

    async def delete(self, sandbox_id: str) -> None:
        known = await self._kill_known(sandbox_id)

        def remove() -> None:
            self._halt(sandbox_id, killed=known)
            self._layout.remove(sandbox_id)

        await self._run(remove)

    async def list(self) -> list[str]:
        return await self._run(lambda: sorted({*self._layout.list(), *self._cgroups.list()}))


def _kill_unknown(sandbox_id: str) -> None:
    """End an init that no handle leads to: its engine died before it could record it."""
    for pid in pids_by_name("hutch-init", argument=sandbox_id):
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        _kill_and_wait(pidfd)


def _record(launched: Launched) -> InstanceRecord:
    pid = launched.pid
    return InstanceRecord(NAME, {"pid": pid, "start_time": start_time(pid), "boot_id": boot_id()})


def _open_pid(data: Mapping[str, str | int]) -> Launched | None:
    """Open the init a record is about; None when it, or the host's boot, is gone."""
    pid = data["pid"]
    if data["boot_id"] != boot_id() or not isinstance(pid, int):
        return None
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    try:
        current = start_time(pid)
    except ProcessLookupError:
        current = None
    if current != data["start_time"]:
        os.close(pidfd)
        return None
    return Launched(pid, pidfd)


def _kill_and_wait(pidfd: int) -> None:
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        poll.poll()
    except ProcessLookupError:
        pass
    finally:
        os.close(pidfd)

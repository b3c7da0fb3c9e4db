"""A running native sandbox: its init's pidfd, its socket and its cgroup."""

from __future__ import annotations

import asyncio
import os
import select
import signal
from datetime import UTC, datetime

from hutch.abc.runtime import Commands, Content, Death, Instance, InstanceRecord, Process
from hutch.errors import LimitReachedError, SandboxUnavailableError
from hutch.linux.cgroups import SandboxCgroup
from hutch.models import ExecOptions, SandboxSpec, SandboxStats
from hutch.runtime.native.commands import start_command
from hutch.runtime.native.files import FileThreads, NativeFiles
from hutch.runtime.native.launcher import boottime_ns
from hutch.runtime.native.layout import Layout
from hutch.runtime.native.process import NativeProcess, exec_items, start_program
from hutch.runtime.native.wire import (
    Connection,
    DeadlineTag,
    InitError,
    Kind,
    MessageType,
    i64,
    is_listening,
)

MAIN_COMMAND = "main"
"""The id of the detached command that is a sandbox's main process."""


class NativeInstance(Instance):
    """Holds one descriptor, the pidfd, which it owns until `close`."""

    def __init__(
        self,
        spec: SandboxSpec,
        record: InstanceRecord,
        *,
        pid: int,
        pidfd: int,
        layout: Layout,
        cgroup: SandboxCgroup,
        threads: FileThreads,
        commands: Commands,
        id_mapped: bool,
    ) -> None:
        self.record = record
        self.pid = pid
        self._spec = spec
        self._pidfd = pidfd
        self._layout = layout
        self._cgroup = cgroup
        self._commands = commands
        self._ended = asyncio.Event()
        self._watching = False
        uid_base = spec.uid_base if id_mapped else 0
        self.files = NativeFiles(spec.id, pid, self.is_alive, uid_base=uid_base, threads=threads)

    def is_alive(self) -> bool:
        if (pidfd := self._pidfd) < 0:  # read once: file threads ask too, and it may be closed
            return False
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        return not poll.poll(0)

    async def wait_ended(self) -> None:
        """Return when its init, and with it every process of it, is gone."""
        if not self.is_alive():
            return
        if not self._watching:
            self._watching = True
            asyncio.get_running_loop().add_reader(self._pidfd, self._end)
        await self._ended.wait()

    def _end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        self._watching = False
        self._ended.set()

    async def stop(self, grace: float) -> None:
        if self._spec.cmd and grace > 0:
            await self._commands.signal(MAIN_COMMAND, signal.SIGTERM)
            try:
                async with asyncio.timeout(grace):
                    await self.wait_ended()
            except TimeoutError:
                pass  # the grace is over
        await self.kill()

    async def kill(self) -> None:
        """End every process of it at once, and wait until they are gone. Idempotent."""
        if self.is_alive():
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        await self.wait_ended()

    def close(self) -> None:
        """Let go of it; it runs on. Idempotent."""
        if self._watching:
            self._end()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1

    async def _connect(self) -> Connection:
        try:
            return await Connection.open(self._layout.init_socket(self._spec.id))
        except OSError as error:
            raise self._unavailable() from error

    def _is_serving(self) -> bool:
        return is_listening(self._layout.init_socket(self._spec.id))

    def _check_serving(self) -> None:
        if not self._is_serving():
            raise SandboxUnavailableError(self._spec.id, "it ended before the command started")

    def _unavailable(self) -> SandboxUnavailableError:
        return SandboxUnavailableError(self._spec.id, "its init does not answer")

    def _oom_kills(self) -> int:
        """How often the sandbox's processes were killed for lack of memory; 0 if not limited."""
        return self._cgroup.oom_kills() if self._spec.resources.memory is not None else 0

    async def exec(self, options: ExecOptions) -> Process:
        oom_kills = self._oom_kills()
        connection = await self._connect()
        try:
            started = await start_program(connection, exec_items(options))
            if started is None:
                self._check_serving()
        except BaseException:
            connection.close()
            raise
        return NativeProcess(
            connection,
            started,
            options,
            self._spec.id,
            is_serving=self._is_serving,
            oom_kills=self._oom_kills,
            oom_kills_before=oom_kills,
        )

    async def start_command(
        self,
        command_id: str,
        options: ExecOptions,
        *,
        log_limit: int,
        stdin: Content | None = None,
    ) -> bool:
        return await self._start_command(command_id, options, log_limit=log_limit, stdin=stdin)

    async def start_main(self, options: ExecOptions, *, log_limit: int) -> None:
        """Start the process whose end is the sandbox's end."""
        await self._start_command(MAIN_COMMAND, options, log_limit=log_limit, main=True)

    async def _start_command(
        self,
        command_id: str,
        options: ExecOptions,
        *,
        log_limit: int,
        stdin: Content | None = None,
        main: bool = False,
    ) -> bool:
        try:
            started = await start_command(
                self._layout,
                self._spec.id,
                command_id,
                options,
                log_limit=log_limit,
                oom_kills=self._oom_kills(),
                stdin=stdin,
                main=main,
            )
        except (ConnectionError, FileNotFoundError) as error:
            raise self._unavailable() from error
        if started is None:
            self._check_serving()
        return started is not False

    async def set_deadline(self, expires_at: float | None) -> None:
        connection = await self._connect()
        try:
            await connection.send_request(
                Kind.DEADLINE, [(DeadlineTag.AT, i64(boottime_ns(expires_at)))]
            )
            answer = await connection.receive()
        except ConnectionError as error:
            raise self._unavailable() from error
        finally:
            connection.close()
        if answer is None:
            raise self._unavailable()
        if answer.type is MessageType.ERROR:
            raise LimitReachedError(
                f"the sandbox has no room to take the deadline ({InitError.parse(answer.body)})",
                hint="end some of its processes, or stop or destroy it",
            )

    async def stats(self) -> SandboxStats:
        used = await asyncio.to_thread(self._cgroup.stats)
        disk = await self._disk_usage()
        limits = self._spec.resources
        return SandboxStats(
            timestamp=datetime.now(UTC),
            cpu_time=used.cpu_time,
            memory=used.memory,
            memory_peak=used.memory_peak,
            memory_limit=limits.memory,
            pids=used.pids,
            pid_limit=limits.pid_limit,
            disk=disk,
            disk_limit=limits.disk_limit,
            oom_kills=used.oom_kills,
        )

    async def _disk_usage(self) -> int:
        if self._spec.resources.disk_limit is None:
            return await self.files.measure(self._layout.rw(self._spec.id) / "upper")
        try:
            root = await asyncio.to_thread(os.statvfs, f"/proc/{self.pid}/root")
        except OSError as error:
            raise self._unavailable() from error
        return (root.f_blocks - root.f_bfree) * root.f_frsize


def death_of(status: str) -> Death:
    """Read what a sandbox's status file says of its init's end."""
    match status.split():
        case ["expired"]:
            return Death("expired")
        case ["main", number]:
            code = os.waitstatus_to_exitcode(int(number))
            if code < 0:
                return Death(f"signalled({signal.Signals(-code).name})")
            return Death(f"exited({code})")
        case _:
            return Death(status)

"""Running commands in sandboxes: to their end, as streams, or detached."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from hashlib import sha256
from secrets import token_hex

from hutch.abc.runtime import Commands, Content, Instance
from hutch.abc.state import SandboxRecord
from hutch.checks import check_argv, check_count, check_env, check_text
from hutch.engine.access import SandboxAccess, absolute
from hutch.engine.execution import ExecStream, Stdin, as_content, result_from_log, run_to_end
from hutch.errors import (
    CommandNotFoundError,
    LimitReachedError,
    OperationTimeoutError,
    SandboxUnavailableError,
)
from hutch.models import (
    Command,
    ExecMessage,
    ExecOptions,
    ExecResult,
    ExitReason,
    ExitStatus,
    MessageType,
    TerminalSize,
)

_LEAST_LOG = 4096


class CommandOperations(SandboxAccess):
    """The engine's commands."""

    def _options(
        self,
        record: SandboxRecord,
        argv: Sequence[str] | str,
        *,
        env: Mapping[str, str] | None,
        workdir: str | None,
        user: str | None,
        timeout: float | None,
        stdin: bool,
        terminal: TerminalSize | None = None,
    ) -> ExecOptions:
        spec = record.spec
        if env is not None:
            check_env("env", env)
        if workdir is not None:
            check_text("workdir", workdir)
        return ExecOptions(
            argv=check_argv("argv", ("/bin/sh", "-c", argv) if isinstance(argv, str) else argv),
            env=spec.env if env is None else {**spec.env, **env},
            workdir=absolute(workdir, spec.workdir),
            user=spec.user if user is None else user,
            timeout=timeout,
            grace=self.settings.exec_grace,
            stdin=stdin,
            terminal=terminal,
        )

    async def exec(
        self,
        sandbox_id: str,
        argv: Sequence[str] | str,
        *,
        env: Mapping[str, str] | None = None,
        workdir: str | None = None,
        user: str | None = None,
        stdin: Stdin = None,
        timeout: float | None = None,
        output_limit: int | None = None,
        idempotency_key: str | None = None,
    ) -> ExecResult:
        """Run a command to its end.

        Args:
            argv: program and arguments; a string is a line for /bin/sh.
            env: added to the sandbox's environment.
            workdir: instead of the sandbox's; a relative one is below it.
            user: instead of the sandbox's.
            stdin: what the command reads; nothing by default.
            timeout: seconds; then its whole tree is ended and the result says `timed_out`.
            output_limit: bytes kept of each stream, instead of the setting.
            idempotency_key: a repeated call with the same key does not run the command again
                but returns the first one's result, also when the first caller has died. All of
                stdin is taken before the command starts.

        However the command ends is data in the result. A cancelled call ends the whole tree;
        with a key the command goes on, for the call that repeats it.

        Raises:
            SandboxNotFoundError, InvalidStateError: there is no such running sandbox.
            SandboxUnavailableError: it died or was destroyed meanwhile.
            InvalidRequestError: no such user or working directory, or a bad argument.
            LimitReachedError: the sandbox has no room for another process.
        """
        started = time.monotonic()
        content = as_content(stdin)
        record, instance = await self._running(sandbox_id)
        options = self._options(
            record, argv, env=env, workdir=workdir, user=user, timeout=timeout,
            stdin=stdin is not None,
        )  # fmt: skip
        limit = self.settings.output_limit if output_limit is None else output_limit
        check_count("output_limit", limit, 0)
        if idempotency_key is not None:
            return await self._exec_once(
                record, instance, idempotency_key, options, content, limit=limit, started=started
            )
        process = await instance.exec(options)
        try:
            longest = None if timeout is None else timeout + options.grace
            return await run_to_end(process, content, limit=limit, started=started, longest=longest)
        finally:
            await process.aclose()

    async def _exec_once(
        self,
        record: SandboxRecord,
        instance: Instance,
        key: str,
        options: ExecOptions,
        stdin: Content | None,
        *,
        limit: int,
        started: float,
    ) -> ExecResult:
        """Run a command under an id made of its key: its log is what a repetition returns."""
        command_id = _id_of_key("exec", key)
        await instance.start_command(
            command_id,
            replace(options, stdin=False),
            log_limit=max(limit + 1, _LEAST_LOG),  # one more than is kept tells that there was more
            stdin=stdin,
        )
        commands = self._runtime.commands(record.id)
        try:
            status = await commands.wait(command_id)
            cut = (await commands.get(command_id)).log_truncated
            log = commands.read_log(command_id, follow=False)
            result = await result_from_log(log, status, limit=limit, cut=cut, started=started)
        except CommandNotFoundError as error:
            if instance.is_alive():
                raise LimitReachedError(
                    "the call that this one repeats could not start its command",
                    hint="repeat it again",
                ) from error
            raise SandboxUnavailableError(record.id, "it ended while the command ran") from error
        if status.reason is ExitReason.LOST and not instance.is_alive():
            raise SandboxUnavailableError(record.id, "it ended while the command ran")
        return result

    @asynccontextmanager
    async def exec_stream(
        self,
        sandbox_id: str,
        argv: Sequence[str] | str,
        *,
        env: Mapping[str, str] | None = None,
        workdir: str | None = None,
        user: str | None = None,
        stdin: bool = False,
        terminal: TerminalSize | None = None,
        timeout: float | None = None,
    ) -> AsyncIterator[ExecStream]:
        """Run a command and stream its output as it comes.

        `async with` gives an `ExecStream`; `async for` over it yields `ExecMessage`s, the last of
        type `exit`. Leaving the block before that ends the command's whole tree. The arguments
        and errors are those of `exec`, and:

        Args:
            stdin: whether to write to the command; `write_stdin`, `close_stdin`.
            terminal: run it on a terminal of this size; what it prints is then all stdout.
        """
        record, instance = await self._running(sandbox_id)
        options = self._options(
            record, argv, env=env, workdir=workdir, user=user, timeout=timeout, stdin=stdin,
            terminal=terminal,
        )  # fmt: skip
        process = await instance.exec(options)
        async with ExecStream(process) as stream:
            yield stream

    async def exec_detached(
        self,
        sandbox_id: str,
        argv: Sequence[str] | str,
        *,
        env: Mapping[str, str] | None = None,
        workdir: str | None = None,
        user: str | None = None,
        stdin: bool = False,
        terminal: TerminalSize | None = None,
        timeout: float | None = None,
        idempotency_key: str | None = None,
    ) -> Command:
        """Start a command that outlives this call, this engine and its process.

        It keeps its own output log, of each stream as much as the setting `log_limit` says. There
        is no deadline but the one given. A repeated call with the same `idempotency_key` returns
        the first one's command. Arguments and errors are those of `exec_stream`.
        """
        record, instance = await self._running(sandbox_id)
        options = self._options(
            record, argv, env=env, workdir=workdir, user=user, timeout=timeout, stdin=stdin,
            terminal=terminal,
        )  # fmt: skip
        name = token_hex(8)
        if idempotency_key is not None:
            name = _id_of_key("detached", idempotency_key)
        limit = self.settings.log_limit
        if await instance.start_command(name, options, log_limit=limit):
            await self._state.add_event("command.started", sandbox_id, {"command_id": name})
        return await self._runtime.commands(sandbox_id).get(name)

    async def _commands(self, sandbox_id: str) -> Commands:
        await self._state.get_sandbox(sandbox_id)
        return self._runtime.commands(sandbox_id)

    async def list_commands(self, sandbox_id: str) -> list[Command]:
        """Return a sandbox's detached commands, oldest first; its main process is `main`."""
        return await (await self._commands(sandbox_id)).list()

    async def get_command(self, sandbox_id: str, command_id: str) -> Command:
        """Return one detached command as it is now.

        Raises:
            CommandNotFoundError: there is none.
        """
        return await (await self._commands(sandbox_id)).get(command_id)

    async def command_output(
        self, sandbox_id: str, command_id: str, *, offset: int = 0, follow: bool = True
    ) -> AsyncIterator[ExecMessage]:
        """Yield a detached command's output from byte `offset` of its log on.

        Each message's `offset` is where to go on from. With `follow`, the last message is of type
        `exit`; without, the output so far is all.
        """
        check_count("offset", offset, 0)
        commands = await self._commands(sandbox_id)
        async for chunk in commands.read_log(command_id, offset=offset, follow=follow):
            yield ExecMessage(MessageType(chunk.stream), chunk.data, offset=chunk.end_offset)
        status = (await commands.get(command_id)).exit
        if status is not None:
            yield ExecMessage(MessageType.EXIT, b"%d" % status.exit_code, status=status)

    async def wait_command(
        self, sandbox_id: str, command_id: str, *, timeout: float | None = None
    ) -> ExitStatus:
        """Wait for a detached command's end.

        Raises:
            OperationTimeoutError: it still runs after `timeout` seconds; it goes on.
        """
        commands = await self._commands(sandbox_id)
        try:
            async with asyncio.timeout(timeout):
                return await commands.wait(command_id)
        except TimeoutError as error:
            raise OperationTimeoutError(
                f"command {command_id} still runs after {timeout} s"
            ) from error

    async def write_command_stdin(
        self, sandbox_id: str, command_id: str, data: bytes, *, close: bool = False
    ) -> None:
        """Write to a detached command's standard input, and with `close` end it.

        Raises:
            BrokenPipeError: the command is over or was started without stdin.
        """
        commands = await self._commands(sandbox_id)
        if data:
            await commands.write_stdin(command_id, data)
        if close:
            await commands.close_stdin(command_id)

    async def signal_command(self, sandbox_id: str, command_id: str, signum: int) -> None:
        """Send a signal to a detached command's process group; one that is over is left be."""
        await (await self._commands(sandbox_id)).signal(command_id, signum)

    async def kill_command(self, sandbox_id: str, command_id: str) -> None:
        """End a detached command's whole tree: SIGTERM, then after the grace SIGKILL."""
        await (await self._commands(sandbox_id)).kill(command_id)

    async def resize_command(self, sandbox_id: str, command_id: str, size: TerminalSize) -> None:
        """Tell a detached command's terminal its new size."""
        await (await self._commands(sandbox_id)).resize(command_id, size)


def _id_of_key(operation: str, key: str) -> str:
    """Return the id of the command that a key is for; keys of different operations differ."""
    return f"{operation}-{sha256(key.encode('utf-8', 'surrogatepass')).hexdigest()[:24]}"

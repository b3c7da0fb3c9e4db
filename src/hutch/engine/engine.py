"""The engine: the life of sandboxes, and all that is done in them.

Any number of engines, in as many processes, may share one data directory. Each public method is
one or two atomic steps on the state store around one call of the runtime; what a crash between
them leaves is finished by `hutch.engine.maintenance`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterable, AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from hashlib import sha256
from secrets import token_hex
from types import TracebackType
from typing import Self

from hutch.abc.images import ImageStore, ProgressCallback
from hutch.abc.runtime import Commands, Content, Instance, Runtime
from hutch.abc.state import Intent, SandboxDraft, SandboxRecord, StateStore
from hutch.checks import check_argv, check_count, check_env, check_seconds, check_text
from hutch.config import Settings
from hutch.engine.execution import ExecStream, Stdin, as_content, result_from_log, run_to_end
from hutch.engine.maintenance import Maintenance
from hutch.engine.resolve import (
    enforced,
    expiry,
    new_sandbox_id,
    resolve_resources,
    resolve_spec,
)
from hutch.errors import (
    CommandNotFoundError,
    FileError,
    FileNotDirectoryError,
    InvalidPathError,
    InvalidRequestError,
    InvalidStateError,
    OperationTimeoutError,
    SandboxNotFoundError,
    SandboxUnavailableError,
    UnsupportedError,
)
from hutch.lifecycle import SandboxStatus
from hutch.models import (
    Capabilities,
    Command,
    Event,
    ExecMessage,
    ExecOptions,
    ExecResult,
    ExitReason,
    ExitStatus,
    FileInfo,
    FileType,
    MessageType,
    Sandbox,
    SandboxConfig,
    SandboxCount,
    SandboxStats,
    TerminalSize,
    WriteReceipt,
)
from hutch.wire import fingerprint

_log = logging.getLogger(__name__)
_ANY = frozenset(SandboxStatus)
_SETTLE_POLL_S = 0.05
_LEAST_LOG = 4096


class Engine:
    """Creates sandboxes and works with them: `async with`, or `hutch.open_engine()`.

    Everything it needs is handed in; the constructor does nothing but keep it. Entering opens
    nothing either, it starts the background work; leaving it detaches: sandboxes live on.
    """

    def __init__(
        self, *, runtime: Runtime, images: ImageStore, state: StateStore, settings: Settings
    ) -> None:
        self.images = images
        self.settings = settings
        self._runtime = runtime
        self._state = state
        self._held: dict[str, tuple[SandboxRecord, Instance]] = {}
        self._maintenance = Maintenance(runtime=runtime, state=state, destroy=self._destroy)
        self._background: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._background = asyncio.create_task(self._maintenance.run(), name="hutch-maintenance")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.shutdown()

    async def shutdown(self, *, destroy: bool = False) -> None:
        """End this engine, and its ephemeral sandboxes. Idempotent.

        Other sandboxes live on, unless `destroy` ends all of them.
        """
        if destroy:
            ending = [record.id for record in await self._state.list_sandboxes()]
        else:
            ending = await self._state.ephemeral()
        for sandbox_id in ending:
            with contextlib.suppress(SandboxNotFoundError):
                await self.destroy_sandbox(sandbox_id)
        background, self._background = self._background, None
        if background is not None:
            background.cancel()
            await asyncio.gather(background, return_exceptions=True)
        self._held.clear()

    async def capabilities(self) -> Capabilities:
        """Say what this host can do."""
        return await self._runtime.probe()

    # Lifecycle

    async def create_sandbox(
        self,
        config: SandboxConfig | None = None,
        *,
        idempotency_key: str | None = None,
        ephemeral: bool = False,
        progress: ProgressCallback | None = None,
    ) -> Sandbox:
        """Make a sandbox and start it; its image is pulled first if it is not there.

        Args:
            config: what is wanted; the default image without limits of its own if left out.
            idempotency_key: a repeated call with the same key returns the first one's sandbox.
            ephemeral: destroy it when this engine shuts down or its process ends, however it ends.
            progress: told how far a pull has come.

        Raises:
            LimitReachedError: `max_sandboxes` exist.
            IsolationError: a layer of isolation could not be applied; nothing is left.
            UnsupportedError: the host cannot do what is asked for.
            ImageError, ImageNotFoundError: the image could not be obtained.
            IdempotencyError: the key was used for another request.
        """
        config = config or SandboxConfig(image=self.settings.default_image)
        if config.allow_privilege_escalation and not self.settings.allow_privilege_escalation:
            raise UnsupportedError(
                "allow_privilege_escalation", "the operator's settings forbid it"
            )
        capabilities = await self._runtime.probe()
        resources = resolve_resources(config, self.settings, capabilities)
        image = await self.images.ensure(config.image, progress=progress)
        timeout = self.settings.default_timeout if config.timeout is None else config.timeout
        sandbox_id, expires_at = new_sandbox_id(), expiry(timeout)
        draft = SandboxDraft(
            id=sandbox_id,
            config=config,
            spec=resolve_spec(sandbox_id, config, image, resources, expires_at=expires_at),
            image_id=image.id,
            created_at=datetime.now(UTC),
            expires_at=expires_at,
            idempotency_key=idempotency_key,
            fingerprint=fingerprint(config),
            ephemeral=ephemeral,
        )
        new = False
        while not new:
            record, new = await self._state.add_sandbox(draft, limit=self.settings.max_sandboxes)
            if not new:
                with contextlib.suppress(SandboxNotFoundError):  # it failed: ours to make now
                    return _view(await self._settled(record))
        names = enforced(resources, capabilities)
        return _view(await self._bring_up(record, "sandbox.created", names))

    async def _settled(self, record: SandboxRecord) -> SandboxRecord:
        """Wait until whoever is creating a sandbox is done."""
        while record.status is SandboxStatus.CREATING:
            await asyncio.sleep(_SETTLE_POLL_S)
            record = await self._state.get_sandbox(record.id)
        return record

    async def _bring_up(
        self, record: SandboxRecord, event: str, names: tuple[str, ...]
    ) -> SandboxRecord:
        """Carry out a CREATE or START intent; undo it on failure."""
        create = record.intent is Intent.CREATE
        try:
            make = self._runtime.create if create else self._runtime.start
            instance = await make(record.spec)
            record = await self._state.finish(
                record.id,
                SandboxStatus.RUNNING,
                event=event,
                instance=instance.record,
                enforced=names,
            )
        except BaseException as error:
            destroyed = await asyncio.shield(self._take_down(record, error, create=create))
            if destroyed and isinstance(error, Exception):
                raise SandboxNotFoundError(record.id, hint="it was destroyed meanwhile") from error
            raise
        self._hold(record, instance)
        _log.info("sandbox running", extra={"sandbox_id": record.id, "image": record.config.image})
        return record

    async def _is_destroyed(self, sandbox_id: str) -> bool:
        try:
            return (await self._state.get_sandbox(sandbox_id)).intent is Intent.DESTROY
        except SandboxNotFoundError:
            return True

    async def _take_down(
        self, record: SandboxRecord, error: BaseException, *, create: bool
    ) -> bool:
        """Undo a bring-up; True if it failed because somebody destroyed the sandbox."""
        destroyed = await self._is_destroyed(record.id)
        _log.info("sandbox failed", extra={"sandbox_id": record.id, "error": str(error)})
        if create:
            await self._runtime.delete(record.id)
            await self._state.remove_sandbox(record.id, event="sandbox.failed")
            return destroyed
        await self._runtime.halt(record.id)
        with contextlib.suppress(SandboxNotFoundError):
            await self._state.finish(
                record.id, SandboxStatus.STOPPED, event="sandbox.failed", reason=str(error)
            )
        return destroyed

    def _hold(self, record: SandboxRecord, instance: Instance) -> None:
        self._held[record.id] = (record, instance)
        self._maintenance.watch(record.id, instance)

    async def get_sandbox(self, sandbox_id: str) -> Sandbox:
        """Return one sandbox as it is now.

        Raises:
            SandboxNotFoundError: there is none.
        """
        return _view(await self._checked(await self._state.get_sandbox(sandbox_id)))

    async def _checked(self, record: SandboxRecord) -> SandboxRecord:
        """Make sure that a record that says running is right.

        Raises:
            SandboxNotFoundError: it is being destroyed.
        """
        if record.intent is Intent.DESTROY:
            raise SandboxNotFoundError(record.id, hint="it is being destroyed")
        if record.status is not SandboxStatus.RUNNING or record.instance is None:
            return record
        if record.intent is not None:
            return record  # whoever has it writes what comes of it
        if await self._runtime.attach(record.id, record.instance, record.spec) is not None:
            return record
        await self._maintenance.died(record)
        return await self._checked(await self._state.get_sandbox(record.id))

    async def list_sandboxes(
        self,
        *,
        status: SandboxStatus | Collection[SandboxStatus] = (),
        labels: Mapping[str, str] | None = None,
    ) -> list[Sandbox]:
        """Return sandboxes, oldest first: of these statuses, with all of these labels."""
        wanted = (status,) if isinstance(status, SandboxStatus) else status
        views = []
        for record in await self._state.list_sandboxes(labels=labels):
            with contextlib.suppress(SandboxNotFoundError):
                views.append(_view(await self._checked(record)))
        return [view for view in views if not wanted or view.status in wanted]

    async def sandbox_count(self) -> SandboxCount:
        """Count all sandboxes and those that run."""
        return await self._state.count()

    async def start_sandbox(self, sandbox_id: str) -> Sandbox:
        """Start a stopped sandbox on the filesystem it left.

        Raises:
            InvalidStateError: it is not stopped. Others as `create_sandbox` does.
        """
        record = await self._state.begin(sandbox_id, Intent.START, expected={SandboxStatus.STOPPED})
        return _view(await self._bring_up(record, "sandbox.started", record.enforced))

    async def stop_sandbox(self, sandbox_id: str, *, grace: float | None = None) -> Sandbox:
        """End all its processes and keep its filesystem; one that is stopped stays so.

        Args:
            grace: seconds that its main process has between SIGTERM and SIGKILL.
        """
        if grace is not None:
            check_seconds("grace", grace, zero=True)
        record = await self._checked(await self._state.get_sandbox(sandbox_id))
        if record.status is SandboxStatus.STOPPED:
            return _view(record)
        record = await self._state.begin(
            sandbox_id, Intent.STOP, expected={SandboxStatus.RUNNING, SandboxStatus.PAUSED}
        )
        seconds = self.settings.stop_grace if grace is None else grace
        return _view(await asyncio.shield(self._stop(record, seconds)))

    async def _stop(self, record: SandboxRecord, grace: float) -> SandboxRecord:
        if record.instance is not None:
            instance = await self._runtime.attach(record.id, record.instance, record.spec)
            if instance is not None:
                await instance.stop(grace)
        self._held.pop(record.id, None)
        await self._runtime.halt(record.id)
        return await self._state.finish(
            record.id, SandboxStatus.STOPPED, event="sandbox.stopped", reason="stopped"
        )

    async def destroy_sandbox(self, sandbox_id: str) -> None:
        """End it and remove everything of it. When this returns nothing is left.

        Raises:
            SandboxNotFoundError: there is none.
        """
        await asyncio.shield(self._destroy(sandbox_id, "sandbox.destroyed"))

    async def _destroy(self, sandbox_id: str, event: str) -> None:
        await self._state.begin(sandbox_id, Intent.DESTROY, expected=_ANY)
        self._held.pop(sandbox_id, None)
        try:
            await self._runtime.delete(sandbox_id)
        except Exception as error:
            await self._state.give_up(sandbox_id, reason=f"it could not be destroyed: {error}")
            raise
        await self._state.remove_sandbox(sandbox_id, event=event)
        _log.info("sandbox destroyed", extra={"sandbox_id": sandbox_id})

    async def set_timeout(self, sandbox_id: str, timeout: float | None) -> Sandbox:
        """Move a sandbox's expiry to `timeout` seconds from now; None: it does not expire."""
        if timeout is not None:
            check_seconds("timeout", timeout)
        expires_at = expiry(timeout)
        record = await self._state.get_sandbox(sandbox_id)
        if record.status is SandboxStatus.RUNNING:
            instance = await self._instance(sandbox_id)
            await instance.set_deadline(expires_at.timestamp() if expires_at else None)
        return _view(await self._state.set_expiry(sandbox_id, expires_at))

    async def set_labels(self, sandbox_id: str, labels: Mapping[str, str]) -> Sandbox:
        """Replace a sandbox's labels."""
        record = await self._state.get_sandbox(sandbox_id)
        checked = replace(record.config, labels=labels).labels
        return _view(await self._state.set_labels(sandbox_id, checked))

    async def stats(self, sandbox_id: str) -> SandboxStats:
        """Say what a running sandbox uses now."""
        return await (await self._instance(sandbox_id)).stats()

    async def events(
        self, *, after: int | None = None, follow: bool = True
    ) -> AsyncIterator[Event]:
        """Yield changes of state, whichever process made them.

        Args:
            after: the sequence to go on from; None is from now on, 0 all that are kept.
            follow: wait for further ones instead of ending.
        """
        last = await self._state.last_event() if after is None else after
        while True:
            found = await self._state.events(after=last, wait=1.0 if follow else 0)
            for event in found:
                yield event
                last = event.sequence
            if not found and not follow:
                return

    # Images

    async def remove_image(self, reference: str) -> None:
        """Remove an image that no sandbox is made of.

        Raises:
            InUseError: one is.
        """
        await self.images.remove(reference, in_use=await self._images_in_use())

    async def prune_images(self) -> int:
        """Remove what no name and no sandbox needs; return the bytes freed."""
        return await self.images.prune(in_use=await self._images_in_use())

    async def _images_in_use(self) -> set[str]:
        return {record.image_id for record in await self._state.list_sandboxes()}

    # Commands

    async def _instance(self, sandbox_id: str) -> Instance:
        """Return the handle of a running sandbox.

        Raises:
            SandboxNotFoundError: there is none.
            InvalidStateError: it does not run.
        """
        return (await self._running(sandbox_id))[1]

    async def _running(self, sandbox_id: str) -> tuple[SandboxRecord, Instance]:
        held = self._held.get(sandbox_id)
        if held is not None and held[1].is_alive():
            return held
        self._held.pop(sandbox_id, None)
        record = await self._checked(await self._state.get_sandbox(sandbox_id))
        if record.status is SandboxStatus.RUNNING and record.instance is not None:
            instance = await self._runtime.attach(sandbox_id, record.instance, record.spec)
            if instance is not None:
                self._hold(record, instance)
                return record, instance
        raise InvalidStateError(
            sandbox_id,
            record.status + (f" ({record.reason})" if record.reason else ""),
            SandboxStatus.RUNNING,
            hint=f"`hutch start {sandbox_id}` starts it again",
        )

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
            workdir=_absolute(workdir, spec.workdir),
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

    # Files

    @asynccontextmanager
    async def _files(
        self, sandbox_id: str, path: str, user: str | None
    ) -> AsyncIterator[tuple[Instance, str, str]]:
        """Give the instance, the absolute path, and the user; errors say `path` as it was given."""
        record, instance = await self._running(sandbox_id)
        if not isinstance(path, str):
            raise InvalidRequestError("path", "must be text")
        if not path:
            raise InvalidPathError(path, "a path is not empty")
        absolute = _absolute(path, record.spec.workdir)
        try:
            yield instance, absolute, user or record.spec.user
        except FileError as error:
            if error.path == absolute:
                error.path = path
            raise

    async def read_file(self, sandbox_id: str, path: str, *, user: str | None = None) -> bytes:
        """Return a regular file's content. A relative path is below the sandbox's workdir.

        Raises:
            FileError: by kind; `FileTooLargeError` beyond the setting `read_limit`.
        """
        async with self._files(sandbox_id, path, user) as (instance, where, who):
            limit = self.settings.read_limit
            return await instance.files.read(where, user=who, max_bytes=limit)

    async def read_file_stream(
        self, sandbox_id: str, path: str, *, user: str | None = None, offset: int = 0
    ) -> AsyncIterator[bytes]:
        """Yield a regular file's content in chunks, of whatever size it is."""
        async with self._files(sandbox_id, path, user) as (instance, where, who):
            async for chunk in instance.files.open_read(where, user=who, offset=offset):
                yield chunk

    async def write_file(
        self,
        sandbox_id: str,
        path: str,
        data: bytes | bytearray | memoryview | str | AsyncIterable[bytes],
        *,
        user: str | None = None,
        mode: int | None = None,
    ) -> WriteReceipt:
        """Put a file in place in one step, as `user`; missing parent directories are made.

        Readers see the old content or the new. `data` may be a stream of any size. Only where
        the user may write the file but not its directory, the file is rewritten: once all of
        `data` is there, but not in one step.
        """
        content = _content(data)
        async with self._files(sandbox_id, path, user) as (instance, where, who):
            return await instance.files.write(where, content, user=who, mode=mode)

    async def list_dir(
        self, sandbox_id: str, path: str = ".", *, user: str | None = None
    ) -> list[FileInfo]:
        """Describe a directory's entries, sorted by name.

        Raises:
            FileError: by kind; `FileTooLargeError` beyond the setting `list_limit`.
        """
        async with self._files(sandbox_id, path, user) as (instance, where, who):
            limit = self.settings.list_limit
            return await instance.files.list_dir(where, user=who, limit=limit)

    async def stat(
        self, sandbox_id: str, path: str, *, user: str | None = None, follow: bool = True
    ) -> FileInfo:
        """Describe one file; with `follow`, what a symlink leads to."""
        async with self._files(sandbox_id, path, user) as (instance, where, who):
            return await instance.files.stat(where, user=who, follow=follow)

    async def real_path(self, sandbox_id: str, path: str, *, user: str | None = None) -> str:
        """Resolve symlinks: the canonical path of an existing file."""
        async with self._files(sandbox_id, path, user) as (instance, where, who):
            return await instance.files.real_path(where, user=who)

    async def mkdir(
        self, sandbox_id: str, path: str, *, user: str | None = None, parents: bool = True
    ) -> None:
        """Make a directory; with `parents`, those above too, and an existing one is fine."""
        async with self._files(sandbox_id, path, user) as (instance, where, who):
            await instance.files.mkdir(where, user=who, parents=parents)

    async def move(
        self, sandbox_id: str, source: str, target: str, *, user: str | None = None
    ) -> None:
        """Rename as rename(2) does: a file or an empty directory at `target` is replaced.

        Between filesystems, and for directories of the image, it copies. A call that fails or is
        cancelled leaves both as they were; it may take effect when it is cancelled late.
        """
        async with (
            self._files(sandbox_id, source, user) as (instance, where, who),
            self._files(sandbox_id, target, user) as (_, destination, _),
        ):
            await instance.files.move(where, destination, user=who)

    async def remove_file(
        self, sandbox_id: str, path: str, *, user: str | None = None, recursive: bool = False
    ) -> None:
        """Remove a file, an empty directory, or with `recursive` a whole tree."""
        async with self._files(sandbox_id, path, user) as (instance, where, who):
            await instance.files.remove(where, user=who, recursive=recursive)

    async def read_tree(
        self, sandbox_id: str, path: str, *, user: str | None = None
    ) -> AsyncIterator[bytes]:
        """Yield a directory's content as a tar archive, made inside the sandbox.

        Raises:
            FileMissingError, FileNotDirectoryError: there is no such directory.
            FileError: tar refused; the message is its own.
        """
        info = await self.stat(sandbox_id, path, user=user)
        if info.type is not FileType.DIRECTORY:
            raise FileNotDirectoryError(path)
        argv = ["tar", "-C", path, "-cf", "-", "."]
        errors = bytearray()
        async with self.exec_stream(sandbox_id, argv, user=user) as stream:
            async for message in stream:
                if message.type is MessageType.STDOUT:
                    yield message.data
                elif message.type is MessageType.STDERR:
                    errors += message.data[: 4096 - len(errors)]
                elif message.data != b"0":
                    raise FileError(path, errors.decode(errors="replace").strip())

    async def write_tree(
        self,
        sandbox_id: str,
        path: str,
        archive: AsyncIterable[bytes],
        *,
        user: str | None = None,
    ) -> None:
        """Unpack a tar archive, inside the sandbox, below a directory that is made if missing.

        Raises:
            FileError: tar refused; the message is its own.
        """
        await self.mkdir(sandbox_id, path, user=user)
        argv = ["tar", "-C", path, "-xf", "-"]
        result = await self.exec(sandbox_id, argv, user=user, stdin=archive, output_limit=4096)
        if result.exit_code != 0:
            raise FileError(path, result.stderr.strip() or f"tar ended with {result.exit_code}")


def _id_of_key(operation: str, key: str) -> str:
    """Return the id of the command that a key is for; keys of different operations differ."""
    return f"{operation}-{sha256(key.encode('utf-8', 'surrogatepass')).hexdigest()[:24]}"


def _content(data: object) -> bytes | AsyncIterable[bytes]:
    match data:
        case bytes() | bytearray() | memoryview():
            return bytes(data)
        case str():
            try:
                return data.encode()
            except UnicodeEncodeError as error:
                raise InvalidRequestError("data", "has lone surrogates") from error
        case AsyncIterable():
            return data
    raise InvalidRequestError("data", "must be bytes, text or an async iterable of bytes")


def _absolute(path: str | None, workdir: str) -> str:
    if path is None:
        return workdir
    return path if path.startswith("/") else f"{workdir.rstrip('/')}/{path}"


def _view(record: SandboxRecord) -> Sandbox:
    return Sandbox(
        id=record.id,
        image=record.config.image,
        status=record.status,
        config=record.config,
        created_at=record.created_at,
        expires_at=record.expires_at,
        reason=record.reason,
        enforced=record.enforced,
    )

"""A synchronous face of the engine, for scripts: the same operations, without `await`.

>>> from hutch.sync import open_engine
>>> with open_engine() as engine:
...     sandbox = engine.create_sandbox()
...     print(engine.exec(sandbox.id, ["uname", "-r"]).stdout)

The engine runs on an event loop in a thread of its own, so that calls may come from any thread,
also from one that has a loop, which they block.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Coroutine,
    Generator,
    Iterator,
    Mapping,
    Sequence,
)
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from hutch.assembly import enter_user_namespace, resolve_settings
from hutch.assembly import open_engine as open_async_engine
from hutch.config import Settings
from hutch.engine.engine import Engine
from hutch.engine.execution import ExecStream
from hutch.lifecycle import SandboxStatus
from hutch.models import (
    Command,
    ExecMessage,
    ExecResult,
    ExitStatus,
    FileInfo,
    Sandbox,
    SandboxConfig,
    SandboxCount,
    SandboxStats,
    TerminalSize,
    WriteReceipt,
)

T = TypeVar("T")


class _Loop:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self._running: Future[asyncio.AbstractEventLoop] = Future()
        self._thread = threading.Thread(target=self._serve, name="hutch-sync")
        self._thread.start()
        self._loop = self._running.result()

    def _serve(self) -> None:
        with asyncio.Runner() as runner:
            loop = runner.get_loop()
            loop.call_soon(self._running.set_result, loop)
            loop.run_forever()

    def run(self, work: Coroutine[object, object, T]) -> T:
        """Run to its end; an interrupted caller cancels it, and waits for that."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def stop(self) -> None:
        """End the thread; what still runs on it is cancelled."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()


@contextmanager
def open_engine(
    *, data_dir: Path | str | None = None, settings: Settings | None = None
) -> Iterator[SyncEngine]:
    """Open an engine as `hutch.open_engine` does; leaving the block detaches."""
    settings = resolve_settings(data_dir, settings)
    enter_user_namespace(settings)  # while there is one thread
    loop = _Loop()
    try:
        opening = open_async_engine(settings=settings)
        engine = loop.run(_step(opening.__aenter__()))
        try:
            yield SyncEngine(engine, loop)
        finally:
            loop.run(_step(opening.__aexit__(None, None, None)))
    finally:
        loop.stop()


async def _step(step: Coroutine[object, object, T]) -> T:
    return await step


def _iterate(
    loop: _Loop, messages: AsyncIterator[ExecMessage]
) -> Generator[ExecMessage, None, None]:
    async def following() -> ExecMessage | None:
        return await anext(messages, None)

    try:
        while (message := loop.run(following())) is not None:
            yield message
    finally:
        if isinstance(messages, AsyncGenerator):
            loop.run(_step(messages.aclose()))


class SyncExecStream:
    """A running command as an iterator of messages."""

    def __init__(self, stream: ExecStream, loop: _Loop) -> None:
        self._stream = stream
        self._loop = loop

    def __iter__(self) -> Iterator[ExecMessage]:
        return _iterate(self._loop, self._stream)

    def write_stdin(self, data: bytes) -> None:
        """Write to the command's standard input."""
        self._loop.run(self._stream.write_stdin(data))

    def close_stdin(self) -> None:
        """Let the command see the end of its standard input."""
        self._loop.run(self._stream.close_stdin())

    def signal(self, signum: int) -> None:
        """Send a signal to the command's process group."""
        self._loop.run(self._stream.signal(signum))

    def kill(self) -> None:
        """End the command's whole tree."""
        self._loop.run(self._stream.kill())

    def resize(self, size: TerminalSize) -> None:
        """Tell the command's terminal its new size."""
        self._loop.run(self._stream.resize(size))


class SyncEngine:
    """The operations scripts need; each is documented at `hutch.Engine`'s method of its name."""

    def __init__(self, engine: Engine, loop: _Loop) -> None:
        self._engine = engine
        self._loop = loop

    def create_sandbox(
        self,
        config: SandboxConfig | None = None,
        *,
        idempotency_key: str | None = None,
        ephemeral: bool = False,
    ) -> Sandbox:
        """Make a sandbox and start it."""
        return self._loop.run(
            self._engine.create_sandbox(
                config, idempotency_key=idempotency_key, ephemeral=ephemeral
            )
        )

    def get_sandbox(self, sandbox_id: str) -> Sandbox:
        """Return one sandbox as it is now."""
        return self._loop.run(self._engine.get_sandbox(sandbox_id))

    def list_sandboxes(
        self, *, status: SandboxStatus | None = None, labels: Mapping[str, str] | None = None
    ) -> list[Sandbox]:
        """Return sandboxes, oldest first."""
        wanted = () if status is None else status
        return self._loop.run(self._engine.list_sandboxes(status=wanted, labels=labels))

    def sandbox_count(self) -> SandboxCount:
        """Count all sandboxes and those that run."""
        return self._loop.run(self._engine.sandbox_count())

    def start_sandbox(self, sandbox_id: str) -> Sandbox:
        """Start a stopped sandbox."""
        return self._loop.run(self._engine.start_sandbox(sandbox_id))

    def stop_sandbox(self, sandbox_id: str, *, grace: float | None = None) -> Sandbox:
        """End all its processes and keep its filesystem."""
        return self._loop.run(self._engine.stop_sandbox(sandbox_id, grace=grace))

    def destroy_sandbox(self, sandbox_id: str) -> None:
        """End it and remove everything of it."""
        self._loop.run(self._engine.destroy_sandbox(sandbox_id))

    def set_timeout(self, sandbox_id: str, timeout: float | None) -> Sandbox:
        """Move a sandbox's expiry."""
        return self._loop.run(self._engine.set_timeout(sandbox_id, timeout))

    def set_labels(self, sandbox_id: str, labels: Mapping[str, str]) -> Sandbox:
        """Replace a sandbox's labels."""
        return self._loop.run(self._engine.set_labels(sandbox_id, labels))

    def stats(self, sandbox_id: str) -> SandboxStats:
        """Say what a running sandbox uses now."""
        return self._loop.run(self._engine.stats(sandbox_id))

    def exec(
        self,
        sandbox_id: str,
        argv: Sequence[str] | str,
        *,
        env: Mapping[str, str] | None = None,
        workdir: str | None = None,
        user: str | None = None,
        stdin: bytes | str | None = None,
        timeout: float | None = None,
        idempotency_key: str | None = None,
    ) -> ExecResult:
        """Run a command to its end."""
        return self._loop.run(
            self._engine.exec(
                sandbox_id,
                argv,
                env=env,
                workdir=workdir,
                user=user,
                stdin=stdin,
                timeout=timeout,
                idempotency_key=idempotency_key,
            )
        )

    @contextmanager
    def exec_stream(
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
    ) -> Iterator[SyncExecStream]:
        """Run a command and stream its output as it comes."""
        opening = self._engine.exec_stream(
            sandbox_id,
            argv,
            env=env,
            workdir=workdir,
            user=user,
            stdin=stdin,
            terminal=terminal,
            timeout=timeout,
        )
        stream = self._loop.run(_step(opening.__aenter__()))
        try:
            yield SyncExecStream(stream, self._loop)
        finally:
            self._loop.run(_step(opening.__aexit__(None, None, None)))

    def exec_detached(
        self,
        sandbox_id: str,
        argv: Sequence[str] | str,
        *,
        env: Mapping[str, str] | None = None,
        workdir: str | None = None,
        user: str | None = None,
        timeout: float | None = None,
        idempotency_key: str | None = None,
    ) -> Command:
        """Start a command that outlives this call and this process."""
        return self._loop.run(
            self._engine.exec_detached(
                sandbox_id,
                argv,
                env=env,
                workdir=workdir,
                user=user,
                timeout=timeout,
                idempotency_key=idempotency_key,
            )
        )

    def list_commands(self, sandbox_id: str) -> list[Command]:
        """Return a sandbox's detached commands, oldest first."""
        return self._loop.run(self._engine.list_commands(sandbox_id))

    def get_command(self, sandbox_id: str, command_id: str) -> Command:
        """Return one detached command as it is now."""
        return self._loop.run(self._engine.get_command(sandbox_id, command_id))

    def command_output(
        self, sandbox_id: str, command_id: str, *, offset: int = 0, follow: bool = True
    ) -> Generator[ExecMessage, None, None]:
        """Yield a detached command's output from byte `offset` of its log on."""
        return _iterate(
            self._loop,
            self._engine.command_output(sandbox_id, command_id, offset=offset, follow=follow),
        )

    def wait_command(
        self, sandbox_id: str, command_id: str, *, timeout: float | None = None
    ) -> ExitStatus:
        """Wait for a detached command's end."""
        return self._loop.run(self._engine.wait_command(sandbox_id, command_id, timeout=timeout))

    def kill_command(self, sandbox_id: str, command_id: str) -> None:
        """End a detached command's whole tree."""
        self._loop.run(self._engine.kill_command(sandbox_id, command_id))

    def read_file(self, sandbox_id: str, path: str, *, user: str | None = None) -> bytes:
        """Return a regular file's content."""
        return self._loop.run(self._engine.read_file(sandbox_id, path, user=user))

    def write_file(
        self,
        sandbox_id: str,
        path: str,
        data: bytes | str,
        *,
        user: str | None = None,
        mode: int | None = None,
    ) -> WriteReceipt:
        """Put a file in place in one step."""
        return self._loop.run(self._engine.write_file(sandbox_id, path, data, user=user, mode=mode))

    def list_dir(
        self, sandbox_id: str, path: str = ".", *, user: str | None = None
    ) -> list[FileInfo]:
        """Describe a directory's entries."""
        return self._loop.run(self._engine.list_dir(sandbox_id, path, user=user))

    def stat(self, sandbox_id: str, path: str, *, user: str | None = None) -> FileInfo:
        """Describe one file."""
        return self._loop.run(self._engine.stat(sandbox_id, path, user=user))

    def mkdir(self, sandbox_id: str, path: str, *, user: str | None = None) -> None:
        """Make a directory and the parents it lacks."""
        self._loop.run(self._engine.mkdir(sandbox_id, path, user=user))

    def move(self, sandbox_id: str, source: str, target: str, *, user: str | None = None) -> None:
        """Rename a file or directory."""
        self._loop.run(self._engine.move(sandbox_id, source, target, user=user))

    def remove_file(
        self, sandbox_id: str, path: str, *, user: str | None = None, recursive: bool = False
    ) -> None:
        """Remove a file or directory."""
        self._loop.run(self._engine.remove_file(sandbox_id, path, user=user, recursive=recursive))

"""A synchronous face of the engine, for scripts: the same operations, without `await`.

>>> from hutch.sync import open_engine
>>> with open_engine() as engine:
...     sandbox = engine.create_sandbox()
...     print(engine.exec(sandbox.id, ["uname", "-r"]).stdout)

Each call runs the event loop until its result is there; between calls nothing of this process
runs, so what another engine or a sandbox's own init does not do waits for the next call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from hutch.assembly import open_engine as open_async_engine
from hutch.config import Settings
from hutch.engine.engine import Engine
from hutch.engine.execution import ExecStream
from hutch.lifecycle import SandboxStatus
from hutch.models import (
    ExecMessage,
    ExecResult,
    FileInfo,
    Sandbox,
    SandboxConfig,
    SandboxCount,
    SandboxStats,
    WriteReceipt,
)

T = TypeVar("T")


@contextmanager
def open_engine(
    *, data_dir: Path | str | None = None, settings: Settings | None = None
) -> Iterator[SyncEngine]:
    """Open an engine as `hutch.open_engine` does; leaving the block detaches."""
    with asyncio.Runner() as runner:
        opening = open_async_engine(data_dir=data_dir, settings=settings)
        engine = runner.run(_enter(opening.__aenter__()))
        try:
            yield SyncEngine(engine, runner)
        finally:
            runner.run(_enter(opening.__aexit__(None, None, None)))


async def _enter(step: Coroutine[object, object, T]) -> T:
    return await step


class SyncExecStream:
    """A running command as an iterator of messages."""

    def __init__(self, stream: ExecStream, runner: asyncio.Runner) -> None:
        self._stream = stream
        self._runner = runner

    def __iter__(self) -> Iterator[ExecMessage]:
        while (message := self._runner.run(self._next())) is not None:
            yield message

    async def _next(self) -> ExecMessage | None:
        return await anext(self._stream, None)

    def write_stdin(self, data: bytes) -> None:
        """Write to the command's standard input."""
        self._runner.run(self._stream.write_stdin(data))

    def close_stdin(self) -> None:
        """Let the command see the end of its standard input."""
        self._runner.run(self._stream.close_stdin())

    def signal(self, signum: int) -> None:
        """Send a signal to the command's process group."""
        self._runner.run(self._stream.signal(signum))


class SyncEngine:
    """The operations scripts need; each is documented at `hutch.Engine`'s method of its name."""

    def __init__(self, engine: Engine, runner: asyncio.Runner) -> None:
        self._engine = engine
        self._runner = runner

    def create_sandbox(
        self, config: SandboxConfig | None = None, *, idempotency_key: str | None = None
    ) -> Sandbox:
        """Make a sandbox and start it."""
        return self._runner.run(
            self._engine.create_sandbox(config, idempotency_key=idempotency_key)
        )

    def get_sandbox(self, sandbox_id: str) -> Sandbox:
        """Return one sandbox as it is now."""
        return self._runner.run(self._engine.get_sandbox(sandbox_id))

    def list_sandboxes(
        self, *, status: SandboxStatus | None = None, labels: Mapping[str, str] | None = None
    ) -> list[Sandbox]:
        """Return sandboxes, oldest first."""
        wanted = () if status is None else status
        return self._runner.run(self._engine.list_sandboxes(status=wanted, labels=labels))

    def sandbox_count(self) -> SandboxCount:
        """Count all sandboxes and those that run."""
        return self._runner.run(self._engine.sandbox_count())

    def start_sandbox(self, sandbox_id: str) -> Sandbox:
        """Start a stopped sandbox."""
        return self._runner.run(self._engine.start_sandbox(sandbox_id))

    def stop_sandbox(self, sandbox_id: str, *, grace: float | None = None) -> Sandbox:
        """End all its processes and keep its filesystem."""
        return self._runner.run(self._engine.stop_sandbox(sandbox_id, grace=grace))

    def destroy_sandbox(self, sandbox_id: str) -> None:
        """End it and remove everything of it."""
        self._runner.run(self._engine.destroy_sandbox(sandbox_id))

    def stats(self, sandbox_id: str) -> SandboxStats:
        """Say what a running sandbox uses now."""
        return self._runner.run(self._engine.stats(sandbox_id))

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
        return self._runner.run(
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
        timeout: float | None = None,
    ) -> Iterator[SyncExecStream]:
        """Run a command and stream its output as it comes."""
        opening = self._engine.exec_stream(
            sandbox_id, argv, env=env, workdir=workdir, user=user, stdin=stdin, timeout=timeout
        )
        stream = self._runner.run(_enter(opening.__aenter__()))
        try:
            yield SyncExecStream(stream, self._runner)
        finally:
            self._runner.run(_enter(opening.__aexit__(None, None, None)))

    def read_file(self, sandbox_id: str, path: str, *, user: str | None = None) -> bytes:
        """Return a regular file's content."""
        return self._runner.run(self._engine.read_file(sandbox_id, path, user=user))

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
        return self._runner.run(
            self._engine.write_file(sandbox_id, path, data, user=user, mode=mode)
        )

    def list_dir(
        self, sandbox_id: str, path: str = ".", *, user: str | None = None
    ) -> list[FileInfo]:
        """Describe a directory's entries."""
        return self._runner.run(self._engine.list_dir(sandbox_id, path, user=user))

    def stat(self, sandbox_id: str, path: str, *, user: str | None = None) -> FileInfo:
        """Describe one file."""
        return self._runner.run(self._engine.stat(sandbox_id, path, user=user))

    def mkdir(self, sandbox_id: str, path: str, *, user: str | None = None) -> None:
        """Make a directory and the parents it lacks."""
        self._runner.run(self._engine.mkdir(sandbox_id, path, user=user))

    def move(self, sandbox_id: str, source: str, target: str, *, user: str | None = None) -> None:
        """Rename a file or directory."""
        self._runner.run(self._engine.move(sandbox_id, source, target, user=user))

    def remove_file(
        self, sandbox_id: str, path: str, *, user: str | None = None, recursive: bool = False
    ) -> None:
        """Remove a file or directory."""
        self._runner.run(self._engine.remove_file(sandbox_id, path, user=user, recursive=recursive))

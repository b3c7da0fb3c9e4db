"""How far a copy has come: on a terminal, and only if it takes longer than a moment."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, aclosing, contextmanager

from hutch.cli.output import QUIET_S
from hutch.engine.engine import Engine
from hutch.models import FileType, WriteReceipt

Meter = Callable[[int], None]
"""Told of bytes that have gone by."""


class MeteredEngine(Engine):
    """An engine, with all that it holds, whose streams of content are counted."""

    def __init__(self, engine: Engine, meter: Meter) -> None:
        vars(self).update(vars(engine))
        self._meter = meter

    async def _counted(self, chunks: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
        async with AsyncExitStack() as stack:
            if isinstance(chunks, AsyncGenerator):
                await stack.enter_async_context(aclosing(chunks))
            async for chunk in chunks:
                yield chunk
                self._meter(len(chunk))

    def read_file_stream(
        self, sandbox_id: str, path: str, *, user: str | None = None, offset: int = 0
    ) -> AsyncIterator[bytes]:
        """As an engine does."""
        return self._counted(super().read_file_stream(sandbox_id, path, user=user, offset=offset))

    def read_tree(
        self, sandbox_id: str, path: str, *, user: str | None = None
    ) -> AsyncIterator[bytes]:
        """As an engine does."""
        return self._counted(super().read_tree(sandbox_id, path, user=user))

    async def write_file(
        self,
        sandbox_id: str,
        path: str,
        data: bytes | bytearray | memoryview | str | AsyncIterable[bytes],
        *,
        user: str | None = None,
        mode: int | None = None,
    ) -> WriteReceipt:
        """As an engine does."""
        content = self._counted(data) if isinstance(data, AsyncIterable) else data
        return await super().write_file(sandbox_id, path, content, user=user, mode=mode)

    async def write_tree(
        self, sandbox_id: str, path: str, archive: AsyncIterable[bytes], *, user: str | None = None
    ) -> None:
        """As an engine does."""
        await super().write_tree(sandbox_id, path, self._counted(archive), user=user)


def size_here(path: str) -> int | None:
    """How much a copy of a file here is; None where that cannot be known before."""
    return os.path.getsize(path) if os.path.isfile(path) else None


async def size_inside(engine: Engine, sandbox_id: str, path: str, user: str | None) -> int | None:
    """How much a copy of a file in a sandbox is; asked only if it is to be shown."""
    if not sys.stderr.isatty():
        return None
    info = await engine.stat(sandbox_id, path, user=user)
    return info.size if info.type is FileType.FILE else None


@contextmanager
def metered(engine: Engine, total: int | None) -> Iterator[Engine]:
    """Show what goes by in the streams of the engine that this gives, where there is a terminal."""
    if not sys.stderr.isatty():
        yield engine
        return
    with _bar(total) as meter:
        yield MeteredEngine(engine, meter)


@contextmanager
def _bar(total: int | None) -> Iterator[Meter]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    bar = Progress(
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    task = bar.add_task("", total=total)
    started = time.monotonic()
    shown = False

    def meter(count: int) -> None:
        nonlocal shown
        if not shown and time.monotonic() - started >= QUIET_S:
            shown = True
            bar.start()
        bar.advance(task, count)

    try:
        yield meter
    finally:
        bar.stop()

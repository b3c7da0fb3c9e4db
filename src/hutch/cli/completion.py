"""What a shell completes: ids of sandboxes and commands, names of images.

Whatever goes wrong completes nothing: it is neither the moment nor the place to say so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import typer

from hutch.cli.session import GLOBALS, find_sandbox

if TYPE_CHECKING:
    from hutch.engine.engine import Engine


def prepare() -> None:
    """Speak as the scripts do that `--show-completion` prints."""
    from typer._completion_classes import completion_init

    completion_init()


def sandbox_ids(context: typer.Context) -> list[str]:
    """The sandboxes there are."""

    async def body(engine: Engine) -> list[str]:
        return [sandbox.id for sandbox in await engine.list_sandboxes()]

    return _ask(context, body)


def command_ids(context: typer.Context) -> list[str]:
    """The detached commands of the sandbox that is named before."""

    async def body(engine: Engine) -> list[str]:
        sandbox_id = await find_sandbox(engine, context.params["sandbox"])
        return [command.id for command in await engine.list_commands(sandbox_id)]

    return _ask(context, body)


def image_names(context: typer.Context) -> list[str]:
    """The images there are."""

    async def body(engine: Engine) -> list[str]:
        return [name for image in await engine.images.list() for name in image.names]

    return _ask(context, body)


def _ask(context: typer.Context, body: Callable[[Engine], Awaitable[list[str]]]) -> list[str]:
    """Ask an engine on the data directory that the line so far names."""
    from hutch.assembly import open_engine

    async def main() -> list[str]:
        async with open_engine(settings=GLOBALS.settings()) as engine:
            return await body(engine)

    GLOBALS.data_dir = context.find_root().params.get("data_dir")
    try:
        return asyncio.run(main())
    except Exception:  # of any kind: see above
        return []

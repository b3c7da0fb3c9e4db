"""Commands for sandboxes as a whole."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from hutch.cli import options
from hutch.cli.execution import Request, collect, execute, refuse_terminal
from hutch.cli.output import ago, print_json, print_table, pull_progress, say, size, tell, until
from hutch.cli.session import ENGINE_FAILED, FAILED, find_sandbox, run, to_the_end
from hutch.errors import HutchError, InvalidRequestError
from hutch.lifecycle import SandboxStatus

if TYPE_CHECKING:
    from hutch.engine.engine import Engine
    from hutch.models import Sandbox, SandboxConfig, SandboxStats

_EXPIRY_S = 2.0
"""How long a listing waits for what has expired to go."""

Command = Annotated[list[str] | None, typer.Argument(metavar="[COMMAND...]")]


def run_command(
    command: Command = None,
    image: options.Image = None,
    env: options.Env = None,
    env_file: options.EnvFile = None,
    workdir: options.Workdir = None,
    user: options.User = None,
    memory: options.Memory = None,
    cpu: options.Cpu = None,
    pids: options.Pids = None,
    disk: options.Disk = None,
    timeout: options.Timeout = None,
    label: options.Label = None,
    tmpfs: options.TmpfsMount = None,
    read_only: options.ReadOnly = False,
    escalation: options.Escalation = False,
    interactive: options.Interactive = False,
    terminal: options.Terminal = False,
    keep: Annotated[
        bool, typer.Option("--keep/--rm", help="Keep the sandbox afterwards, or remove it.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Collect the output; print the result as JSON.")
    ] = False,
) -> None:
    """Run a command in a new sandbox.

    Its exit code, output and input are passed on as they are; 125 means that hutch itself failed.
    --timeout is the command's: after it, the exit code is 124. Options stand before COMMAND.
    """
    refuse_terminal(terminal, json=as_json)

    async def body(engine: Engine) -> int:
        config = options.sandbox_config(
            default_image=engine.settings.default_image,
            image=image,
            env=env,
            env_file=env_file,
            workdir=workdir,
            user=user,
            memory=memory,
            cpu=cpu,
            pids=pids,
            disk=disk,
            timeout=None,
            label=label,
            tmpfs=tmpfs,
            read_only=read_only,
            escalation=escalation,
        )
        seconds = options.parse_duration(timeout)
        sandbox = await _create(engine, config, ephemeral=not keep)
        try:
            argv = command or await _image_command(engine, config.image)
            request = Request(argv, timeout=seconds, stdin=interactive)
            if as_json:
                return await collect(engine, sandbox.id, request, as_json=True)
            return await execute(engine, sandbox.id, request, terminal=terminal)
        finally:
            if keep:
                say(f"kept {sandbox.id}")
            else:
                await to_the_end(engine.destroy_sandbox(sandbox.id))

    raise typer.Exit(run(body, failure=ENGINE_FAILED))


async def _create(
    engine: Engine, config: SandboxConfig, *, key: str | None = None, ephemeral: bool = False
) -> Sandbox:
    """Create a sandbox; when cancelled meanwhile, it is gone again, unless it has a key.

    Only obtaining its image can be given up: what is under way is quicker finished than undone.
    """
    with pull_progress() as progress:
        creating = asyncio.ensure_future(
            engine.create_sandbox(
                config, idempotency_key=key, ephemeral=ephemeral, progress=progress
            )
        )
        try:
            return await asyncio.shield(creating)
        except asyncio.CancelledError:
            try:
                await engine.images.get(config.image)
            except HutchError:
                creating.cancel()
            with suppress(HutchError, asyncio.CancelledError):
                sandbox = await creating
                if key is None:
                    await engine.destroy_sandbox(sandbox.id)
            raise


async def _image_command(engine: Engine, reference: str) -> list[str]:
    config = (await engine.images.get(reference)).config
    argv = [*config.entrypoint, *config.cmd]
    if not argv:
        raise InvalidRequestError(
            "command", "the image names none", hint="hutch run -- COMMAND ARGUMENTS"
        )
    return argv


def create(
    command: Command = None,
    image: options.Image = None,
    env: options.Env = None,
    env_file: options.EnvFile = None,
    workdir: options.Workdir = None,
    user: options.User = None,
    memory: options.Memory = None,
    cpu: options.Cpu = None,
    pids: options.Pids = None,
    disk: options.Disk = None,
    timeout: options.Timeout = None,
    label: options.Label = None,
    tmpfs: options.TmpfsMount = None,
    read_only: options.ReadOnly = False,
    escalation: options.Escalation = False,
    key: Annotated[
        str | None,
        typer.Option("--idempotency-key", help="Repeated, it returns the first sandbox."),
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Create a sandbox and print its id.

    A command becomes its main process, whose end ends the sandbox. --timeout is the sandbox's.
    """

    async def body(engine: Engine) -> Sandbox:
        config = options.sandbox_config(
            default_image=engine.settings.default_image,
            image=image,
            env=env,
            env_file=env_file,
            workdir=workdir,
            user=user,
            memory=memory,
            cpu=cpu,
            pids=pids,
            disk=disk,
            timeout=timeout,
            label=label,
            tmpfs=tmpfs,
            read_only=read_only,
            escalation=escalation,
            cmd=tuple(command) if command else None,
        )
        return await _create(engine, config, key=key)

    sandbox = run(body)
    print_json(sandbox) if as_json else sys.stdout.write(f"{sandbox.id}\n")


def ls(
    status: Annotated[
        list[SandboxStatus] | None, typer.Option("--status", help="Only of this status.")
    ] = None,
    label: options.Label = None,
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
) -> None:
    """List sandboxes."""

    async def body(engine: Engine) -> list[Sandbox]:
        labels = options.parse_labels(label) or None
        deadline = time.monotonic() + _EXPIRY_S
        while True:
            found = await engine.list_sandboxes(status=status or (), labels=labels)
            if time.monotonic() > deadline or not any(map(_is_due, found)):
                return found
            await asyncio.sleep(0.05)  # an engine is about to destroy it, this one or another

    sandboxes = run(body)
    if as_json:
        print_json(sandboxes)
    elif quiet:
        sys.stdout.write("".join(f"{sandbox.id}\n" for sandbox in sandboxes))
    else:
        print_table(("ID", "IMAGE", "STATUS", "CREATED", "EXPIRES"), map(_row, sandboxes))


def _is_due(sandbox: Sandbox) -> bool:
    return sandbox.expires_at is not None and sandbox.expires_at <= datetime.now(UTC)


def _row(sandbox: Sandbox) -> tuple[str, ...]:
    status = sandbox.status + (f" ({sandbox.reason})" if sandbox.reason else "")
    return sandbox.id, sandbox.image, status, ago(sandbox.created_at), until(sandbox.expires_at)


def inspect(ids: options.Ids) -> None:
    """Print all there is to know of sandboxes, as JSON."""

    async def body(engine: Engine) -> list[Sandbox]:
        return [await engine.get_sandbox(await find_sandbox(engine, name)) for name in ids]

    print_json(run(body))


def start(ids: options.Ids) -> None:
    """Start stopped sandboxes on the files they left."""

    async def one(engine: Engine, sandbox_id: str) -> None:
        await engine.start_sandbox(sandbox_id)

    for_each(ids, one)


def stop(
    ids: options.Ids,
    grace: Annotated[
        str | None, typer.Option("--grace", help="Between SIGTERM and SIGKILL, as in 10s.")
    ] = None,
) -> None:
    """End all processes of sandboxes; their files stay."""

    async def one(engine: Engine, sandbox_id: str) -> None:
        await engine.stop_sandbox(sandbox_id, grace=options.parse_duration(grace))

    for_each(ids, one)


def for_each(ids: list[str], work: Callable[[Engine, str], Awaitable[None]]) -> None:
    """Do something with each sandbox, go on after failures, and print the ids that worked."""

    async def body(engine: Engine) -> bool:
        failed = False
        for name in ids:
            try:
                sandbox_id = await find_sandbox(engine, name)
                await work(engine, sandbox_id)
                sys.stdout.write(f"{sandbox_id}\n")
            except HutchError as error:
                tell(error)
                failed = True
        return failed

    if run(body):
        raise typer.Exit(FAILED)


def rm(
    ids: options.SomeIds = None,
    everything: Annotated[bool, typer.Option("--all", help="All sandboxes.")] = False,
) -> None:
    """Destroy sandboxes: nothing of them is left."""
    if not ids and not everything:
        raise typer.BadParameter("name a sandbox, or say --all")

    async def everybody(engine: Engine) -> list[str]:
        return [sandbox.id for sandbox in await engine.list_sandboxes()]

    async def one(engine: Engine, sandbox_id: str) -> None:
        await engine.destroy_sandbox(sandbox_id)

    for_each(run(everybody) if everything else ids or [], one)


def extend(
    sandbox: options.Id,
    timeout: Annotated[str, typer.Argument(help="From now, as in 90, 10m or 1h; or `never`.")],
) -> None:
    """Move a sandbox's expiry."""

    async def body(engine: Engine) -> Sandbox:
        seconds = None if timeout == "never" else options.parse_duration(timeout)
        return await engine.set_timeout(await find_sandbox(engine, sandbox), seconds)

    changed = run(body)
    expires = changed.expires_at.isoformat() if changed.expires_at else "never"
    sys.stdout.write(f"{changed.id} expires {expires}\n")


def label(
    sandbox: options.Id,
    labels: Annotated[list[str], typer.Argument(metavar="NAME=VALUE...")],
) -> None:
    """Replace a sandbox's labels."""

    async def body(engine: Engine) -> Sandbox:
        sandbox_id = await find_sandbox(engine, sandbox)
        return await engine.set_labels(sandbox_id, options.parse_labels(labels))

    sys.stdout.write(f"{run(body).id}\n")


def stats(
    ids: options.SomeIds = None,
    watch: Annotated[bool, typer.Option("--watch", help="Again every second.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Show what running sandboxes use: all, or those named."""

    async def body(engine: Engine) -> None:
        while True:
            found = await _measure(engine, ids or [])
            if as_json:
                print_json([{"id": name, **_stats_json(used)} for name, used in found])
            else:
                if watch:
                    sys.stdout.write("\x1b[H\x1b[2J")
                print_table(_STATS_COLUMNS, [_stats_row(*item) for item in found])
            sys.stdout.flush()
            if not watch:
                return
            await asyncio.sleep(1)

    run(body)


_STATS_COLUMNS = ("ID", "CPU TIME", "MEMORY", "PEAK", "LIMIT", "PIDS", "DISK", "OOM KILLS")


async def _measure(engine: Engine, names: list[str]) -> list[tuple[str, SandboxStats]]:
    if names:
        ids = [await find_sandbox(engine, name) for name in names]
    else:
        ids = [s.id for s in await engine.list_sandboxes(status=SandboxStatus.RUNNING)]
    return [(sandbox_id, await engine.stats(sandbox_id)) for sandbox_id in ids]


def _stats_json(used: SandboxStats) -> dict[str, object]:
    return {name: getattr(used, name) for name in used.__slots__}


def _stats_row(name: str, used: SandboxStats) -> tuple[str, ...]:
    cpu = "-" if used.cpu_time is None else f"{used.cpu_time:.2f} s"
    pids = "-" if used.pids is None else str(used.pids)
    return (
        name,
        cpu,
        size(used.memory),
        size(used.memory_peak),
        size(used.memory_limit),
        f"{pids}/{used.pid_limit or '-'}",
        size(used.disk),
        str(used.oom_kills),
    )


def events(
    follow: Annotated[
        bool, typer.Option("--follow/--no-follow", "-f", help="Wait for further ones.")
    ] = False,
    after: Annotated[int, typer.Option("--after", min=0, help="From this sequence number on.")] = 0,
    as_json: options.AsJson = False,
) -> None:
    """Show what happened to sandboxes, whichever process did it."""

    async def body(engine: Engine) -> None:
        async for event in engine.events(after=after, follow=follow):
            if as_json:
                print_json(event)
            else:
                when = event.timestamp.astimezone().isoformat(timespec="milliseconds")
                data = " ".join(f"{key}={value}" for key, value in event.data.items())
                sys.stdout.write(
                    f"{event.sequence}  {when}  {event.type:<20}  {event.sandbox_id}  {data}\n"
                )
            sys.stdout.flush()

    run(body)

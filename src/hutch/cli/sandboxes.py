"""Commands for sandboxes as a whole."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import Annotated

import typer

from hutch.cli import options
from hutch.cli.output import age, print_json, print_table, pull_progress, size
from hutch.cli.session import ENGINE_FAILED, FAILED, GLOBALS, find_sandbox, run, tell
from hutch.engine.engine import Engine
from hutch.errors import HutchError, InvalidRequestError
from hutch.lifecycle import SandboxStatus
from hutch.models import Sandbox, SandboxStats


def complete_ids() -> list[str]:
    """The ids there are, for shell completion."""

    async def body(engine: Engine) -> list[str]:
        return [sandbox.id for sandbox in await engine.list_sandboxes()]

    return run(body)


Ids = Annotated[list[str], typer.Argument(metavar="ID...", autocompletion=complete_ids)]
Id = Annotated[str, typer.Argument(metavar="ID", autocompletion=complete_ids)]
Command = Annotated[list[str] | None, typer.Argument(metavar="-- COMMAND...")]


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
    --timeout is the command's: after it, the exit code is 124.
    """

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
        with pull_progress() as progress:
            sandbox = await engine.create_sandbox(config, progress=progress)
        try:
            argv = command or await _image_command(engine, config.image)
            if as_json:
                return await _collect(engine, sandbox.id, argv, seconds, interactive)
            return await execute(engine, sandbox.id, argv, interactive, terminal, timeout=seconds)
        finally:
            if keep:
                sys.stderr.write(f"hutch: kept {sandbox.id}\n")
            else:
                await engine.destroy_sandbox(sandbox.id)

    raise typer.Exit(run(body, failure=ENGINE_FAILED))


async def _image_command(engine: Engine, reference: str) -> list[str]:
    config = (await engine.images.get(reference)).config
    argv = [*config.entrypoint, *config.cmd]
    if not argv:
        raise InvalidRequestError(
            "command", "the image names none", hint="hutch run -- COMMAND ARGUMENTS"
        )
    return argv


async def _collect(
    engine: Engine, sandbox_id: str, argv: list[str], timeout: float | None, interactive: bool
) -> int:
    from hutch.cli.stdio import read_stdin

    stdin = read_stdin() if interactive else None
    result = await engine.exec(sandbox_id, argv, timeout=timeout, stdin=stdin)
    print_json(result)
    return result.exit_code


async def execute(
    engine: Engine,
    sandbox_id: str,
    argv: list[str],
    interactive: bool,
    terminal: bool,
    *,
    env: dict[str, str] | None = None,
    workdir: str | None = None,
    user: str | None = None,
    timeout: float | None = None,
) -> int:
    """Run a command joined to this process's streams; returns its exit code, 124 for a timeout."""
    from hutch.cli.stdio import join, terminal_size
    from hutch.models import ExitReason

    async with engine.exec_stream(
        sandbox_id,
        argv,
        env=env,
        workdir=workdir,
        user=user,
        stdin=interactive,
        terminal=terminal_size() if terminal else None,
        timeout=timeout,
    ) as stream:
        status = await join(stream, stdin=interactive, terminal=terminal)
    if status.reason is ExitReason.TIMED_OUT:
        sys.stderr.write(f"hutch: the command was ended after {timeout} s\n")
        return 124
    if status.reason is ExitReason.OUT_OF_MEMORY:
        sys.stderr.write("hutch: the command was killed at the sandbox's memory limit\n")
    return status.exit_code


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
        with pull_progress() as progress:
            return await engine.create_sandbox(config, idempotency_key=key, progress=progress)

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
        return await engine.list_sandboxes(
            status=status or (), labels=options.parse_labels(label) or None
        )

    sandboxes = run(body)
    if as_json:
        print_json(sandboxes)
    elif quiet:
        sys.stdout.write("".join(f"{sandbox.id}\n" for sandbox in sandboxes))
    else:
        print_table(("ID", "IMAGE", "STATUS", "CREATED", "EXPIRES"), map(_row, sandboxes))


def _row(sandbox: Sandbox) -> tuple[str, ...]:
    status = sandbox.status + (f" ({sandbox.reason})" if sandbox.reason else "")
    expires = "-" if sandbox.expires_at is None else f"in {age(sandbox.expires_at)}"
    return sandbox.id, sandbox.image, status, f"{age(sandbox.created_at)} ago", expires


def inspect(ids: Ids) -> None:
    """Print all there is to know of sandboxes, as JSON."""

    async def body(engine: Engine) -> list[Sandbox]:
        return [await engine.get_sandbox(await find_sandbox(engine, name)) for name in ids]

    print_json(run(body))


def start(ids: Ids) -> None:
    """Start stopped sandboxes on the files they left."""

    async def one(engine: Engine, sandbox_id: str) -> None:
        await engine.start_sandbox(sandbox_id)

    for_each(ids, one)


def stop(
    ids: Ids,
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
    ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]...")] = None,
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
    sandbox: Id,
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
    sandbox: Id,
    labels: Annotated[list[str], typer.Argument(metavar="NAME=VALUE...")],
) -> None:
    """Replace a sandbox's labels."""

    async def body(engine: Engine) -> Sandbox:
        sandbox_id = await find_sandbox(engine, sandbox)
        return await engine.set_labels(sandbox_id, options.parse_labels(labels))

    sys.stdout.write(f"{run(body).id}\n")


def stats(
    ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]...")] = None,
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
    after: Annotated[int, typer.Option("--after", help="From this sequence number on.")] = 0,
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


def settings(as_json: options.AsJson = False) -> None:
    """Show the settings in effect."""
    from hutch.config import describe

    current = GLOBALS.settings()
    names = describe()
    if as_json:
        print_json({name: getattr(current, name) for name in names})
        return
    rows = [(name, str(getattr(current, name)), meaning) for name, (meaning, _) in names.items()]
    print_table(("SETTING", "VALUE", "MEANING"), rows)

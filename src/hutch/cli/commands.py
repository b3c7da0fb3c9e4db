"""Commands for what runs in sandboxes."""

from __future__ import annotations

import asyncio
import signal as signals
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from hutch.cli import options
from hutch.cli.completion import command_ids
from hutch.cli.execution import Request, collect, execute, refuse_terminal
from hutch.cli.options import Id
from hutch.cli.output import ago, print_json, print_table, size
from hutch.cli.session import ENGINE_FAILED, find_sandbox, run
from hutch.errors import InvalidRequestError

if TYPE_CHECKING:
    from hutch.engine.engine import Engine
    from hutch.models import Command

Argv = Annotated[list[str], typer.Argument(metavar="COMMAND...")]
CommandId = Annotated[
    str,
    typer.Argument(
        metavar="COMMAND", help="Its id, as `hutch ps` shows it.", autocompletion=command_ids
    ),
]
MainByDefault = Annotated[
    str,
    typer.Argument(metavar="[COMMAND]", help="By default, main.", autocompletion=command_ids),
]
Offset = Annotated[int, typer.Option("--offset", min=0, help="From this byte of the output on.")]


def exec_command(
    sandbox: Id,
    command: Argv,
    env: options.Env = None,
    env_file: options.EnvFile = None,
    workdir: options.Workdir = None,
    user: options.User = None,
    timeout: options.Timeout = None,
    interactive: options.Interactive = False,
    terminal: options.Terminal = False,
    detach: Annotated[
        bool, typer.Option("-d", "--detach", help="Leave it running; print its id.")
    ] = False,
    key: Annotated[
        str | None,
        typer.Option("--idempotency-key", help="Repeated, it does not run again."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Collect the output; print the result as JSON.")
    ] = False,
) -> None:
    """Run a command in a sandbox.

    Its exit code, output and input are passed on as they are; 125 means that hutch itself failed,
    124 that --timeout ended it. Options stand before COMMAND.
    """
    if not detach:
        refuse_terminal(terminal, json=as_json, idempotency_key=key is not None)

    async def body(engine: Engine) -> int:
        from hutch.cli.stdio import terminal_size

        sandbox_id = await find_sandbox(engine, sandbox)
        variables = options.parse_env(env, env_file)
        seconds = options.parse_duration(timeout)
        if detach:
            started = await engine.exec_detached(
                sandbox_id,
                command,
                env=variables,
                workdir=workdir,
                user=user,
                stdin=interactive,
                terminal=terminal_size() if terminal else None,
                timeout=seconds,
                idempotency_key=key,
            )
            print_json(started) if as_json else sys.stdout.write(f"{started.id}\n")
            return 0
        request = Request(
            command, env=variables, workdir=workdir, user=user, timeout=seconds, stdin=interactive
        )
        if as_json or key is not None:
            return await collect(engine, sandbox_id, request, as_json=as_json, key=key)
        return await execute(engine, sandbox_id, request, terminal=terminal)

    raise typer.Exit(run(body, failure=ENGINE_FAILED))


def ps(sandbox: Id, as_json: options.AsJson = False) -> None:
    """List a sandbox's detached commands."""

    async def body(engine: Engine) -> list[Command]:
        return await engine.list_commands(await find_sandbox(engine, sandbox))

    commands = run(body)
    if as_json:
        print_json(commands)
    else:
        print_table(("COMMAND", "STATUS", "STARTED", "OUTPUT", "ARGV"), map(_row, commands))


def _row(command: Command) -> tuple[str, ...]:
    status: str = command.status
    if command.exit is not None:
        status = f"{command.exit.reason} {command.exit.exit_code}"
    argv = " ".join(command.argv)
    log = size(command.log_size) + ("+" if command.log_truncated else "")
    return command.id, status, ago(command.created_at), log, argv[:60]


def attach(
    sandbox: Id,
    command: MainByDefault = "main",
    offset: Offset = 0,
    no_stdin: Annotated[bool, typer.Option("--no-stdin", help="Only read.")] = False,
) -> None:
    """Follow a detached command's output from the beginning, and write to it.

    Ctrl-C detaches; the command goes on. When it ends, its exit code is this one's.
    """

    async def body(engine: Engine) -> int:
        from hutch.models import CommandStatus

        sandbox_id = await find_sandbox(engine, sandbox)
        running = (await engine.get_command(sandbox_id, command)).status is CommandStatus.RUNNING
        feeding = None
        if running and not no_stdin:
            feeding = asyncio.create_task(_feed(engine, sandbox_id, command))
        try:
            return await _print_output(engine, sandbox_id, command, offset=offset, follow=True)
        finally:
            if feeding is not None:
                feeding.cancel()
                await asyncio.gather(feeding, return_exceptions=True)

    raise typer.Exit(run(body, failure=ENGINE_FAILED))


async def _feed(engine: Engine, sandbox_id: str, command: str) -> None:
    from hutch.cli.stdio import read_stdin

    try:
        async for data in read_stdin():
            await engine.write_command_stdin(sandbox_id, command, data)
        await engine.write_command_stdin(sandbox_id, command, b"", close=True)
    except BrokenPipeError:
        return  # it was started without stdin, or reads no more


async def _print_output(
    engine: Engine, sandbox_id: str, command: str, *, offset: int, follow: bool
) -> int:
    from hutch.cli.stdio import write_all
    from hutch.models import MessageType

    async for message in engine.command_output(sandbox_id, command, offset=offset, follow=follow):
        if message.status is not None:
            return message.status.exit_code
        await write_all(1 if message.type is MessageType.STDOUT else 2, message.data)
    return 0


def logs(
    sandbox: Id,
    command: MainByDefault = "main",
    offset: Offset = 0,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Wait for more.")] = False,
) -> None:
    """Print a detached command's output."""

    async def body(engine: Engine) -> None:
        sandbox_id = await find_sandbox(engine, sandbox)
        await _print_output(engine, sandbox_id, command, offset=offset, follow=follow)

    run(body)


def kill(
    sandbox: Id,
    command: CommandId,
    signal: Annotated[
        str | None,
        typer.Option("-s", "--signal", help="Only send this; by default its tree is ended."),
    ] = None,
) -> None:
    """End a detached command and all that it started, or send it a signal."""

    async def body(engine: Engine) -> None:
        sandbox_id = await find_sandbox(engine, sandbox)
        await engine.get_command(sandbox_id, command)
        if signal is None:
            await engine.kill_command(sandbox_id, command)
        else:
            await engine.signal_command(sandbox_id, command, _signal_number(signal))

    run(body)


def wait(sandbox: Id, command: MainByDefault = "main") -> None:
    """Wait for a detached command's end; its exit code is this one's."""

    async def body(engine: Engine) -> int:
        sandbox_id = await find_sandbox(engine, sandbox)
        return (await engine.wait_command(sandbox_id, command)).exit_code

    raise typer.Exit(run(body, failure=ENGINE_FAILED))


def _signal_number(name: str) -> int:
    """A signal's number from its number or name, with or without SIG."""
    if name.isdigit() and int(name) in signals.valid_signals():
        return int(name)
    full = name.upper() if name.upper().startswith("SIG") else f"SIG{name.upper()}"
    try:
        return signals.Signals[full]
    except KeyError:
        raise InvalidRequestError("signal", f"{name!r} is no signal") from None

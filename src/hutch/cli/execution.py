"""Running a command in a sandbox, for `run` and `exec`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from click import UsageError

from hutch.cli.output import print_json, say
from hutch.cli.session import TIMED_OUT

if TYPE_CHECKING:
    from hutch.engine.engine import Engine
    from hutch.models import ExecResult, ExitStatus


@dataclass(frozen=True, slots=True)
class Request:
    """What to run, and how."""

    argv: Sequence[str]
    env: Mapping[str, str] | None = None
    workdir: str | None = None
    user: str | None = None
    timeout: float | None = None
    stdin: bool = False
    """Whether this process's is passed on."""


def refuse_terminal(terminal: bool, **others: bool) -> None:
    """Refuse `--tty` with an option that collects the output.

    Raises:
        UsageError: with the first of the others that is given.
    """
    for name, given in others.items():
        if terminal and given:
            raise UsageError(f"--tty cannot go with --{name.replace('_', '-')}")


async def execute(engine: Engine, sandbox_id: str, request: Request, *, terminal: bool) -> int:
    """Run a command joined to this process's streams; returns the exit code."""
    from hutch.cli.stdio import join, terminal_size

    async with engine.exec_stream(
        sandbox_id,
        request.argv,
        env=request.env,
        workdir=request.workdir,
        user=request.user,
        stdin=request.stdin,
        terminal=terminal_size() if terminal else None,
        timeout=request.timeout,
    ) as stream:
        status = await join(stream, stdin=request.stdin, terminal=terminal)
    return _exit_code(status, request)


async def collect(
    engine: Engine, sandbox_id: str, request: Request, *, as_json: bool, key: str | None = None
) -> int:
    """Run a command to its end and print what it left; returns the exit code."""
    from hutch.cli.stdio import read_stdin

    result = await engine.exec(
        sandbox_id,
        request.argv,
        env=request.env,
        workdir=request.workdir,
        user=request.user,
        stdin=read_stdin() if request.stdin else None,
        timeout=request.timeout,
        idempotency_key=key,
    )
    if as_json:
        print_json(result)
    else:
        sys.stdout.buffer.write(result.stdout_bytes)
        sys.stderr.buffer.write(result.stderr_bytes)
    return _exit_code(result, request)


def _exit_code(ended: ExitStatus | ExecResult, request: Request) -> int:
    """The command's own, or 124 after its timeout; says what else there is to know."""
    from hutch.models import ExitReason

    if ended.reason is ExitReason.TIMED_OUT:
        say(f"the command was ended after {request.timeout} s")
        return TIMED_OUT
    if ended.reason is ExitReason.OUT_OF_MEMORY:
        say("the command was killed at the sandbox's memory limit")
    return ended.exit_code

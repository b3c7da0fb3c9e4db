"""Options that several commands have, and what their values mean."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated

import typer

from hutch.checks import MAX_PIDS, MAX_SECONDS
from hutch.cli.completion import image_names, sandbox_ids
from hutch.config import parse_size
from hutch.errors import InvalidRequestError, SettingsError
from hutch.models import SandboxConfig, Tmpfs

_DURATION = re.compile(r"(?P<number>\d+(?:\.\d+)?)(?P<unit>ms|s|m|h|d|)")
_SECONDS = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DEFAULT_TMPFS = 64 * 1024**2

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Print ids only.")]
Id = Annotated[str, typer.Argument(metavar="ID", autocompletion=sandbox_ids)]
Ids = Annotated[list[str], typer.Argument(metavar="ID...", autocompletion=sandbox_ids)]
SomeIds = Annotated[list[str] | None, typer.Argument(metavar="[ID]...", autocompletion=sandbox_ids)]
Image = Annotated[
    str | None,
    typer.Option("--image", help="The image; see docs/images.md.", autocompletion=image_names),
]
Env = Annotated[
    list[str] | None,
    typer.Option("-e", "--env", metavar="NAME[=VALUE]", help="A variable; alone, this shell's."),
]
EnvFile = Annotated[
    list[Path] | None, typer.Option("--env-file", help="A file of NAME=VALUE lines.")
]
Workdir = Annotated[str | None, typer.Option("-w", "--workdir", help="The working directory.")]
User = Annotated[str | None, typer.Option("-u", "--user", help="NAME, UID, NAME:GROUP, UID:GID.")]
Memory = Annotated[str | None, typer.Option("-m", "--memory", help="Bytes, as in 512M.")]
Cpu = Annotated[float | None, typer.Option("--cpu", help="Cores, as in 1.5.")]
Pids = Annotated[
    int | None,
    typer.Option("--pids", min=4, max=MAX_PIDS, help="Processes and threads at most."),
]
Disk = Annotated[str | None, typer.Option("--disk", help="Bytes written at most, as in 2G.")]
Timeout = Annotated[str | None, typer.Option("--timeout", help="Seconds, or as in 500ms, 10m, 1h.")]
Label = Annotated[
    list[str] | None, typer.Option("-l", "--label", metavar="NAME=VALUE", help="A label.")
]
TmpfsMount = Annotated[
    list[str] | None, typer.Option("--tmpfs", metavar="PATH[:SIZE]", help="A tmpfs mount.")
]
ReadOnly = Annotated[bool, typer.Option("--read-only", help="A read-only root filesystem.")]
Escalation = Annotated[
    bool,
    typer.Option("--allow-privilege-escalation", help="Let sudo and the like work inside."),
]
Interactive = Annotated[bool, typer.Option("-i", "--interactive", help="Pass standard input on.")]
Terminal = Annotated[bool, typer.Option("-t", "--tty", help="Run it on a terminal.")]


def parse_duration(text: str | None) -> float | None:
    """Seconds from `90`, `1.5s`, `10m`, `1h`, `2d`.

    Raises:
        InvalidRequestError: it is something else.
    """
    if text is None:
        return None
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise InvalidRequestError("timeout", f"{text!r} is no duration such as 90, 1.5s, 10m or 1h")
    seconds = float(match["number"]) * _SECONDS[match["unit"]]
    if seconds > MAX_SECONDS:
        raise InvalidRequestError("timeout", f"{text!r} is more than thirty years")
    return seconds


def parse_bytes(field: str, text: str | None) -> int | None:
    """Bytes from `1000000`, `512M`, `2G`.

    Raises:
        InvalidRequestError: it is something else.
    """
    try:
        return None if text is None else parse_size(text)
    except (SettingsError, ValueError) as error:
        raise InvalidRequestError(field, f"{text!r} is no size such as 512M or 2G") from error


def parse_env(pairs: list[str] | None, files: list[Path] | None) -> dict[str, str]:
    """Variables from files, then from options; a name alone takes this process's value.

    Raises:
        InvalidRequestError: a file cannot be read, or is no text.
    """
    lines: list[str] = []
    for file in files or []:
        try:
            lines += file.read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise InvalidRequestError("env-file", f"{file}: {error.strerror}") from error
        except UnicodeError as error:
            raise InvalidRequestError("env-file", f"{file} is no UTF-8 text") from error
    wanted = [line for line in map(str.strip, lines) if line and not line.startswith("#")]
    env: dict[str, str] = {}
    for pair in wanted + (pairs or []):
        name, equals, value = pair.partition("=")
        if equals:
            env[name] = value
        elif name in os.environ:
            env[name] = os.environ[name]
    return env


def parse_labels(pairs: list[str] | None) -> dict[str, str]:
    """Labels from NAME=VALUE; a name alone has the empty value.

    Raises:
        InvalidRequestError: one is no text.
    """
    return dict(_text("label", pair).partition("=")[::2] for pair in pairs or [])


def _text(field: str, argument: str) -> str:
    """Refuse an argument that is not UTF-8: arguments may be any bytes, records are text."""
    try:
        argument.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequestError(field, f"{argument!a} is no UTF-8 text") from error
    return argument


def parse_tmpfs(values: list[str] | None) -> tuple[Tmpfs, ...]:
    """Tmpfs mounts from PATH[:SIZE]."""
    mounts = []
    for value in values or []:
        path, _, size = value.partition(":")
        mounts.append(Tmpfs(path, parse_bytes("tmpfs", size or None) or _DEFAULT_TMPFS))
    return tuple(mounts)


def sandbox_config(
    *,
    default_image: str,
    image: str | None,
    env: list[str] | None,
    env_file: list[Path] | None,
    workdir: str | None,
    user: str | None,
    memory: str | None,
    cpu: float | None,
    pids: int | None,
    disk: str | None,
    timeout: str | None,
    label: list[str] | None,
    tmpfs: list[str] | None,
    read_only: bool,
    escalation: bool,
    cmd: tuple[str, ...] | None = None,
) -> SandboxConfig:
    """Make the request that the options of `create` and `run` are.

    Raises:
        InvalidRequestError: one of them is bad.
    """
    return SandboxConfig(
        image=default_image if image is None else _text("image", image),
        env=parse_env(env, env_file),
        workdir=workdir,
        user=user,
        cmd=cmd,
        cpu=cpu,
        memory=parse_bytes("memory", memory),
        disk_limit=parse_bytes("disk", disk),
        pid_limit=pids,
        timeout=parse_duration(timeout),
        labels=parse_labels(label),
        read_only=read_only,
        tmpfs=parse_tmpfs(tmpfs),
        allow_privilege_escalation=escalation,
    )

"""What all commands share: the settings, an open engine, and how errors are told."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import typer

from hutch.cli.output import tell
from hutch.cli.signals import ENDING, handled
from hutch.config import Settings, is_host_root, load_settings
from hutch.errors import (
    HutchError,
    InvalidRequestError,
    NotFoundError,
    SettingsError,
    UnsupportedError,
)

if TYPE_CHECKING:
    from logging import _SysExcInfoType as _ExcInfo

    from hutch.engine.engine import Engine

T = TypeVar("T")

FAILED = 1
MISUSED = 2
ENGINE_FAILED = 125
"""For `run` and `exec`, whose other codes are the command's own: as docker has it."""
UNREAD = 128 + signal.SIGPIPE
"""What a shell reports of a program whose output nobody reads any more."""
TIMED_OUT = 124
"""What timeout(1) says."""


@dataclass(slots=True)
class Globals:
    """Options before the command."""

    data_dir: str | None = None
    log_level: str | None = None
    log_format: str | None = None
    _settings: Settings | None = field(default=None, repr=False)

    def settings(self) -> Settings:
        """Read the settings once; options come before the environment and the file."""
        if self._settings is None:
            given = {
                "data_dir": self.data_dir,
                "log_level": self.log_level,
                "log_format": self.log_format,
            }
            self._settings = load_settings({k: v for k, v in given.items() if v is not None})
        return self._settings


GLOBALS = Globals()
"""Set once, by the options of the command line."""


class _Signalled(Exception):
    """A signal ended the work, and all is cleaned up."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def run(body: Callable[[Engine], Awaitable[T]], *, failure: int = FAILED) -> T:
    """Do a command's work with an open engine; errors end the process with its exit code."""
    try:
        _configure_logging(GLOBALS.settings())
        result = asyncio.run(_work(body))
        sys.stdout.flush()
    except _Signalled as signalled:
        raise typer.Exit(128 + signalled.number) from None
    except HutchError as error:
        tell(_with_hint(error))
        raise typer.Exit(MISUSED if _is_misuse(error, failure) else failure) from None
    except BrokenPipeError:
        raise typer.Exit(UNREAD) from None  # and nobody is told
    except (OSError, UnicodeError) as error:
        tell(error)
        raise typer.Exit(failure) from None
    return result


def _with_hint(error: HutchError) -> HutchError:
    """Say what helps, where the engine does not know that it speaks to the command line."""
    for_disk = isinstance(error, UnsupportedError) and error.capability == "disk_limit"
    if for_disk and not is_host_root():
        error.hint = "run hutch as root; without it, --read-only and --tmpfs PATH:SIZE bound it"
    return error


def _is_misuse(error: HutchError, failure: int) -> bool:
    """Whether the arguments are to blame; for `run` and `exec`, settings are not among them."""
    if isinstance(error, SettingsError):
        return failure == FAILED
    return isinstance(error, InvalidRequestError)


async def _work(body: Callable[[Engine], Awaitable[T]]) -> T:
    """Open an engine for `body`; what asks this process to end cancels it.

    Raises:
        _Signalled: that has happened. A second signal changes nothing: what was begun is undone.
    """
    from hutch.assembly import open_engine

    task = asyncio.current_task()
    assert task is not None, "this is a coroutine"
    received: list[int] = []

    def end(number: int) -> None:
        if not received:
            received.append(number)
            task.cancel()

    try:
        with handled(ENDING, end):
            async with open_engine(settings=GLOBALS.settings()) as engine:
                return await body(engine)
    except asyncio.CancelledError:
        if not received:
            raise
        raise _Signalled(received[0]) from None


async def to_the_end(work: Awaitable[None]) -> None:
    """Await `work` even if this task is cancelled meanwhile, as it then still is afterwards."""
    working = asyncio.ensure_future(work)
    try:
        await asyncio.shield(working)
    except asyncio.CancelledError:
        await working  # there is no second cancellation: `_work`
        raise


async def find_sandbox(engine: Engine, name: str) -> str:
    """Return the id that `name` is, or is the beginning of.

    Raises:
        SandboxNotFoundError: no sandbox's does.
        InvalidRequestError: those of several do.
    """
    try:
        return (await engine.get_sandbox(name)).id
    except NotFoundError:
        found = [s.id for s in await engine.list_sandboxes() if name and s.id.startswith(name)]
        if len(found) > 1:
            raise InvalidRequestError(
                "id", f"{name} is the beginning of {len(found)} ids"
            ) from None
        if not found:
            raise
        return found[0]


class _JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, and the message's own fields."""

    _KNOWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, object] = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        fields |= {key: value for key, value in vars(record).items() if key not in self._KNOWN}
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields, default=str)


class _TextFormatter(logging.Formatter):
    """For people: a line, and one for the error; its traceback only where all is wanted."""

    def formatException(self, ei: _ExcInfo) -> str:
        text = super().formatException(ei)
        debugging = logging.getLogger("hutch").isEnabledFor(logging.DEBUG)
        return text if debugging else text.splitlines()[-1]

    def format(self, record: logging.LogRecord) -> str:
        fields = " ".join(
            f"{key}={value}"
            for key, value in vars(record).items()
            if key not in _JsonFormatter._KNOWN
        )
        return f"{super().format(record)} {fields}".rstrip()


def _configure_logging(settings: Settings) -> None:
    handler = logging.StreamHandler()
    if settings.log_format == "json":
        handler.setFormatter(_JsonFormatter())
    else:
        handler.setFormatter(_TextFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger("hutch")
    logger.handlers = [handler]
    logger.setLevel(settings.log_level.upper())
    logger.propagate = False

"""What all commands share: the settings, an open engine, and how errors are told."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import typer

from hutch.assembly import open_engine
from hutch.cli.output import plain
from hutch.config import Settings, load_settings
from hutch.engine.engine import Engine
from hutch.errors import HutchError, InvalidRequestError, NotFoundError

T = TypeVar("T")

FAILED = 1
MISUSED = 2
ENGINE_FAILED = 125
"""For `run` and `exec`, whose other codes are the command's own: as docker has it."""
INTERRUPTED = 130


@dataclass(slots=True)
class Globals:
    """Options before the command."""

    data_dir: Path | None = None
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


def tell(error: HutchError) -> None:
    """Say what went wrong in a sentence, and what to do next."""
    sys.stderr.write(f"hutch: {plain(str(error))}\n")
    if error.hint:
        sys.stderr.write(f"hint: {error.hint}\n")


def run(body: Callable[[Engine], Awaitable[T]], *, failure: int = FAILED) -> T:
    """Do a command's work with an open engine; errors end the process with its exit code."""

    async def main() -> T:
        async with open_engine(settings=GLOBALS.settings()) as engine:
            return await body(engine)

    try:
        _configure_logging(GLOBALS.settings())
        return asyncio.run(main())
    except HutchError as error:
        tell(error)
        misused = isinstance(error, InvalidRequestError) and failure == FAILED
        raise typer.Exit(MISUSED if misused else failure) from None
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    except PermissionError as error:
        sys.stderr.write(f"hutch: {error.strerror}: {error.filename}\n")
        raise typer.Exit(failure) from None


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

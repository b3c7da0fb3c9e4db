"""How results look: tables for people, JSON for programs, progress on standard error."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

from hutch.errors import HutchError
from hutch.wire import dumps

if TYPE_CHECKING:
    from hutch.abc.images import ProgressCallback
    from hutch.models import PullProgress

QUIET_S = 1.0
"""What takes less than this shows no progress."""
_LINE_EVERY_S = 5.0


class Styled(NamedTuple):
    """A cell of our own colour."""

    text: str
    style: str


def say(text: str) -> None:
    """Tell whoever looks at standard error, if anybody does."""
    with suppress(OSError):
        sys.stderr.write(f"hutch: {text}\n")


def tell(error: HutchError | OSError | UnicodeError) -> None:
    """Say what went wrong in a sentence, and what to do next."""
    say(sentence(error))


def sentence(error: BaseException) -> str:
    """Say what went wrong, in a line for the error and one for the hint; empty for a bug."""
    match error:
        case HutchError():
            hint = f"\nhint: {plain(error.hint)}" if error.hint else ""
            return plain(str(error)) + hint
        case UnicodeDecodeError() | UnicodeEncodeError():
            return f"{error.object[:80]!a} is no text in {error.encoding}"
        case OSError():
            subject = "" if error.filename is None else f"{plain(os.fsdecode(error.filename))}: "
            return subject + (error.strerror or str(error))
    return ""


def print_json(value: object) -> None:
    """Print a model, or a list of them, as JSON, which is UTF-8 whatever the locale."""
    sys.stdout.flush()
    sys.stdout.buffer.write(dumps(value).encode() + b"\n")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str | Styled]]) -> None:
    """Print columns that line up; in a pipe without colour and never cut off."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, no_wrap=True)
    for row in rows:
        table.add_row(
            *(
                Text(cell.text, cell.style) if isinstance(cell, Styled) else Text(plain(cell))
                for cell in row
            )
        )
    console = Console()
    if not console.is_terminal:
        console.width = 10_000
    with console.capture() as captured:  # rich would deal with a closed pipe its own way
        console.print(table)
    sys.stdout.write(captured.get())


def plain(text: str) -> str:
    """Escape what a terminal would obey: labels, commands and names are whoever's chose them."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def size(count: int | None) -> str:
    """Bytes for people."""
    if count is None:
        return "-"
    number = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} TiB"


def ago(moment: datetime) -> str:
    """How long ago a moment was."""
    return f"{_span((datetime.now(UTC) - moment).total_seconds())} ago"


def until(moment: datetime | None) -> str:
    """How long from now a moment is; `now` for one that has passed."""
    if moment is None:
        return "-"
    seconds = (moment - datetime.now(UTC)).total_seconds()
    return f"in {_span(seconds)}" if seconds > 0 else "now"


def _span(seconds: float) -> str:
    for limit, divisor, unit in ((120, 1, "s"), (7200, 60, "m"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / divisor:.0f}{unit}"
    return f"{seconds / 86400:.0f}d"


@contextmanager
def pull_progress() -> Iterator[ProgressCallback]:
    """Show how far a pull has come, if it takes longer than a moment."""
    if sys.stderr.isatty():
        with _bar() as show:
            yield show
    else:
        yield _lines()


def _lines() -> ProgressCallback:
    started = last = time.monotonic()
    step = ""

    def show(progress: PullProgress) -> None:
        nonlocal last, step
        now = time.monotonic()
        if now - started < QUIET_S or (progress.step == step and now - last < _LINE_EVERY_S):
            return
        last, step = now, progress.step
        total = f" of {progress.total}" if progress.total else ""
        done = f" ({progress.done}{total})" if progress.done else ""
        sys.stderr.write(f"hutch: {progress.step} {plain(progress.detail)}{done}\n")

    return show


@contextmanager
def _bar() -> Iterator[ProgressCallback]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    started = time.monotonic()
    bar = Progress(
        TextColumn("{task.fields[step]:<11}"),
        BarColumn(),
        TextColumn("{task.description}", markup=False),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    task: TaskID | None = None

    def show(progress: PullProgress) -> None:
        nonlocal task
        if task is None:
            if time.monotonic() - started < QUIET_S:
                return
            bar.start()
            task = bar.add_task("", total=None, step="")
        bar.update(
            task,
            step=progress.step,
            description=plain(progress.detail[:50]),
            completed=progress.done,
            total=progress.total,
        )

    try:
        yield show
    finally:
        bar.stop()

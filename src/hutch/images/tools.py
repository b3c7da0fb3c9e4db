"""Running the programs that fetch and build images."""

from __future__ import annotations

import asyncio
import re
import shutil
from collections import deque
from collections.abc import Callable
from typing import IO

from hutch.errors import ImagePullError

_LAST_LINES = 20
_SEPARATOR = re.compile(rb"[\r\n]")


async def run_tool(
    argv: list[str],
    *,
    package: str,
    on_line: Callable[[str], None],
    stdout: IO[bytes] | None = None,
) -> None:
    """Run a program to its end, telling each line it says; it is killed with a cancelled caller.

    Args:
        package: the Debian package that has the program.
        stdout: where its standard output goes, instead of being told.

    Raises:
        ImagePullError: it is not installed, or failed.
    """
    if shutil.which(argv[0]) is None:
        raise ImagePullError(f"{argv[0]} is not installed", hint=f"apt-get install {package}")
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=stdout or asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE if stdout else asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    said: deque[str] = deque(maxlen=_LAST_LINES)
    try:
        await _listen(process.stderr if stdout else process.stdout, said, on_line)
        status = await process.wait()
    except BaseException:
        process.terminate()
        await process.wait()
        raise
    if status != 0:
        raise ImagePullError(f"{argv[0]} failed: {_reason(said)}")


async def _listen(
    stream: asyncio.StreamReader | None, said: deque[str], on_line: Callable[[str], None]
) -> None:
    """Tell lines as they come; a progress bar's carriage returns end lines too."""
    rest = b""
    while stream is not None and (data := await stream.read(65536)):
        *lines, rest = _SEPARATOR.split(rest + data)
        for line in [line.decode(errors="replace").strip() for line in lines]:
            if line:
                said.append(line)
                on_line(line)
    if rest:
        said.append(rest.decode(errors="replace").strip())


def _reason(said: deque[str]) -> str:
    """What a program that failed said last that looks like the reason."""
    telling = [line for line in said if re.search(r"error|fatal|E:|cannot|failed", line, re.I)]
    return (telling or list(said) or ["it said nothing"])[-1]

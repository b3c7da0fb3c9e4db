"""Running the programs that fetch and build images."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import IO

from hutch.errors import ImagePullError

_LAST_LINES = 20
_SEPARATOR = re.compile(rb"[\r\n]")
_GRACE_S = 10.0
"""For a program that is ended to remove what it made."""

_FIRST = re.compile(r"E: |dpkg: error")
"""How apt and dpkg begin the line that tells; what wraps them only adds that they failed."""
_FATAL = re.compile(r'level=fatal msg="((?:[^"\\]|\\.)*)"')
"""How skopeo says what the matter was."""
_TELLING = re.compile(r"error|fatal|cannot|failed", re.IGNORECASE)
_UNREACHABLE = re.compile(
    r"could ?n[o']t (resolve|connect)|no such host|connection (refused|reset|timed out)|"
    r"i/o timeout|timeout exceeded|network is unreachable|no route to host|server misbehaving|"
    r"temporary failure|proxyconnect|failed to verify certificate",
    re.IGNORECASE,
)


async def run_tool(
    argv: list[str],
    *,
    package: str,
    program: str = "",
    on_line: Callable[[str], None],
    stdout: IO[bytes] | None = None,
) -> None:
    """Run a program to its end, telling each line it says.

    When cancelled, it is ended with all of its process group: SIGTERM, after a grace SIGKILL.

    Args:
        package: the Debian package that has the program.
        program: its name, where it is not the first word.
        stdout: where its standard output goes, instead of being told.

    Raises:
        ImagePullError: it is not installed, or failed.
    """
    program = program or argv[0]
    if shutil.which(program) is None:
        raise ImagePullError(f"{program} is not installed", hint=f"apt-get install {package}")
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
        await asyncio.shield(_end(process))
        raise
    if status != 0:
        raise ImagePullError(f"{program} failed: {_reason(said)}")


async def _end(process: asyncio.subprocess.Process) -> None:
    _signal_group(process, signal.SIGTERM)
    with suppress(TimeoutError):
        async with asyncio.timeout(_GRACE_S):
            await process.wait()
    _signal_group(process, signal.SIGKILL)
    await process.wait()


def _signal_group(process: asyncio.subprocess.Process, number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


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
    """What a program that failed said that looks like the reason."""
    for line in said:
        if match := _FATAL.search(line):
            return match[1].replace('\\"', '"')
        if _FIRST.match(line):
            return line.removeprefix("E: ")
    telling = [line for line in said if _TELLING.search(line)]
    return (telling or list(said) or ["it said nothing"])[-1]


def is_unreachable(error: ImagePullError) -> bool:
    """Whether a program failed since it could not reach a server: they say so in words only."""
    return _UNREACHABLE.search(error.message) is not None

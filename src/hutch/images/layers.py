"""Unpacking layers: the store's side of hutch.images.unpack."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hutch.errors import ImageError, ImageVerificationError

_LINE_LIMIT = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Unpacked:
    """What a layer's archive turned out to be."""

    diff_id: str
    """`sha256:…` of the tar archive: the layer's identity, OCI image specification, config.md."""
    digest: str
    """The same of the blob as it was, compressed or not."""
    size: int


async def unpack_layer(
    archive: int, target: Path, *, what: str, on_read: Callable[[int], None]
) -> Unpacked:
    """Unpack the archive that is read from a descriptor into an empty directory.

    Args:
        what: the archive's name in messages.
        on_read: told how many bytes of it have been read.

    Raises:
        ImageVerificationError: it is corrupt or hostile.
        ImageError: it could not be unpacked here: no space, say.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        "-m",
        "hutch.images.unpack",
        target,
        stdin=archive,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=_LINE_LIMIT,
    )
    try:
        result = await _follow(process, on_read)
        complaint = await process.stderr.read() if process.stderr else b""
        await process.wait()
    except BaseException:
        process.kill()
        await process.wait()
        raise
    if "diff_id" in result:
        return Unpacked(str(result["diff_id"]), str(result["digest"]), int(result["size"]))
    if "errno" in result:
        raise ImageError(f"{what} could not be unpacked: {result['problem']}")
    if "problem" in result:
        raise ImageVerificationError(f"{what} is not a sound layer: {result['problem']}")
    last = complaint.decode(errors="replace").strip().rpartition("\n")[2]
    raise ImageError(f"{what} could not be unpacked: the unpacker ended early: {last}")


async def _follow(
    process: asyncio.subprocess.Process, on_read: Callable[[int], None]
) -> dict[str, str | int]:
    assert process.stdout is not None
    last: dict[str, str | int] = {}
    async for line in process.stdout:
        last = json.loads(line)
        if "read" in last:
            on_read(int(last["read"]))
    return last


def open_archive(path: Path) -> int:
    """Open an archive file; the descriptor is the caller's."""
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)

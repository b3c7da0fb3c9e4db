"""Unpacking layers: the store's side of hutch.images.unpack."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from hutch.errors import ImageError, ImageVerificationError

_LINE_LIMIT = 1024 * 1024
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_ENVIRONMENT = ("LD_LIBRARY_PATH", "PYTHONHOME", "PYTHONPATH")
"""What the unpacker inherits: what an interpreter needs to start, and no secret."""


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
        *("-P", "-X", "utf8", "-m", "hutch.images.unpack", target),
        stdin=archive,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=_LINE_LIMIT,
        env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        result = await _follow(process.stdout, on_read)
        complaint = await process.stderr.read(_LINE_LIMIT)
        await process.wait()
    except BaseException:
        process.kill()
        while await process.stdout.read(_LINE_LIMIT):
            pass  # it ends when the confined process has, which writes until then
        await process.wait()
        raise
    return _outcome(result, what, complaint)


async def _follow(
    stdout: asyncio.StreamReader, on_read: Callable[[int], None]
) -> Mapping[str, object]:
    """Read what the unpacker says, which hostile code may have taken over, and return its last."""
    last: Mapping[str, object] = {}
    try:
        while line := await stdout.readline():
            said = json.loads(line)
            last = said if isinstance(said, dict) else {}
            if isinstance(count := last.get("read"), int):
                on_read(count)
    except (ValueError, RecursionError) as error:
        raise ImageError(f"the unpacker said what it never says: {error}") from error
    return last


def _outcome(result: Mapping[str, object], what: str, complaint: bytes) -> Unpacked:
    match result:
        case {"diff_id": str(diff_id), "digest": str(digest), "size": int(size)} if (
            _DIGEST.fullmatch(diff_id) and _DIGEST.fullmatch(digest)
        ):
            return Unpacked(diff_id, digest, size)
        case {"problem": str(problem), "errno": int()}:
            raise ImageError(f"{what} could not be unpacked: {problem}")
        case {"problem": str(problem)}:
            raise ImageVerificationError(f"{what} is not a sound layer: {problem}")
    last = complaint.decode(errors="replace").strip().rpartition("\n")[2]
    raise ImageError(f"{what} could not be unpacked: the unpacker ended early: {last}")


def open_archive(path: Path) -> int:
    """Open an archive file; the descriptor is the caller's."""
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)

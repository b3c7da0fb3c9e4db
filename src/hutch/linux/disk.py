"""Filesystems in files: each bounds the bytes and the inodes that its sandbox can write.

The file is sparse and its filesystem knows discard, so the host's disk holds what is in it and
not what it could hold. There is no journal: after a crash of the host there is no sandbox that
runs, and none that is worth twice the writing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from hutch.errors import IsolationError

_LOOP_CONTROL = Path("/dev/loop-control")
_BLOCK = 4096
_BYTES_PER_INODE = 8192


def missing_for_disks() -> str | None:
    """Say why this host can make no such filesystem; None where it can."""
    if _mkfs() is None:
        return "mkfs.ext4 is not installed: apt-get install e2fsprogs"
    if not _LOOP_CONTROL.exists():
        return f"there are no loop devices ({_LOOP_CONTROL} is missing): modprobe loop"
    return None


def _mkfs() -> str | None:
    return shutil.which("mkfs.ext4", path=os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin")


def make_disk(path: Path, size: int) -> None:
    """Make the file `path`, an empty ext4 filesystem of `size` bytes, its own tables included.

    Raises:
        IsolationError: it could not be made; no file is left.
    """
    program = _mkfs()
    if program is None:
        raise IsolationError("disk limit", missing_for_disks() or "mkfs.ext4 is gone")
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.truncate(fd, size)
        finally:
            os.close(fd)
        result = subprocess.run(
            [program, "-q", "-F", "-m", "0", "-b", str(_BLOCK), "-i", str(_BYTES_PER_INODE),
             "-O", "^has_journal,^resize_inode", "-E", "nodiscard,root_owner=0:0", str(path)],
            capture_output=True, text=True, check=False, env={"PATH": os.defpath},
        )  # fmt: skip
    except OSError as error:
        path.unlink(missing_ok=True)
        raise IsolationError("disk limit", f"{path}: {error.strerror}") from error
    if result.returncode != 0:
        path.unlink(missing_ok=True)
        raise IsolationError("disk limit", f"mkfs.ext4: {result.stderr.strip()}")

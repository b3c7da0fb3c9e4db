"""What the attacks share: a sandbox with a Python of its own, and something of the host's to hurt."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hutch import Engine, Sandbox, SandboxConfig

Attack = Callable[..., Awaitable[Any]]
"""Runs a program in a sandbox; what comes back is whatever JSON it printed."""


def describe(top: Path) -> dict[str, tuple[object, ...]]:
    """All that can be changed of a tree of the host's, by path."""
    found: dict[str, tuple[object, ...]] = {}
    for path in (top, *top.rglob("*")):
        status = path.lstat()
        content: object = None
        if stat.S_ISREG(status.st_mode):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        elif stat.S_ISLNK(status.st_mode):
            content = path.readlink()
        found[str(path)] = (
            status.st_mode, status.st_uid, status.st_gid, status.st_nlink, status.st_mtime_ns,
            status.st_ctime_ns, content, tuple(os.listxattr(path, follow_symlinks=False)),
        )  # fmt: skip
    return found


@pytest.fixture
def canary() -> Iterator[Path]:
    """A tree of the host's that whoever got out could change; it must be as it was afterwards."""
    top = Path(tempfile.mkdtemp(prefix="hutch-canary-", dir="/tmp"))
    try:
        (top / "sub").mkdir()
        for name in ("f", "sub/f", "sub/only-outside"):
            (top / name).write_text("canary")
            (top / name).chmod(0o666)
        for directory in (top, top / "sub"):
            directory.chmod(0o777)
        before = describe(top)
        yield top
        assert describe(top) == before
    finally:
        shutil.rmtree(top)


@pytest.fixture
async def python(engine: Engine, debian: str) -> Sandbox:
    """A sandbox of the default image."""
    return await engine.create_sandbox(SandboxConfig(image=debian))


@pytest.fixture
def attack(engine: Engine) -> Attack:
    """Run a Python program in a sandbox and return what it prints, which is JSON."""

    async def run(sandbox: Sandbox, program: str, *arguments: str, user: str = "root") -> Any:
        argv = ["python3", "-", *arguments]
        result = await engine.exec(sandbox.id, argv, stdin=program, user=user, timeout=30)
        assert result.exit_code == 0, (result.reason, result.stderr)
        return json.loads(result.stdout)

    return run

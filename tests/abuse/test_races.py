"""Rows F4 and F5: names become links to the host's while the engine works on them, and back."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from hutch import Engine, Sandbox
from hutch.errors import FileError
from hutch.models import FileType

TRIES = 1500
LONGEST_S = 2.5

EXCHANGES = """
import ctypes, os, sys
libc = ctypes.CDLL(None)
canary = sys.argv[1]
for top in ("/r/real", canary):  # a path of the same name is inside, too: links lead somewhere
    os.makedirs(f"{top}/sub")
    for name in ("f", "sub/f"):
        open(f"{top}/{name}", "w").write("inside")
os.symlink(canary, "/r/away")
print("ready", flush=True)
while True:
    libc.renameat2(-100, b"/r/real", -100, b"/r/away", 2)
"""

CHURN = """
import contextlib, ctypes, os, sys
libc = ctypes.CDLL(None)
canary = sys.argv[1]
os.makedirs("/keep/swap")
open("/keep/f", "w").write("kept")
def exchange(one, other):
    libc.renameat2(-100, one.encode(), -100, other.encode(), 2)
def build(number):
    with contextlib.suppress(OSError):
        os.makedirs(f"/t/d{number}/sub/below", exist_ok=True)
    for path in (f"/t/l{number}", f"/t/d{number}/l", f"/t/d{number}/sub/l"):
        with contextlib.suppress(OSError):
            os.symlink(canary, path)
for number in range(8):
    build(number)
print("ready", flush=True)
while True:
    for number in range(8):
        build(number)
        for _ in range(10):
            exchange(f"/t/d{number}", f"/t/l{number}")
            exchange(f"/t/d{number}/sub", f"/t/d{number}/l")
            exchange(f"/t/d{number}/sub/below", f"/t/d{number}/sub/l")
            exchange(f"/t/d{number}/sub", "/keep/swap")
"""


@contextlib.asynccontextmanager
async def racing(
    engine: Engine, sandbox: Sandbox, program: str, canary: Path
) -> AsyncIterator[None]:
    argv = ["python3", "-c", program, str(canary)]
    async with engine.exec_stream(sandbox.id, argv, user="root") as stream:
        assert (await anext(stream)).data == b"ready\n"
        yield


async def make(engine: Engine, sandbox: Sandbox, number: int) -> None:
    await engine.mkdir(sandbox.id, f"/r/real/sub/new-{number}/below", user="root")


async def remove(engine: Engine, sandbox: Sandbox, number: int) -> None:
    await engine.write_file(sandbox.id, "/r/real/sub/f", b"inside", user="root")
    await engine.remove_file(sandbox.id, "/r/real/sub/f", user="root")


async def move(engine: Engine, sandbox: Sandbox, number: int) -> None:
    await engine.write_file(sandbox.id, "/r/real/sub/f", b"inside", user="root")
    await engine.move(sandbox.id, "/r/real/sub/f", "/r/real/f", user="root")
    await engine.move(sandbox.id, "/r/real/f", "/out", user="root")
    assert await engine.read_file(sandbox.id, "/out", user="root") == b"inside"


async def move_between_mounts(engine: Engine, sandbox: Sandbox, number: int) -> None:
    await engine.write_file(sandbox.id, "/r/real/sub/f", b"inside", user="root")
    await engine.move(sandbox.id, "/r/real/sub/f", "/dev/shm/out", user="root")
    assert await engine.read_file(sandbox.id, "/dev/shm/out", user="root") == b"inside"
    await engine.move(sandbox.id, "/dev/shm/out", "/r/real/sub/f", user="root")


async def list_(engine: Engine, sandbox: Sandbox, number: int) -> None:
    for path, names in (("/r/real", {"f", "sub"}), ("/r/real/sub", {"f"})):
        entries = await engine.list_dir(sandbox.id, path, user="root")
        assert {entry.name for entry in entries} <= names
        assert {entry.size for entry in entries if entry.name == "f"} <= {len("inside")}
    assert (await engine.stat(sandbox.id, "/r/real/f", user="root")).uid == 0


@pytest.mark.parametrize("verb", [make, remove, move, move_between_mounts, list_])
async def test_exchanges(
    engine: Engine,
    python: Sandbox,
    canary: Path,
    verb: Callable[[Engine, Sandbox, int], Awaitable[None]],
) -> None:
    """F4."""
    seen: set[FileType] = set()
    worked = 0
    async with racing(engine, python, EXCHANGES, canary):
        until = time.monotonic() + LONGEST_S
        for number in range(TRIES):
            if time.monotonic() > until:
                break
            with contextlib.suppress(FileError):
                await verb(engine, python, number)
                worked += 1
            with contextlib.suppress(FileError):
                seen.add((await engine.stat(python.id, "/r/real", follow=False)).type)
    assert seen == {FileType.DIRECTORY, FileType.SYMLINK}, "there was no race"
    assert worked > 10


async def test_a_tree_that_changes_while_it_is_removed(
    engine: Engine, python: Sandbox, canary: Path
) -> None:
    """F5: directories become links, or are moved away with the walk inside them."""
    refused = 0
    async with racing(engine, python, CHURN, canary):
        until = time.monotonic() + LONGEST_S
        for _ in range(TRIES):
            if time.monotonic() > until:
                break
            try:
                await engine.remove_file(python.id, "/t", user="root", recursive=True)
            except FileError:
                refused += 1
    assert refused > 10, "there was no race"
    assert await engine.read_file(python.id, "/keep/f", user="root") == b"kept"

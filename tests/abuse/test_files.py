"""Row F23's kin: what a file can be made to do to whoever opens it."""

from __future__ import annotations

import asyncio

import pytest

from hutch import Engine, SandboxConfig
from hutch.errors import FileError


async def test_a_lease_holds_nobody_up(engine: Engine, debian: str) -> None:
    """A file with a lease answers EAGAIN for as long as its holder likes: fcntl(2)."""
    python = await engine.create_sandbox(SandboxConfig(image=debian))
    program = (
        "import fcntl, os, signal, time; signal.signal(signal.SIGIO, signal.SIG_IGN);"
        "fd = os.open('leased', os.O_RDWR | os.O_CREAT);"
        "fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK); print('held', flush=True);"
        "time.sleep(1234)"
    )
    command = await engine.exec_detached(python.id, ["python3", "-c", program])
    assert (await anext(engine.command_output(python.id, command.id))).data == b"held\n"
    async with asyncio.timeout(10):
        with pytest.raises(FileError):
            await engine.read_file(python.id, "leased")


async def test_accounts_of_a_megabyte(engine: Engine, debian: str) -> None:
    """Hostile accounts are looked into no further than a lookup needs."""
    sandbox = await engine.create_sandbox(SandboxConfig(image=debian))
    line = "yes 'x:x:1:1:::' | head -c 1000000 >>/etc/passwd; cp /etc/passwd /etc/group"
    await engine.exec(sandbox.id, line, user="root")
    calls = [asyncio.create_task(engine.stat(sandbox.id, "/etc")) for _ in range(30)]
    assert {info.path for info in await asyncio.gather(*calls)} == {"/etc"}

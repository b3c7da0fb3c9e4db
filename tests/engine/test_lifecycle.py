"""The life of sandboxes on the native runtime: the suite, and what only this runtime has."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from hutch import Engine, Sandbox, SandboxStatus
from hutch.testing.lifecycle import *
from hutch.testing.lifecycle import CONFIG, status_of


async def test_a_killed_init_is_noticed(engine: Engine, sandbox: Sandbox) -> None:
    init = await _host_pid(engine, sandbox)
    os.kill(init, 9)
    stopped = await status_of(engine, sandbox, SandboxStatus.STOPPED)
    assert stopped.reason == "killed"
    assert (await engine.start_sandbox(sandbox.id)).status is SandboxStatus.RUNNING


async def _host_pid(engine: Engine, sandbox: Sandbox) -> int:
    """The pid of its init on the host."""
    for entry in os.listdir("/proc"):
        if entry.isdigit() and Path("/proc", entry, "cmdline").read_bytes().rstrip(b"\0") == (
            b"hutch-init\0launch\0" + sandbox.id.encode()
        ):
            status = Path("/proc", entry, "status").read_text()
            if any(
                line.split()[1:] == [entry, "1"]
                for line in status.split("\n")
                if line.startswith("NSpid")
            ):
                return int(entry)
    raise AssertionError("its init does not run")


async def test_cancelling_a_creation_leaves_nothing(engine: Engine, data_dir: Path) -> None:
    for delay in (0, 0.001, 0.003, 0.006, 0.01, 0.02):
        task = asyncio.create_task(engine.create_sandbox(CONFIG))
        await asyncio.sleep(delay)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        for sandbox in await engine.list_sandboxes():
            await engine.destroy_sandbox(sandbox.id)
    assert [*(data_dir / "sandboxes").iterdir()] == []

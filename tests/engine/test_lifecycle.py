"""The life of sandboxes on the native runtime: the suite, and what only this runtime has."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hutch import Engine, Sandbox, SandboxStatus
from hutch.config import is_host_root
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


async def test_the_reason_for_a_refused_namespace(tmp_path: Path, images: Path) -> None:
    """In a chroot the kernel allows no user namespace: the error says so, and nothing is left."""
    if not is_host_root():
        pytest.skip("only root changes its root directory")
    root = tmp_path / "root"
    root.mkdir()
    script = f"""
import os, subprocess, sys
subprocess.run(["mount", "--make-rprivate", "/"], check=True)
for name in os.listdir("/"):
    inside = os.path.join({str(root)!r}, name)
    if os.path.islink("/" + name):
        os.symlink(os.readlink("/" + name), inside)
    elif os.path.isdir("/" + name):
        os.mkdir(inside)
        subprocess.run(["mount", "--rbind", "/" + name, inside], check=True)
os.chroot({str(root)!r})
os.chdir("/")
os.execv(sys.executable, [sys.executable, "-m", "hutch.cli.main", "--data-dir",
                          {str(tmp_path / "data")!r}, "run", "--image", "busybox", "true"])
"""
    (tmp_path / "data").mkdir(mode=0o700)
    (tmp_path / "data/images").symlink_to(images)
    ran = await asyncio.to_thread(
        subprocess.run,
        ["unshare", "--mount", sys.executable, "-c", script],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 125, ran.stderr
    assert "namespaces: Operation not permitted" in ran.stderr
    assert "chroot(2)" in ran.stderr

"""Engines that die, engines side by side: what is on the host converges (rows L1, L10, L11)."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from hutch import Engine, Sandbox, SandboxConfig, SandboxStatus, Settings, open_engine
from hutch.errors import HutchError, SandboxNotFoundError
from hutch.models import CommandStatus
from hutch.runtime.native.layout import Layout
from tests.conftest import BUSYBOX

_PRELUDE = """
import asyncio, os, signal, sys
from pathlib import Path
from hutch import SandboxConfig, Settings, open_engine
from hutch.linux.cgroups import CgroupHost, SandboxCgroup
from hutch.runtime.native import command_files, commands, driver, launcher
from hutch.runtime.native.driver import NativeRuntime
from hutch.runtime.native.layout import Layout
from hutch.state.sqlite import SqliteStateStore

def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

def die_before(owner, name):
    setattr(owner, name, die)

def die_after(owner, name):
    original = getattr(owner, name)
    if asyncio.iscoroutinefunction(original):
        async def wrapper(*args, **kwargs):
            await original(*args, **kwargs)
            die()
    else:
        def wrapper(*args, **kwargs):
            original(*args, **kwargs)
            die()
    setattr(owner, name, wrapper)

async def main(data_dir):
    settings = Settings(default_image="busybox", exec_grace=0.5, stop_grace=0.5)
    async with open_engine(data_dir=data_dir, settings=settings) as engine:
        await work(engine)

"""
_POSTLUDE = """
asyncio.run(main(sys.argv[1]))
"""


def run_script(data_dir: Path, work: str) -> subprocess.CompletedProcess[str]:
    """Run `async def work(engine)` with an engine of its own in another process."""
    script = _PRELUDE + textwrap.dedent(work) + _POSTLUDE
    return subprocess.run(
        [sys.executable, "-c", script, str(data_dir)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


CREATE_STEPS = [
    "die_after(SqliteStateStore, 'add_sandbox')",
    "die_before(Layout, 'make')",
    "die_after(Layout, 'make')",
    "die_before(CgroupHost, 'create')",
    "die_after(CgroupHost, 'create')",
    "die_before(launcher, '_spawn')",
    "die_after(launcher, '_spawn')",
    "die_after(launcher, 'exchange_launch')",
    "die_after(driver, 'launch')",
    "die_before(SqliteStateStore, 'finish')",
    "die_after(SqliteStateStore, 'finish')",
]


@pytest.mark.parametrize("step", CREATE_STEPS)
async def test_killed_while_creating(data_dir: Path, settings: Settings, step: str) -> None:
    work = f"""
    async def work(engine):
        {step}
        await engine.create_sandbox(SandboxConfig(image="busybox"))
    """
    process = await asyncio.to_thread(run_script, data_dir, work)
    assert process.returncode == -signal.SIGKILL, process.stderr
    async with open_engine(data_dir=data_dir, settings=settings) as engine:
        while "creating" in [s.status for s in await engine.list_sandboxes()]:
            await asyncio.sleep(0.02)
        for sandbox in await engine.list_sandboxes():  # finished after all, so it must work
            assert (await engine.exec(sandbox.id, ["true"])).exit_code == 0
        await engine.shutdown(destroy=True)
    assert [*(data_dir / "sandboxes").iterdir()] == []


DESTROY_STEPS = [
    "die_after(SqliteStateStore, 'begin')",
    "die_before(NativeRuntime, 'delete')",
    "die_after(NativeRuntime, '_kill_known')",
    "die_before(SandboxCgroup, 'remove')",
    "die_after(SandboxCgroup, 'remove')",
    "die_before(Layout, 'remove')",
    "die_after(Layout, 'remove')",
    "die_before(SqliteStateStore, 'remove_sandbox')",
    "die_after(SqliteStateStore, 'remove_sandbox')",
]


@pytest.mark.parametrize("step", DESTROY_STEPS)
async def test_killed_while_destroying(data_dir: Path, settings: Settings, step: str) -> None:
    work = f"""
    async def work(engine):
        sandbox = await engine.create_sandbox(SandboxConfig(image="busybox"))
        {step}
        await engine.destroy_sandbox(sandbox.id)
    """
    process = await asyncio.to_thread(run_script, data_dir, work)
    assert process.returncode == -signal.SIGKILL, process.stderr
    async with open_engine(data_dir=data_dir, settings=settings) as engine:
        while (await engine.sandbox_count()).total:
            await asyncio.sleep(0.02)
    assert [*(data_dir / "sandboxes").iterdir()] == []


STOP_STEPS = [
    "die_after(SqliteStateStore, 'begin')",
    "die_before(NativeRuntime, 'halt')",
    "die_after(NativeRuntime, 'halt')",
    "die_before(SqliteStateStore, 'finish')",
    "die_after(SqliteStateStore, 'finish')",
]


@pytest.mark.parametrize("step", STOP_STEPS)
async def test_killed_while_stopping(data_dir: Path, settings: Settings, step: str) -> None:
    work = f"""
    async def work(engine):
        sandbox = await engine.create_sandbox(SandboxConfig(image="busybox"))
        await engine.write_file(sandbox.id, "/root/kept", b"kept")
        {step}
        await engine.stop_sandbox(sandbox.id)
    """
    process = await asyncio.to_thread(run_script, data_dir, work)
    assert process.returncode == -signal.SIGKILL, process.stderr
    async with open_engine(data_dir=data_dir, settings=settings) as engine:
        (sandbox,) = await engine.list_sandboxes()
        while (await engine.get_sandbox(sandbox.id)).status is not SandboxStatus.STOPPED:
            await asyncio.sleep(0.02)
        await engine.start_sandbox(sandbox.id)
        assert await engine.read_file(sandbox.id, "/root/kept") == b"kept"
        await engine.shutdown(destroy=True)


EXEC_STEPS = [
    "die_before(commands, 'start_program')",
    "die_after(commands, 'start_program')",
    "die_after(command_files, 'prepare')",
]


@pytest.mark.parametrize("step", EXEC_STEPS)
async def test_killed_while_starting_a_command(
    data_dir: Path, settings: Settings, step: str
) -> None:
    work = f"""
    async def work(engine):
        sandbox = await engine.create_sandbox(SandboxConfig(image="busybox"))
        {step}
        await engine.exec_detached(sandbox.id, ["sleep", "1234"])
    """
    process = await asyncio.to_thread(run_script, data_dir, work)
    assert process.returncode == -signal.SIGKILL, process.stderr
    async with open_engine(data_dir=data_dir, settings=settings) as engine:
        (sandbox,) = await engine.list_sandboxes()
        for command in await engine.list_commands(sandbox.id):
            assert command.status in {CommandStatus.RUNNING, CommandStatus.EXITED}
        assert (await engine.exec(sandbox.id, ["echo", "fine"])).stdout == "fine\n"
        await engine.shutdown(destroy=True)


async def _others_die(engine: Engine, data_dir: Path, work: str) -> None:
    """Wait until this engine does background work, then let another one die at its own."""
    await asyncio.sleep(0.2)
    process = await asyncio.to_thread(run_script, data_dir, work)
    assert process.returncode == -signal.SIGKILL, process.stderr


async def test_a_creation_that_died_beside_a_living_engine(engine: Engine, data_dir: Path) -> None:
    work = """
    async def work(engine):
        die_after(driver, 'launch')
        await engine.create_sandbox(SandboxConfig(image="busybox"), idempotency_key="k")
    """
    await _others_die(engine, data_dir, work)
    sandbox = await engine.create_sandbox(SandboxConfig(image=BUSYBOX), idempotency_key="k")
    assert (await engine.exec(sandbox.id, ["true"])).exit_code == 0
    assert (await engine.sandbox_count()).total == 1


async def test_a_destruction_that_died_beside_a_living_engine(
    engine: Engine, sandbox: Sandbox, data_dir: Path
) -> None:
    work = """
    async def work(engine):
        die_before(NativeRuntime, 'delete')
        [sandbox] = await engine.list_sandboxes()
        await engine.destroy_sandbox(sandbox.id)
    """
    await _others_die(engine, data_dir, work)
    while (await engine.sandbox_count()).total:
        await asyncio.sleep(0.02)
    assert [*(data_dir / "sandboxes").iterdir()] == []


async def test_a_stop_that_died_beside_a_living_engine(
    engine: Engine, sandbox: Sandbox, data_dir: Path
) -> None:
    work = """
    async def work(engine):
        die_before(NativeRuntime, 'halt')
        [sandbox] = await engine.list_sandboxes()
        await engine.stop_sandbox(sandbox.id)
    """
    await _others_die(engine, data_dir, work)
    while (await engine.get_sandbox(sandbox.id)).status is not SandboxStatus.STOPPED:
        await asyncio.sleep(0.02)
    await engine.start_sandbox(sandbox.id)
    assert (await engine.exec(sandbox.id, ["true"])).exit_code == 0


async def test_a_destruction_that_fails_can_be_tried_again(
    engine: Engine, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Layout, sandbox_id: str) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(Layout, "remove", fail)
        with pytest.raises(OSError, match="Input/output"):
            await engine.destroy_sandbox(sandbox.id)
    seen = await engine.get_sandbox(sandbox.id)
    assert seen.status is SandboxStatus.ERROR
    assert "Input/output error" in (seen.reason or "")
    await engine.destroy_sandbox(sandbox.id)
    assert await engine.list_sandboxes() == []


@pytest.mark.parametrize("end", ["die()", "await engine.shutdown()"])
async def test_an_ephemeral_sandbox_ends_with_its_engine(
    engine: Engine, sandbox: Sandbox, data_dir: Path, end: str
) -> None:
    work = f"""
    async def work(engine):
        await engine.create_sandbox(SandboxConfig(image="busybox"), ephemeral=True)
        {end}
    """
    process = await asyncio.to_thread(run_script, data_dir, work)
    assert process.returncode in {0, -signal.SIGKILL}, process.stderr
    while (await engine.sandbox_count()).total != 1:
        await asyncio.sleep(0.02)
    assert [s.id for s in await engine.list_sandboxes()] == [sandbox.id]


async def test_what_lives_on_when_an_engine_is_killed(data_dir: Path, settings: Settings) -> None:
    """Sandboxes, detached commands and their output, files, from where the reader left off."""
    work = """
    async def work(engine):
        sandbox = await engine.create_sandbox(SandboxConfig(image="busybox"))
        await engine.write_file(sandbox.id, "/root/kept", b"kept")
        line = "i=0; while [ $i -lt 40 ]; do echo line $i; i=$((i+1)); sleep 0.02; done; cat; exit 5"
        command = await engine.exec_detached(sandbox.id, line, stdin=True)
        async for message in engine.command_output(sandbox.id, command.id):
            print(sandbox.id, command.id, message.offset, flush=True)
            die()
    """
    process = await asyncio.to_thread(run_script, data_dir, work)
    assert process.returncode == -signal.SIGKILL, process.stderr
    sandbox_id, command_id, offset = process.stdout.split()
    async with open_engine(data_dir=data_dir, settings=settings) as engine:
        assert (await engine.get_sandbox(sandbox_id)).status is SandboxStatus.RUNNING
        assert await engine.read_file(sandbox_id, "/root/kept") == b"kept"
        assert (await engine.exec(sandbox_id, ["echo", "hi"])).stdout == "hi\n"
        await engine.write_command_stdin(sandbox_id, command_id, b"typed", close=True)
        rest = bytearray()
        async for message in engine.command_output(sandbox_id, command_id, offset=int(offset)):
            if message.status is None:
                rest += message.data
            else:
                assert message.status.exit_code == 5
        expected = b"".join(b"line %d\n" % number for number in range(40)) + b"typed"
        assert bytes(rest) == expected[int(offset) :]
        await engine.destroy_sandbox(sandbox_id)


async def test_an_attached_command_ends_with_its_engine(data_dir: Path, settings: Settings) -> None:
    work = """
    async def work(engine):
        sandbox = await engine.create_sandbox(SandboxConfig(image="busybox"))
        async with engine.exec_stream(sandbox.id, "setsid sleep 1234 & echo on; wait") as stream:
            async for message in stream:
                die()
    """
    process = await asyncio.to_thread(run_script, data_dir, work)
    assert process.returncode == -signal.SIGKILL, process.stderr
    async with open_engine(data_dir=data_dir, settings=settings) as engine:
        (sandbox,) = await engine.list_sandboxes()
        while "1234" in (await engine.exec(sandbox.id, ["ps"])).stdout:
            pass
        await engine.shutdown(destroy=True)


async def test_init_keeps_the_deadline_when_no_engine_lives(
    data_dir: Path, settings: Settings
) -> None:
    work = """
    async def work(engine):
        sandbox = await engine.create_sandbox(SandboxConfig(image="busybox", timeout=0.5))
        with open(data_dir_of(engine) / "sandboxes" / sandbox.id / "status") as status:
            pass
        print(sandbox.id, flush=True)
        die()

    def data_dir_of(engine):
        return Path(sys.argv[1])
    """
    process = await asyncio.to_thread(run_script, data_dir, work)
    assert process.returncode == -signal.SIGKILL, process.stderr
    status = data_dir / "sandboxes" / process.stdout.strip() / "status"
    while status.read_text() != "expired":
        await asyncio.sleep(0.02)
    async with open_engine(data_dir=data_dir, settings=settings) as engine:
        while await engine.list_sandboxes():
            await asyncio.sleep(0.02)


async def test_two_engines_side_by_side(data_dir: Path, settings: Settings) -> None:
    async with (
        open_engine(data_dir=data_dir, settings=settings) as one,
        open_engine(data_dir=data_dir, settings=settings) as other,
    ):
        sandbox = await one.create_sandbox(SandboxConfig(image=BUSYBOX))
        assert (await other.exec(sandbox.id, ["echo", "hi"])).stdout == "hi\n"
        await other.stop_sandbox(sandbox.id)
        assert (await one.get_sandbox(sandbox.id)).status is SandboxStatus.STOPPED
        await one.start_sandbox(sandbox.id)
        await other.write_file(sandbox.id, "/tmp/x", b"x")
        assert await one.read_file(sandbox.id, "/tmp/x") == b"x"
        await other.destroy_sandbox(sandbox.id)
        with pytest.raises(SandboxNotFoundError):
            await one.exec(sandbox.id, ["true"])


async def test_ten_processes_hammer_one_data_directory(data_dir: Path, settings: Settings) -> None:
    work = """
    async def work(engine):
        for _ in range(3):
            made = await asyncio.gather(
                *(engine.create_sandbox(SandboxConfig(image="busybox")) for _ in range(2))
            )
            for sandbox in made:
                result = await engine.exec(sandbox.id, ["echo", sandbox.id])
                assert result.stdout.strip() == sandbox.id
            for sandbox in made:
                await engine.destroy_sandbox(sandbox.id)
    """
    processes = await asyncio.gather(
        *(asyncio.to_thread(run_script, data_dir, work) for _ in range(10))
    )
    assert [process.stderr for process in processes] == [""] * 10
    async with open_engine(data_dir=data_dir, settings=settings) as engine:
        assert await engine.list_sandboxes() == []
    assert [*(data_dir / "sandboxes").iterdir()] == []


async def test_a_leftover_directory_is_swept(data_dir: Path, settings: Settings) -> None:
    leftover = data_dir / "sandboxes" / "sb-leftover"
    (leftover / "rw" / "upper" / "deep").mkdir(parents=True)
    async with open_engine(data_dir=data_dir, settings=settings):
        while leftover.exists():
            await asyncio.sleep(0.02)


async def test_a_record_of_an_earlier_boot(data_dir: Path, settings: Settings) -> None:
    """Row L12: a reboot has ended everything; pids may be somebody else's by now."""
    async with open_engine(data_dir=data_dir, settings=settings) as engine:
        sandbox = await engine.create_sandbox(SandboxConfig(image=BUSYBOX))
        await engine.stop_sandbox(sandbox.id)
    record = json.dumps(
        {"runtime": "native", "data": {"pid": os.getpid(), "start_time": 1, "boot_id": "other"}}
    )
    with contextlib.closing(sqlite3.connect(next(data_dir.glob("*.db")))) as database:
        database.execute("UPDATE sandboxes SET status='running', instance=?", (record,))
        database.commit()
    async with open_engine(data_dir=data_dir, settings=settings) as engine:
        while (now := await engine.get_sandbox(sandbox.id)).status is not SandboxStatus.STOPPED:
            await asyncio.sleep(0.02)
        assert now.reason == "host_restarted"
        await engine.start_sandbox(sandbox.id)
        await engine.shutdown(destroy=True)


async def test_concurrent_changes_of_one_sandbox(engine: Engine) -> None:
    """Row L4: whatever interleaves, each call works or is a typed error, and nothing hangs."""
    sandbox = await engine.create_sandbox(SandboxConfig(image=BUSYBOX))

    async def attempt(number: int) -> None:
        try:
            match number % 5:
                case 0:
                    await engine.stop_sandbox(sandbox.id)
                case 1:
                    await engine.start_sandbox(sandbox.id)
                case 2:
                    await engine.exec(sandbox.id, ["true"])
                case 3:
                    await engine.write_file(sandbox.id, "/tmp/x", b"x")
                case _:
                    await engine.stats(sandbox.id)
        except HutchError:
            pass  # the state did not allow it

    for _ in range(4):
        await asyncio.gather(*(attempt(number) for number in range(20)))
    assert (await engine.get_sandbox(sandbox.id)).status in {
        SandboxStatus.RUNNING,
        SandboxStatus.STOPPED,
    }

"""Rows P5, P13, P14: nothing inside keeps a command beyond its timeout, or its caller waiting."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from hutch import Engine, ExitReason, HutchError, Sandbox, SandboxConfig

DAEMON = """
import ctypes, os, signal, time
if os.fork():
    os._exit(0)
os.setsid()
for fd in range(3):
    os.close(fd)
libc = ctypes.CDLL(None)
libc.ptrace.argtypes = [ctypes.c_long] * 4
seen = {os.getpid()}
until = time.time() + 30
while time.time() < until:
"""
TRACER = f"""{DAEMON}
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) not in seen and libc.ptrace(0x4206, int(name), 0, 0) == 0:
            seen.add(int(name))
"""
STOPPER = f"""{DAEMON}
    try:
        os.kill(-1, signal.SIGSTOP)
    except OSError:
        pass
"""


@pytest.fixture
async def python(engine: Engine, debian: str) -> Sandbox:
    return await engine.create_sandbox(SandboxConfig(image=debian))


async def plant(engine: Engine, sandbox: Sandbox, program: str) -> None:
    await engine.exec(sandbox.id, ["python3", "-c", program], timeout=5)


async def test_a_tracer_that_keeps_the_dead(engine: Engine, python: Sandbox) -> None:
    """A killed process that is traced stays a zombie, and its parent is not told."""
    await plant(engine, python, TRACER)
    async with asyncio.timeout(20):
        result = await engine.exec(python.id, ["sleep", "1234"], timeout=1)
        assert result.reason is ExitReason.TIMED_OUT
        command = await engine.exec_detached(python.id, ["sleep", "1234"], timeout=1)
        status = await engine.wait_command(python.id, command.id)
        assert status.reason is ExitReason.TIMED_OUT


async def test_what_is_stopped_before_it_starts(engine: Engine, python: Sandbox) -> None:
    """A child that has its user's id can be stopped by the user's other processes."""
    await plant(engine, python, STOPPER)
    async with asyncio.timeout(60):
        with contextlib.suppress(HutchError):
            await engine.exec(python.id, ["sleep", "1234"], timeout=1)
    async with asyncio.timeout(20):
        assert (await engine.exec(python.id, ["echo", "alive"], user="root")).exit_code == 0


@pytest.mark.parametrize("signal", ["STOP", "KILL"])
async def test_root_inside_against_the_supervisor(
    engine: Engine, sandbox: Sandbox, signal: str
) -> None:
    async with asyncio.timeout(20):
        line = f"kill -{signal} $PPID; sleep 4321"
        result = await engine.exec(sandbox.id, line, timeout=1)
        assert result.reason in {ExitReason.LOST, ExitReason.TIMED_OUT}
        while "4321" in (await engine.exec(sandbox.id, ["ps"])).stdout:
            await asyncio.sleep(0.01)


async def test_root_inside_cannot_cripple_init(engine: Engine, python: Sandbox) -> None:
    """P17: a limit of init's own, such as no open files, would end its work."""
    line = "for p in 1 $PPID; do prlimit --pid $p --nofile=1:1; done"
    result = await engine.exec(python.id, line, user="root")
    assert result.stderr.count("Operation not permitted") == 2
    assert (await engine.exec(python.id, ["echo", "alive"])).stdout == "alive\n"
    own = await engine.exec(python.id, "prlimit --nofile=100:100 sh -c 'ulimit -n'")
    assert own.stdout == "100\n", own.stderr

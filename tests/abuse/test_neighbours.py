"""Row F23 and its kin: what the kernel counts by user is used up for one sandbox alone."""

from __future__ import annotations

import os

import pytest

from hutch import Engine, Sandbox, SandboxConfig, TerminalSize

INOTIFY = """
import ctypes, time
libc = ctypes.CDLL(None)
print(sum(libc.inotify_init() >= 0 for _ in range(2000)), flush=True)
time.sleep(1234)
"""
TERMINALS = """
import os, time
count = 0
try:
    while count < 5000:
        os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY)
        count += 1
except OSError:
    pass
print(count, flush=True)
time.sleep(1234)
"""
TIMERS = """
import ctypes, time
libc = ctypes.CDLL(None)
timer = ctypes.c_void_p()
print(sum(libc.timer_create(1, None, ctypes.byref(timer)) == 0 for _ in range(200_000)), flush=True)
time.sleep(1234)
"""


@pytest.fixture
async def sandboxes(engine: Engine, debian: str) -> tuple[Sandbox, Sandbox]:
    config = SandboxConfig(image=debian)
    return await engine.create_sandbox(config), await engine.create_sandbox(config)


async def use_up(engine: Engine, sandbox: Sandbox, program: str) -> int:
    """Let a program of the sandbox take what it can, say how much, and keep it."""
    command = await engine.exec_detached(sandbox.id, ["python3", "-c", program])
    async for message in engine.command_output(sandbox.id, command.id):
        return int(message.data)
    raise AssertionError("it said nothing")


async def only_with_uids_of_their_own(engine: Engine) -> None:
    if not (await engine.capabilities()).per_sandbox_uids:
        pytest.skip("without root all sandboxes are the same user, and docs/security.md says so")


async def test_inotify(engine: Engine, sandboxes: tuple[Sandbox, Sandbox]) -> None:
    await only_with_uids_of_their_own(engine)
    hostile, neighbour = sandboxes
    taken = await use_up(engine, hostile, INOTIFY)
    assert taken > 100
    assert await use_up(engine, neighbour, INOTIFY) == taken
    own = await engine.exec_detached(neighbour.id, ["echo", "x"])
    assert [m.data async for m in engine.command_output(neighbour.id, own.id)] == [b"x\n", b"0"]


async def test_signals(engine: Engine, sandboxes: tuple[Sandbox, Sandbox]) -> None:
    await only_with_uids_of_their_own(engine)
    hostile, neighbour = sandboxes
    taken = await use_up(engine, hostile, TIMERS)
    assert await use_up(engine, neighbour, TIMERS) == taken
    with open("/proc/self/status") as status:
        queued, limit = (
            next(line for line in status if line.startswith("SigQ")).split()[1].split("/")
        )
    assert int(queued) < int(limit) // 2


async def test_terminals(engine: Engine, sandboxes: tuple[Sandbox, Sandbox]) -> None:
    hostile, neighbour = sandboxes
    assert await use_up(engine, hostile, TERMINALS) < 100
    async with engine.exec_stream(neighbour.id, ["tty"], terminal=TerminalSize()) as stream:
        assert b"/dev/pts/" in (await anext(stream)).data


async def test_asynchronous_io(engine: Engine, sandboxes: tuple[Sandbox, Sandbox]) -> None:
    """fs.aio-max-nr is one number for the whole host."""
    program = (
        "import ctypes; c = ctypes.c_ulong(); libc = ctypes.CDLL(None, use_errno=True);"
        "print(libc.syscall({}, 512, ctypes.byref(c)), ctypes.get_errno())"
    ).format({"x86_64": 206, "aarch64": 0}[os.uname().machine])
    result = await engine.exec(sandboxes[0].id, ["python3", "-c", program])
    assert result.stdout == "-1 38\n"  # ENOSYS: programs do without


async def test_network_buffers(engine: Engine, debian: str, limits: None) -> None:
    """M5: what waits in a loopback connection counts against the sandbox's memory."""
    sandbox = await engine.create_sandbox(SandboxConfig(image=debian, memory=96 * 1024**2))
    program = """
import socket
held = 0
sockets = []
for _ in range(200):
    a, b = socket.socketpair()
    listener = socket.create_server(("127.0.0.1", 0))
    a = socket.create_connection(listener.getsockname())
    b, _ = listener.accept()
    a.setblocking(False)
    sockets += [a, b, listener]
    try:
        while True:
            held += a.send(bytes(1 << 16))
    except BlockingIOError:
        pass
print(held)
"""
    result = await engine.exec(sandbox.id, ["python3", "-c", program], timeout=60)
    assert result.exit_code != 0 or int(result.stdout) < 160 * 1024**2, result

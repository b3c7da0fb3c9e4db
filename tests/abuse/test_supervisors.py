"""Rows P9, P13, P15, P17: what holds a sandbox together cannot be reached, forged or outrun."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from hutch import Engine, ExitReason, Sandbox, SandboxConfig
from hutch.errors import HutchError, InvalidRequestError, LimitReachedError
from hutch.runtime.native import wire
from tests.abuse.conftest import Attack
from tests.conftest import BUSYBOX
from tests.runtime.test_posture import processes_of


async def settled(sandbox: Sandbox, count: int) -> None:
    """Wait until so many processes are left."""
    async with asyncio.timeout(10):
        while len(processes_of(sandbox)) != count:
            await asyncio.sleep(0.01)


# -- P9 -------------------------------------------------------------------------------------------

WORKDIRS = [
    *(f"/proc/self/fd/{number}" for number in range(24)),
    *(f"/proc/1/fd/{number}" for number in range(12)),
    *(f"/proc/thread-self/fd/{number}/.." for number in range(6)),
    "/proc/1/cwd", "/proc/1/root", "/proc/1/cwd/..", "/proc/self/cwd", "/proc/self/root",
    "/proc/self/root/..", "/proc/2/cwd", "/proc/2/root", "/proc/2/fd/3", "/dev/fd/3", "/dev/fd/5",
    "/proc/self/cwd/../../../..", "/proc/self/ns", "/proc/self/map_files", "/../../..", "..",
    "../../../../../../tmp", "/link/self/fd/7", "/link/1/root",
]  # fmt: skip


def inside(process: Path, init: Path) -> bool:
    """Whether a process's directory and root are on what its sandbox has mounted."""
    devices = {line.split()[2] for line in (init / "mountinfo").read_text().splitlines()}
    numbers = [(process / name).stat().st_dev for name in ("cwd", "root")]
    return all(f"{os.major(number)}:{os.minor(number)}" in devices for number in numbers)


async def test_a_working_directory_is_inside(engine: Engine, sandbox: Sandbox) -> None:
    """P9, CVE-2024-21626: no descriptor that somebody forgot leads out."""
    await engine.exec(sandbox.id, ["ln", "-s", "/proc", "/link"])
    accepted, refused = 0, 0
    (init,) = processes_of(sandbox)
    for path in WORKDIRS:
        try:
            command = await engine.exec_detached(sandbox.id, ["sleep", "1234"], workdir=path)
        except InvalidRequestError:
            refused += 1
            continue
        accepted += 1
        processes = processes_of(sandbox)
        assert len(processes) == 3  # init, a supervisor and the program
        assert all(inside(process, init) for process in processes), path
        await engine.kill_command(sandbox.id, command.id)
        await settled(sandbox, 1)
    assert not inside(Path("/proc/self"), init)
    assert accepted >= 5
    assert refused >= 40


@pytest.mark.parametrize(
    "path", ["/proc/self/fd/7", "/proc/1/cwd", "/proc/1/root", "/proc/self/root", "/proc/self/cwd"]
)
async def test_a_sandboxs_working_directory_is_inside(engine: Engine, path: str) -> None:
    """P9: it is made by the engine where it is missing."""
    try:
        sandbox = await engine.create_sandbox(SandboxConfig(image=BUSYBOX, workdir=path))
    except HutchError:
        assert await engine.list_sandboxes() == []
        return
    (init,) = processes_of(sandbox)
    with contextlib.suppress(InvalidRequestError):
        await engine.exec_detached(sandbox.id, ["sleep", "1234"])
    assert all(inside(process, init) for process in processes_of(sandbox))


# -- P13 ------------------------------------------------------------------------------------------

REACHES = """
import ctypes, json, os, platform, signal, sys
libc = ctypes.CDLL(None, use_errno=True)
X86 = platform.machine() == "x86_64"
def call(number, *arguments):
    return libc.syscall(ctypes.c_long(number), *(ctypes.c_long(a) for a in arguments))
class Part(ctypes.Structure):
    _fields_ = [("at", ctypes.c_void_p), ("length", ctypes.c_size_t)]
room = ctypes.create_string_buffer(16)
local = Part(ctypes.addressof(room), 16)
remote = Part(ctypes.addressof(room), 16)  # of a child that is our copy: the same address
def reached(pid):
    found = []
    # An address that is not mapped is EFAULT, after the right to look was checked.
    for name, number in (("readv", 310 if X86 else 270), ("writev", 311 if X86 else 271)):
        got = call(number, pid, ctypes.addressof(local), 1, ctypes.addressof(remote), 1, 0)
        if got >= 0 or ctypes.get_errno() == 14:
            found.append("process_vm_" + name)
    for name, request in (("attach", 16), ("seize", 0x4206)):
        if call(101 if X86 else 117, request, pid, 0, 0) == 0:
            found.append("ptrace " + name)
            if name == "attach":
                os.waitpid(pid, 0)
            call(101 if X86 else 117, 17, pid, 0, 0)
    for name in ("mem", "environ", "maps", "smaps", "auxv", "pagemap", "io", "syscall", "stack",
                 "personality", "timers", "map_files", "fd/0", "fd/3", "fdinfo/3", "ns/mnt",
                 "exe", "root/etc/passwd", "cwd/etc"):
        try:
            os.close(os.open(f"/proc/{pid}/{name}", os.O_RDONLY))
            found.append(name)
        except OSError:
            pass
    for name in ("exe", "cwd", "root", "fd/0", "fd/3", "ns/user", "ns/net"):
        try:
            os.readlink(f"/proc/{pid}/{name}")
            found.append("link " + name)
        except OSError:
            pass
    for name in ("fd", "map_files", "fdinfo"):
        try:
            os.listdir(f"/proc/{pid}/{name}")
            found.append("list " + name)
        except OSError:
            pass
    for name in ("mem", "clear_refs", "oom_score_adj", "oom_adj", "coredump_filter", "comm",
                 "timerslack_ns", "attr/current", "attr/exec", "uid_map", "setgroups", "loginuid",
                 "sched", "autogroup", "sessionid", "make-it-fail", "fail-nth"):
        try:
            with open(f"/proc/{pid}/{name}", "r+b", buffering=0) as file:
                file.write(b"1")
            found.append("write " + name)
        except OSError:
            pass
    handle = call(434, pid, 0)
    if handle >= 0:
        for number in range(8):
            if call(438, handle, number, 0) >= 0:
                found.append(f"pidfd_getfd {number}")
    return found
child = os.fork()
if child == 0:
    while True:
        signal.pause()
answers = {"child": reached(child)}
os.kill(child, 9)
for pid in sys.argv[1:]:
    answers[pid] = reached(int(pid))
answers["parent"] = reached(os.getppid())
answers["init"] = reached(1)
print(json.dumps(answers))
"""


@pytest.mark.parametrize("user", ["root", "user"])
async def test_supervisors_cannot_be_traced_or_read(
    engine: Engine, python: Sandbox, attack: Attack, user: str
) -> None:
    """P13: those of the own command, of others' and of init; a child of one's own can be."""
    await engine.exec_detached(python.id, ["sleep", "1234"], user=user)
    found = await engine.exec(python.id, ["pgrep", "-f", "hutch-init"], user="root")
    others = [pid for pid in found.stdout.split() if pid != "1"]
    assert others
    answers = await attack(python, REACHES, *others, user=user)
    child = answers.pop("child")
    assert {"ptrace attach", "process_vm_readv", "mem", "environ", "link fd/0", "list fd"} <= {
        *child
    }
    assert len(answers) == len(others) + 2
    assert {name: reached for name, reached in answers.items() if reached} == {}


# -- P15 ------------------------------------------------------------------------------------------

CONNECTS = """
import json, os, socket, sys
reached = []
def connect(address):
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET):
        with socket.socket(socket.AF_UNIX, kind) as sock:
            try:
                sock.connect(address)
                reached.append(repr(address))
            except OSError:
                pass
own = socket.socket(socket.AF_UNIX)
own.bind("\\0own")
own.listen()
connect("\\0own")
with open("/proc/net/unix") as table:
    listed = [line.split()[-1] for line in table.readlines()[1:]]
for address in sys.argv[1:]:
    connect(address.replace("@", "\\0", 1) if address.startswith("@") else address)
sockets = []
for top, _, names in os.walk("/"):
    if top.startswith("/proc"):
        continue
    sockets += [path for name in names if os.path.exists(path := os.path.join(top, name))
                and (os.stat(path).st_mode & 0o170000) == 0o140000]
print(json.dumps([reached, listed, sockets]))
"""


@pytest.mark.parametrize("user", ["root", "user"])
async def test_no_socket_of_the_host_can_be_reached(
    engine: Engine, python: Sandbox, attack: Attack, data_dir: Path, user: str
) -> None:
    """P15, N14: neither init's own nor any other, and none of the abstract namespace."""
    name = f"@hutch-canary-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.bind(name.replace("@", "\0"))
        listener.listen()
        client.connect(name.replace("@", "\0"))
        table = Path("/proc/net/unix").read_text().splitlines()[1:]
        addresses = {fields[-1] for line in table if len(fields := line.split()) == 8}
        assert name in addresses
        sockets = [str(path) for path in data_dir.glob("sandboxes/*/**/*.sock")]
        assert any(path.endswith("/init.sock") for path in sockets)
        short = [path for path in {*addresses, *sockets} if len(path) < 108]
        reached, listed, found = await attack(python, CONNECTS, *short, user=user)
    assert reached == ["'\\x00own'"]
    assert set(listed) == {"@own"}
    assert found == []


@contextlib.contextmanager
def init_socket(data_dir: Path, sandbox: Sandbox) -> Iterator[str]:
    """A path of init's socket that is short enough, for whoever may enter the data directory."""
    fd = os.open(data_dir / "sandboxes" / sandbox.id, os.O_PATH)
    try:
        yield f"/proc/self/fd/{fd}/init.sock"
    finally:
        os.close(fd)


U32 = st.integers(0, 2**32 - 1) | st.sampled_from([0, 1, 7, 8, 8 * 1024**2, 8 * 1024**2 + 1])
HEADERS = st.builds(
    struct.Struct("=III").pack,
    st.just(wire.MAGIC) | U32,
    st.sampled_from([0, 1, 2, 4, 5, 2**31]),  # not a deadline: that would be obeyed
    U32,
)
ITEMS = st.lists(
    st.builds(
        lambda tag, length, value: struct.pack("=II", tag, length) + value,
        st.integers(0, 12) | U32,
        st.integers(0, 64) | U32,
        st.binary(max_size=64),
    ),
    max_size=8,
).map(b"".join)
REQUESTS = st.builds(
    lambda kind, items: struct.pack("=III", wire.MAGIC, kind, len(items)) + items,
    st.sampled_from([0, 1, 2, 4]),
    ITEMS,
)
GARBAGE = st.one_of(
    st.binary(max_size=2048),
    HEADERS,
    HEADERS.flatmap(lambda header: st.integers(0, 11).map(lambda length: header[:length])),
    st.builds(lambda header, rest: header + rest, HEADERS, st.binary(max_size=512)),
    REQUESTS,
)


def send_garbage(path: str, data: bytes, descriptors: int, *, wait: bool) -> None:
    """Say something to init and look at what it answers, if anything."""
    with socket.socket(socket.AF_UNIX) as sock, open("/dev/null") as null:
        sock.settimeout(5)
        sock.connect(path)
        fds = [null.fileno()] * descriptors
        try:
            if data:
                socket.send_fds(sock, [data], fds)
            if wait:
                sock.shutdown(socket.SHUT_WR)
                while sock.recv(65536):
                    pass
        except (BrokenPipeError, ConnectionResetError):
            pass  # it was refused before it had said all


async def test_garbage_on_inits_socket(engine: Engine, sandbox: Sandbox, data_dir: Path) -> None:
    """P15: whoever may connect, which is root of the host, disturbs nothing by talking nonsense."""
    (init,) = processes_of(sandbox)
    line = "for i in $(seq 100000); do echo $i; sleep 0.01; done"
    command = await engine.exec_detached(sandbox.id, line)

    with init_socket(data_dir, sandbox) as path:

        @given(data=GARBAGE, descriptors=st.sampled_from([0, 0, 1, 3, 250]), wait=st.booleans())
        @hypothesis_settings(
            max_examples=250, deadline=None, database=None, suppress_health_check=[*HealthCheck]
        )
        def fuzz(data: bytes, descriptors: int, wait: bool) -> None:
            send_garbage(path, data, descriptors, wait=wait)

        fuzzing = asyncio.create_task(asyncio.to_thread(fuzz))
        while not fuzzing.done():
            assert (await engine.exec(sandbox.id, ["echo", "fine"])).stdout == "fine\n"
        await fuzzing
    assert (init / "cmdline").read_bytes().startswith(b"hutch-init")
    await engine.kill_command(sandbox.id, command.id)
    await engine.wait_command(sandbox.id, command.id)
    output = b"".join([m.data async for m in engine.command_output(sandbox.id, command.id)])
    numbers = [int(number) for number in output.split()[:-1]]
    assert numbers == [*range(1, len(numbers) + 1)]
    assert len(numbers) > 10
    await settled(sandbox, 1)


async def test_connections_that_say_nothing(
    engine: Engine, sandbox: Sandbox, data_dir: Path
) -> None:
    """P15: each costs a process of the sandbox's until it is closed, and nobody waits for it."""
    with init_socket(data_dir, sandbox) as path, contextlib.ExitStack() as stack:
        for _ in range(300):
            silent = stack.enter_context(socket.socket(socket.AF_UNIX))
            silent.settimeout(5)
            await asyncio.to_thread(silent.connect, path)
        assert (await engine.exec(sandbox.id, ["echo", "fine"])).stdout == "fine\n"
        assert len(processes_of(sandbox)) == 301
    await settled(sandbox, 1)


async def test_more_connections_than_processes(
    engine: Engine, limits: None, data_dir: Path
) -> None:
    """P15: beyond the limit commands are refused, at once and only until there is room again."""
    sandbox = await engine.create_sandbox(SandboxConfig(image=BUSYBOX, pid_limit=20))
    with init_socket(data_dir, sandbox) as path, contextlib.ExitStack() as stack:
        for _ in range(100):
            silent = stack.enter_context(socket.socket(socket.AF_UNIX))
            silent.settimeout(5)
            await asyncio.to_thread(silent.connect, path)
        async with asyncio.timeout(5):
            with pytest.raises(LimitReachedError):
                await engine.exec(sandbox.id, ["echo", "fine"])
    await settled(sandbox, 1)
    assert (await engine.exec(sandbox.id, ["echo", "fine"])).stdout == "fine\n"


async def test_a_refused_command_is_not_called_lost(engine: Engine, limits: None) -> None:
    """P1: init may have answered, and hung up, before it was asked."""
    sandbox = await engine.create_sandbox(SandboxConfig(image=BUSYBOX, pid_limit=10))
    with contextlib.suppress(LimitReachedError):
        while True:
            await engine.exec_detached(sandbox.id, ["sleep", "1234"])
    for _ in range(3):
        calls = [engine.exec(sandbox.id, ["true"]) for _ in range(300)]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(answer) for answer in answers} == {LimitReachedError}


# -- P17 ------------------------------------------------------------------------------------------

PRIORITIES = """
import ctypes, errno, json, os, platform
libc = ctypes.CDLL(None, use_errno=True)
X86 = platform.machine() == "x86_64"
class Parameters(ctypes.Structure):
    _fields_ = [("priority", ctypes.c_int)]
outcome = {}
def attempt(name, result):
    outcome[name] = errno.errorcode[ctypes.get_errno()] if result < 0 else "worked"
def ioprio(kind, level):
    return libc.syscall(ctypes.c_long(251 if X86 else 30), 1, 0, kind << 13 | level)
for nice in (-20, -1):
    attempt(f"nice {nice}", libc.setpriority(0, 0, nice))
    attempt(f"nice {nice} of the group", libc.setpriority(1, 0, nice))
for name, policy in (("FIFO", 1), ("RR", 2)):
    for flag in (0, 0x40000000):
        for priority in (1, 99):
            attempt(f"{name} {priority} {flag}", libc.sched_setscheduler(
                0, policy | flag, ctypes.byref(Parameters(priority))))
deadline = (ctypes.c_uint64 * 6)(48 | 6 << 32, 0, 0, 1_000_000, 2_000_000, 2_000_000)
attempt("DEADLINE", libc.syscall(ctypes.c_long(314 if X86 else 274), 0, deadline, 0))
attributes = (ctypes.c_uint64 * 6)(48, 0, -20 & 0xFFFFFFFF, 0, 0, 0)
attempt("nice by sched_setattr", libc.syscall(ctypes.c_long(314 if X86 else 274), 0, attributes, 0))
attempt("real-time I/O", ioprio(1, 0))
allowed = {name: outcome_ for name, outcome_ in outcome.items() if outcome_ == "worked"}
refused = sorted({word for word in outcome.values()})
before = os.sched_getaffinity(0)
os.sched_setaffinity(0, range(1024))
print(json.dumps([allowed, refused, os.sched_getaffinity(0) == before]))
"""


@pytest.mark.parametrize("user", ["root", "user"])
async def test_no_priority_can_be_raised(
    engine: Engine, python: Sandbox, attack: Attack, user: str
) -> None:
    allowed, refused, same = await attack(python, PRIORITIES, user=user)
    assert allowed == {}
    assert set(refused) <= {"EPERM", "EACCES"}
    assert same


async def test_no_trick_gets_more_than_its_share(engine: Engine, debian: str, limits: None) -> None:
    """P17: counted by the host, for processes of every kind of scheduling that may be chosen."""
    sandbox = await engine.create_sandbox(SandboxConfig(image=debian, cpu=0.3))
    program = """
import ctypes, os
libc = ctypes.CDLL(None)
for number in range(8):
    if os.fork() == 0:
        os.sched_setaffinity(0, [sorted(os.sched_getaffinity(0))[number % os.cpu_count()]])
        libc.sched_setscheduler(0, (0, 3, 5)[number % 3], ctypes.byref(ctypes.c_int(0)))
        if number % 2:
            os.setsid()
        while True:
            pass
print("spinning", flush=True)
os.wait()
"""
    command = await engine.exec_detached(sandbox.id, ["python3", "-c", program], user="root")
    assert (await anext(engine.command_output(sandbox.id, command.id))).data == b"spinning\n"
    start, before = time.monotonic(), (await engine.stats(sandbox.id)).cpu_time
    await asyncio.sleep(2)
    elapsed, after = time.monotonic() - start, (await engine.stats(sandbox.id)).cpu_time
    assert before is not None
    assert after is not None
    assert 0.05 < (after - before) / elapsed < 0.3 * 1.4


async def test_timeouts_hold_where_init_was_slowed_down(
    engine: Engine, python: Sandbox, attack: Attack, sandbox: Sandbox
) -> None:
    """P17: root inside may lower init's priority, and only its own sandbox is the slower for it."""
    program = """
import ctypes, json, os, platform
libc = ctypes.CDLL(None)
cpu = min(os.sched_getaffinity(0))
for pid in (1, os.getppid()):
    libc.setpriority(0, pid, 19)
    libc.sched_setscheduler(pid, 5, ctypes.byref(ctypes.c_int(0)))
    libc.syscall(ctypes.c_long(251 if platform.machine() == "x86_64" else 30), 1, pid, 3 << 13)
    os.sched_setaffinity(pid, [cpu])
print(json.dumps(os.sched_getscheduler(1)))
"""
    await attack(python, program)
    spin = "for i in $(seq 40); do while :; do :; done & done; wait"
    await engine.exec_detached(python.id, spin, timeout=60)
    async with asyncio.timeout(10):
        result = await engine.exec(python.id, "while :; do :; done", timeout=0.3)
    assert result.reason is ExitReason.TIMED_OUT
    async with asyncio.timeout(2):
        assert (await engine.exec(sandbox.id, ["echo", "fine"])).stdout == "fine\n"
    async with asyncio.timeout(5):
        await engine.destroy_sandbox(python.id)

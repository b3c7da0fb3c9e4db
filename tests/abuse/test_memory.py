"""Rows M2, M3, M5, M7, M8: what is held in the kernel counts, and its lack stays inside."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from hutch import Engine, ExitReason, Sandbox, SandboxConfig
from hutch.assembly import data_dir_tag
from hutch.errors import HutchError
from tests.abuse.conftest import Attack
from tests.abuse.test_processes import resident
from tests.conftest import BUSYBOX

MIB = 1024**2
LIMIT = 48 * MIB

PRELUDE = """
import ctypes, os, resource, select
libc = ctypes.CDLL(None, use_errno=True)
libc.shmat.restype = ctypes.c_void_p
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
"""
HOLDS = {
    "memfd": """
fd = os.memfd_create("x")
for _ in range(200):
    os.write(fd, bytes(1 << 20))
""",
    "System V shared memory": """
size = 200 << 20
at = libc.shmat(libc.shmget(0, ctypes.c_size_t(size), 0o1600), None, 0)
ctypes.memset(at, 1, size)
""",
    "System V messages": """
message = ctypes.create_string_buffer(b"\\1", 8 + 8192)
for _ in range(10_000):
    queue = libc.msgget(0, 0o1600)
    while queue >= 0 and libc.msgsnd(queue, message, ctypes.c_size_t(8192), 0o4000) == 0:
        pass
""",
    "System V semaphores": """
for _ in range(3_000):
    libc.semget(0, 1000, 0o1600)
""",
    "pipes": """
pipes = []
for _ in range(hard // 2 - 10):
    pipes.append(os.pipe())
    os.set_blocking(pipes[-1][1], False)
    try:
        while True:
            os.write(pipes[-1][1], bytes(1 << 16))
    except BlockingIOError:
        pass
""",
    "epoll": """
fds = [os.eventfd(0) for _ in range(min(hard - 200, 8000))]
polls = []
for _ in range(100):
    polls.append(select.epoll())
    for fd in fds:
        polls[-1].register(fd, 1)
""",
}


@pytest.mark.parametrize("what", HOLDS)
async def test_what_the_kernel_holds_for_a_sandbox_is_charged_to_it(
    engine: Engine, debian: str, limits: None, sandbox: Sandbox, what: str
) -> None:
    """M2, M5: hundreds of MiB without a page of one's own; the host counts what there was."""
    hungry = await engine.create_sandbox(SandboxConfig(image=debian, memory=LIMIT))
    result = await engine.exec(hungry.id, ["python3", "-c", PRELUDE + HOLDS[what]], timeout=20)
    assert result.reason is ExitReason.OUT_OF_MEMORY, result
    stats = await engine.stats(hungry.id)
    assert stats.memory_peak is not None
    assert LIMIT * 0.9 < stats.memory_peak <= LIMIT
    assert stats.oom_kills
    assert (await engine.exec(sandbox.id, ["echo", "fine"])).stdout == "fine\n"
    async with asyncio.timeout(10):
        # Shared memory and queues outlive who made them: then there may be no room, and it is said.
        with contextlib.suppress(HutchError):
            await engine.exec(hungry.id, "ipcrm --all", user="root")
        await engine.destroy_sandbox(hungry.id)
    assert (await engine.get_sandbox(sandbox.id)).status == "running"


NEGATIVE = """
import json, os
os.mkdir("/tmp/d")
os.chdir("/tmp/d")
for number in range(100_000):
    try:
        os.stat(f"{number:0200}")
    except FileNotFoundError:
        pass
print(json.dumps(True))
"""


async def test_names_of_what_is_not_there(
    engine: Engine, debian: str, limits: None, attack: Attack
) -> None:
    """M5: the kernel remembers them, in the sandbox's memory alone."""
    ample = await engine.create_sandbox(SandboxConfig(image=debian, memory=1024 * MIB))
    await attack(ample, "print(1)")
    before = (await engine.stats(ample.id)).memory
    await attack(ample, NEGATIVE)
    after = (await engine.stats(ample.id)).memory
    assert before is not None
    assert after is not None
    assert after - before > 100_000 * 192  # sizeof(struct dentry)
    scant = await engine.create_sandbox(SandboxConfig(image=debian, memory=24 * MIB))
    result = await engine.exec(scant.id, ["python3", "-c", NEGATIVE], user="root", timeout=20)
    assert result.exit_code == 0 or result.reason is ExitReason.OUT_OF_MEMORY, result
    stats = await engine.stats(scant.id)
    assert stats.memory_peak is not None
    assert 20 * MIB < stats.memory_peak <= 24 * MIB
    assert (await engine.exec(scant.id, ["echo", "fine"])).stdout == "fine\n"


QUEUES = """
import ctypes, json
libc = ctypes.CDLL(None, use_errno=True)
class Attributes(ctypes.Structure):
    _fields_ = [("flags", ctypes.c_long), ("maxmsg", ctypes.c_long), ("msgsize", ctypes.c_long),
                ("rest", ctypes.c_long * 5)]
held = 0
for number in range(1000):
    wanted = Attributes(0, 10, 8192)
    queue = libc.mq_open(b"/queue-%d" % number, 0o102 | 0o4000, 0o600, ctypes.byref(wanted))
    if queue < 0:
        break
    while libc.mq_send(queue, bytes(8192), ctypes.c_size_t(8192), 0) == 0:
        held += 8192
print(json.dumps([held, ctypes.get_errno()]))
"""


async def test_posix_queues(engine: Engine, debian: str, attack: Attack) -> None:
    """M2: bounded for each sandbox, whatever another one has taken."""
    sandboxes = [await engine.create_sandbox(SandboxConfig(image=debian)) for _ in range(2)]
    for sandbox in sandboxes:
        held, number = await attack(sandbox, QUEUES, user="user")
        assert number == 24  # EMFILE, of RLIMIT_MSGQUEUE
        assert 0 < held <= 819_200


def control_file(data_dir: Path, sandbox: Sandbox, *names: str) -> int | None:
    """The number in a file of a sandbox's control group, on the host."""
    parent = f"hutch-{data_dir_tag(data_dir)}"
    for name in names:
        for path in Path("/sys/fs/cgroup").glob(f"**/{parent}/{sandbox.id}/{name}"):
            return int(path.read_text())
    return None


async def test_swap_adds_nothing(engine: Engine, debian: str, limits: None, data_dir: Path) -> None:
    """M3."""
    sandbox = await engine.create_sandbox(SandboxConfig(image=debian, memory=LIMIT))
    together = control_file(data_dir, sandbox, "memory.memsw.limit_in_bytes")
    swap = control_file(data_dir, sandbox, "memory.swap.max")
    if together is None and swap is None:
        pytest.skip("this kernel counts no swap")
    assert together == LIMIT or swap == 0
    if len(Path("/proc/swaps").read_text().splitlines()) < 2:
        return  # the limit is set; there is nothing to try it with
    hungry = "x = bytearray(200 << 20)\nfor i in range(0, len(x), 4096): x[i] = 1"
    result = await engine.exec(sandbox.id, ["python3", "-c", hungry], timeout=20)
    assert result.reason is ExitReason.OUT_OF_MEMORY


LOCKS = """
import ctypes, errno, json, mmap, os, platform, resource
libc = ctypes.CDLL(None, use_errno=True)
X86 = platform.machine() == "x86_64"
def call(number, *arguments):
    result = libc.syscall(ctypes.c_long(number), *(ctypes.c_long(a) for a in arguments))
    return "worked" if result >= 0 else errno.errorcode[ctypes.get_errno()]
outcome = {}
def lock(mib):
    area = mmap.mmap(-1, mib << 20)
    kept.append(area)
    return call(149 if X86 else 228, ctypes.addressof(ctypes.c_char.from_buffer(area)), mib << 20)
kept = []
outcome["lock 7"] = lock(7)
outcome["lock 2 more"] = lock(2)
try:
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (64 << 20, 64 << 20))
    outcome["raise"] = "worked"
except (ValueError, OSError):
    outcome["raise"] = "refused"
outcome["lock all"] = call(151 if X86 else 230, 3)
outcome["shared memory huge"] = call(29 if X86 else 194, 0, 2 << 20, 0o1600 | 0o4000)
for shift in (0, 21, 30):
    try:
        area = mmap.mmap(-1, 2 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40000 | shift << 26)
        area[0] = 1
        outcome[f"map huge {shift}"] = "worked"
    except (OSError, ValueError) as error:
        outcome[f"map huge {shift}"] = "refused"
try:
    fd = os.memfd_create("x", 4)  # MFD_HUGETLB
    os.ftruncate(fd, 2 << 20)
    mmap.mmap(fd, 2 << 20)[0] = 1
    outcome["memfd huge"] = "worked"
except OSError:
    outcome["memfd huge"] = "refused"
print(json.dumps(outcome))
"""


@pytest.mark.parametrize("user", ["root", "user"])
async def test_memory_that_stays(python: Sandbox, attack: Attack, user: str) -> None:
    """M7: 8 MiB may be locked, and none of the host's huge pages taken."""

    def free() -> list[str]:
        table = Path("/proc/meminfo").read_text().splitlines()
        return [line for line in table if line.startswith("HugePages_")]

    before = free()
    outcome = await attack(python, LOCKS, user=user)
    assert free() == before
    assert outcome == {
        "lock 7": "worked",
        "lock 2 more": "ENOMEM",
        "raise": "refused",
        "lock all": "ENOMEM",
        "shared memory huge": "EPERM",
        "map huge 0": "refused",
        "map huge 21": "refused",
        "map huge 30": "refused",
        "memfd huge": "refused",
    }


BOMB = """
import os, time
while True:
    try:
        os.fork()
    except OSError:
        time.sleep(0.01)
"""
HOG = """
import os
while True:
    if os.fork() == 0:
        b"x" * (60 << 20)
    os.wait()
"""


async def test_several_at_their_limits(engine: Engine, debian: str, limits: None) -> None:
    """M8: of memory, processes and CPU, at once; the engine goes on making and ending others."""
    config = SandboxConfig(image=debian, memory=32 * MIB, pid_limit=20, cpu=0.2)
    hostile = [await engine.create_sandbox(config) for _ in range(4)]
    for sandbox, program in zip(hostile, (HOG, HOG, BOMB, BOMB), strict=True):
        await engine.exec_detached(sandbox.id, ["python3", "-c", program])

    async def at_their_limits() -> bool:
        stats = [await engine.stats(sandbox.id) for sandbox in hostile]
        return all(each.oom_kills for each in stats[:2]) and [s.pids for s in stats[2:]] == [20, 20]

    async with asyncio.timeout(10):
        while not await at_their_limits():
            await asyncio.sleep(0.01)
    before = resident()
    async with asyncio.timeout(10):
        for _ in range(5):
            other = await engine.create_sandbox(SandboxConfig(image=BUSYBOX))
            await engine.write_file(other.id, "/tmp/f", b"x")
            assert (await engine.exec(other.id, ["cat", "/tmp/f"])).stdout == "x"
            await engine.destroy_sandbox(other.id)
    assert resident() - before < 32 * MIB
    for sandbox in hostile:
        stats = await engine.stats(sandbox.id)
        assert stats.memory_peak is not None
        assert stats.memory_peak <= 32 * MIB
        assert stats.pids is not None
        assert stats.pids <= 20
    async with asyncio.timeout(10):
        await asyncio.gather(*(engine.destroy_sandbox(sandbox.id) for sandbox in hostile))

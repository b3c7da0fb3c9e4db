"""Rows P and M of the abuse catalogue: what runs wild inside harms nothing but itself."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from hutch import Engine, ExitReason, Sandbox, SandboxConfig, Tmpfs
from hutch.assembly import data_dir_tag
from hutch.errors import HutchError, LimitReachedError
from tests.conftest import BUSYBOX, CHECKOUT

LIMITED = SandboxConfig(image=BUSYBOX, pid_limit=100, memory=64 * 1024**2)


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")


@pytest.mark.parametrize(
    "bomb",
    [
        ":(){ :|:& };:",
        "trap '' TERM INT HUP; b(){ b & b; }; b",
        "while :; do (setsid sh -c 'trap \"\" TERM; sleep 1000' &); done",
    ],
)
async def test_fork_bombs(engine: Engine, limits: None, bomb: str) -> None:
    """P1: the bomb is capped, a timeout ends all of it, and another sandbox goes on."""
    sandbox = await engine.create_sandbox(LIMITED)
    neighbour = await engine.create_sandbox(LIMITED)
    bombing = asyncio.create_task(engine.exec(sandbox.id, bomb, timeout=1))
    for _ in range(5):
        assert (await engine.exec(neighbour.id, ["echo", "fine"])).stdout == "fine\n"
    try:
        await bombing
    except LimitReachedError:
        pass
    stats = await engine.stats(sandbox.id)
    assert stats.pids is not None
    assert stats.pids <= 100


async def test_a_bomb_can_be_destroyed(engine: Engine, limits: None) -> None:
    sandbox = await engine.create_sandbox(LIMITED)
    await engine.exec_detached(sandbox.id, "b(){ b & b; }; b")
    await asyncio.sleep(0.2)
    await engine.destroy_sandbox(sandbox.id)


async def test_zombies_are_reaped(engine: Engine, sandbox: Sandbox) -> None:
    """P3."""
    line = "i=0; while [ $i -lt 3000 ]; do (: & ) ; i=$((i+1)); done"
    assert (await engine.exec(sandbox.id, line, timeout=60)).exit_code == 0
    while "Z" in (await engine.exec(sandbox.id, ["ps", "-o", "stat"])).stdout:
        pass


@pytest.mark.parametrize(
    "line",
    [
        "trap '' TERM INT HUP QUIT; while :; do sleep 1; done",
        "kill -STOP $$",
        "exec 0<&- 1>&- 2>&-; sleep 1000",
        "yes",
        "dd if=/dev/zero bs=1M",
        "while :; do printf x; done",
    ],
)
async def test_whatever_does_not_end_is_ended(engine: Engine, sandbox: Sandbox, line: str) -> None:
    """P5-P7: with bounded memory here."""
    before, processes = resident(), (await engine.exec(sandbox.id, "ps | wc -l")).stdout
    result = await engine.exec(sandbox.id, line, timeout=0.7)
    assert result.reason is ExitReason.TIMED_OUT
    assert resident() - before < 64 * 1024**2
    while (await engine.exec(sandbox.id, "ps | wc -l")).stdout != processes:
        pass


async def test_killing_everything_from_inside(engine: Engine, sandbox: Sandbox) -> None:
    """P14: init goes on; a command whose supervisor was killed is lost, never a hang."""
    command = await engine.exec_detached(sandbox.id, ["sleep", "1000"])
    result = await engine.exec(sandbox.id, "kill -9 -1; sleep 1000")
    assert result.reason in {ExitReason.LOST, ExitReason.SIGNALLED}
    assert (await engine.wait_command(sandbox.id, command.id)).reason in {
        ExitReason.LOST,
        ExitReason.SIGNALLED,
    }
    assert (await engine.exec(sandbox.id, ["echo", "alive"])).stdout == "alive\n"


async def test_killing_the_own_supervisor(engine: Engine, sandbox: Sandbox) -> None:
    """P14: a supervisor may die before it has said that its command started."""
    lost = {ExitReason.LOST, ExitReason.SIGNALLED}
    for _ in range(100):
        assert (await engine.exec(sandbox.id, "kill -9 -1; sleep 1000")).reason in lost
        command = await engine.exec_detached(sandbox.id, "kill -9 -1; sleep 1000")
        assert (await engine.wait_command(sandbox.id, command.id)).reason in lost


async def test_init_is_the_projects_own_and_stays_so(engine: Engine, sandbox: Sandbox) -> None:
    """P10: nothing inside can change what sandboxes run from."""
    binary = CHECKOUT / "src/hutch/_bin/hutch-init"
    if not binary.exists():
        pytest.skip("the package is installed elsewhere")
    before = binary.read_bytes()
    script = "#!/proc/self/exe\n"
    await engine.write_file(sandbox.id, "/tmp/evil", script.encode(), mode=0o755)
    for _ in range(20):
        await engine.exec(
            sandbox.id, "/tmp/evil; for p in /proc/[0-9]*/exe; do cat /bin/sh >$p; done"
        )
    assert binary.read_bytes() == before


async def test_limits_cannot_be_raised(engine: Engine, sandbox: Sandbox) -> None:
    """P17."""
    line = (
        "ulimit -l unlimited; ulimit -c unlimited; ulimit -n 10000000; nice -n -20 true; echo over"
    )
    result = await engine.exec(sandbox.id, line)
    assert result.stderr.count("ermitted") + result.stderr.count("denied") >= 3


async def test_a_crash_leaves_no_core(engine: Engine, sandbox: Sandbox) -> None:
    """P18."""
    result = await engine.exec(sandbox.id, "cd /tmp; sh -c 'kill -SEGV $$'; ls /tmp")
    assert result.stdout == ""


async def test_memory_is_charged_wherever_it_is_put(engine: Engine, limits: None) -> None:
    """M1, M2: anonymous memory, tmpfs and /dev/shm count against one limit."""
    config = SandboxConfig(image=BUSYBOX, memory=48 * 1024**2, tmpfs=(Tmpfs("/scratch", 1024**3),))
    sandbox = await engine.create_sandbox(config)
    result = await engine.exec(sandbox.id, "head -c 200000000 /dev/zero >/scratch/x; echo $?")
    assert result.stdout.strip() != "0" or result.reason is ExitReason.OUT_OF_MEMORY
    stats = await engine.stats(sandbox.id)
    assert stats.memory_peak is not None
    assert stats.memory_peak <= 48 * 1024**2
    assert stats.oom_kills


async def test_shm_is_bounded(engine: Engine, sandbox: Sandbox) -> None:
    result = await engine.exec(
        sandbox.id, "head -c 200000000 /dev/zero >/dev/shm/x; stat -c %s /dev/shm/x"
    )
    assert int(result.stdout) == 64 * 1024**2


async def test_init_survives_where_programs_run_out_of_memory(engine: Engine, limits: None) -> None:
    """M6."""
    sandbox = await engine.create_sandbox(SandboxConfig(image=BUSYBOX, memory=32 * 1024**2))
    hungry = "head -c 100000000 /dev/zero | tail -c 90000000 >/dev/null"
    for _ in range(3):
        await asyncio.gather(*(engine.exec(sandbox.id, hungry, timeout=20) for _ in range(3)))
    assert (await engine.exec(sandbox.id, ["echo", "alive"])).stdout == "alive\n"


@pytest.mark.parametrize("argument", ["x" * 130_000, "-rf", "--", "$(reboot)", "\x1b[2J"])
async def test_odd_arguments(engine: Engine, sandbox: Sandbox, argument: str) -> None:
    """P16."""
    result = await engine.exec(sandbox.id, ["printf", "%s", argument])
    assert result.stdout == argument


async def test_a_hundred_thousand_variables(engine: Engine, sandbox: Sandbox) -> None:
    env = {f"V{number}": "x" for number in range(100_000)}
    try:
        result = await engine.exec(sandbox.id, ["sh", "-c", "echo ok"], env=env)
    except HutchError:
        return
    assert result.exit_code in {0, 126}


async def test_hostile_passwd(engine: Engine, sandbox: Sandbox) -> None:
    for content in (b"\0" * 1000, b"root:x:" + b"9" * 100 + b":0::/:\n", b":" * 100_000, b""):
        await engine.write_file(sandbox.id, "/etc/passwd", content, user="0")
        assert (await engine.exec(sandbox.id, ["true"], user="0")).exit_code == 0
    await engine.exec(sandbox.id, "rm /etc/passwd; mkfifo /etc/passwd", user="0")
    with pytest.raises(HutchError):
        await engine.exec(sandbox.id, ["true"], user="0")
    await engine.remove_file(sandbox.id, "/etc/passwd", user="0")
    await engine.exec(sandbox.id, ["ln", "-s", "/proc/self/fd/3", "/etc/passwd"], user="0")
    assert (await engine.exec(sandbox.id, ["true"], user="0")).exit_code == 0


async def test_data_directory_is_private(engine: Engine, sandbox: Sandbox, data_dir: Path) -> None:
    """A15."""
    for path in (data_dir, data_dir / "sandboxes", data_dir / "sandboxes" / sandbox.id):
        assert path.stat().st_mode & 0o077 == 0, path
    init = data_dir / "sandboxes" / sandbox.id / "init.sock"
    assert init.stat().st_mode & 0o077 == 0


async def test_the_host_keeps_process_ids(
    engine: Engine, limits: None, data_dir: Path, sandbox: Sandbox
) -> None:
    """P2: all sandboxes together are bounded below what the host has."""
    most = int(Path("/proc/sys/kernel/pid_max").read_text())
    bounds = [
        int(path.read_text())
        for path in Path("/sys/fs/cgroup").glob(f"**/hutch-{data_dir_tag(data_dir)}/pids.max")
    ]
    assert len(bounds) == 1
    assert most // 2 < bounds[0] <= most - 1024

"""Sandboxes as a whole: creation, limits, stopping, expiry, death, removal."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest

from hutch import Engine, Sandbox, SandboxConfig, SandboxStatus, Settings, Tmpfs
from hutch.errors import (
    FileAccessError,
    IdempotencyError,
    InvalidRequestError,
    InvalidStateError,
    IsolationError,
    LimitReachedError,
    NoSpaceError,
    SandboxNotFoundError,
    UnsupportedError,
)
from hutch.testing import IMAGE

CONFIG = SandboxConfig(image=IMAGE)


async def status_of(engine: Engine, sandbox: Sandbox, wanted: SandboxStatus) -> Sandbox:
    """Wait until a sandbox is of a status; the test's own timeout is the limit."""
    while (now := await engine.get_sandbox(sandbox.id)).status is not wanted:
        await asyncio.sleep(0.01)
    return now


async def gone(engine: Engine, sandbox: Sandbox) -> None:
    while True:
        try:
            await engine.get_sandbox(sandbox.id)
        except SandboxNotFoundError:
            return
        await asyncio.sleep(0.01)


async def test_create_get_list_and_count(engine: Engine) -> None:
    first = await engine.create_sandbox(SandboxConfig(image=IMAGE, labels={"run": "1"}))
    second = await engine.create_sandbox(CONFIG)
    assert first.status is SandboxStatus.RUNNING
    assert len(first.id) >= 16
    assert first.id != second.id
    assert (await engine.get_sandbox(first.id)).config.labels == {"run": "1"}
    assert [s.id for s in await engine.list_sandboxes()] == [first.id, second.id]
    assert [s.id for s in await engine.list_sandboxes(labels={"run": "1"})] == [first.id]
    await engine.stop_sandbox(second.id)
    assert [s.id for s in await engine.list_sandboxes(status=SandboxStatus.STOPPED)] == [second.id]
    count = await engine.sandbox_count()
    assert (count.total, count.running) == (2, 1)
    await engine.destroy_sandbox(first.id)
    with pytest.raises(SandboxNotFoundError):
        await engine.get_sandbox(first.id)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image", ""),
        ("env", {"A=B": "x"}),
        ("env", {"A": "a\0b"}),
        ("workdir", "relative"),
        ("user", "a b"),
        ("cmd", ()),
        ("cpu", 0),
        ("cpu", float("nan")),
        ("memory", 100),
        ("memory", -1),
        ("pid_limit", 0),
        ("timeout", -5),
        ("timeout", float("inf")),
        ("labels", {"": "x"}),
        ("tmpfs", ("not a mount",)),
        ("read_only", 1),
    ],
)
def test_bad_values_name_the_field(field: str, value: object) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        SandboxConfig(**{"image": IMAGE, field: value})  # type: ignore[arg-type]  # bad on purpose
    assert caught.value.field.startswith(field)


@pytest.mark.parametrize("path", ["/", "/proc", "/proc/x", "/dev", "/sys/a", "relative", "/a/../b"])
def test_bad_tmpfs_paths(path: str) -> None:
    with pytest.raises(InvalidRequestError):
        Tmpfs(path, 1024 * 1024)


async def test_stop_keeps_the_files_and_start_finds_them(engine: Engine, sandbox: Sandbox) -> None:
    await engine.write_file(sandbox.id, "/root/kept", b"kept")
    await engine.exec(sandbox.id, "echo gone >/dev/shm/x")
    stopped = await engine.stop_sandbox(sandbox.id)
    assert stopped.status is SandboxStatus.STOPPED
    assert (await engine.stop_sandbox(sandbox.id)).status is SandboxStatus.STOPPED
    assert (await engine.start_sandbox(sandbox.id)).status is SandboxStatus.RUNNING
    assert await engine.read_file(sandbox.id, "/root/kept") == b"kept"
    assert (await engine.exec(sandbox.id, ["ls", "/dev/shm"])).stdout == ""
    with pytest.raises(InvalidStateError):
        await engine.start_sandbox(sandbox.id)


async def test_a_main_process_is_asked_before_it_is_killed(engine: Engine) -> None:
    line = "trap 'echo bye >/root/word; exit 0' TERM; while :; do sleep 0.05; done"
    sandbox = await engine.create_sandbox(SandboxConfig(image=IMAGE, cmd=("sh", "-c", line)))
    while "while" not in (await engine.exec(sandbox.id, ["ps"])).stdout:
        pass
    await engine.stop_sandbox(sandbox.id, grace=20)
    await engine.start_sandbox(sandbox.id)
    assert await engine.read_file(sandbox.id, "/root/word") == b"bye\n"


@pytest.mark.parametrize(
    ("cmd", "reason"),
    [
        (("sh", "-c", "exit 7"), "exited(7)"),
        (("sh", "-c", "kill -TERM $$"), "signalled(SIGTERM)"),
        (("no-such-program",), "exited(127)"),
    ],
)
async def test_the_end_of_the_main_process_is_the_sandboxs(
    engine: Engine, cmd: tuple[str, ...], reason: str
) -> None:
    sandbox = await engine.create_sandbox(SandboxConfig(image=IMAGE, cmd=cmd))
    stopped = await status_of(engine, sandbox, SandboxStatus.STOPPED)
    assert stopped.reason == reason
    assert (await engine.get_command(sandbox.id, "main")).exit is not None


async def test_expiry_destroys_to_the_second(engine: Engine) -> None:
    sandbox = await engine.create_sandbox(SandboxConfig(image=IMAGE, timeout=1.0))
    assert sandbox.expires_at is not None
    await gone(engine, sandbox)
    late = (datetime.now(UTC) - sandbox.expires_at).total_seconds()
    assert -0.1 <= late <= 5
    async for event in engine.events(after=0):
        if event.type == "sandbox.expired":
            return


async def test_expiry_can_be_moved(engine: Engine) -> None:
    sandbox = await engine.create_sandbox(SandboxConfig(image=IMAGE, timeout=1.0))
    moved = await engine.set_timeout(sandbox.id, 3600)
    assert moved.expires_at is not None
    assert sandbox.expires_at is not None
    assert moved.expires_at > sandbox.expires_at
    never = await engine.set_timeout(sandbox.id, None)
    assert never.expires_at is None
    await asyncio.sleep(1.2)
    assert (await engine.exec(sandbox.id, ["true"])).exit_code == 0
    await engine.set_timeout(sandbox.id, 0.2)
    await gone(engine, sandbox)


async def test_labels_can_be_replaced(engine: Engine, sandbox: Sandbox) -> None:
    await engine.set_labels(sandbox.id, {"a": "b"})
    assert [s.id for s in await engine.list_sandboxes(labels={"a": "b"})] == [sandbox.id]


class TestMaximum:
    @pytest.fixture
    def settings(self) -> Settings:
        return Settings(default_image=IMAGE, max_sandboxes=10)

    async def test_it_is_atomic(self, engine: Engine) -> None:
        results = await asyncio.gather(
            *(engine.create_sandbox(CONFIG) for _ in range(30)), return_exceptions=True
        )
        made = [result for result in results if isinstance(result, Sandbox)]
        refused = [result for result in results if isinstance(result, LimitReachedError)]
        assert (len(made), len(refused)) == (10, 20), results
        await engine.destroy_sandbox(made[0].id)
        await engine.create_sandbox(CONFIG)


async def test_the_same_key_makes_one_sandbox(engine: Engine) -> None:
    results = await asyncio.gather(
        *(engine.create_sandbox(CONFIG, idempotency_key="k") for _ in range(5))
    )
    assert len({sandbox.id for sandbox in results}) == 1
    assert {sandbox.status for sandbox in results} == {SandboxStatus.RUNNING}
    with pytest.raises(IdempotencyError):
        await engine.create_sandbox(
            SandboxConfig(image=IMAGE, labels={"a": "b"}), idempotency_key="k"
        )


async def test_one_key_whose_creation_fails(engine: Engine) -> None:
    """Everybody who asked gets the reason, and the key can be used again."""
    bad = SandboxConfig(image=IMAGE, tmpfs=(Tmpfs("/bin/busybox"),))  # a file
    calls = (engine.create_sandbox(bad, idempotency_key="k") for _ in range(3))
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(result) for result in results} == {IsolationError}
    sandbox = await engine.create_sandbox(CONFIG, idempotency_key="k")
    assert (await engine.exec(sandbox.id, ["true"])).exit_code == 0


async def test_an_expiry_that_was_moved_outlives_a_stop(engine: Engine) -> None:
    longer = await engine.create_sandbox(SandboxConfig(image=IMAGE, timeout=1))
    shorter = await engine.create_sandbox(CONFIG)
    await engine.set_timeout(longer.id, 1000)
    await engine.set_timeout(shorter.id, 1)
    for sandbox in (longer, shorter):
        await engine.stop_sandbox(sandbox.id)
        await engine.start_sandbox(sandbox.id)
    await gone(engine, shorter)
    assert (await engine.exec(longer.id, ["true"])).exit_code == 0


async def test_tmpfs_read_only_and_user(engine: Engine) -> None:
    config = SandboxConfig(
        image=IMAGE, read_only=True, tmpfs=(Tmpfs("/tmp", 1024 * 1024),), user="user",
        workdir="/tmp", env={"A": "1"},
    )  # fmt: skip
    sandbox = await engine.create_sandbox(config)
    result = await engine.exec(
        sandbox.id, "pwd; id -un; echo $A; touch x && echo ok; head -c 3000000 /dev/zero >y"
    )
    assert result.stdout == "/tmp\nuser\n1\nok\n"
    assert result.exit_code != 0
    assert (await engine.stat(sandbox.id, "y")).size < 3000000
    await engine.exec(sandbox.id, "rm y")
    await engine.write_file(sandbox.id, "f", b"x")


async def test_a_working_directory_that_is_missing_is_made(engine: Engine) -> None:
    config = SandboxConfig(image=IMAGE, workdir="/work/own", user="user", cmd=("sleep", "1234"))
    sandbox = await engine.create_sandbox(config)
    assert (await engine.exec(sandbox.id, "pwd; touch x && echo ok")).stdout == "/work/own\nok\n"
    assert (await engine.stat(sandbox.id, "/work")).uid == 0
    kept = await engine.create_sandbox(SandboxConfig(image=IMAGE, workdir="/tmp", user="user"))
    assert (await engine.stat(kept.id, "/tmp")).uid == 0
    with pytest.raises(FileAccessError):
        await engine.create_sandbox(SandboxConfig(image=IMAGE, workdir="/x", read_only=True))
    assert len(await engine.list_sandboxes()) == 2


async def test_limits_take_effect(engine: Engine, limits: None) -> None:
    config = SandboxConfig(image=IMAGE, pid_limit=20, memory=64 * 1024**2, cpu=0.5)
    sandbox = await engine.create_sandbox(config)
    bomb = "trap '' CHLD; while sleep 1234 & do :; done; sleep 1234"
    command = await engine.exec_detached(sandbox.id, f"{bomb}; wait")
    async for message in engine.command_output(sandbox.id, command.id):
        if b"fork" in message.data:
            break
    stats = await engine.stats(sandbox.id)
    assert stats.pids is not None
    assert stats.pids <= 20
    assert (stats.pid_limit, stats.memory_limit) == (20, 64 * 1024**2)
    assert stats.cpu_time is not None
    assert stats.cpu_time > 0
    with pytest.raises(LimitReachedError):
        await engine.exec(sandbox.id, ["true"])


async def test_disk_limit(engine: Engine) -> None:
    """Rows F14, F15: bytes and inodes are bounded, what is deleted is given back, files stay."""
    config = SandboxConfig(image=IMAGE, disk_limit=16 * 1024**2)
    if not (await engine.capabilities()).disk_limit:
        with pytest.raises(UnsupportedError):
            await engine.create_sandbox(config)
        assert await engine.list_sandboxes() == []
        return
    sandbox = await engine.create_sandbox(config)
    assert "disk" in sandbox.enforced
    line = "echo kept >/kept; dd if=/dev/zero of=/tmp/x bs=64k count=1000"
    full = await engine.exec(sandbox.id, line)
    assert "No space left" in full.stderr
    stats = await engine.stats(sandbox.id)
    assert stats.disk_limit == 16 * 1024**2
    assert stats.disk is not None
    assert 12 * 1024**2 < stats.disk <= stats.disk_limit
    with pytest.raises(NoSpaceError):
        await engine.write_file(sandbox.id, "/tmp/y", bytes(2 * 1024**2))
    many = "rm /tmp/x; i=0; while true >/tmp/f$i; do i=$((i+1)); done; rm -r /tmp/f*"
    crowded = await engine.exec(sandbox.id, many)
    assert "No space left" in crowded.stderr
    await engine.write_file(sandbox.id, "/tmp/y", bytes(2 * 1024**2))
    await engine.stop_sandbox(sandbox.id)
    await engine.start_sandbox(sandbox.id)
    assert await engine.read_file(sandbox.id, "/kept") == b"kept\n"
    assert (await engine.stat(sandbox.id, "/tmp/y")).size == 2 * 1024**2


async def test_nothing_passes_from_one_sandbox_to_the_next(engine: Engine) -> None:
    """Row F22."""
    for _ in range(3):
        sandbox = await engine.create_sandbox(CONFIG)
        found = await engine.exec(sandbox.id, "ls /root /tmp /dev/shm; ps | wc -l; hostname")
        assert "marker" not in found.stdout
        await engine.exec(sandbox.id, "for d in /root /tmp /dev/shm; do touch $d/marker; done")
        await engine.destroy_sandbox(sandbox.id)


async def test_sandboxes_do_not_see_each_other(engine: Engine) -> None:
    first, second = await asyncio.gather(*(engine.create_sandbox(CONFIG) for _ in range(2)))
    await engine.exec_detached(first.id, ["sleep", "4321"])
    await engine.write_file(first.id, "/tmp/own", b"x")
    seen = await engine.exec(second.id, "ps; ls /tmp; cat /proc/self/uid_map")
    assert "4321" not in seen.stdout
    assert "own" not in seen.stdout
    other = await engine.exec(first.id, ["cat", "/proc/self/uid_map"])
    if (await engine.capabilities()).per_sandbox_uids:
        assert other.stdout.split()[1] != seen.stdout.split()[-2]


async def test_events_tell_the_whole_story(engine: Engine) -> None:
    sandbox = await engine.create_sandbox(CONFIG)
    await engine.stop_sandbox(sandbox.id)
    await engine.start_sandbox(sandbox.id)
    await engine.destroy_sandbox(sandbox.id)
    events = [event async for event in engine.events(after=0, follow=False)]
    assert [event.type for event in events] == [
        "sandbox.created",
        "sandbox.stopped",
        "sandbox.started",
        "sandbox.destroyed",
    ]
    assert {event.sandbox_id for event in events} == {sandbox.id}
    assert [event.sequence for event in events] == sorted(event.sequence for event in events)


async def test_destroy_while_busy(engine: Engine, sandbox: Sandbox) -> None:
    tasks = [asyncio.create_task(engine.exec(sandbox.id, ["sleep", "1234"])) for _ in range(3)]
    await asyncio.sleep(0.05)
    await engine.destroy_sandbox(sandbox.id)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, Exception) for result in results)


async def test_destroying_twice_at_once(engine: Engine, sandbox: Sandbox) -> None:
    results = await asyncio.gather(
        *(engine.destroy_sandbox(sandbox.id) for _ in range(4)), return_exceptions=True
    )
    refusals = [result for result in results if result is not None]
    assert all(isinstance(refusal, SandboxNotFoundError) for refusal in refusals), refusals
    await gone(engine, sandbox)

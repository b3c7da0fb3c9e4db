"""Commands: what docs/python-api.md promises of `exec`."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from hutch import Engine, ExitReason, Sandbox, SandboxConfig
from hutch.errors import (
    IdempotencyError,
    InvalidRequestError,
    InvalidStateError,
    SandboxNotFoundError,
    SandboxUnavailableError,
)
from hutch.testing import IMAGE


async def test_output_exit_code_and_reason(engine: Engine, sandbox: Sandbox) -> None:
    result = await engine.exec(sandbox.id, "echo out; echo err >&2; exit 3")
    assert (result.exit_code, result.stdout, result.stderr) == (3, "out\n", "err\n")
    assert result.reason is ExitReason.EXITED
    assert result.signal is None


async def test_argv_is_never_a_shell_line(engine: Engine, sandbox: Sandbox) -> None:
    result = await engine.exec(sandbox.id, ["echo", "$HOME; rm -rf /", "*"])
    assert result.stdout == "$HOME; rm -rf / *\n"


async def test_output_is_byte_exact_and_text_lossless(engine: Engine, sandbox: Sandbox) -> None:
    data = bytes(range(256)) * 10
    result = await engine.exec(sandbox.id, ["cat"], stdin=data)
    assert result.stdout_bytes == data
    assert result.stdout.encode("utf-8", "surrogateescape") == data


async def test_stdin_is_empty_by_default(engine: Engine, sandbox: Sandbox) -> None:
    assert (await engine.exec(sandbox.id, ["wc", "-c"])).stdout.strip() == "0"


async def test_fifty_mebibytes_through_stdin(engine: Engine, sandbox: Sandbox) -> None:
    data = os.urandom(1024) * 1024 * 50
    result = await engine.exec(sandbox.id, ["wc", "-c"], stdin=data)
    assert int(result.stdout) == len(data)


async def test_a_command_that_does_not_read_its_stdin(engine: Engine, sandbox: Sandbox) -> None:
    result = await engine.exec(sandbox.id, ["true"], stdin=b"x" * 1024 * 1024)
    assert result.exit_code == 0


async def test_a_source_of_input_that_fails(engine: Engine, sandbox: Sandbox) -> None:
    closed = []

    async def failing() -> AsyncIterator[bytes]:
        try:
            yield b"some"
            raise RuntimeError("the source failed")
        finally:
            closed.append(True)

    with pytest.raises(RuntimeError, match="the source failed"):
        await engine.exec(sandbox.id, "cat; sleep 1234", stdin=failing())
    assert closed == [True]
    while "1234" in (await engine.exec(sandbox.id, ["ps"])).stdout:
        pass


async def test_a_source_of_input_that_nobody_reads(engine: Engine, sandbox: Sandbox) -> None:
    closed = []

    async def endless() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"x" * 65536
        finally:
            closed.append(True)

    assert (await engine.exec(sandbox.id, ["true"], stdin=endless())).exit_code == 0
    assert closed == [True]


async def test_env_workdir_and_user(engine: Engine, sandbox: Sandbox) -> None:
    result = await engine.exec(
        sandbox.id, 'id -un; pwd; echo "$A"; echo "$HOME"', env={"A": "b c"}, workdir="/tmp",
        user="user",
    )  # fmt: skip
    assert result.stdout.split("\n")[:4] == ["user", "/tmp", "b c", "/home/user"]


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ("0", "0:0"),
        ("user", "1000:1000"),
        ("1000", "1000:1000"),
        ("4321", "4321:0"),
        ("12:34", "12:34"),
        ("user:extra", "1000:2000"),
    ],
)
async def test_user_forms(engine: Engine, sandbox: Sandbox, user: str, expected: str) -> None:
    result = await engine.exec(sandbox.id, "echo $(id -u):$(id -g)", user=user)
    assert result.stdout.strip() == expected


async def test_supplementary_groups_come_from_the_sandbox(engine: Engine, sandbox: Sandbox) -> None:
    result = await engine.exec(sandbox.id, "id -G", user="user")
    assert set(result.stdout.split()) == {"1000", "2000"}


@pytest.mark.parametrize("user", ["nobody-here", "70000", "root:nogroup-here", "-1"])
async def test_an_unknown_user_is_a_typed_error(
    engine: Engine, sandbox: Sandbox, user: str
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        await engine.exec(sandbox.id, ["true"], user=user)
    assert caught.value.field == "user"


async def test_a_missing_workdir_is_a_typed_error(engine: Engine, sandbox: Sandbox) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        await engine.exec(sandbox.id, ["true"], workdir="/nowhere")
    assert caught.value.field == "workdir"


@pytest.mark.parametrize(
    ("argv", "code"),
    [(["no-such-program"], 127), (["/etc/passwd"], 126), (["/etc"], 126), (["/no/dir/x"], 127)],
)
async def test_what_cannot_be_executed(
    engine: Engine, sandbox: Sandbox, argv: list[str], code: int
) -> None:
    result = await engine.exec(sandbox.id, argv)
    assert result.exit_code == code
    assert argv[0] in result.stderr


@pytest.mark.parametrize("argv", [[], [""], ["a\0b"]])
async def test_bad_argv_is_a_typed_error(engine: Engine, sandbox: Sandbox, argv: list[str]) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        await engine.exec(sandbox.id, argv)
    assert caught.value.field.startswith("argv")


async def test_argv_beyond_the_kernels_limit(engine: Engine, sandbox: Sandbox) -> None:
    result = await engine.exec(sandbox.id, ["echo", "x" * 1024 * 1024])
    assert result.exit_code == 126  # E2BIG: one argument is at most 128 KiB


async def test_killed_by_a_signal(engine: Engine, sandbox: Sandbox) -> None:
    result = await engine.exec(sandbox.id, "kill -SEGV $$")
    assert (result.exit_code, result.reason, result.signal) == (139, ExitReason.SIGNALLED, 11)


async def test_timeout_ends_the_whole_tree_and_keeps_the_output(
    engine: Engine, sandbox: Sandbox
) -> None:
    line = (
        "trap '' TERM; (setsid sh -c 'trap \"\" TERM; sleep 1234' &); "
        "sleep 1234 & echo before; wait; sleep 1234"
    )
    result = await engine.exec(sandbox.id, line, timeout=0.5)
    assert result.reason is ExitReason.TIMED_OUT
    assert result.stdout == "before\n"
    assert "1234" not in (await engine.exec(sandbox.id, ["ps"])).stdout


async def test_timeout_gives_time_to_end_well(engine: Engine, sandbox: Sandbox) -> None:
    line = "trap 'echo bye; exit 7' TERM; echo ready; while :; do sleep 0.05; done"
    result = await engine.exec(sandbox.id, line, timeout=0.5)
    assert result.stdout == "ready\nbye\n"
    assert (result.reason, result.exit_code) == (ExitReason.TIMED_OUT, 7)


async def test_a_stopped_tree_is_ended_too(engine: Engine, sandbox: Sandbox) -> None:
    result = await engine.exec(sandbox.id, "sleep 1234 & kill -STOP $!; kill -STOP $$", timeout=0.3)
    assert result.reason is ExitReason.TIMED_OUT
    assert "1234" not in (await engine.exec(sandbox.id, ["ps"])).stdout


async def test_returns_when_the_command_itself_is_over(engine: Engine, sandbox: Sandbox) -> None:
    result = await engine.exec(sandbox.id, "(setsid sleep 1234 &) ; echo hi")
    assert result.stdout == "hi\n"
    assert "1234" in (await engine.exec(sandbox.id, ["ps"])).stdout  # and what it left lives on


async def test_cancellation_ends_the_whole_tree(engine: Engine, sandbox: Sandbox) -> None:
    task = asyncio.create_task(engine.exec(sandbox.id, "setsid sleep 1234 & sleep 1234"))
    while "1234" not in (await engine.exec(sandbox.id, ["ps"])).stdout:
        pass
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    while "sleep 1234" in (await engine.exec(sandbox.id, ["ps"])).stdout:
        pass  # the test's own timeout is the limit


async def test_output_is_bounded_and_says_so(engine: Engine, sandbox: Sandbox) -> None:
    before = _resident()
    result = await engine.exec(
        sandbox.id, "head -c 300000000 /dev/zero; echo err >&2", output_limit=1000
    )
    assert (len(result.stdout_bytes), result.stdout_truncated) == (1000, True)
    assert (result.stderr, result.stderr_truncated) == ("err\n", False)
    assert result.exit_code == 0
    assert _resident() - before < 64 * 1024**2


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")


async def test_ten_mebibytes_of_output(engine: Engine, sandbox: Sandbox) -> None:
    result = await engine.exec(sandbox.id, "head -c 10485760 /dev/zero", output_limit=20 * 1024**2)
    assert (len(result.stdout_bytes), result.stdout_truncated) == (10485760, False)


async def test_receipt(engine: Engine, sandbox: Sandbox) -> None:
    result = await engine.exec(
        sandbox.id, "i=0; while [ $i -lt 30000 ]; do i=$((i+1)); done; head -c 100000 /dev/zero"
    )
    assert result.receipt is not None
    assert result.receipt.cpu_time is not None
    assert result.receipt.cpu_time > 0.001
    assert result.receipt.peak_memory is not None
    assert result.receipt.peak_memory > 100_000
    assert result.receipt.bytes_written is not None
    assert result.receipt.bytes_written >= 100_000
    assert 0 < result.duration < 60


async def test_a_user_can_open_its_standard_streams_again(engine: Engine, sandbox: Sandbox) -> None:
    line = "echo a >/dev/stdout; echo b >/dev/stderr; cat /dev/stdin"
    result = await engine.exec(sandbox.id, line, user="user", stdin="c")
    assert (result.stdout, result.stderr) == ("a\nc", "b\n")


async def test_nothing_blocks_another_command(engine: Engine, sandbox: Sandbox) -> None:
    async with engine.exec_stream(sandbox.id, ["yes"]):  # nobody reads it
        result = await engine.exec(sandbox.id, ["echo", "hi"], timeout=10)
    assert result.stdout == "hi\n"


async def test_fifty_at_once(engine: Engine, sandbox: Sandbox) -> None:
    results = await asyncio.gather(
        *(engine.exec(sandbox.id, ["echo", str(number)]) for number in range(50))
    )
    assert [result.stdout for result in results] == [f"{number}\n" for number in range(50)]


async def test_out_of_memory_is_a_reason(engine: Engine, limits: None) -> None:
    sandbox = await engine.create_sandbox(SandboxConfig(image=IMAGE, memory=32 * 1024**2))
    result = await engine.exec(
        sandbox.id, "head -c 100000000 /dev/zero | tail -c 90000000 >/dev/null; exit $?"
    )
    assert result.exit_code == 137
    assert result.reason is ExitReason.OUT_OF_MEMORY
    assert (await engine.exec(sandbox.id, ["echo", "alive"])).stdout == "alive\n"


async def test_the_same_key_does_not_run_it_again(engine: Engine, sandbox: Sandbox) -> None:
    line = "echo x >>/tmp/count; cat /tmp/count; echo e >&2; exit 4"
    first = await engine.exec(sandbox.id, line, idempotency_key="k")
    again = await engine.exec(sandbox.id, line, idempotency_key="k")
    assert (first.stdout, first.stderr, first.exit_code) == ("x\n", "e\n", 4)
    assert (again.stdout, again.stderr, again.exit_code) == ("x\n", "e\n", 4)


@pytest.mark.parametrize(
    "other",
    [{"env": {"A": "b"}}, {"workdir": "/tmp"}, {"user": "user"}, {"stdin": b"x"}, {"timeout": 9}],
)
async def test_a_key_is_held_to_the_whole_request(
    engine: Engine, sandbox: Sandbox, other: dict[str, Any]
) -> None:
    await engine.exec(sandbox.id, ["true"], idempotency_key="k")
    with pytest.raises(IdempotencyError):
        await engine.exec(sandbox.id, ["true"], idempotency_key="k", **other)


async def test_one_key_at_the_same_time(engine: Engine, sandbox: Sandbox) -> None:
    line = "echo x >>/tmp/count; sleep 0.3; wc -l </tmp/count; cat"
    calls = (engine.exec(sandbox.id, line, stdin=b"in", idempotency_key="k") for _ in range(5))
    results = await asyncio.gather(*calls)
    assert {result.stdout for result in results} == {"1\nin"}


async def test_with_a_key_the_input_comes_whole_or_nothing_runs(
    engine: Engine, sandbox: Sandbox
) -> None:
    async def failing() -> AsyncIterator[bytes]:
        yield b"half"
        raise ValueError("the source")

    async def whole() -> AsyncIterator[bytes]:
        for _ in range(1000):
            yield b"x" * 10_000

    line = "echo ran >>/tmp/ran; wc -c"
    with pytest.raises(ValueError, match="the source"):
        await engine.exec(sandbox.id, line, stdin=failing(), idempotency_key="k")
    result = await engine.exec(sandbox.id, line, stdin=whole(), idempotency_key="k")
    assert result.stdout == "10000000\n"
    assert await engine.read_file(sandbox.id, "/tmp/ran") == b"ran\n"


async def test_with_a_key_a_cancelled_call_is_taken_up_again(
    engine: Engine, sandbox: Sandbox
) -> None:
    line = "sleep 0.5; echo done"
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await engine.exec(sandbox.id, line, idempotency_key="k")
    assert (await engine.exec(sandbox.id, line, idempotency_key="k")).stdout == "done\n"


async def test_with_a_key_one_stream_does_not_hide_the_other(
    engine: Engine, sandbox: Sandbox
) -> None:
    line = "head -c 50000 /dev/zero; echo important >&2"
    result = await engine.exec(sandbox.id, line, output_limit=1000, idempotency_key="k")
    assert (len(result.stdout_bytes), result.stdout_truncated) == (1000, True)
    assert (result.stderr, result.stderr_truncated) == ("important\n", False)


@pytest.mark.parametrize("key", [None, "k"])
@pytest.mark.parametrize("operation", ["destroy_sandbox", "stop_sandbox"])
async def test_a_command_whose_sandbox_ends(
    engine: Engine, sandbox: Sandbox, key: str | None, operation: str
) -> None:
    task = asyncio.create_task(engine.exec(sandbox.id, ["sleep", "1234"], idempotency_key=key))
    while "1234" not in (await engine.exec(sandbox.id, ["ps"])).stdout:
        pass
    await getattr(engine, operation)(sandbox.id)
    with pytest.raises(SandboxUnavailableError):
        await task


@pytest.mark.parametrize(
    "bad",
    [
        {"argv": None}, {"argv": ["a", 5]}, {"argv": ["\ud800"]}, {"env": 5}, {"env": {"A": 5}},
        {"workdir": 5}, {"user": 0}, {"user": ""}, {"timeout": 1e300}, {"timeout": 10**400},
        {"timeout": float("nan")}, {"stdin": 5}, {"output_limit": -1},
    ],
    ids=str,
)  # fmt: skip
async def test_bad_values_are_typed_errors_that_name_the_field(
    engine: Engine, sandbox: Sandbox, bad: dict[str, Any]
) -> None:
    request: dict[str, Any] = {"argv": ["true"], **bad}
    with pytest.raises(InvalidRequestError) as caught:
        await engine.exec(sandbox.id, **request)
    assert caught.value.field.startswith(next(iter(bad)))


async def test_a_path_that_may_not_be_searched(engine: Engine, sandbox: Sandbox) -> None:
    """A shell says 127 of a program that is nowhere, and 126 of one that is no program."""
    env = {"PATH": "/root:/tmp:/bin"}
    await engine.exec(sandbox.id, "chmod 700 /root; touch /tmp/data")
    for name, expected in (("nowhere", 127), ("data", 126), ("true", 0)):
        result = await engine.exec(sandbox.id, [name], env=env, user="user")
        assert result.exit_code == expected, name


async def test_sandbox_gone_is_an_exception(engine: Engine, sandbox: Sandbox) -> None:
    task = asyncio.create_task(engine.exec(sandbox.id, ["sleep", "1234"]))
    while "1234" not in (await engine.exec(sandbox.id, ["ps"])).stdout:
        pass
    await engine.destroy_sandbox(sandbox.id)
    with pytest.raises(SandboxUnavailableError):
        await task
    with pytest.raises(SandboxNotFoundError):
        await engine.exec(sandbox.id, ["true"])


async def test_exec_in_a_stopped_sandbox(engine: Engine, sandbox: Sandbox) -> None:
    await engine.stop_sandbox(sandbox.id)
    with pytest.raises(InvalidStateError):
        await engine.exec(sandbox.id, ["true"])


async def test_the_environment_survives_odd_values(engine: Engine, sandbox: Sandbox) -> None:
    env = {"A": "line\nbreak", "B": "ünïcödé", "C": "", "D": "x" * 100_000}
    result = await engine.exec(sandbox.id, 'printf "%s|%s|%s|%s" "$A" "$B" "$C" "${#D}"', env=env)
    assert result.stdout == "line\nbreak|ünïcödé||100000"


async def test_duration_is_measured(engine: Engine, sandbox: Sandbox) -> None:
    started = time.monotonic()
    result = await engine.exec(sandbox.id, ["sleep", "0.2"])
    assert 0.2 <= result.duration <= time.monotonic() - started

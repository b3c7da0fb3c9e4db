"""Streaming and detached commands."""

from __future__ import annotations

import asyncio
import signal

import pytest

from hutch import Engine, ExitReason, Sandbox, TerminalSize
from hutch.engine.execution import ExecStream
from hutch.errors import CommandNotFoundError, OperationTimeoutError, SandboxUnavailableError
from hutch.models import CommandStatus, ExitStatus, MessageType


async def collect(stream: ExecStream) -> tuple[bytes, bytes, ExitStatus]:
    out, err = bytearray(), bytearray()
    async for message in stream:
        if message.status is not None:
            return bytes(out), bytes(err), message.status
        (out if message.type is MessageType.STDOUT else err).extend(message.data)
    raise AssertionError("there was no exit message")


async def until(stream: ExecStream, wanted: bytes) -> bytes:
    """Read until something has been printed."""
    seen = bytearray()
    async for message in stream:
        seen += message.data
        if wanted in seen:
            return bytes(seen)
    raise AssertionError(f"{wanted!r} did not come: {bytes(seen)!r}")


async def test_messages_and_exit(engine: Engine, sandbox: Sandbox) -> None:
    async with engine.exec_stream(sandbox.id, "echo out; echo err >&2; exit 5") as stream:
        out, err, status = await collect(stream)
    assert (out, err, status.exit_code) == (b"out\n", b"err\n", 5)


async def test_interactive_stdin(engine: Engine, sandbox: Sandbox) -> None:
    async with engine.exec_stream(sandbox.id, ["cat"], stdin=True) as stream:
        await stream.write_stdin(b"one\n")
        assert await until(stream, b"one\n") == b"one\n"
        await stream.write_stdin(b"two\n")
        await stream.close_stdin()
        out, _, status = await collect(stream)
    assert (out, status.exit_code) == (b"two\n", 0)


async def test_signals(engine: Engine, sandbox: Sandbox) -> None:
    line = "trap 'echo got; exit 9' USR1; echo ready; while :; do sleep 0.05; done"
    async with engine.exec_stream(sandbox.id, line) as stream:
        await until(stream, b"ready")
        await stream.signal(signal.SIGUSR1)
        out, _, status = await collect(stream)
    assert (out, status.exit_code) == (b"got\n", 9)


async def test_kill(engine: Engine, sandbox: Sandbox) -> None:
    async with engine.exec_stream(sandbox.id, "echo ready; sleep 1234 & sleep 1234") as stream:
        await until(stream, b"ready")
        await stream.kill()
        _, _, status = await collect(stream)
    assert status.reason is ExitReason.KILLED
    assert "1234" not in (await engine.exec(sandbox.id, ["ps"])).stdout


async def test_leaving_the_block_ends_the_tree(engine: Engine, sandbox: Sandbox) -> None:
    async with engine.exec_stream(sandbox.id, "setsid sleep 1234 & echo ready; wait") as stream:
        await until(stream, b"ready")
    while "1234" in (await engine.exec(sandbox.id, ["ps"])).stdout:
        pass


async def test_a_terminal(engine: Engine, sandbox: Sandbox) -> None:
    size = TerminalSize(33, 77)
    async with engine.exec_stream(
        sandbox.id, 'tty; stty size; read line; echo "<$line>"', stdin=True, terminal=size
    ) as stream:
        seen = await until(stream, b"33 77")
        assert b"/dev/pts/" in seen
        await stream.write_stdin(b"hello\n")
        await until(stream, b"<hello>")


async def test_a_terminals_size_and_interrupt(engine: Engine, sandbox: Sandbox) -> None:
    line = "trap 'stty size' WINCH; echo ready; while :; do sleep 0.05; done"
    async with engine.exec_stream(
        sandbox.id, line, stdin=True, terminal=TerminalSize(10, 20)
    ) as stream:
        await until(stream, b"ready")
        await stream.resize(TerminalSize(44, 55))
        await until(stream, b"44 55")
        await stream.write_stdin(b"\x03")
        _, _, status = await collect(stream)
    assert status.exit_code == 130


async def test_a_terminal_belongs_to_the_user(engine: Engine, sandbox: Sandbox) -> None:
    async with engine.exec_stream(
        sandbox.id, "stat -c %u $(tty); echo x >/dev/tty", user="user", terminal=TerminalSize(9, 9)
    ) as stream:
        out, _, status = await collect(stream)
    assert out.split() == [b"1000", b"x"]
    assert status.exit_code == 0


async def test_a_slow_reader_slows_the_writer(engine: Engine, sandbox: Sandbox) -> None:
    async with engine.exec_stream(
        sandbox.id, "dd if=/dev/zero bs=1k count=4096; echo x >/tmp/over"
    ) as stream:
        await asyncio.sleep(0.3)
        assert (await engine.exec(sandbox.id, ["cat", "/tmp/over"])).exit_code == 1
        out, _, _ = await collect(stream)
    assert len(out) == 4096 * 1024


async def test_clients_that_leave_leak_nothing(engine: Engine, sandbox: Sandbox) -> None:
    for _ in range(100):  # row P8; descriptors are compared by a fixture
        async with engine.exec_stream(sandbox.id, ["yes"]) as stream:
            await stream.__anext__()


async def test_detached(engine: Engine, sandbox: Sandbox) -> None:
    command = await engine.exec_detached(sandbox.id, "echo out; echo err >&2; exit 6")
    status = await engine.wait_command(sandbox.id, command.id)
    assert (status.exit_code, status.reason) == (6, ExitReason.EXITED)
    messages = [m async for m in engine.command_output(sandbox.id, command.id)]
    assert {m.type: m.data for m in messages} == {
        MessageType.STDOUT: b"out\n",
        MessageType.STDERR: b"err\n",
        MessageType.EXIT: b"6",
    }
    assert [c.id for c in await engine.list_commands(sandbox.id)] == [command.id]
    assert (await engine.get_command(sandbox.id, command.id)).status is CommandStatus.EXITED


async def test_output_from_any_offset(engine: Engine, sandbox: Sandbox) -> None:
    line = "for i in 1 2 3 4 5 6; do echo out$i; echo err$i >&2; sleep 0.02; done"
    command = await engine.exec_detached(sandbox.id, line)
    whole = [m async for m in engine.command_output(sandbox.id, command.id)]
    assert whole[-1].type is MessageType.EXIT
    data = b"".join(m.data for m in whole[:-1])
    for offset in (0, 1, 7, 23, len(data)):
        rest = [m async for m in engine.command_output(sandbox.id, command.id, offset=offset)]
        assert b"".join(m.data for m in rest[:-1]) == data[offset:]
    out = b"".join(m.data for m in whole if m.type is MessageType.STDOUT)
    assert out == b"".join(b"out%d\n" % i for i in range(1, 7))


async def test_detached_stdin_kill_and_signals(engine: Engine, sandbox: Sandbox) -> None:
    cat = await engine.exec_detached(sandbox.id, ["cat"], stdin=True)
    await engine.write_command_stdin(sandbox.id, cat.id, b"x" * 300_000)
    await engine.write_command_stdin(sandbox.id, cat.id, b"end", close=True)
    await engine.wait_command(sandbox.id, cat.id)
    assert (await engine.get_command(sandbox.id, cat.id)).log_size == 300_003

    line = "trap 'exit 8' USR1; echo ready; while :; do sleep 0.05; done"
    trap = await engine.exec_detached(sandbox.id, line)
    async for message in engine.command_output(sandbox.id, trap.id):
        if message.status is not None:
            assert message.status.exit_code == 8
        else:
            await engine.signal_command(sandbox.id, trap.id, signal.SIGUSR1)

    tree = await engine.exec_detached(sandbox.id, "setsid sleep 1234 & sleep 1234")
    await engine.kill_command(sandbox.id, tree.id)
    assert (await engine.wait_command(sandbox.id, tree.id)).reason is ExitReason.KILLED
    assert "1234" not in (await engine.exec(sandbox.id, ["ps"])).stdout


async def test_writing_to_what_does_not_read(engine: Engine, sandbox: Sandbox) -> None:
    without = await engine.exec_detached(sandbox.id, ["sleep", "1234"])
    with pytest.raises(BrokenPipeError):
        await engine.write_command_stdin(sandbox.id, without.id, b"x")
    over = await engine.exec_detached(sandbox.id, ["true"], stdin=True)
    await engine.wait_command(sandbox.id, over.id)
    with pytest.raises(BrokenPipeError):
        await engine.write_command_stdin(sandbox.id, over.id, b"x")
    full = await engine.exec_detached(sandbox.id, ["sleep", "1234"], stdin=True)
    writing = asyncio.create_task(engine.write_command_stdin(sandbox.id, full.id, b"x" * 200_000))
    await asyncio.sleep(0.1)
    assert not writing.done()
    assert (await engine.get_command(sandbox.id, full.id)).status is CommandStatus.RUNNING
    await engine.kill_command(sandbox.id, full.id)
    with pytest.raises(BrokenPipeError):
        await writing


async def test_waiting_has_its_own_deadline(engine: Engine, sandbox: Sandbox) -> None:
    command = await engine.exec_detached(sandbox.id, ["sleep", "1234"])
    with pytest.raises(OperationTimeoutError):
        await engine.wait_command(sandbox.id, command.id, timeout=0.1)
    assert (await engine.get_command(sandbox.id, command.id)).status is CommandStatus.RUNNING


async def test_unknown_commands(engine: Engine, sandbox: Sandbox) -> None:
    for name in ("nothing", "../../x", "", "."):
        with pytest.raises(CommandNotFoundError):
            await engine.get_command(sandbox.id, name)


async def test_a_detached_terminal(engine: Engine, sandbox: Sandbox) -> None:
    command = await engine.exec_detached(
        sandbox.id, ["sh", "-i"], stdin=True, terminal=TerminalSize(20, 40)
    )
    await engine.resize_command(sandbox.id, command.id, TerminalSize(21, 41))
    await engine.write_command_stdin(sandbox.id, command.id, b"stty size; exit 3\n")
    status = await engine.wait_command(sandbox.id, command.id)
    assert status.exit_code == 3
    messages = [m async for m in engine.command_output(sandbox.id, command.id)]
    assert b"21 41" in b"".join(m.data for m in messages)


async def test_many_clients_of_one_command(engine: Engine, sandbox: Sandbox) -> None:
    line = "i=0; while [ $i -lt 50 ]; do echo $i; i=$((i+1)); done; sleep 0.3; echo last"
    command = await engine.exec_detached(sandbox.id, line)

    async def follow() -> bytes:
        messages = [m async for m in engine.command_output(sandbox.id, command.id)]
        return b"".join(m.data for m in messages[:-1])

    results = await asyncio.gather(*(follow() for _ in range(150)))
    assert len(set(results)) == 1
    assert results[0].endswith(b"49\nlast\n")


async def test_who_waits_keeps_nobody_out(engine: Engine, sandbox: Sandbox) -> None:
    command = await engine.exec_detached(sandbox.id, ["cat"], stdin=True)
    waiting = [asyncio.create_task(engine.wait_command(sandbox.id, command.id)) for _ in range(300)]
    await asyncio.sleep(0.1)
    assert [c.id for c in await engine.list_commands(sandbox.id)] == [command.id]
    await engine.write_command_stdin(sandbox.id, command.id, b"x")
    await engine.kill_command(sandbox.id, command.id)
    assert {status.reason for status in await asyncio.gather(*waiting)} == {ExitReason.KILLED}


@pytest.mark.parametrize("operation", ["destroy_sandbox", "stop_sandbox"])
async def test_who_waits_when_the_sandbox_ends(
    engine: Engine, sandbox: Sandbox, operation: str
) -> None:
    command = await engine.exec_detached(sandbox.id, "echo x; sleep 1234")

    async def follow() -> None:
        async for _ in engine.command_output(sandbox.id, command.id):
            pass

    waiting = [
        asyncio.create_task(follow()),
        asyncio.create_task(engine.wait_command(sandbox.id, command.id)),
    ]
    await asyncio.sleep(0.2)
    await getattr(engine, operation)(sandbox.id)
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(result) for result in results] == [SandboxUnavailableError] * 2
    if operation == "stop_sandbox":
        status = (await engine.get_command(sandbox.id, command.id)).exit
        assert status is not None
        assert status.reason is ExitReason.LOST
        assert await engine.wait_command(sandbox.id, command.id) == status


async def test_alternating_output(engine: Engine, sandbox: Sandbox) -> None:
    line = "i=0; while [ $i -lt 3000 ]; do echo o; echo e >&2; i=$((i+1)); done"
    command = await engine.exec_detached(sandbox.id, line)
    await engine.wait_command(sandbox.id, command.id)
    messages = [m async for m in engine.command_output(sandbox.id, command.id)]
    for kind, text in ((MessageType.STDOUT, b"o\n"), (MessageType.STDERR, b"e\n")):
        assert b"".join(m.data for m in messages if m.type is kind) == text * 3000
    middle = messages[len(messages) // 2]
    assert middle.offset is not None
    rest = [m async for m in engine.command_output(sandbox.id, command.id, offset=middle.offset)]
    assert b"".join(m.data for m in messages if (m.offset or 0) > middle.offset) == b"".join(
        m.data for m in rest[:-1]
    )


async def test_an_exit_message_waits_for_who_looked_away(engine: Engine, sandbox: Sandbox) -> None:
    line = "exec >&- 2>&-; sleep 0.4; exit 3"
    async with engine.exec_stream(sandbox.id, line) as stream:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await anext(stream)
        message = await anext(stream)
        assert message.status is not None
        assert message.status.exit_code == 3


async def test_the_end_of_input_on_a_terminal(engine: Engine, sandbox: Sandbox) -> None:
    size = TerminalSize(24, 80)
    async with engine.exec_stream(sandbox.id, ["cat"], stdin=True, terminal=size) as stream:
        await stream.write_stdin(b"typed\n")
        await stream.close_stdin()
        out, _, status = await collect(stream)
    assert status.exit_code == 0
    assert out.count(b"typed") == 2


async def test_the_same_key_starts_one_command(engine: Engine, sandbox: Sandbox) -> None:
    first = await engine.exec_detached(sandbox.id, ["sleep", "1234"], idempotency_key="k")
    again = await engine.exec_detached(sandbox.id, ["sleep", "1234"], idempotency_key="k")
    assert first.id == again.id
    assert len(await engine.list_commands(sandbox.id)) == 1

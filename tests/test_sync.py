"""The synchronous face: the same operations, from a script."""

from __future__ import annotations

import asyncio
import inspect
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hutch import Engine, SandboxConfig, SandboxStatus, Settings
from hutch.errors import FileMissingError, SandboxNotFoundError
from hutch.models import MessageType
from hutch.sync import SyncEngine, open_engine


def test_a_script(data_dir: Path, settings: Settings) -> None:
    with open_engine(data_dir=data_dir, settings=settings) as engine:
        sandbox = engine.create_sandbox(SandboxConfig(image="busybox", labels={"a": "b"}))
        assert engine.exec(sandbox.id, "cat", stdin="hello").stdout == "hello"
        engine.write_file(sandbox.id, "/d/file", "text")
        engine.move(sandbox.id, "/d/file", "/d/other")
        assert engine.read_file(sandbox.id, "/d/other") == b"text"
        assert [info.name for info in engine.list_dir(sandbox.id, "/d")] == ["other"]
        engine.remove_file(sandbox.id, "/d", recursive=True)
        with pytest.raises(FileMissingError):
            engine.stat(sandbox.id, "/d")
        with engine.exec_stream(sandbox.id, "read x; echo $x; exit 3", stdin=True) as stream:
            stream.write_stdin(b"typed\n")
            stream.close_stdin()
            messages = list(stream)
        assert messages[0].data == b"typed\n"
        assert (messages[-1].type, messages[-1].data) == (MessageType.EXIT, b"3")
        assert engine.stop_sandbox(sandbox.id).status is SandboxStatus.STOPPED
        assert engine.start_sandbox(sandbox.id).status is SandboxStatus.RUNNING
        assert [view.id for view in engine.list_sandboxes(labels={"a": "b"})] == [sandbox.id]
    with open_engine(data_dir=data_dir, settings=settings) as engine:
        assert engine.exec(sandbox.id, ["echo", "still"]).stdout == "still\n"
        engine.destroy_sandbox(sandbox.id)
        assert engine.sandbox_count().total == 0
        with pytest.raises(SandboxNotFoundError):
            engine.get_sandbox(sandbox.id)


def test_leaving_a_stream_ends_its_command(data_dir: Path, settings: Settings) -> None:
    with open_engine(data_dir=data_dir, settings=settings) as engine:
        sandbox = engine.create_sandbox()
        with pytest.raises(KeyError), engine.exec_stream(sandbox.id, "sleep 4321"):
            raise KeyError
        assert "4321" not in engine.exec(sandbox.id, ["ps"]).stdout
        engine.destroy_sandbox(sandbox.id)


def test_detached_commands(data_dir: Path, settings: Settings) -> None:
    with open_engine(data_dir=data_dir, settings=settings) as engine:
        sandbox = engine.create_sandbox(ephemeral=True)
        command = engine.exec_detached(sandbox.id, "echo one; sleep 1234")
        output = engine.command_output(sandbox.id, command.id)
        assert next(output).data == b"one\n"
        output.close()
        engine.kill_command(sandbox.id, command.id)
        assert engine.wait_command(sandbox.id, command.id).exit_code == 143
        assert [known.id for known in engine.list_commands(sandbox.id)] == [command.id]
    with open_engine(data_dir=data_dir, settings=settings) as engine:
        assert engine.sandbox_count().total == 0


async def test_from_a_running_loop_and_from_many_threads(
    data_dir: Path, settings: Settings
) -> None:
    def work() -> None:
        with open_engine(data_dir=data_dir, settings=settings) as engine:
            sandbox = engine.create_sandbox(ephemeral=True)
            with ThreadPoolExecutor(8) as pool:
                results = pool.map(lambda n: engine.exec(sandbox.id, ["echo", str(n)]), range(40))
            assert [result.stdout for result in results] == [f"{n}\n" for n in range(40)]

    work()  # in this loop's own thread
    await asyncio.to_thread(work)


@pytest.mark.parametrize("name", [name for name in vars(SyncEngine) if not name.startswith("_")])
def test_arguments_are_the_engines(name: str) -> None:
    ours = inspect.signature(getattr(SyncEngine, name)).parameters
    theirs = inspect.signature(getattr(Engine, name)).parameters
    assert [key for key in ours if key not in theirs] == []
    assert [p.kind for p in ours.values()] == [theirs[key].kind for key in ours]

"""Signals: whatever was begun is undone, at any moment, and nothing is printed about it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import ARGV, Hutch

ENDING = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


def start(environment: dict[str, str], *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*ARGV, *arguments], env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip


def finish(process: subprocess.Popen[bytes]) -> tuple[int, bytes, bytes]:
    out, err = process.communicate(timeout=60)
    assert b"Traceback" not in err, err.decode()
    return process.returncode, out, err


def test_run_leaves_no_sandbox_whenever_it_is_ended(
    hutch: Hutch, environment: dict[str, str], data_dir: Path
) -> None:
    for step in range(12):
        process = start(environment, "run", "--", "sleep", "1234")
        while step > 1 and not list(data_dir.glob("sandboxes/sb-*")):
            time.sleep(0.0005)
        time.sleep(step * 0.003)
        process.send_signal(ENDING[step % 2 + 1])
        code, out, err = finish(process)
        # Before there is a loop the signal's own default ends it; then hutch; then the command.
        assert code in {-signal.SIGTERM, -signal.SIGHUP, 143, 129}
        assert (out, err) == (b"", b"")
        assert hutch("ls", "-q").stdout == b""


@pytest.mark.parametrize("number", ENDING)
def test_other_commands_end_with_128_and_the_number(
    hutch: Hutch, environment: dict[str, str], number: signal.Signals
) -> None:
    hutch("create", check=True)
    process = start(environment, "events", "--follow", "--json")
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(number)
    assert finish(process) == (128 + number, b"", b"")


def test_an_archive_that_does_not_come(hutch: Hutch, environment: dict[str, str]) -> None:
    sandbox = hutch("create", check=True).stdout.decode().strip()
    process = subprocess.Popen(
        [*ARGV, "cp", "-", f"{sandbox}:/tmp/x"], env=environment, stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 143
    process.communicate()


def test_what_is_ignored_stays_ignored(hutch: Hutch, environment: dict[str, str]) -> None:
    process = subprocess.Popen(
        ["nohup", *ARGV, "run", "--", "sh", "-c", "echo ready; sleep 1; echo end"],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGHUP)
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, b"end\n")


@pytest.mark.parametrize("module", ["typer", "asyncio", "hutch.cli.session", "hutch.engine.engine"])
def test_ctrl_c_while_starting(
    hutch: Hutch, environment: dict[str, str], tmp_path: Path, module: str
) -> None:
    """It comes at the moment when a module is looked for."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {module!r}:\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n"
    )
    path = os.pathsep.join([str(tmp_path), *sys.path])
    program = "from hutch.cli.main import main; main()"
    result = subprocess.run(
        [sys.executable, "-c", program, "ls"], env={**environment, "PYTHONPATH": path},
        capture_output=True, check=False, timeout=60,
    )  # fmt: skip
    assert (result.returncode, result.stdout, result.stderr) == (130, b"", b"")


@pytest.fixture
def stubborn(tmp_path: Path) -> Iterator[Path]:
    """A directory with an `mmdebstrap` that mounts something, has children, and ends for nobody."""
    tools = tmp_path / "tools"
    tools.mkdir()
    script = tools / "mmdebstrap"
    script.write_text(
        "#!/bin/sh\ntrap '' TERM\nmkdir -p mountpoint; mount -t tmpfs tmpfs mountpoint\n"
        "sleep 4321 &\necho 'I: ready'; while :; do sleep 4321; done\n"
    )
    script.chmod(0o755)
    yield tools
    shutil.rmtree(tools)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_an_ended_build_leaves_nothing(
    environment: dict[str, str], stubborn: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """Neither a mount nor a process: `nothing_is_left` would find hutch's, this is the tool's."""
    work = tmp_path / "work"
    work.mkdir()
    variables = {
        **environment,
        "PATH": f"{stubborn}:{environment['PATH']}",
        "HUTCH_DATA_DIR": str(tmp_path / "own"),
    }
    process = subprocess.Popen(
        [*ARGV, "image", "build", "bookworm"], env=variables, cwd=work, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 30
    while not (sleepers := children_named("4321")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, b"Traceback" in err) == (128 + number, False)
    assert children_named("4321") & sleepers == set()
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
    assert list((tmp_path / "own/images/work").iterdir()) == []


def children_named(argument: str) -> set[str]:
    """The processes that were started with this argument."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if words[:2] == [b"sleep", argument.encode()]:
            found.add(path.parent.name)
    return found

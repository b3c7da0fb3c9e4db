"""Standard streams that are closed, full, unread or no text: a sentence, and never a hang."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import ARGV, Hutch


@pytest.fixture
def shell(hutch: Hutch, environment: dict[str, str]) -> Callable[[str], tuple[int, bytes, bytes]]:
    """Run a line of bash in which `hutch` is hutch."""
    function = f'hutch() {{ {ARGV[0]} -m {ARGV[2]} "$@"; }}; '

    def run(line: str) -> tuple[int, bytes, bytes]:
        result = subprocess.run(
            ["bash", "-c", function + line], env=environment, capture_output=True, timeout=60,
            check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert b"Traceback" not in result.stderr, result.stderr.decode()
        assert b"Exception ignored" not in result.stderr, result.stderr.decode()
        return result.returncode, result.stdout, result.stderr

    return run


Shell = Callable[[str], "tuple[int, bytes, bytes]"]


def test_a_closed_input_is_an_empty_one(shell: Shell) -> None:
    assert shell("hutch run -i -- wc -c <&-") == (0, b"0\n", b"")


def test_an_input_that_cannot_be_read(shell: Shell, tmp_path: Path) -> None:
    code, out, err = shell(f"hutch run -i -- wc -c 0>{tmp_path}/file")
    assert (code, out) == (0, b"0\n")
    assert err == b"hutch: standard input: Bad file descriptor\n"


@pytest.mark.parametrize("where", [">&-", ">/dev/full"])
@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("run -- echo x", 125),
        ("run --json -- echo x", 125),
        ("settings", 1),
        ("settings --json", 1),
        ("version", 1),
        ("--help", 1),
        ("ls", 1),
    ],
)
def test_an_output_that_takes_nothing(shell: Shell, line: str, code: int, where: str) -> None:
    status, _, err = shell(f"hutch {line} {where}")
    assert status == code
    assert err.startswith(b"hutch: standard output: ")
    assert len(err.splitlines()) == 1


def test_no_sandbox_is_left_by_it(shell: Shell) -> None:
    assert shell("hutch run -- echo x >/dev/full; hutch ls -q")[1] == b""


@pytest.mark.parametrize(
    "line", ["settings", "settings --json", "run -- yes", "doctor --no-attack"]
)
def test_a_reader_that_leaves_is_no_error(shell: Shell, line: str) -> None:
    _, out, err = shell(f"hutch {line} | head -c 1")
    assert (len(out), err) == (1, b"")
    code, _, err = shell(f"(sleep 0.5; hutch {line}; echo $? >&2) | true")
    assert (code, err) == (0, b"141\n")


def test_nobody_to_tell(shell: Shell) -> None:
    assert shell("hutch inspect nothing 2>&-") == (1, b"", b"")
    assert shell("hutch inspect nothing 2>/dev/full") == (1, b"", b"")


def test_a_locale_without_utf_8(hutch: Hutch) -> None:
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    result = hutch("run", "--json", "--", "echo", "é", **ascii_only)
    assert '"stdout":"é\\n"'.encode() in result.stdout
    labelled = hutch("create", "-e", "A=é", check=True, **ascii_only).stdout.decode().strip()
    assert "é".encode() in hutch("inspect", labelled, **ascii_only).stdout
    assert hutch("ls", **ascii_only).returncode == 0
    assert b"Usage" in hutch("--help", **ascii_only).stdout


def test_an_environment_file_that_is_no_text(hutch: Hutch, tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_bytes(b"A=\xff\n")
    result = hutch("run", "--env-file", os.fspath(file), "true")
    assert (result.returncode, b"UTF-8" in result.stderr) == (2, True)

"""`hutch run` and `hutch exec`: what goes in and comes out passes exactly."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.cli.archives import archive_of, member
from tests.cli.conftest import ARGV, Hutch


def test_output_and_exit_code(hutch: Hutch) -> None:
    result = hutch("run", "--", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (result.returncode, result.stdout, result.stderr) == (7, b"out\n", b"err\n")
    assert hutch("ls", "-q").stdout == b""


def test_bytes_pass_exactly(hutch: Hutch) -> None:
    data = os.urandom(3_000_000)
    assert hutch("run", "-i", "--", "cat", stdin=data).stdout == data


def test_stdin_is_not_passed_unless_asked(hutch: Hutch) -> None:
    assert hutch("run", "--", "wc", "-c", stdin=b"xxx").stdout.strip() == b"0"


@pytest.mark.parametrize(
    ("line", "code"), [("kill -TERM $$", 143), ("kill -9 $$", 137), ("exit 255", 255)]
)
def test_exit_codes(hutch: Hutch, line: str, code: int) -> None:
    assert hutch("run", "--", "sh", "-c", line).returncode == code


def test_what_cannot_be_run(hutch: Hutch) -> None:
    assert hutch("run", "--", "no-such-program").returncode == 127
    assert hutch("run", "--", "/etc").returncode == 126
    failed = hutch("run", "--image", "rootfs:/no/such/dir", "--", "true")
    assert failed.returncode == 125
    assert failed.stderr.startswith(b"hutch: no such image")


def test_a_timeout(hutch: Hutch) -> None:
    result = hutch("run", "--timeout", "300ms", "--", "sh", "-c", "echo before; sleep 1234")
    assert (result.returncode, result.stdout) == (124, b"before\n")
    assert b"0.3 s" in result.stderr
    collected = hutch("run", "--json", "--timeout", "300ms", "sleep", "1234")
    assert collected.returncode == 124
    assert json.loads(collected.stdout)["reason"] == "timed_out"


def test_options_reach_the_sandbox(hutch: Hutch, tmp_path: Path) -> None:
    env_file = tmp_path / "env"
    env_file.write_text("# comment\nF=file\nE=overridden\n")
    result = hutch(
        "run", "-e", "E=v", "--env-file", str(env_file), "-w", "/tmp", "-u", "user", "--read-only",
        "--tmpfs", "/scratch:1M", "-l", "k=v", "--",
        "sh", "-c", "echo $E $F; pwd; id -un; touch /x 2>&1; touch /scratch/y && echo ok",
    )  # fmt: skip
    assert result.stdout == b"v file\n/tmp\nuser\ntouch: /x: Read-only file system\nok\n"


def test_json_and_keep(hutch: Hutch) -> None:
    result = hutch("run", "--keep", "--json", "--", "sh", "-c", "echo hi; exit 3")
    data = json.loads(result.stdout)
    assert (data["stdout"], data["exit_code"], data["reason"]) == ("hi\n", 3, "exited")
    assert result.returncode == 3
    (sandbox_id,) = hutch("ls", "-q").stdout.decode().split()
    assert sandbox_id in result.stderr.decode()
    assert hutch("exec", sandbox_id[:8], "--", "echo", "again").stdout == b"again\n"


def test_signals_are_passed_on(hutch: Hutch, environment: dict[str, str]) -> None:
    line = "trap 'echo got; exit 9' TERM; echo ready; while :; do sleep 0.05; done"
    process = subprocess.Popen(
        [*ARGV, "run", "--", "sh", "-c", line], env=environment, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.read() == b"got\n"
    process.stdout.close()
    assert process.wait() == 9


def test_a_reader_that_leaves(hutch: Hutch, environment: dict[str, str]) -> None:
    process = subprocess.Popen(
        [*ARGV, "run", "--", "yes"], env=environment, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 128 + signal.SIGPIPE
    assert hutch("ls", "-q").stdout == b""


class Terminal:
    """A person at a terminal."""

    def __init__(
        self, argv: list[str], environment: dict[str, str], rows: int, columns: int
    ) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execvpe(argv[0], argv, environment)
        self.resize(rows, columns)
        self.seen = b""

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, text: bytes) -> None:
        os.write(self.fd, text)

    def until(self, wanted: bytes) -> bytes:
        deadline = time.monotonic() + 60
        while wanted not in self.seen:
            assert time.monotonic() < deadline, self.seen
            if select.select([self.fd], [], [], 1)[0]:
                try:
                    self.seen += os.read(self.fd, 65536)
                except OSError:
                    raise AssertionError(f"it ended: {self.seen!r}") from None
        seen, self.seen = self.seen, b""
        return seen

    def exit_code(self) -> int:
        while True:
            try:
                if not os.read(self.fd, 65536):
                    break
            except OSError:
                break
        os.close(self.fd)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def test_a_terminal(hutch: Hutch, environment: dict[str, str]) -> None:
    terminal = Terminal([*ARGV, "run", "-it", "--", "sh"], environment, 30, 100)
    terminal.type(b"tty; echo mark$((1+1))\n")
    assert b"/dev/pts/" in terminal.until(b"mark2")
    terminal.type(b"stty size; echo mark$((1+2))\n")
    terminal.until(b"mark3")
    terminal.resize(44, 55)
    terminal.type(b"sleep 0.3; stty size; echo mark$((2+2))\n")
    assert b"44 55" in terminal.until(b"mark4")
    terminal.type(b"sleep 1000\n")
    time.sleep(0.2)
    terminal.type(b"\x03")
    terminal.type(b"echo mark$((2+3))\n")
    terminal.until(b"mark5")
    terminal.type(b"exit 5\n")
    assert terminal.exit_code() == 5


def test_a_long_copy_shows_how_far_it_is(
    hutch: Hutch, environment: dict[str, str], tmp_path: Path
) -> None:
    """Only on a terminal, and only what takes longer than a second."""
    fifo, sandbox = tmp_path / "fifo", hutch("create", check=True).stdout.decode().strip()
    os.mkfifo(fifo)
    line = f"{' '.join(ARGV)} cp - {sandbox}:/tmp/x <{fifo}; echo code $?"
    terminal = Terminal(["sh", "-c", line], {**environment, "TERM": "xterm"}, 30, 100)
    archive = archive_of(member("file")).ljust(3_000_000, b"\0")
    with fifo.open("wb") as file:
        for start in range(0, len(archive), 500_000):
            file.write(archive[start : start + 500_000])
            file.flush()
            time.sleep(0.4)
    seen = terminal.until(b"code 0")
    assert b"MiB" in seen
    assert terminal.exit_code() == 0
    quick = hutch("cp", "-", f"{sandbox}:/tmp/y", stdin=archive)
    assert (quick.returncode, quick.stderr) == (0, b"")


def test_fifty_at_once(hutch: Hutch) -> None:
    with ThreadPoolExecutor(50) as threads:
        results = list(threads.map(lambda n: hutch("run", "--", "echo", str(n)), range(50)))
    seen = [(result.returncode, result.stdout, result.stderr) for result in results]
    assert seen == [(0, b"%d\n" % n, b"") for n in range(50)]
    assert hutch("ls", "-q").stdout == b""

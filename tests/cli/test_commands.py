"""The other commands, their listings as JSON, and how they fail."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import stat
import subprocess
import tarfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import hutch as package
from hutch.cli.output import until
from hutch.config import describe
from tests.cli.archives import archive_of, member
from tests.cli.conftest import ARGV, Hutch
from tests.images.builder import LayoutBuilder


@pytest.fixture
def sandbox(hutch: Hutch) -> str:
    return hutch("create", check=True).stdout.decode().strip()


def test_create_ls_inspect_and_rm(hutch: Hutch) -> None:
    first = hutch("create", "-l", "a=b", "--timeout", "1h", check=True).stdout.decode().strip()
    second = hutch("create", "--idempotency-key", "k", check=True).stdout.decode().strip()
    assert hutch("create", "--idempotency-key", "k").stdout.decode().strip() == second
    listed = json.loads(hutch("ls", "--json").stdout)
    assert [item["id"] for item in listed] == [first, second]
    assert [i["id"] for i in json.loads(hutch("ls", "--json", "-l", "a=b").stdout)] == [first]
    table = hutch("ls").stdout.decode()
    assert table.startswith("ID ")
    assert first in table
    (inspected,) = json.loads(hutch("inspect", first[:10]).stdout)
    assert (inspected["status"], inspected["config"]["labels"]) == ("running", {"a": "b"})
    assert hutch("rm", first, second).stdout.decode().split() == [first, second]
    assert json.loads(hutch("ls", "--json").stdout) == []


def test_stop_start_extend_and_label(hutch: Hutch, sandbox: str) -> None:
    assert hutch("stop", sandbox).returncode == 0
    assert json.loads(hutch("ls", "--json", "--status", "stopped").stdout)[0]["id"] == sandbox
    refused = hutch("exec", sandbox, "--", "true")
    assert refused.returncode == 125
    assert b"hint: " in refused.stderr
    assert hutch("start", sandbox).returncode == 0
    assert b"expires 20" in hutch("extend", sandbox, "1h").stdout
    assert b"expires never" in hutch("extend", sandbox, "never").stdout
    assert hutch("label", sandbox, "x=y").returncode == 0
    assert json.loads(hutch("inspect", sandbox).stdout)[0]["config"]["labels"] == {"x": "y"}


def test_detached_commands(hutch: Hutch, sandbox: str) -> None:
    line = "echo one; echo two >&2; cat; exit 4"
    command = hutch("exec", "-d", "-i", sandbox, "--", "sh", "-c", line).stdout.decode().strip()
    assert json.loads(hutch("ps", sandbox, "--json").stdout)[0]["status"] == "running"
    attached = hutch("attach", sandbox, command, stdin=b"typed")
    assert (attached.stdout, attached.stderr) == (b"one\ntyped", b"two\n")
    assert attached.returncode == 4
    assert hutch("logs", sandbox, command, "--offset", "4").stderr == b"two\n"
    assert hutch("wait", sandbox, command).returncode == 4
    assert b"exited 4" in hutch("ps", sandbox).stdout
    other = hutch("exec", "-d", sandbox, "--", "sleep", "1234").stdout.decode().strip()
    assert hutch("kill", sandbox, other, "-s", "term").returncode == 0
    assert hutch("wait", sandbox, other).returncode == 143
    assert hutch("kill", sandbox, other, "-s", "nothing").returncode == 2


def test_logs_of_the_main_process(hutch: Hutch) -> None:
    made = hutch("create", "--", "sh", "-c", "echo from main; sleep 0.2; echo more; sleep 1234")
    sandbox = made.stdout.decode().strip()
    while hutch("logs", sandbox).stdout != b"from main\nmore\n":
        pass


def test_copying_files(hutch: Hutch, sandbox: str, tmp_path: Path) -> None:
    source = tmp_path / "file.bin"
    source.write_bytes(os.urandom(100_000))
    source.chmod(0o751)
    assert hutch("cp", str(source), f"{sandbox}:/tmp/").returncode == 0
    assert hutch("cp", str(source), f"{sandbox}:/tmp/other").returncode == 0
    stat = hutch("exec", sandbox, "--", "stat", "-c", "%a", "/tmp/file.bin", "/tmp/other")
    assert stat.stdout == b"751\n751\n"
    assert hutch("cp", f"{sandbox}:/tmp/other", str(tmp_path / "back")).returncode == 0
    assert (tmp_path / "back").read_bytes() == source.read_bytes()
    assert (tmp_path / "back").stat().st_mode & 0o777 == 0o751
    missing = hutch("cp", f"{sandbox}:/nothing", str(tmp_path))
    assert (missing.returncode, b"/nothing" in missing.stderr) == (1, True)
    assert hutch("cp", "a", "b").returncode == 2
    nowhere = hutch("cp", f"{sandbox}:/tmp/other", str(tmp_path / "missing/x"))
    assert (nowhere.returncode, b"missing" in nowhere.stderr) == (1, True)


def test_copying_trees(hutch: Hutch, sandbox: str, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub/file").write_text("x")
    (tree / "link").symlink_to("sub/file")
    assert hutch("cp", str(tree), f"{sandbox}:/tmp").returncode == 0
    assert hutch("exec", sandbox, "--", "cat", "/tmp/tree/link").stdout == b"x"
    assert hutch("cp", f"{sandbox}:/tmp/tree", str(tmp_path / "back")).returncode == 0
    assert (tmp_path / "back/sub/file").read_text() == "x"
    assert os.readlink(tmp_path / "back/link") == "sub/file"
    archive = hutch("cp", f"{sandbox}:/tmp/tree", "-").stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        assert "./sub/file" in tar.getnames()
    assert hutch("cp", "-", f"{sandbox}:/tmp/unpacked", stdin=archive).returncode == 0
    assert hutch("exec", sandbox, "--", "cat", "/tmp/unpacked/link").stdout == b"x"


def test_a_hostile_tree_is_refused(hutch: Hutch, sandbox: str, tmp_path: Path) -> None:
    """The sandbox's own tar says what it likes: tests/cli/test_untar.py."""
    hutch("exec", "-i", sandbox, "--", "sh", "-c",
          "cat >/evil.tar; rm /bin/tar; printf '#!/bin/sh\\ncat /evil.tar\\n' >/bin/tar; "
          "chmod +x /bin/tar; mkdir /tmp/tree", stdin=archive_of(member("../escaped")))  # fmt: skip
    result = hutch("cp", f"{sandbox}:/tmp/tree", str(tmp_path / "back"))
    assert result.returncode == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def test_a_tree_without_end_is_refused(hutch: Hutch, sandbox: str, tmp_path: Path) -> None:
    """What follows the end mark is not waited for; nothing is left, and tar inside ends."""
    hutch("exec", "-i", sandbox, "--", "sh", "-c",
          "cat >/evil.tar; rm /bin/tar; printf '#!/bin/sh\\ncat /evil.tar /dev/zero\\n' >/bin/tar; "
          "chmod +x /bin/tar; mkdir /tmp/tree", stdin=archive_of(member("x")))  # fmt: skip
    result = hutch("cp", f"{sandbox}:/tmp/tree", str(tmp_path / "back"))
    assert (result.returncode, b"goes on" in result.stderr) == (1, True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def test_zeros_of_a_tree_and_of_a_file_take_no_space(
    hutch: Hutch, sandbox: str, tmp_path: Path
) -> None:
    """Row F13."""
    hutch("exec", sandbox, "--", "sh", "-c",
          "mkdir /tmp/t; truncate -s 64M /tmp/t/zeros; echo x >>/tmp/t/zeros", check=True)  # fmt: skip
    hutch("cp", f"{sandbox}:/tmp/t", str(tmp_path / "tree"), check=True)
    hutch("cp", f"{sandbox}:/tmp/t/zeros", str(tmp_path / "file"), check=True)
    for path in (tmp_path / "tree/zeros", tmp_path / "file"):
        assert path.stat().st_size == 64 * 1024**2 + 2
        assert path.stat().st_blocks * 512 < 1024**2
        assert path.read_bytes()[-3:] == b"\0x\n"


def test_copying_a_file_to_a_symlink(hutch: Hutch, sandbox: str, tmp_path: Path) -> None:
    """What it leads to is replaced, and the link stays."""
    hutch("exec", sandbox, "--", "sh", "-c", "echo new >/tmp/f; mkdir /tmp/t", check=True)
    (tmp_path / "there").mkdir()
    (tmp_path / "there/file").write_text("old")
    (tmp_path / "link").symlink_to("second")
    (tmp_path / "second").symlink_to("there/file")
    (tmp_path / "dangling").symlink_to("there/made")
    (tmp_path / "circle").symlink_to("circle")
    hutch("cp", f"{sandbox}:/tmp/f", str(tmp_path / "link"), check=True)
    hutch("cp", f"{sandbox}:/tmp/f", str(tmp_path / "dangling"), check=True)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "second").is_symlink()
    assert (tmp_path / "there/file").read_text() == "new\n"
    assert (tmp_path / "there/made").read_text() == "new\n"
    assert sorted(path.name for path in (tmp_path / "there").iterdir()) == ["file", "made"]
    assert hutch("cp", f"{sandbox}:/tmp/f", str(tmp_path / "circle")).returncode == 2
    assert hutch("cp", f"{sandbox}:/tmp/t", str(tmp_path / "dangling")).returncode == 2


def test_copying_a_file_into_a_device_or_fifo(hutch: Hutch, sandbox: str, tmp_path: Path) -> None:
    """They stay what they are: a device of our own making here, as rm would take the real one."""
    hutch("exec", sandbox, "--", "sh", "-c", "seq 100000 >/tmp/f", check=True)
    null, fifo = tmp_path / "null", tmp_path / "fifo"
    os.mknod(null, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mkfifo(fifo)
    hutch("cp", f"{sandbox}:/tmp/f", str(null), check=True)
    assert stat.S_ISCHR(null.lstat().st_mode)
    with (tmp_path / "read").open("wb") as read, subprocess.Popen(["cat", fifo], stdout=read):
        hutch("cp", f"{sandbox}:/tmp/f", str(fifo), check=True)
    assert (tmp_path / "read").read_text().splitlines() == [str(n + 1) for n in range(100_000)]
    assert fifo.is_fifo()
    assert hutch("cp", f"{sandbox}:/tmp/f", "/proc/self/fd/1").stdout.endswith(b"\n100000\n")
    listening = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(listening))
        assert hutch("cp", f"{sandbox}:/tmp/f", str(listening)).returncode == 1
    assert listening.is_socket()


def test_what_comes_out_of_a_tree(hutch: Hutch, sandbox: str, tmp_path: Path) -> None:
    hutch("exec", sandbox, "--", "sh", "-c", "mkdir -p /tmp/t/d; cd /tmp/t; echo x >file; "
          "chmod 4755 file; ln file twin; ln -s /etc/passwd absolute; ln -s nowhere d/dangling; "
          "chmod 0500 d", check=True)  # fmt: skip
    back = tmp_path / "back"
    hutch("cp", f"{sandbox}:/tmp/t", str(back), check=True)
    assert (back / "file").stat().st_mode & 0o7777 == 0o755
    assert (back / "twin").samefile(back / "file")
    assert os.readlink(back / "absolute") == "/etc/passwd"
    assert os.readlink(back / "d/dangling") == "nowhere"
    assert (back / "d").stat().st_mode & 0o777 == 0o500


def test_stats_and_events(hutch: Hutch, sandbox: str) -> None:
    (stats,) = json.loads(hutch("stats", "--json").stdout)
    assert stats["id"] == sandbox
    assert stats["memory"] is None or stats["memory"] > 0
    assert sandbox in hutch("stats").stdout.decode()
    events = [json.loads(line) for line in hutch("events", "--json").stdout.splitlines()]
    assert [event["type"] for event in events] == ["sandbox.created"]


def test_images(hutch: Hutch, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "file").write_text(str(tmp_path))
    name = f"cli-{os.getpid()}"
    imported = hutch("image", "import", str(root), "--name", name, check=True)
    image_id = imported.stdout.decode().strip()
    assert image_id.startswith("sha256:")
    assert name in [
        n for i in json.loads(hutch("image", "ls", "--json").stdout) for n in i["names"]
    ]
    assert name in hutch("image", "ls").stdout.decode()
    (inspected,) = json.loads(hutch("image", "inspect", name).stdout)
    assert inspected["id"] == image_id
    removed = hutch("image", "rm", "nothing-such", name)
    assert (removed.returncode, removed.stdout.decode().split()) == (1, [name])
    assert hutch("image", "rm", name).returncode == 1


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("exec", "nothing", "--", "true"), 125),
        (("rm",), 2),
        (("rm", "nothing"), 1),
        (("inspect", "nothing"), 1),
        (("create", "--memory", "much"), 2),
        (("create", "--timeout", "soon"), 2),
        (("create", "--cpu", "0"), 2),
        (("run", "--memory", "much", "--", "true"), 2),
        (("run", "--pids", "9999999999", "true"), 2),
        (("run", "--timeout", "99999d", "true"), 2),
        (("run", "--tty", "--json", "true"), 2),
        (("exec", "--tty", "--idempotency-key", "k", "nothing", "true"), 2),
        (("logs", "nothing", "--offset", "-1"), 2),
        (("attach", "nothing", "--offset", "-1"), 2),
        (("--log-level", "loud", "settings"), 2),
        (("--log-level", "loud", "doctor"), 2),
        (("--data-dir", "", "ls"), 2),
        (("--data-dir", "~nobody-has-this/x", "ls"), 2),
        (("run", "--image", b"\xff", "true"), 2),
        (("run", "-l", b"a=\xff", "true"), 2),
        (("image", "pull", b"\xff"), 2),
        (("image", "pull", "A:B:C"), 2),
        (("nonsense",), 2),
        (("--data-dir", "/proc/nothing", "ls"), 1),
    ],
)
def test_errors_are_a_sentence(hutch: Hutch, arguments: tuple[str | bytes, ...], code: int) -> None:
    result = hutch(*arguments)
    assert result.returncode == code, result.stderr
    assert result.stdout == b""
    assert len(result.stderr.splitlines()) <= 8


def test_settings_version_help_and_completion(hutch: Hutch) -> None:
    settings = json.loads(hutch("settings", "--json").stdout)
    assert settings["default_image"] == "busybox"
    assert set(settings) == set(describe())
    assert hutch("version").stdout.decode().split() == ["hutch", package.__version__]
    helped = hutch("--help").stdout.decode()
    for command in ("run", "create", "exec", "attach", "cp", "image", "doctor"):
        assert f" {command} " in helped
    assert hutch("--version").stdout == hutch("version").stdout


def test_doctor(hutch: Hutch) -> None:
    findings = json.loads(hutch("doctor", "--json", "--no-attack").stdout)
    subjects = {finding["subject"]: finding for finding in findings}
    assert subjects["kernel"]["verdict"] == "good"
    assert subjects["runtime"]["found"].startswith("native")
    assert all(finding["advice"] for finding in findings if finding["verdict"] == "weak")
    table = hutch("doctor", "--no-attack").stdout
    assert b"\ngood " in table
    assert b"[/]" not in table
    findings = json.loads(hutch("--data-dir", "/usr", "doctor", "--json", "--no-attack").stdout)
    assert "bad" in [finding["verdict"] for finding in findings]


def test_json_logs(hutch: Hutch) -> None:
    result = hutch("--log-level", "info", "--log-format", "json", "run", "--", "true")
    records = [json.loads(line) for line in result.stderr.splitlines()]
    assert "sandbox running" in [record["message"] for record in records]
    assert all("sandbox_id" in record for record in records if "sandbox" in record["message"])


def test_a_terminal_is_not_made_to_obey(hutch: Hutch, sandbox: str) -> None:
    """Row A14: markup and control characters in what a listing shows are shown as they are."""
    hutch("exec", "-d", sandbox, "--", "sleep", "1234", "[bold]", "[/x]", "\x1b[2J", check=True)
    listing = hutch("ps", sandbox, check=True).stdout
    assert b"sleep 1234 [bold] [/x] \\x1b[2J" in listing


def test_an_expiry_that_has_passed(hutch: Hutch, sandbox: str) -> None:
    short = hutch("create", "--timeout", "500ms", check=True).stdout.decode().strip()
    stopped = hutch("create", "--timeout", "1500ms", check=True).stdout.decode().strip()
    hutch("stop", stopped, check=True)
    time.sleep(1.5)
    listed = hutch("ls").stdout.decode()
    assert sandbox in listed
    assert short not in listed
    assert stopped not in listed


def test_what_an_expiry_looks_like() -> None:
    now = datetime.now(UTC)
    assert until(now - timedelta(seconds=5)) == "now"
    assert until(now + timedelta(minutes=90, seconds=1)) == "in 90m"
    assert until(None) == "-"


def test_what_dead_processes_left_is_no_user_s_business(
    hutch: Hutch, sandbox: str, environment: dict[str, str]
) -> None:
    process = subprocess.Popen([*ARGV, "stop", "--grace", "30", sandbox], env=environment)
    time.sleep(0.6)
    process.kill()
    process.wait()
    seen = subprocess.run(
        [*ARGV, "events", "--follow"], env=environment, capture_output=True, timeout=100,
        check=False, preexec_fn=lambda: signal.alarm(3),
    )  # fmt: skip
    assert seen.stderr == b""


def test_messages_say_what_is_the_matter(hutch: Hutch) -> None:
    def told(*arguments: str, **variables: str) -> str:
        return hutch(*arguments, **variables).stderr.decode()

    assert told("run", "-u", "nobody-has-this", "true") == (
        "hutch: user: the sandbox has no user 'nobody-has-this'\n"
    )
    assert "4194304" in told("run", "--pids", "5000000", "true")
    unreachable = told("image", "pull", "127.0.0.1:9/team/tool:v")
    assert "127.0.0.1:9/team/tool:v: the registry 127.0.0.1:9 cannot be reached: " in unreachable
    assert "connection refused\nhint: " in unreachable
    assert "`hutch image ls`" in unreachable
    assert "level=fatal" not in unreachable


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("E: Unable to locate package nothing", "Unable to locate package nothing"),
        ("dpkg: error processing package x (--configure):", "dpkg: error processing package x"),
        ("E: Failed to fetch http://m/x  Could not resolve 'm'", "with --mirror"),
    ],
)
def test_a_build_that_fails_tells_the_line(
    hutch: Hutch, environment: dict[str, str], tmp_path: Path, said: str, told: str
) -> None:
    tool = tmp_path / "tools/mmdebstrap"
    tool.parent.mkdir()
    tool.write_text(
        f'#!/bin/sh\necho "I: working"\necho "{said}"\necho "E: apt-get install failed"\n'
        'echo "I: main() received signal PIPE: waiting for setup..."\n'
        'echo "E: mmdebstrap failed to run"\nexit 1\n'
    )
    tool.chmod(0o755)
    path = f"{tool.parent}:{environment['PATH']}"
    result = hutch("image", "build", "bookworm", PATH=path, HUTCH_DATA_DIR=str(tmp_path / "own"))
    assert result.returncode == 1
    assert told in result.stderr.decode()
    assert b"failed to run" not in result.stderr


def test_importing_what_it_looks_like(hutch: Hutch, tmp_path: Path) -> None:
    """Names of relative paths are for all directories."""
    own = {"HUTCH_DATA_DIR": str(tmp_path / "own"), "cwd": tmp_path}
    layout = LayoutBuilder(tmp_path / "layout")
    layout.image(archive_of(member("file")), config={"Env": ["KIND=image"]})
    for target in ("oci-archive:a.oci", "docker-archive:a.docker"):
        subprocess.run(
            ["skopeo", "--insecure-policy", "copy", "--quiet", "oci:layout:latest", target],
            cwd=tmp_path, check=True,
        )  # fmt: skip
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/manifest.json").write_text('[{"name": "of a web application"}]')
    subprocess.run(["tar", "-C", "tree", "-cf", "tree.tar", "."], cwd=tmp_path, check=True)
    for path, scheme, env in (
        ("layout", "oci", {"KIND": "image"}),
        ("a.oci", "oci-archive", {"KIND": "image"}),
        ("a.docker", "docker-archive", {"KIND": "image"}),
        ("tree", "rootfs", {}),
        ("tree.tar", "rootfs", {}),
    ):
        hutch("image", "import", path, check=True, **own)
        name = f"{scheme}:{tmp_path}/{path}"
        (image,) = json.loads(hutch("image", "inspect", name, **own).stdout)
        assert (name in image["names"], image["config"]["env"]) == (True, env)
        assert hutch("image", "inspect", f"{scheme}:{path}", **own).returncode == 0
    assert hutch("image", "import", "nothing", **own).returncode == 1

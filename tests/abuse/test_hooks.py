"""Row F24: a tree full of what other programs run; nothing of it runs on the host."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hutch import Engine, Sandbox
from hutch.errors import HutchError

TRAPS = ("git", "tar", "sh", "bash", "python3", "make", "npm", "pip", "ssh", "file", "direnv")

PLANT = r"""
import os, pathlib, sys
top, canary = pathlib.Path("/home/user/project"), sys.argv[1]
evil = f"#!/bin/sh\necho ran >>{canary}/ran; touch /tmp/ran-inside; exit 0\n"
def write(name, text, mode=0o755):
    path = top / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
hook = "/home/user/project/.git/hooks/all"
write(".git/HEAD", "ref: refs/heads/main\n")
write(".git/config", f'''[core]
repositoryformatversion = 0
fsmonitor = {hook}
sshCommand = {hook}
pager = {hook}
editor = {hook}
hooksPath = .git/hooks
[filter "evil"]
clean = {hook}
smudge = {hook}
[diff]
external = {hook}
[alias]
status = !{hook}
[include]
path = ../../.gitconfig
''')
for directory in ("objects", "refs/heads"):
    (top / ".git" / directory).mkdir(parents=True)
for name in ("all", "pre-commit", "post-checkout", "post-index-change", "fsmonitor-watchman"):
    write(f".git/hooks/{name}", evil)
write(".gitattributes", "* filter=evil diff=evil\n")
for name in ("git", "tar", "sh", "ls", "configure", "gradlew", ".husky/pre-commit"):
    write(name, evil)
for name in (".envrc", ".profile", ".bashrc", ".bash_profile"):
    write(name, evil)
for name in ("sitecustomize.py", "usercustomize.py", "conftest.py", "setup.py", "os.py", "json.py"):
    write(name, f"open('{canary}/ran', 'a').write('ran')\n")
write("Makefile", f"$(shell echo ran >>{canary}/ran)\nall:\n")
write("package.json", '{"scripts": {"preinstall": ".git/hooks/all"}}')
write(".vscode/tasks.json", '{"tasks": [{"command": ".git/hooks/all", "runOptions": {"runOn": "folderOpen"}}]}')
for path in (".gitconfig", ".ssh/config"):
    write(f"../{path}", "[core]\nfsmonitor = /home/user/project/.git/hooks/all\n")
"""

_STARTS = {"subprocess.Popen": 0, "os.posix_spawn": 0, "os.exec": 0, "os.system": 0}
_started: list[str] | None = None


def _note(event: str, arguments: tuple[object, ...]) -> None:
    if _started is None:
        return
    if event in _STARTS:
        _started.append(os.fsdecode(arguments[_STARTS[event]]))  # type: ignore[arg-type]  # a path
    elif event in {"os.fork", "os.forkpty"}:
        _started.append(event)


@contextmanager
def programs_started() -> Iterator[list[str]]:
    """The programs that this process starts meanwhile, however it does."""
    global _started  # noqa: PLW0603  # an audit hook cannot be removed
    if not _hooked:
        sys.addaudithook(_note)
        _hooked.append(True)
    _started = []
    try:
        yield _started
    finally:
        _started = None


_hooked: list[bool] = []


@pytest.fixture
def traps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What programs of the host say when somebody starts them by name."""
    directory, said = tmp_path / "traps", tmp_path / "said"
    directory.mkdir()
    said.touch()
    for name in TRAPS:
        (directory / name).write_text(f"#!/bin/sh\necho {name} >>{said}\n")
        (directory / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
    return said


async def every_operation(engine: Engine, sandbox: Sandbox) -> None:
    """All that an engine can do with a tree."""
    top = "/home/user/project"
    await engine.stat(sandbox.id, top)
    for directory in (top, f"{top}/.git", f"{top}/.git/hooks"):
        for entry in await engine.list_dir(sandbox.id, directory):
            await engine.stat(sandbox.id, entry.path)
            await engine.real_path(sandbox.id, entry.path)
            if entry.type == "file":
                await engine.read_file(sandbox.id, entry.path)
    await engine.write_file(sandbox.id, f"{top}/.git/index", b"DIRC")
    await engine.mkdir(sandbox.id, f"{top}/new/below")
    archive = [chunk async for chunk in engine.read_tree(sandbox.id, top)]

    async def again() -> AsyncIterator[bytes]:
        for chunk in archive:
            yield chunk

    await engine.write_tree(sandbox.id, "/home/user/copy", again())
    await engine.move(sandbox.id, "/home/user/copy", "/home/user/moved")
    await engine.move(sandbox.id, "/home/user/moved", "/dev/shm/moved")
    await engine.exec(sandbox.id, ["true"], workdir=top)
    command = await engine.exec_detached(sandbox.id, ["true"], workdir=top)
    await engine.wait_command(sandbox.id, command.id)
    await engine.stats(sandbox.id)
    await engine.stop_sandbox(sandbox.id)
    await engine.start_sandbox(sandbox.id)
    await engine.remove_file(sandbox.id, f"{top}/.git", recursive=True)
    await engine.destroy_sandbox(sandbox.id)


async def test_a_hostile_tree_runs_nothing_on_the_host(
    engine: Engine, python: Sandbox, canary: Path, traps: Path
) -> None:
    planted = await engine.exec(python.id, ["python3", "-c", PLANT, str(canary)])
    assert planted.exit_code == 0, planted.stderr
    control = await engine.exec(python.id, "./git; ls /tmp", workdir="/home/user/project")
    assert "ran-inside" in control.stdout
    await engine.remove_file(python.id, "/tmp/ran-inside")
    with programs_started() as started:
        subprocess.run(["git"], check=True)
    assert (started, traps.read_text()) == (["git"], "git\n"), "the traps do not work"
    traps.write_text("")
    with programs_started() as started:
        await every_operation(engine, python)
    assert traps.read_text() == ""
    assert {os.path.basename(name) for name in started} <= {"hutch-init", "os.fork"}, started
    with pytest.raises(HutchError):
        await engine.get_sandbox(python.id)

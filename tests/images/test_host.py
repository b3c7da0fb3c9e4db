"""The image `host`: the host's programs run, and its secrets stay out of reach."""

from __future__ import annotations

import asyncio
import os
import stat
import tarfile
from collections.abc import AsyncIterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest

from hutch import Engine, Sandbox, SandboxConfig, Settings, open_engine
from hutch.errors import IsolationError
from hutch.images.host import host_image
from hutch.images.records import Records


@pytest.fixture
async def engine(tmp_path: Path, settings: Settings) -> AsyncIterator[Engine]:
    """With an image store of its own: the image is of this moment."""
    async with open_engine(data_dir=tmp_path / "data", settings=settings) as engine:
        try:
            yield engine
        finally:
            await engine.shutdown(destroy=True)


@pytest.fixture
async def sandbox(engine: Engine) -> Sandbox:
    return await engine.create_sandbox(SandboxConfig(image="host"))


def unreadable_below(top: str) -> list[str]:
    """Files of the host that only some of its users may read."""
    found = (
        path
        for directory, _, names in os.walk(top)
        for path in (os.path.join(directory, name) for name in names)
        if stat.S_ISREG(mode := os.lstat(path).st_mode) and not mode & stat.S_IROTH
    )
    return [*islice(found, 20)]


async def test_its_programs_run(engine: Engine, sandbox: Sandbox) -> None:
    result = await engine.exec(sandbox.id, "id -un; pwd; python3 -c 'print(6 * 7)'; touch own; ls")
    assert result.stdout.split() == ["user", "/home/user", "42", "own"], result.stderr


async def test_nothing_of_the_host_can_be_changed_or_spied(
    engine: Engine, sandbox: Sandbox
) -> None:
    secrets = unreadable_below("/usr")
    result = await engine.exec(
        sandbox.id, ["cat", "/etc/shadow", "/etc/machine-id", *secrets], user="root"
    )
    assert result.stdout_bytes == b""
    line = "touch /usr/x; rm /usr/bin/id; chmod 4755 /usr/bin/env; ls /root /home /usr/../var"
    result = await engine.exec(sandbox.id, line, user="root")
    assert result.stderr.count("Read-only file system") == 3
    assert result.stdout.split() == ["/home:", "user", "/root:", "/usr/../var:", "tmp"]


async def test_a_directory_that_has_gone_fails_the_creation(engine: Engine, tmp_path: Path) -> None:
    image = await engine.images.pull("host")

    def misdirect() -> None:
        records = Records(tmp_path / "data" / "images")
        record = records.image(image.id)
        assert record is not None
        records.put(replace(record, config=replace(record.config, host_paths=("/gone",))))
        records.name("host", image.id)

    await asyncio.to_thread(misdirect)
    with pytest.raises(IsolationError, match=r"bind.*/gone"):
        await engine.create_sandbox(SandboxConfig(image="host"))
    assert await engine.list_sandboxes() == []


def test_only_what_is_listed_and_public_is_copied(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for name, mode in {
        "etc/shadow": 0o644, "etc/ssh/key": 0o600, "etc/apt/auth.conf": 0o644,
        "etc/ssl/private/key": 0o644, "etc/ssl/certs/own.key": 0o600,
        "etc/ssl/certs/ca.crt": 0o644, "etc/os-release": 0o644, "etc/alternatives/README": 0o644,
    }.items():  # fmt: skip
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
        path.chmod(mode)
    (root / "etc/alternatives/editor").symlink_to("/usr/bin/vi")
    (root / "bin").symlink_to("usr/bin")
    (root / "lib").mkdir()
    config = host_image(tmp_path / "archive", root)
    assert config.host_paths == ("/usr", "/lib")
    with tarfile.open(tmp_path / "archive") as tar:
        names = {name for name in tar.getnames() if name.startswith(("etc/", "bin", "lib"))}
        assert tar.getmember("etc/alternatives/editor").linkname == "/usr/bin/vi"
    assert names == {
        "bin", "lib", "etc/alternatives", "etc/alternatives/README", "etc/alternatives/editor",
        "etc/os-release", "etc/ssl/certs", "etc/ssl/certs/ca.crt", "etc/passwd", "etc/group",
    }  # fmt: skip

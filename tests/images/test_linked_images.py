"""Row F18: images that have links where the runtime makes or mounts something."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from hutch import SandboxConfig, Settings, open_engine
from hutch.errors import HutchError
from tests.conftest import make_busybox_root

PATHS = ["dev/pts", "dev/shm", "dev/null", "etc", "etc/resolv.conf", "etc/hosts", "etc/hostname",
         "etc/passwd", "tmp", "run", "home/user", "proc/self", "sys/fs"]  # fmt: skip


def snapshot(top: Path) -> dict[str, tuple[int, int, bytes]]:
    """Everything below, with owner, mode and content."""
    paths = [top, *top.rglob("*")]
    return {
        str(path): (status.st_uid, status.st_mode, b"" if path.is_dir() else path.read_bytes())
        for path in paths
        if (status := path.lstat())
    }


@pytest.mark.parametrize("path", PATHS)
async def test_a_link_to_the_host(
    data_dir: Path, settings: Settings, tmp_path: Path, path: str
) -> None:
    """Refused, or harmless: what the link leads to is untouched, and cannot be seen from inside."""
    root, canary = tmp_path / "root", tmp_path / "canary"
    make_busybox_root(root)
    canary.mkdir()
    (canary / "secret").write_text("secret")
    is_file = path.startswith("etc/") or path == "dev/null"
    place = root / path
    if place.is_dir():
        shutil.rmtree(place)
    place.unlink(missing_ok=True)
    place.parent.mkdir(exist_ok=True)
    place.symlink_to(canary / "secret" if is_file else canary)
    before = snapshot(canary)
    name = f"linked-{path.replace('/', '-')}-{os.getpid()}"
    refusal = path
    async with open_engine(data_dir=data_dir, settings=settings) as engine:
        await engine.images.pull(f"rootfs:{root}", name=name)
        try:
            sandbox = await engine.create_sandbox(SandboxConfig(image=name))
        except HutchError as error:
            refusal = str(error)
        else:
            line = f"echo evil >>/{path}; echo evil >/{path}/evil; cat /{path} /{path}/secret"
            result = await engine.exec(sandbox.id, line, user="0")
            assert "secret" not in result.stdout
            await engine.destroy_sandbox(sandbox.id)
        assert await engine.list_sandboxes() == []
        await engine.remove_image(name)
    assert path.partition("/")[0] in refusal
    assert snapshot(canary) == before

"""Pulling from a real registry on loopback: Debian's docker-registry."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hutch.errors import ImageNotFoundError
from hutch.images.store import LocalImageStore
from tests.images.builder import LayoutBuilder
from tests.images.test_store import LOWER, UPPER


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[str]:
    """A registry's host:port."""
    program = shutil.which("docker-registry")
    assert program is not None, "apt-get install docker-registry"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = tmp_path / "registry.yml"
    config.write_text(
        f"version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {tmp_path}/registry\n"
        f"http:\n  addr: 127.0.0.1:{port}\nlog:\n  level: error\n"
    )
    process = subprocess.Popen(
        [program, "serve", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except ConnectionRefusedError:
                assert time.monotonic() < deadline, "the registry did not start"
                time.sleep(0.02)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def push(layout: LayoutBuilder, target: str) -> None:
    subprocess.run(
        ["skopeo", "--insecure-policy", "copy", "--dest-tls-verify=false",
         f"oci:{layout.top}:latest", f"docker://{target}"],
        check=True,
        capture_output=True,
    )  # fmt: skip


async def test_tags_digests_and_new_versions(
    store: LocalImageStore, registry: str, tmp_path: Path
) -> None:
    one = LayoutBuilder(tmp_path / "one")
    one.image(LOWER, UPPER, config={"Env": ["V=1"]})
    push(one, f"{registry}/team/tool:v")
    image = await store.pull(f"{registry}/team/tool:v")
    assert image.config.env == {"V": "1"}
    assert os.getxattr(image.layers[2] / "opaque", "user.overlay.opaque") == b"y"
    inspected = subprocess.run(
        ["skopeo", "inspect", "--tls-verify=false", "--format", "{{.Digest}}",
         f"docker://{registry}/team/tool:v"],
        check=True, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    by_digest = await store.pull(f"{registry}/team/tool@{inspected}")
    assert by_digest.id == image.id
    two = LayoutBuilder(tmp_path / "two")
    two.image(LOWER, config={"Env": ["V=2"]})
    push(two, f"{registry}/team/tool:v")
    assert (await store.ensure(f"{registry}/team/tool:v")).id == image.id
    assert (await store.pull(f"{registry}/team/tool:v")).config.env == {"V": "2"}
    with pytest.raises(ImageNotFoundError):
        await store.pull(f"{registry}/team/nothing:v")

"""Files on the native runtime: the suite, a property over many names, and what busybox cannot."""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from hutch import Engine, Sandbox, SandboxConfig
from hutch.errors import FileError, NotRegularFileError
from hutch.runtime.native.identity import Identity, acting_as
from hutch.runtime.native.instance import NativeInstance
from hutch.sync import open_engine
from hutch.testing.files import *


def test_any_name_works_or_is_a_typed_error(data_dir: Path) -> None:
    """Row F2: whatever the path, what is written is what is read, or the error is a file's."""
    with open_engine(data_dir=data_dir) as engine:
        sandbox = engine.create_sandbox(SandboxConfig(image="busybox"))

        @given(name=st.text(min_size=1, max_size=80), data=st.binary(max_size=2000))
        @hypothesis_settings(max_examples=60, deadline=None)
        def check(name: str, data: bytes) -> None:
            try:
                engine.write_file(sandbox.id, f"/tmp/{name}", data)
            except FileError:
                return
            assert engine.read_file(sandbox.id, f"/tmp/{name}") == data

        try:
            check()
        finally:
            engine.destroy_sandbox(sandbox.id)


def instance_of(engine: Engine, sandbox: Sandbox) -> NativeInstance:
    instance = engine._held[sandbox.id][1]
    assert isinstance(instance, NativeInstance)
    return instance


def from_outside(engine: Engine, sandbox: Sandbox, path: str) -> str:
    return f"/proc/{instance_of(engine, sandbox).pid}/root{path}"


async def test_a_move_that_copies_keeps_attributes(engine: Engine, sandbox: Sandbox) -> None:
    await engine.write_file(sandbox.id, "/home/user/f", b"x", user="user", mode=0o400)
    for path in ("/home", "/home/user", "/home/user/f"):
        os.setxattr(from_outside(engine, sandbox, path), "user.of", path.encode())
    await engine.move(sandbox.id, "/home", "/moved")
    for path in ("/home", "/home/user", "/home/user/f"):
        moved = from_outside(engine, sandbox, path.replace("home", "moved"))
        assert os.getxattr(moved, "user.of") == path.encode()


async def test_a_socket_is_not_copied_and_nothing_is_left(engine: Engine, sandbox: Sandbox) -> None:
    await engine.write_file(sandbox.id, "/home/user/d/f", b"x")
    place = from_outside(engine, sandbox, "/home/user/d/socket")
    uid_base = instance_of(engine, sandbox).files._uid_base

    def make_socket() -> None:
        with acting_as(Identity(0, 0), uid_base), closing(socket.socket(socket.AF_UNIX)) as made:
            made.bind(place)

    await asyncio.to_thread(make_socket)
    for source in ("/home", "/home/user/d/socket"):
        with pytest.raises(NotRegularFileError) as caught:
            await engine.move(sandbox.id, source, "/dev/shm/moved")
        assert caught.value.path == source
    assert await engine.list_dir(sandbox.id, "/dev/shm") == []
    assert await engine.read_file(sandbox.id, "/home/user/d/f") == b"x"
    await engine.move(sandbox.id, "/home/user/d/socket", "/socket")  # is renamed: it is one mount

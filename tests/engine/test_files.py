"""Files on the native runtime: the suite, and a property over many names."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from hutch import SandboxConfig
from hutch.errors import FileError
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

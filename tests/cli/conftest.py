from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

Hutch = Callable[..., "subprocess.CompletedProcess[bytes]"]
ARGV = [sys.executable, "-m", "hutch.cli.main"]


@pytest.fixture
def environment(data_dir: Path) -> dict[str, str]:
    return {
        **os.environ,
        "HUTCH_DATA_DIR": str(data_dir),
        "HUTCH_DEFAULT_IMAGE": "busybox",
        "HUTCH_EXEC_GRACE": "0.5",
        "TERM": "dumb",
        "COLUMNS": "200",
    }


@pytest.fixture
def hutch(environment: dict[str, str]) -> Iterator[Hutch]:
    """Run the command line to its end; what it made is destroyed afterwards."""

    def run(
        *arguments: str, stdin: bytes = b"", check: bool = False
    ) -> subprocess.CompletedProcess[bytes]:
        result = subprocess.run(
            [*ARGV, *arguments], input=stdin, capture_output=True, env=environment, timeout=100,
            check=False,
        )  # fmt: skip
        if check:
            assert result.returncode == 0, result.stderr.decode()
        assert b"Traceback" not in result.stderr, result.stderr.decode()
        return result

    yield run
    run("rm", "--all")

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import hutch as package

Hutch = Callable[..., "subprocess.CompletedProcess[bytes]"]
ARGV = [sys.executable, "-m", "hutch.cli.main"]


@pytest.fixture
def environment(data_dir: Path) -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": str(Path(package.__file__).parent.parent),  # from any directory
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
        *arguments: str | bytes,
        stdin: bytes = b"",
        check: bool = False,
        cwd: Path | None = None,
        **variables: str,
    ) -> subprocess.CompletedProcess[bytes]:
        result = subprocess.run(
            [*ARGV, *arguments], input=stdin, capture_output=True, env={**environment, **variables},
            timeout=100, check=False, cwd=cwd,
        )  # fmt: skip
        if check:
            assert result.returncode == 0, result.stderr.decode()
        assert b"Traceback" not in result.stderr, result.stderr.decode()
        return result

    yield run
    run("rm", "--all")

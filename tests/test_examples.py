"""The example that `make run` runs does what it says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).parent.parent


def test_first_light(data_dir: Path, debian: str) -> None:
    ran = subprocess.run(
        [sys.executable, CHECKOUT / "examples/first_light.py"],
        env={**os.environ, "HUTCH_DATA_DIR": str(data_dir)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert "    | wrote report.md\n" in ran.stdout
    assert "Total revenue 964,692.00; the best day was 2026-09-02." in ran.stdout
    assert [*(data_dir / "sandboxes").iterdir()] == []

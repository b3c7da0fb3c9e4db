"""What importing and installing the package does."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import hutch
from hutch import errors

CHECKOUT = Path(__file__).parent.parent


def test_importing_pulls_in_no_third_party_package() -> None:
    code = "import sys; old = {*sys.modules}; import hutch; print(*{*sys.modules} - old)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    purelib = Path(sysconfig.get_paths()["purelib"])
    installed = {path.name.removesuffix(".py") for path in purelib.iterdir()} - {"hutch"}
    assert installed & {name.partition(".")[0] for name in ran.stdout.split()} == set()


def test_all_that_is_promised_is_there() -> None:
    code = "from hutch import *; import hutch; [getattr(hutch, name) for name in dir(hutch)]"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert hutch.HutchError is errors.HutchError
    with pytest.raises(AttributeError, match="nothing"):
        hutch.nothing  # noqa: B018


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that a clone would have."""
    copy = tmp_path_factory.mktemp("source")
    for name in ("src", "native"):
        shutil.copytree(
            CHECKOUT / name, copy / name, ignore=shutil.ignore_patterns("build", "_bin", "__py*")
        )
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "CHANGELOG.md", "LICENSE"):
        shutil.copy(CHECKOUT / name, copy)
    return copy


def pip_install(source: Path, target: Path, path: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target),
         "--disable-pip-version-check", "--root-user-action=ignore", str(source)],
        capture_output=True, text=True, check=False, env={**os.environ, "PATH": path},
    )  # fmt: skip


def test_pip_install_gives_a_working_hutch(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "installed"
    installed = pip_install(source, target, "/usr/local/bin:/usr/bin:/bin")
    assert installed.returncode == 0, installed.stderr
    binary = target / "hutch/_bin/hutch-init"
    assert binary.stat().st_mode & 0o111
    ran = subprocess.run(
        [sys.executable, "-m", "hutch.cli.main", "version"],
        capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(target)}, cwd=tmp_path,
    )  # fmt: skip
    assert ran.stdout.startswith("hutch ")


def test_pip_install_without_a_compiler_says_so(source: Path, tmp_path: Path) -> None:
    installed = pip_install(source, tmp_path / "installed", str(tmp_path))
    assert installed.returncode != 0
    assert "C compiler" in installed.stdout + installed.stderr

"""The data directory: hutch's and this user's alone, or it is left as it is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.cli.conftest import Hutch


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


def test_what_is_made_is_private(hutch: Hutch, tmp_path: Path) -> None:
    place = tmp_path / "new/data"
    assert hutch("--data-dir", str(place), "ls").returncode == 0
    assert mode(place) == 0o700
    assert hutch("--data-dir", str(place), "ls").returncode == 0


@pytest.mark.parametrize("permissions", [0o755, 0o1777, 0o700])
def test_a_directory_of_something_else_is_left_alone(
    hutch: Hutch, tmp_path: Path, permissions: int
) -> None:
    place = tmp_path / "other"
    place.mkdir()
    (place / "file").touch()
    place.chmod(permissions)
    result = hutch("--data-dir", str(place), "ls")
    assert result.returncode == 1
    assert b"holds other things\nhint: " in result.stderr
    assert (mode(place), os.listdir(place)) == (permissions, ["file"])


def test_an_empty_one_is_taken_if_it_is_private(hutch: Hutch, tmp_path: Path) -> None:
    place = tmp_path / "empty"
    place.mkdir(mode=0o700)
    place.chmod(0o755)
    result = hutch("--data-dir", str(place), "ls")
    assert (result.returncode, mode(place)) == (1, 0o755)
    assert f"hint: chmod 700 {place}".encode() in result.stderr
    place.chmod(0o700)
    assert hutch("--data-dir", str(place), "ls").returncode == 0


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make another user's directory")
def test_another_user_s(hutch: Hutch, tmp_path: Path) -> None:
    place = tmp_path / "theirs"
    place.mkdir(mode=0o700)
    os.chown(place, 12345, 12345)
    result = hutch("--data-dir", str(place), "ls")
    assert result.returncode == 1
    assert b"belongs to the user 12345\nhint: run hutch as that user" in result.stderr


def test_a_file(hutch: Hutch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert b"is no directory" in hutch("--data-dir", str(tmp_path / "file"), "ls").stderr


def test_an_empty_variable_is_an_unset_one(hutch: Hutch, data_dir: Path, tmp_path: Path) -> None:
    """It meant the current directory, whatever that was."""
    place = tmp_path / "here"
    place.mkdir()
    place.chmod(0o755)
    config = tmp_path / "config.toml"
    config.write_text(f'data_dir = "{data_dir}"\n')
    result = hutch("ls", cwd=place, HUTCH_DATA_DIR="", HUTCH_CONFIG=str(config))
    assert (result.returncode, mode(place), os.listdir(place)) == (0, 0o755, [])

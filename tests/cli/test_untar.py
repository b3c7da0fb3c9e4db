"""Archives out of a sandbox: nothing beside the target is read, written or linked to."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from hutch.cli.untar import untar
from hutch.errors import FileError
from tests.cli.archives import archive_of, member


@pytest.mark.parametrize(
    "members",
    [
        [member("../escaped")],
        [member("/escaped")],
        [member("a/../../escaped")],
        [member("out", tarfile.SYMTYPE, ".."), member("out/escaped")],
        [member("out", tarfile.SYMTYPE, "../canary"), member("out")],
        [member("file", tarfile.LNKTYPE, "../canary")],
        [member("out", tarfile.SYMTYPE, ".."), member("file", tarfile.LNKTYPE, "out/canary")],
        [member("device", tarfile.CHRTYPE)],
        [member("fifo", tarfile.FIFOTYPE)],
        [member("file"), member("file")],
    ],
)
def test_what_no_honest_tree_has(tmp_path: Path, members: list[tarfile.TarInfo]) -> None:
    canary = tmp_path / "canary"
    canary.write_text("untouched")
    (tmp_path / "archive").write_bytes(archive_of(*members))
    with pytest.raises(FileError):
        untar(tmp_path / "archive", tmp_path / "target")
    assert {path.name for path in tmp_path.iterdir()} == {"archive", "canary", "target"}
    assert (canary.read_text(), canary.stat().st_nlink) == ("untouched", 1)


@pytest.mark.parametrize("damage", [b"", b"not an archive", archive_of(member("a"))[:300]])
def test_what_is_no_archive(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "archive").write_bytes(damage)
    with pytest.raises(FileError):
        untar(tmp_path / "archive", tmp_path / "target")


def test_links_to_links(tmp_path: Path) -> None:
    members = [member("a", tarfile.SYMTYPE, "/x"), member("b", tarfile.LNKTYPE, "a")]
    (tmp_path / "archive").write_bytes(archive_of(*members))
    untar(tmp_path / "archive", tmp_path / "target")
    assert (tmp_path / "target/b").readlink() == Path("/x")

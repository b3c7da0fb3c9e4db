"""Archives out of a sandbox: nothing beside the target is read, written or linked to."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from pathlib import Path

import pytest

from hutch.cli.untar import untar
from hutch.errors import FileError
from hutch.linux.tree import remove_tree
from tests.cli.archives import archive_of, member
from tests.images.builder import Entry, archive, symlink
from tests.images.test_tar import REFUSED, pax


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
    with pytest.raises(FileError):
        untar(io.BytesIO(archive_of(*members)), tmp_path / "target")
    assert {path.name for path in tmp_path.iterdir()} == {"canary", "target"}
    assert (canary.read_text(), canary.stat().st_nlink) == ("untouched", 1)


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"not an archive",
        archive_of(member("a"))[:300],
        gzip.compress(archive_of(member("a"))),
        archive_of(member("a")) + bytes(2 * 1024**2),
        pytest.param(REFUSED["a time without end"], id="mtime"),
        pytest.param(REFUSED["headers of headers"], id="nesting"),
        pytest.param(REFUSED["a great pax header"], id="header"),
        pytest.param(pax(path="a\0b"), id="NUL"),
        pytest.param(archive(Entry("n" * 300)), id="name"),
        pytest.param(archive(symlink("a", "n" * 5000)), id="link"),
    ],
)
def test_what_is_no_archive(tmp_path: Path, damage: bytes) -> None:
    with pytest.raises(FileError):
        untar(io.BytesIO(damage), tmp_path / "target")


def test_links_to_links(tmp_path: Path) -> None:
    members = [member("a", tarfile.SYMTYPE, "/x"), member("b", tarfile.LNKTYPE, "a")]
    untar(io.BytesIO(archive_of(*members)), tmp_path / "target")
    assert (tmp_path / "target/b").readlink() == Path("/x")


def test_deep_trees(tmp_path: Path) -> None:
    names = ["d/" * 1900, "d/" * 1900 + "file"]
    untar(io.BytesIO(archive(*map(Entry, names[1:]))), tmp_path / "target")
    top = os.open(tmp_path, os.O_RDONLY)
    remove_tree(top, "target")
    os.close(top)


def test_holes_stay_holes(tmp_path: Path) -> None:
    """Row F13: of 8 TiB only what is there is written."""
    size = 8 * 1024**4
    data = pax(GNU__sparse__size=str(size), GNU__sparse__map=f"{size // 2},1,{size},0")
    untar(io.BytesIO(data), tmp_path / "target")
    status = (tmp_path / "target/x").stat()
    assert (status.st_size, status.st_blocks <= 16) == (size, True)


def test_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hutch.cli.untar._MAX_REMEMBERED", 10_000)
    members = [member(f"{n}", tarfile.SYMTYPE, "x") for n in range(100)]
    with pytest.raises(FileError, match="too many"):
        untar(io.BytesIO(archive_of(*members)), tmp_path / "target")

"""Reading archives: what GNU tar and tarfile write in each format, and what nobody honest does."""

from __future__ import annotations

import io
import os
import random
import subprocess
import tarfile
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.linux.tar import MAX_HEADER, Kind, Member, TarError, TarReader
from tests.images.builder import Entry, archive, directory, hard_link, symlink

LONG = "d/" + "n" * 90 + "/" + "m" * 90


def contents(data: bytes) -> dict[str, tuple[Member, bytes]]:
    """Every member, with its file's content."""
    reader = TarReader(io.BytesIO(data))
    found = {}
    for member in reader:
        fd = os.memfd_create("content")
        try:
            if member.kind is Kind.FILE:
                reader.copy_to(fd)
            found[member.name] = member, os.pread(fd, min(member.size, 2**20), 0)
        finally:
            os.close(fd)
    return found


def make_tree(top: Path) -> None:
    (top / LONG).parent.mkdir(parents=True)
    (top / LONG).write_bytes(os.urandom(3000))
    (top / "empty").touch()
    (top / "exact").write_bytes(os.urandom(1024))
    (top / "link").symlink_to("x" * 90)
    os.link(top / "exact", top / "twin")
    os.mkfifo(top / "fifo")
    (top / "suid").write_bytes(b"x")
    os.chown(top / "suid", 1234, 65_535)
    (top / "suid").chmod(0o6751)
    os.utime(top / "suid", ns=(0, 1_234_567_890_987_654_321))


@pytest.mark.parametrize("kind", ["v7", "ustar", "oldgnu", "gnu", "posix"])
def test_what_gnu_tar_writes(tmp_path: Path, kind: str) -> None:
    make_tree(tmp_path / "t")
    if kind == "v7":
        (tmp_path / "t" / LONG).unlink()
        (tmp_path / "t/fifo").unlink()
    argv = [
        "tar",
        "-C",
        str(tmp_path / "t"),
        f"--format={kind}",
        "--numeric-owner",
        "-cf",
        "-",
        ".",
    ]
    data = subprocess.run(argv, capture_output=True, check=True).stdout
    found = contents(data)
    for path in (tmp_path / "t").rglob("*"):
        name = f"./{path.relative_to(tmp_path / 't')}"
        member, content = found[name + "/" if path.is_dir() and not path.is_symlink() else name]
        status = path.lstat()
        assert (member.uid, member.gid) == (status.st_uid, status.st_gid)
        grain = 1 if kind == "posix" else 10**9
        assert member.mtime_ns == status.st_mtime_ns // grain * grain
        if member.kind is Kind.SYMLINK:
            assert member.link == os.readlink(path)
        elif member.kind is Kind.HARD_LINK:
            assert path.samefile(tmp_path / "t" / member.link)
        else:
            assert member.mode == status.st_mode & 0o7777
        if member.kind is Kind.FILE:
            assert content == path.read_bytes()


@pytest.mark.parametrize("kind", ["oldgnu", "gnu", "0.0", "0.1", "1.0"])
@pytest.mark.parametrize("pieces", [0, 1, 3, 40])
def test_sparse_files_keep_their_holes(tmp_path: Path, kind: str, pieces: int) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        for piece in range(pieces):
            file.seek(piece * 1024**2 + 4096)
            file.write(os.urandom(5000))
        file.truncate(pieces * 1024**2 + 1024**2)
    form = [f"--format={kind}"] if "gnu" in kind else ["--format=posix", f"--sparse-version={kind}"]
    argv = ["tar", "-C", str(tmp_path), *form, "--sparse", "-cf", "-", "sparse", "/etc/passwd"]
    data = subprocess.run(argv, capture_output=True, check=True).stdout
    reader = TarReader(io.BytesIO(data))
    members = iter(reader)
    member = next(members)
    with (tmp_path / "copy").open("wb") as file:
        reader.copy_to(file.fileno())
    assert (member.name, next(members).name) == ("sparse", "etc/passwd")
    assert list(members) == []
    assert (tmp_path / "copy").read_bytes() == path.read_bytes()
    assert (tmp_path / "copy").stat().st_blocks <= path.stat().st_blocks


def test_zeros_become_holes(tmp_path: Path) -> None:
    data = b"x" + bytes(3 * 1024**2) + b"y" + bytes(5)
    reader = TarReader(io.BytesIO(archive(Entry("f", data))))
    next(iter(reader))
    with (tmp_path / "f").open("wb") as file:
        reader.copy_to(file.fileno())
    assert (tmp_path / "f").read_bytes() == data
    assert (tmp_path / "f").stat().st_blocks * 512 < 1024**2


def test_attributes_and_odd_bytes() -> None:
    name = "é" + os.fsdecode(b"\xff\n") + "n" * 200
    data = archive(Entry(name, b"x", xattrs={"user.a": "v=\n1", "user.b": ""}))
    member, content = contents(data)[name]
    assert (member.xattrs, content) == ({"user.a": b"v=\n1", "user.b": b""}, b"x")


def pax(**records: str) -> bytes:
    """A file `x` with one byte, with a header of these records."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("x")
        info.size = 1
        info.pax_headers = {key.replace("__", "."): value for key, value in records.items()}
        tar.addfile(info, io.BytesIO(b"x"))
    return buffer.getvalue()


def header(kind: bytes, size: int, data: bytes = b"", name: str = "x") -> bytes:
    """A header of a type, that claims a size."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512)


def raw_pax(data: bytes) -> bytes:
    return header(b"x", len(data), data) + header(b"0", 0) + bytes(1024)


END = bytes(1024)
REFUSED = {
    "a time without end": pax(mtime="inf"),
    "a time that is none": pax(mtime="nan"),
    "a long time": pax(mtime="9" * 5000),
    "a size that is none": pax(size="many"),
    "a negative size": pax(size="-512"),
    "a size beyond all": pax(size="9" * 19),
    "headers of headers": header(b"x", 512, bytes(512)) * 3000 + END,
    "sound headers of headers": header(b"x", 6, b"6 a=b\n") * 3000 + header(b"0", 0) + END,
    "long names of long names": header(b"L", 2, b"n\0") * 3000 + header(b"0", 0) + END,
    "a great pax header": header(b"x", MAX_HEADER + 1),
    "a great global header": header(b"g", MAX_HEADER + 1),
    "a great long name": header(b"L", 10**12),
    "a great long link": header(b"K", 10**12),
    "a negative header": header(b"x", -512) + END,
    "a path too long": header(b"L", 5000, b"n" * 5000) + header(b"0", 0) + END,
    "global headers without end": (header(b"g", 50_006, b"50006 a=" + b"b" * 49_997 + b"\n")
                                   + header(b"0", 0)) * 3 + END,
    "a record without end": raw_pax(b"9999 path=x\n"),
    "a record of nothing": raw_pax(b"0 a=b\n"),
    "a record without a line's end": raw_pax(b"8 ab=cd1"),
    "a record without a length": raw_pax(b"path=x\n"),
    "a record without a key": raw_pax(b"6 =bc\n"),
    "digits without end": raw_pax(b"1" * MAX_HEADER),
    "a header only": header(b"x", 6, b"6 a=b\n"),
    "a map that goes back": pax(GNU__sparse__size="100", GNU__sparse__map="50,1,10,0"),
    "a map beyond the file": pax(GNU__sparse__size="10", GNU__sparse__map="50,1"),
    "a map of more than there is": pax(GNU__sparse__size="100", GNU__sparse__map="0,50"),
    "a negative map": pax(GNU__sparse__size="100", GNU__sparse__map="-5,1"),
    "half a map": pax(GNU__sparse__size="100", GNU__sparse__map="0,1,5"),
    "a file beyond all": pax(GNU__sparse__size="9" * 19, GNU__sparse__map="0,1"),
    "a map that is not there": pax(GNU__sparse__major="1", GNU__sparse__realsize="1"),
    "a map in data without end": header(
        b"x", 46, b"22 GNU.sparse.major=1\n24 GNU.sparse.minor=0\n"[:46]
    ) + header(b"0", 10**12, b"9" * 10_240) + END,
    "an unknown type": header(b"V", 0) + END,
    "a wrong checksum": bytes(100) + b"1" + bytes(411) + END,
    "no end mark": header(b"0", 0),
    "nothing": b"",
}  # fmt: skip


@pytest.mark.parametrize("case", sorted(REFUSED))
def test_what_is_refused(case: str) -> None:
    """Row F6; in memory and time that the archive's own size bounds."""
    started = time.monotonic()
    with pytest.raises(TarError):
        contents(REFUSED[case])
    assert time.monotonic() - started < 2


def test_times_that_filesystems_cannot_have(tmp_path: Path) -> None:
    for given_time in ("9" * 19, "-" + "9" * 19, "-1.5", "5.25", "7."):
        ((member, _),) = contents(pax(mtime=given_time)).values()
        os.utime(tmp_path, ns=(member.mtime_ns, member.mtime_ns))
    assert contents(pax(mtime="-1.5"))["x"][0].mtime_ns == -1_500_000_000


SOUND = archive(
    directory("d"), Entry("d/" + "é" * 120, os.urandom(700), xattrs={"user.a": "b"}, uid=70_000),
    symlink("s", "t" * 200), hard_link("h", "s"), Entry("fifo", type=tarfile.FIFOTYPE),
)  # fmt: skip


@given(
    changes=st.lists(
        st.tuples(st.integers(0, len(SOUND) - 1), st.integers(0, 255)), min_size=1, max_size=8
    ),
    fixed=st.booleans(),
)
def test_corrupt_archives(changes: list[tuple[int, int]], fixed: bool) -> None:
    """Whatever is in it, nothing but a TarError comes out, or that a file is too large to be."""
    data = bytearray(SOUND)
    for place, value in changes:
        data[place] = value
        if fixed and any(data[place - place % 512 :][:512]):
            start = place - place % 512
            total = sum(data[start : start + 148]) + 256 + sum(data[start + 156 : start + 512])
            data[start + 148 : start + 156] = b"%06o\0 " % total
    try:
        contents(bytes(data))
    except (TarError, OSError):
        pass


def test_random_bytes() -> None:
    generator = random.Random(1)
    for size in range(0, 5000, 97):
        with pytest.raises(TarError):
            contents(generator.randbytes(size))

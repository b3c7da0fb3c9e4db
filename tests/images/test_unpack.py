"""The unpacker: what it can do once confined, and what hostile archives cost or reach."""

from __future__ import annotations

import asyncio
import bz2
import encodings
import gzip
import io
import json
import lzma
import os
import signal
import stat
import subprocess
import sys
import tarfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import zstandard

import hutch.images.unpack
from hutch.errors import ImageError, ImageVerificationError
from hutch.images.store import LocalImageStore
from hutch.images.syscall_filter import unpacker_filter
from tests.images.builder import Entry, LayoutBuilder, archive, directory
from tests.images.test_tar import END, header, pax

MIB = 1024**2
ARGV = [sys.executable, "-P", "-X", "utf8", "-m", "hutch.images.unpack"]


@dataclass(frozen=True)
class Ending:
    """How an unpacker ended."""

    said: dict[str, object]
    stderr: bytes
    peak_memory: int
    seconds: float


MEASURE = """
import resource, subprocess, sys
subprocess.run(sys.argv[2:])
with open(sys.argv[1], "w") as file:
    file.write(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024))
"""
"""In between, as a process's peak begins with that of the one that started it."""


def run(blob: bytes, target: Path) -> Ending:
    """Unpack a blob, without the store around it."""
    target.mkdir()
    (target.parent / "blob").write_bytes(blob)
    peak = target.parent / "peak"
    started = time.monotonic()
    with (target.parent / "blob").open("rb") as stdin:
        result = subprocess.run(
            [sys.executable, "-c", MEASURE, peak, *ARGV, target],
            stdin=stdin, capture_output=True, check=True,
        )  # fmt: skip
    said = json.loads(result.stdout.splitlines()[-1])
    return Ending(said, result.stderr, int(peak.read_text()), time.monotonic() - started)


# -- C1: the interpreter reads nothing of the layer ---------------------------------------------

PWN = b"""
import os
os.close(os.open('/PWNED', os.O_CREAT | os.O_WRONLY))
import codecs
def getregentry(): return codecs.lookup('utf-8')
"""


def continued(*parts: bytes) -> bytes:
    """Archives one after the other, without the end marks between them."""
    joined = b""
    for part in parts:
        end = len(part) - len(part) % 512
        while end >= 512 and not any(part[end - 512 : end]):
            end -= 512
        joined += part[:end]
    return joined + END


def hijacking(trigger: bytes) -> bytes:
    """A layer with the interpreter's own source files, in a code page of the layer's."""
    source = Path(hutch.images.unpack.__file__)
    lines = b"# -*- coding: pwn -*-\n" * 2 + b"x\n" * 1000
    modules = [source, source.parent / "confinement.py", source.parents[1] / "linux/tar.py"]
    modules += [Path(tarfile.__file__), Path(gzip.__file__), Path(os.__file__)]
    codecs = [
        Path(encodings.__file__).with_name(f"{name}.py")
        for name in ("pwn", "ascii", "idna", "punycode", "latin_1")
    ]
    hostile = [Entry(str(path), lines) for path in modules]
    hostile += [Entry(str(path), PWN) for path in codecs]
    return continued(archive(*hostile), trigger)


TRIGGERS = {
    "mtime": pax(mtime="inf"),
    "nesting": header(b"x", 6, b"6 a=b\n") * 5000 + header(b"0", 0),
    "depth": archive(directory("d/" * 1020)),
    "character set": pax(hdrcharset="pwn", path="\udcff"),
    "NUL in a path": pax(path="a\0b"),
    "a map": pax(GNU__sparse__size="9" * 18, GNU__sparse__map="0,1"),
}


@pytest.mark.parametrize("case", sorted(TRIGGERS))
def test_the_interpreter_reads_nothing_of_the_layer(tmp_path: Path, case: str) -> None:
    ending = run(hijacking(TRIGGERS[case]), tmp_path / "layer")
    assert ending.stderr == b""
    assert ending.said.keys() & {"problem", "diff_id"}
    assert not (tmp_path / "layer/PWNED").exists()
    subprocess.run(["rm", "-r", tmp_path / "layer"], check=True)  # pytest cannot: it is deep


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt, MemoryError, RecursionError, SystemExit, OSError]
)
def test_whatever_is_raised_ends_in_one_line(tmp_path: Path, error: type[BaseException]) -> None:
    script = (
        "import sys; from hutch.images import unpack\n"
        f"def fail(*_): raise {error.__name__}\n"
        "unpack.TarReader = fail\n"
        "unpack.main()"
    )
    (tmp_path / "layer").mkdir()
    result = subprocess.run(
        [sys.executable, "-P", "-c", script, tmp_path / "layer"],
        input=archive(), capture_output=True, check=False,
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (1, b"")
    assert "problem" in json.loads(result.stdout)


# -- the confinement ------------------------------------------------------------------------------


@contextmanager
def waiting_unpacker(target: Path) -> Iterator[int]:
    """The pid of a confined unpacker that waits for its archive."""
    target.mkdir()
    with subprocess.Popen([*ARGV, target], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as outer:
        assert outer.stdin is not None
        children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children")
        deadline = time.monotonic() + 20
        while (
            not (pids := children.read_text().split())
            or "Seccomp:\t2" not in Path(f"/proc/{pids[0]}/status").read_text()
        ):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield int(pids[0])
        outer.stdin.close()


def test_what_a_confined_unpacker_has(tmp_path: Path) -> None:
    with waiting_unpacker(tmp_path / "layer") as pid:
        proc = Path(f"/proc/{pid}")
        for name in ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup"):
            assert os.readlink(proc / "ns" / name) != os.readlink(f"/proc/self/ns/{name}"), name
        status = dict(line.split(":\t", 1) for line in (proc / "status").read_text().splitlines())
        assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
        four = "000000000000001b"
        assert (status["CapEff"], status["CapPrm"], status["CapBnd"]) == (four, four, four)
        assert status["NSpid"].split()[1:] == ["1"]
        for name in ("uid_map", "gid_map"):
            extents = [line.split() for line in (proc / name).read_text().splitlines()]
            assert sum(int(extent[2]) for extent in extents) == 65_536
        assert sorted(os.listdir(proc / "fd")) == ["0", "1", "2"]
        assert os.listdir(proc / "root") == []
        assert len((proc / "mountinfo").read_text().splitlines()) == 1
        assert f"{512 * MIB}" in (proc / "limits").read_text()


ATTACKS = {
    "signal the host": "os.kill(int(sys.argv[2]), 0)",
    "signal anything": "os.kill(-1, 0)",
    "run a program": "os.execv('/x', ['x'])",
    "start a process": "os.fork()",
    "open a socket": "socket.socket()",
    "make a namespace": "syscalls.unshare(0x10000000)",
    "mount": "syscalls.mount(b'/', b'/', 4096)",
    "change root": "os.chroot('/')",
    "leave the root": "os.chdir('..')",
    "make a device": "os.mknod('/d', 0o020666, os.makedev(1, 3))",
    "become somebody": "os.setuid(1000)",
    "take a limit back": "resource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
    "memory that runs": "mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC)",
    "memory without end": "bytearray(600 * 1024**2)",
    "read the host": "open('/etc/passwd')",
    "read it by climbing": "open('/../../../../../../etc/passwd')",
    "read its processes": "open('/proc/self/status')",
    "take an id beyond": "os.chown('/', 70000, 0)",
    "a file capability": "os.setxattr('/f', 'security.capability', b'\\1\\0\\0\\2' + b'\\1' * 16)",
    "an overlay of the host": "os.setxattr('/f', 'trusted.overlay.opaque', b'y')",
}


@pytest.mark.parametrize("attack", sorted(ATTACKS))
def test_what_a_confined_unpacker_cannot_do(tmp_path: Path, attack: str) -> None:
    script = (
        "import mmap, os, resource, socket, sys\n"
        "from hutch.images.confinement import confine\n"
        "from hutch.linux import syscalls\n"
        "confine(sys.argv[1])\n"
        "os.close(os.open('/f', os.O_CREAT | os.O_WRONLY))\n"
        "os.chown('/f', 65535, 1)\n"
        "try:\n"
        f"    {ATTACKS[attack]}\n"
        "except (OSError, MemoryError) as error:\n"
        "    os.write(1, b'refused')\n"
        "os._exit(0)\n"
    )
    layer = tmp_path / "layer"
    layer.mkdir()
    victim = subprocess.Popen(["sleep", "100"])
    try:
        result = subprocess.run(
            [sys.executable, "-P", "-c", script, layer, str(victim.pid)],
            capture_output=True, check=False,
        )  # fmt: skip
        assert (result.stdout, result.stderr) == (b"refused", b"")
        assert ((layer / "f").stat().st_uid, (layer / "f").stat().st_gid) == (65_535, 1)
        assert victim.poll() is None
    finally:
        victim.kill()
        victim.wait()


def test_the_filter_is_made_for_both_architectures() -> None:
    for machine in ("x86_64", "aarch64"):
        assert len(unpacker_filter(machine)) % 8 == 0


async def test_an_unpacker_ends_with_the_process_that_asked_for_it(tmp_path: Path) -> None:
    with waiting_unpacker(tmp_path / "layer") as pid:
        outer = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        pidfd = os.pidfd_open(pid)
        try:
            os.kill(outer, signal.SIGKILL)
            signalled = False
            for _ in range(500):
                status = Path(f"/proc/{pid}/stat")
                if not status.exists() or ") Z" in status.read_text():
                    signalled = True
                    break
                await asyncio.sleep(0.01)
            assert signalled
        finally:
            os.close(pidfd)


# -- H6: bombs ------------------------------------------------------------------------------------


def bomb(kind: bytes, mib: int) -> bytes:
    """A gzip of a header that claims, and has, that much."""
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", compresslevel=1) as file:
        file.write(header(kind, mib * MIB))
        for _ in range(mib):
            file.write(bytes(MIB))
        file.write(END)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", [b"x", b"g", b"L", b"K"])
def test_headers_that_are_bombs(tmp_path: Path, kind: bytes) -> None:
    ending = run(bomb(kind, 300), tmp_path / "layer")
    assert "extended header" in str(ending.said["problem"])
    assert ending.peak_memory < 128 * MIB
    assert ending.seconds < 10


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_memory_is_bounded_whatever_the_compression(
    tmp_path: Path, compress: Callable[[bytes], bytes]
) -> None:
    data = archive(Entry("f", os.urandom(100_000) + bytes(200 * MIB)))
    ending = run(compress(data), tmp_path / "layer")
    assert "diff_id" in ending.said
    assert (tmp_path / "layer/f").stat().st_size == 100_000 + 200 * MIB
    assert (tmp_path / "layer/f").stat().st_blocks * 512 < 2 * MIB
    assert ending.peak_memory < 200 * MIB


def test_a_decompressor_that_wants_more_memory_than_there_is(tmp_path: Path) -> None:
    ending = run(_claims_a_dictionary(), tmp_path / "layer")
    assert "memory" in str(ending.said["problem"])
    assert ending.peak_memory < 128 * MIB


def _claims_a_dictionary() -> bytes:
    """An xz stream whose header says 4 GiB - 1, which nothing checks before it is allocated."""
    data = bytearray(lzma.compress(archive(Entry("f", os.urandom(10_000)))))
    block = data[12 : 12 + (data[12] + 1) * 4]
    place = block.index(b"\x21\x01") + 2  # the LZMA2 filter's id, the size of its properties
    block[place] = 40
    block[-4:] = zlib.crc32(block[:-4]).to_bytes(4, "little")
    data[12 : 12 + len(block)] = block
    return bytes(data)


def test_what_expands_a_thousandfold(tmp_path: Path) -> None:
    """Row F6: beyond a gibibyte an archive that grows more than a thousandfold is refused."""
    compressor = zstandard.ZstdCompressor(level=1)
    buffer = io.BytesIO()
    with compressor.stream_writer(buffer, closefd=False) as file:
        file.write(header(b"0", 8 * 1024 * MIB))
        for _ in range(1100):
            file.write(bytes(MIB))
    ending = run(buffer.getvalue(), tmp_path / "layer")
    assert "bomb" in str(ending.said["problem"])
    assert ending.peak_memory < 256 * MIB


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 64 MiB."""
    path = tmp_path / "small"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", path], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", path], check=True)


async def test_a_disk_is_not_filled(tmp_path: Path, small_disk: Path) -> None:
    """F6: what does not fit stops while a twentieth of the disk is free, and is taken away."""
    (tmp_path / "big.tar").write_bytes(archive(Entry("f", os.urandom(80 * MIB))))
    store = LocalImageStore(small_disk / "store", aliases={}, insecure_registries=())
    least = [2**63]

    async def watch() -> None:
        while True:
            disk = os.statvfs(small_disk)
            least[0] = min(least[0], disk.f_bavail * disk.f_frsize)
            await asyncio.sleep(0.001)

    watching = asyncio.create_task(watch())
    with pytest.raises(ImageError, match="bytes of the disk are free") as caught:
        await store.pull(f"rootfs:{tmp_path / 'big.tar'}", name="big")
    watching.cancel()
    assert not isinstance(caught.value, ImageVerificationError)
    assert least[0] > MIB
    disk = os.statvfs(small_disk)
    assert disk.f_bavail * disk.f_frsize > 60 * MIB
    assert await store.list() == []


# -- rows of abuse --------------------------------------------------------------------------------


async def test_a_character_device_0_0_is_a_whiteout(store: LocalImageStore, tmp_path: Path) -> None:
    """Row F10: as overlayfs has them, so that what is below stays hidden; never any other."""
    layout = LayoutBuilder(tmp_path / "layout")
    layout.image(
        archive(Entry("gone", b"x"), Entry("kept", b"x")),
        archive(Entry("gone", type=tarfile.CHRTYPE), Entry("b", type=tarfile.BLKTYPE),
                Entry("kept", type=tarfile.CHRTYPE, device=(1, 3), mode=0o666)),
    )  # fmt: skip
    upper = (await store.pull(f"oci:{layout.top}")).layers[2]
    assert [path.name for path in upper.iterdir()] == ["gone"]
    assert stat.S_ISCHR((upper / "gone").lstat().st_mode)
    assert (upper / "gone").lstat().st_rdev == 0


async def test_many_entries_and_long_names(store: LocalImageStore, tmp_path: Path) -> None:
    """Row F16."""
    names = [f"d{n % 100}/" + f"{n:06}".ljust(90, "n") for n in range(100_000)]
    names += [f"long/{n:06}".ljust(255, "n") for n in range(1000)]
    with tarfile.open(tmp_path / "many.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        for name in [*names, "/".join(["deep" * 3] * 300) + "/e\x1b\n"]:
            tar.addfile(tarfile.TarInfo(name))
    started = time.monotonic()
    layer = (await store.pull(f"rootfs:{tmp_path / 'many.tar'}", name="many")).layers[1]
    assert time.monotonic() - started < 60
    assert sum(len(os.listdir(layer / f"d{n}")) for n in range(100)) == 100_000
    assert len(os.listdir(layer / "long")) == 1000
    await store.remove("many")
    assert not layer.exists()


async def test_a_tree_that_a_sandbox_left(store: LocalImageStore, tmp_path: Path) -> None:
    """Row F20: what an imported directory has that an image may not."""
    root = tmp_path / "root"
    root.mkdir()
    for name in ("suid", "attr", "foreign"):
        (root / name).write_bytes(b"x")
    (root / "suid").chmod(0o6755)
    os.setxattr(root / "attr", "user.mine", b"v")
    os.setxattr(root / "attr", "trusted.overlay.opaque", b"y")
    os.setxattr(root / "attr", "security.capability", b"\1\0\0\2" + b"\1" * 16)
    os.chown(root / "foreign", 65_535, 65_535)
    (root / "absolute").symlink_to("/etc/shadow")
    os.mknod(root / "whiteout", stat.S_IFCHR, os.makedev(0, 0))
    os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(root / "disk", stat.S_IFBLK | 0o666, os.makedev(8, 0))
    layer = (await store.pull(f"rootfs:{root}", name="left")).layers[1]
    names = {path.name for path in layer.iterdir()}
    assert names == {"suid", "attr", "foreign", "absolute", "whiteout"}
    assert stat.S_IMODE((layer / "suid").stat().st_mode) == 0o6755  # nosuid is in force above it
    assert os.listxattr(layer / "attr") == ["user.mine"]
    assert (layer / "foreign").stat().st_uid == 65_535
    assert os.readlink(layer / "absolute") == "/etc/shadow"
    assert (layer / "whiteout").lstat().st_rdev == 0
    os.chown(root / "foreign", 65_536, 0)
    with pytest.raises(ImageVerificationError, match="65536"):
        await store.pull(f"rootfs:{root}", name="left")


async def test_an_unpacker_that_lies(
    store: LocalImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it says is checked, should hostile code have taken it over."""
    (tmp_path / "a.tar").write_bytes(archive(Entry("x")))
    liar = tmp_path / "liar"
    digest = "sha256:" + "0" * 64
    for said in (
        b"[" * 100_000, b"x" * 3 * MIB, b"\xff", b"{}", b"[]", b"7", b'{"read": "x"}',
        b'{"diff_id": "../../../x", "digest": "%b", "size": 1}' % digest.encode(),
        b'{"diff_id": 1, "digest": 1, "size": 1}',
    ):  # fmt: skip
        (tmp_path / "said").write_bytes(said + b"\n")
        liar.write_text(f"#!/bin/sh\nexec cat {tmp_path}/said\n")
        liar.chmod(0o755)
        monkeypatch.setattr("hutch.images.layers.sys.executable", str(liar))
        with pytest.raises(ImageError):
            await store.pull(f"rootfs:{tmp_path / 'a.tar'}", name="a")
    assert not (tmp_path / "x").exists()
    assert [*(tmp_path / "store/work").iterdir()] == []

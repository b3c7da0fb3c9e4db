"""The image store: sources, layers as overlayfs wants them, one unpacking for all who ask."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from hutch import SandboxConfig, Settings, open_engine
from hutch.errors import (
    ImageError,
    ImageNotFoundError,
    ImagePullError,
    ImageVerificationError,
    InUseError,
    InvalidRequestError,
)
from hutch.images.store import LocalImageStore
from hutch.models import PullProgress
from tests.conftest import make_busybox_root
from tests.images.builder import Entry, LayoutBuilder, archive, directory, hard_link, symlink

LOWER = archive(
    directory("etc"), Entry("etc/one", b"1"), Entry("etc/two", b"2"), directory("gone"),
    Entry("gone/x", b"x"), directory("opaque"), Entry("opaque/below", b"x"),
    Entry("kept", b"kept", uid=1000, gid=2000, mode=0o4751),
)  # fmt: skip
UPPER = archive(
    directory("etc"), Entry("etc/.wh.one"), Entry(".wh.gone"), directory("opaque"),
    Entry("opaque/.wh..wh..opq"), Entry("opaque/above", b"x"), Entry("etc/two", b"two"),
)  # fmt: skip


async def test_layers_become_what_overlayfs_wants(store: LocalImageStore, tmp_path: Path) -> None:
    layout = LayoutBuilder(tmp_path / "layout")
    layout.image(LOWER, UPPER, config={"Env": ["A=b=c"], "WorkingDir": "/etc", "User": "1000",
                                       "Cmd": ["sh"], "Labels": {"k": "v"}})  # fmt: skip
    image = await store.pull(f"oci:{layout.top}")
    skeleton, lower, upper = image.layers
    assert (skeleton / "proc").is_dir()
    kept = (lower / "kept").stat()
    assert (kept.st_uid, kept.st_gid, stat.S_IMODE(kept.st_mode)) == (1000, 2000, 0o4751)
    for name in ("etc/one", "gone"):
        whiteout = (upper / name).lstat()
        assert stat.S_ISCHR(whiteout.st_mode)
        assert whiteout.st_rdev == 0
    assert os.getxattr(upper / "opaque", "user.overlay.opaque") == b"y"
    assert image.config.env == {"A": "b=c"}
    assert (image.config.workdir, image.config.user) == ("/etc", "1000")
    assert (image.config.cmd, image.config.labels) == (("sh",), {"k": "v"})


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
async def test_a_sandbox_of_several_layers(
    data_dir: Path, settings: Settings, tmp_path: Path, compression: str
) -> None:
    root = tmp_path / "root"
    make_busybox_root(root)
    base = subprocess.run(
        ["tar", "-C", root, "--numeric-owner", "-cf", "-", "."], capture_output=True, check=True
    ).stdout
    layout = LayoutBuilder(tmp_path / "layout")
    layout.image(base, LOWER, UPPER, compression=compression)
    name = f"layered-{compression}-{os.getpid()}"
    async with open_engine(data_dir=data_dir, settings=settings) as engine:
        await engine.images.pull(f"oci:{layout.top}", name=name)
        sandbox = await engine.create_sandbox(SandboxConfig(image=name))
        result = await engine.exec(sandbox.id, "cat /etc/two; ls /etc/one /gone; ls /opaque; id -u")
        assert result.stdout == "twoabove\n0\n"
        with pytest.raises(InUseError):
            await engine.remove_image(name)
        await engine.destroy_sandbox(sandbox.id)
        await engine.remove_image(name)


async def test_archives_directories_and_odd_names(store: LocalImageStore, tmp_path: Path) -> None:
    odd = "a b\nc\x1b[2J" + "é" * 100
    data = archive(
        directory("d"), Entry(f"d/{odd}", b"x"), Entry("x/" * 60 + "deep", b"x"),
        hard_link("link", f"d/{odd}"), symlink("abs", "/etc/passwd"),
        Entry("fifo", type=tarfile.FIFOTYPE), Entry("zero", b"\0" * 100_000),
        Entry("attr", b"", xattrs={"user.mine": "v", "user.overlay.opaque": "y",
                                   "security.capability": "x", "trusted.overlay.opaque": "y"}),
    )  # fmt: skip
    path = tmp_path / "root.tar"
    path.write_bytes(data)
    image = await store.pull(f"rootfs:{path}", name="odd")
    layer = image.layers[1]
    assert (layer / "d" / odd).read_bytes() == b"x"
    assert (layer / "link").stat().st_nlink == 2
    assert os.readlink(layer / "abs") == "/etc/passwd"
    assert stat.S_ISFIFO((layer / "fifo").lstat().st_mode)
    assert os.listxattr(layer / "attr") == ["user.mine"]
    again = await store.pull(f"rootfs:{layer}", name="again")
    assert (again.layers[1] / "d" / odd).read_bytes() == b"x"
    assert (again.layers[1] / "link").stat().st_nlink == 2


CANARY = "/tmp/hutch-image-canary"
HOSTILE = {
    "leads out": archive(Entry("../../../../../.." + CANARY, b"evil")),
    "leads out inside": archive(Entry("a/../../../../../.." + CANARY, b"evil")),
    "through a link": archive(symlink("l", "/tmp"), Entry("l/" + CANARY[5:], b"evil")),
    "through a relative link": archive(
        symlink("l", "../../../../../../../tmp"), Entry("l/" + CANARY[5:], b"evil")
    ),
    "absolute": archive(Entry(CANARY, b"evil")),
    "over a link": archive(symlink("l", CANARY), Entry("l", b"evil")),
    "hard link out": archive(hard_link("h", "../../../../../.." + CANARY), Entry("h", b"evil")),
    "hard link to the host": archive(hard_link("h", CANARY), Entry("h", b"evil")),
    "whiteout through a link": archive(symlink("l", "/tmp"), Entry("l/.wh." + CANARY[5:])),
    "opaque through a link": archive(symlink("l", "/tmp"), Entry("l/.wh..wh..opq")),
    "proc as a link": archive(symlink("proc", "/tmp"), Entry("proc/" + CANARY[5:], b"evil")),
    "a device": archive(Entry("mem", type=tarfile.CHRTYPE, device=(1, 1), mode=0o666)),
    "a disk": archive(Entry("disk", type=tarfile.BLKTYPE, device=(8, 0), mode=0o666)),
    "twice": archive(symlink("x", CANARY), directory("x"), Entry("x/y", b""), Entry("x", b"")),
    "a whiteout of nothing": archive(Entry(".wh.")),
    "a whiteout of the parent": archive(directory("d"), Entry("d/.wh...")),
    "an owner beyond all": archive(Entry("x", b"", uid=70_000)),
    "a negative owner": archive(Entry("x", b"", uid=-1)),
    "too deep": archive(Entry("d/" * 2000 + "x", b"")),
}


@pytest.mark.parametrize("case", sorted(HOSTILE))
async def test_hostile_layers_touch_nothing(
    store: LocalImageStore, tmp_path: Path, case: str
) -> None:
    """Rows F6, F8, F20: refused, or harmless in the layer's own directory."""
    canary = Path(CANARY)
    canary.write_text("canary")
    before = sorted(os.listdir("/tmp"))
    path = tmp_path / "evil.tar"
    path.write_bytes(HOSTILE[case])
    try:
        image = await store.pull(f"rootfs:{path}", name="evil")
    except ImageVerificationError:
        assert await store.list() == []
    else:
        for entry in image.layers[1].rglob("*"):
            mode = entry.lstat().st_mode
            assert not stat.S_ISBLK(mode)
            assert not stat.S_ISCHR(mode) or entry.lstat().st_rdev == 0
    assert canary.read_text() == "canary"
    assert canary.stat().st_nlink == 1
    assert os.listxattr("/tmp") == []
    canary.unlink()
    assert sorted(os.listdir("/tmp")) == [name for name in before if name != canary.name]
    assert [*(tmp_path / "store/work").iterdir()] == []


@pytest.mark.parametrize("cut", [0, 1, 100, 600, 5000])
async def test_truncated_archives(store: LocalImageStore, tmp_path: Path, cut: int) -> None:
    data = archive(Entry("a", os.urandom(4000)), Entry("b", os.urandom(4000)))
    path = tmp_path / "cut.tar"
    path.write_bytes(data[:cut])
    with pytest.raises(ImageVerificationError):
        await store.pull(f"rootfs:{path}", name="cut")
    assert await store.list() == []


async def test_digests_are_verified(store: LocalImageStore, tmp_path: Path) -> None:
    wrong = LayoutBuilder(tmp_path / "wrong")
    wrong.image(LOWER, diff_ids=["sha256:" + "0" * 64])
    with pytest.raises(ImageVerificationError, match="diff_id"):
        await store.pull(f"oci:{wrong.top}")
    flipped = LayoutBuilder(tmp_path / "flipped")
    flipped.image(LOWER, compression="none")
    for blob in (flipped.top / "blobs/sha256").iterdir():
        data = bytearray(blob.read_bytes())
        data[len(data) // 2] ^= 1
        blob.write_bytes(data)
        with pytest.raises(ImageVerificationError):
            await store.pull(f"oci:{flipped.top}")
        data[len(data) // 2] ^= 1
        blob.write_bytes(data)
    await store.pull(f"oci:{flipped.top}")


@pytest.mark.parametrize(
    "index",
    [
        "",
        "[]",
        " " * 9_000_000,
        '{"manifests": 1}',
        '{"manifests": [1]}',
        '{"manifests": [{}]}',
        "[" * 100_000,
    ],
)
async def test_corrupt_indexes(store: LocalImageStore, tmp_path: Path, index: str) -> None:
    layout = LayoutBuilder(tmp_path / "layout")
    (layout.top / "index.json").write_text(index)
    with pytest.raises((ImageVerificationError, ImageNotFoundError)):
        await store.pull(f"oci:{layout.top}")


async def test_docker_and_oci_archives(store: LocalImageStore, tmp_path: Path) -> None:
    layout = LayoutBuilder(tmp_path / "layout")
    layout.image(LOWER, UPPER, config={"Env": ["A=b"]})
    for kind in ("docker-archive", "oci-archive"):
        target = f"{kind}:{tmp_path / kind}.tar" + (":name:tag" if kind[0] == "d" else "")
        subprocess.run(
            ["skopeo", "--insecure-policy", "copy", f"oci:{layout.top}:latest", target],
            check=True,
            capture_output=True,
        )
        image = await store.pull(f"{kind}:{tmp_path / kind}.tar")
        assert image.config.env == {"A": "b"}
        assert len(image.layers) == 3


@pytest.mark.parametrize(
    "reference",
    ["", "UPPER:case", "a b", "debootstrap:", "debootstrap:x?include=../x", "a:b:c:d",
     "debootstrap:sid?user=root", "debootstrap:sid?nothing=1", "host/", "x" * 5000, "x" * 300, "\udcff",
     "rootfs:/tmp/" + "x" * 300, "oci:" + "x" * 300, "oci-archive:" + "é" * 200, "a\0b"],
)  # fmt: skip
async def test_bad_references(store: LocalImageStore, reference: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        await store.pull(reference)
    assert caught.value.field == "image"


async def test_what_is_not_there(store: LocalImageStore, tmp_path: Path) -> None:
    for reference in (f"rootfs:{tmp_path}/no", f"oci:{tmp_path}/no", f"oci-archive:{tmp_path}/no"):
        with pytest.raises(ImageNotFoundError):
            await store.pull(reference)
    with pytest.raises(ImageNotFoundError):
        await store.get("nothing")
    with pytest.raises(ImageNotFoundError):
        await store.remove("nothing")
    with pytest.raises(ImagePullError):
        await store.pull("127.0.0.1:1/nobody/listens")


async def test_names_ids_and_removal(store: LocalImageStore, tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(LOWER)
    first = await store.pull(f"rootfs:{path}", name="one")
    await store.pull(f"rootfs:{path}", name="two")
    assert (await store.get("two")).id == first.id
    assert (await store.get(first.id[7:19])).names == ("one", "two")
    assert len(await store.list()) == 1
    await store.remove("one")
    assert (await store.get("two")).layers[1].is_dir()
    with pytest.raises(InUseError):
        await store.remove("two", in_use={first.id})
    await store.remove("two")
    assert await store.list() == []
    assert [*(tmp_path / "store/layers").iterdir()] == []


async def test_prune_frees_what_nothing_needs(store: LocalImageStore, tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(archive(Entry("x", b"x" * 100_000)))
    await store.pull(f"rootfs:{path}", name="n")
    path.write_bytes(archive(Entry("x", b"y" * 100_000)))
    await store.pull(f"rootfs:{path}", name="n")
    left = tmp_path / "store/work/left"
    left.mkdir()
    (left / "f").write_bytes(b"z" * 100_000)
    assert await store.prune() >= 200_000
    assert not left.exists()
    assert (await store.get("n")).layers[1].joinpath("x").read_bytes()[:1] == b"y"
    assert await store.prune() == 0


async def test_long_names(store: LocalImageStore, tmp_path: Path) -> None:
    """Longer than a file's name can be, as references to files deep below are."""
    deep = tmp_path / "/".join(["d" * 60] * 8) / "root.tar"
    deep.parent.mkdir(parents=True)
    deep.write_bytes(LOWER)
    names = {f"rootfs:{deep}", "é" * 300, "n" * 234, "n" * 235, "n" * 4096}
    await store.pull(f"rootfs:{deep}")
    for name in names:
        image = await store.pull(f"rootfs:{deep}", name=name)
        assert (await store.get(name)).id == image.id
    assert set((await store.list())[0].names) == names
    for name in names:
        await store.remove(name)
    assert await store.list() == []
    for call in (store.get, store.remove, store.ensure):
        with pytest.raises((ImageNotFoundError, InvalidRequestError)):
            await call("x" * 300)
    for bad in ("", "n" * 4097, "\udcff"):
        with pytest.raises(InvalidRequestError):
            await store.pull(f"rootfs:{deep}", name=bad)


async def test_what_this_host_cannot_do_is_told(store: LocalImageStore, tmp_path: Path) -> None:
    (tmp_path / "store").write_text("no directory")
    (tmp_path / "a.tar").write_bytes(LOWER)
    with pytest.raises(ImageError, match="could not be obtained"):
        await store.pull(f"rootfs:{tmp_path / 'a.tar'}", name="a")


PULL = """
import asyncio, sys
from pathlib import Path
from hutch.images.store import LocalImageStore
store = LocalImageStore(Path(sys.argv[1]), aliases={}, insecure_registries=())
steps = []
image = asyncio.run(store.ensure(sys.argv[2], progress=lambda p: steps.append(p.step)))
print("unpacking" in steps, image.id)
"""


async def test_processes_that_want_one_image_unpack_it_once(tmp_path: Path) -> None:
    path = tmp_path / "big.tar"
    path.write_bytes(archive(*(Entry(f"f{n}", os.urandom(2000)) for n in range(2000))))
    argv = [sys.executable, "-c", PULL, str(tmp_path / "store"), f"rootfs:{path}"]
    processes = [subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    said = [process.communicate()[0].split() for process in processes]
    assert sorted(line[0] for line in said) == ["False", "False", "False", "True"]
    assert len({line[1] for line in said}) == 1


async def test_killed_while_unpacking(store: LocalImageStore, tmp_path: Path) -> None:
    path = tmp_path / "big.tar"
    path.write_bytes(archive(*(Entry(f"f{n}", os.urandom(4000)) for n in range(4000))))
    argv = [sys.executable, "-c", PULL, str(tmp_path / "store"), f"rootfs:{path}"]
    process = subprocess.Popen(argv)
    while len(list((tmp_path / "store").glob("work/*/layer-1/f1*"))) == 0:
        assert process.poll() is None
        await asyncio.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert await store.list() == []
    steps: list[PullProgress] = []
    image = await store.pull(f"rootfs:{path}", name="n", progress=steps.append)
    assert len([*image.layers[1].iterdir()]) == 4000
    assert [*(tmp_path / "store/work").iterdir()] == []
    assert steps[0].step == "resolving"
    assert steps[-1].step == "done"


async def test_cancelling_a_pull_leaves_nothing(store: LocalImageStore, tmp_path: Path) -> None:
    path = tmp_path / "big.tar"
    path.write_bytes(archive(*(Entry(f"f{n}", b"x") for n in range(3000))))
    for delay in (0.001, 0.05, 0.15, 0.3):
        task = asyncio.create_task(store.pull(f"rootfs:{path}", name="n"))
        await asyncio.sleep(delay)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert [*(tmp_path / "store/work").iterdir()] == []

"""Files: what docs/python-api.md promises of them, and rows F1-F3, F11-F13, F16 of abuse."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hutch import Engine, Sandbox, SandboxConfig
from hutch.errors import (
    FileAccessError,
    FileConflictError,
    FileError,
    FileIsDirectoryError,
    FileMissingError,
    FileNotDirectoryError,
    FileTooLargeError,
    InvalidPathError,
)
from hutch.models import FileType
from hutch.testing import IMAGE

CANARY = "/tmp/hutch-canary-of-a-test"


async def chunks(data: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def test_write_and_read(engine: Engine, sandbox: Sandbox) -> None:
    data = bytes(range(256)) * 100
    receipt = await engine.write_file(sandbox.id, "/a/b/c.bin", data)
    assert receipt.size == len(data)
    assert await engine.read_file(sandbox.id, "/a/b/c.bin") == data
    assert (await engine.exec(sandbox.id, ["md5sum", "/a/b/c.bin"])).exit_code == 0


async def test_a_relative_path_is_below_the_workdir(engine: Engine) -> None:
    sandbox = await engine.create_sandbox(SandboxConfig(image=IMAGE, workdir="/home/user"))
    await engine.write_file(sandbox.id, "x.txt", "text")
    assert (await engine.exec(sandbox.id, ["cat", "/home/user/x.txt"])).stdout == "text"


async def test_files_belong_to_the_user(engine: Engine, sandbox: Sandbox) -> None:
    await engine.write_file(sandbox.id, "/home/user/d/mine", b"x", user="user", mode=0o640)
    result = await engine.exec(sandbox.id, "stat -c '%u:%g %a' /home/user/d /home/user/d/mine")
    assert result.stdout == "1000:1000 755\n1000:1000 640\n"


async def test_the_users_permissions_hold(engine: Engine, sandbox: Sandbox) -> None:
    await engine.write_file(sandbox.id, "/root/secret", b"s", mode=0o600)
    with pytest.raises(FileAccessError) as caught:
        await engine.read_file(sandbox.id, "/root/secret", user="user")
    assert caught.value.path == "/root/secret"
    with pytest.raises(FileAccessError):
        await engine.write_file(sandbox.id, "/etc/passwd", b"", user="user")
    with pytest.raises(FileAccessError):
        await engine.remove_file(sandbox.id, "/root/secret", user="user")


async def test_overwriting_keeps_what_readers_see_whole(engine: Engine, sandbox: Sandbox) -> None:
    contents = {bytes([letter]) * 300_000 for letter in b"ab"}
    await engine.write_file(sandbox.id, "/tmp/f", min(contents))

    async def write() -> None:
        for _ in range(10):
            for content in contents:
                await engine.write_file(sandbox.id, "/tmp/f", content)

    writing = asyncio.create_task(write())
    while not writing.done():
        assert await engine.read_file(sandbox.id, "/tmp/f") in contents
    await writing


async def test_mode_and_owner_survive_overwriting(engine: Engine, sandbox: Sandbox) -> None:
    await engine.exec(sandbox.id, "echo old >/tmp/f; chmod 751 /tmp/f; chown 1000:1000 /tmp/f")
    await engine.write_file(sandbox.id, "/tmp/f", b"new")
    info = await engine.stat(sandbox.id, "/tmp/f")
    assert (info.mode & 0o777, info.uid, info.gid) == (0o751, 1000, 1000)


async def test_a_hundred_mebibytes_stream_through(engine: Engine, sandbox: Sandbox) -> None:
    piece = os.urandom(1024 * 1024)
    await engine.write_file(sandbox.id, "/tmp/big", chunks(piece * 100, 1024 * 1024))
    total = 0
    async for chunk in engine.read_file_stream(sandbox.id, "/tmp/big"):
        total += len(chunk)
    assert total == 100 * 1024 * 1024
    tail = [
        chunk async for chunk in engine.read_file_stream(sandbox.id, "/tmp/big", offset=total - 5)
    ]
    assert b"".join(tail) == piece[-5:]


async def test_an_interrupted_write_leaves_the_old_file_alone(
    engine: Engine, sandbox: Sandbox
) -> None:
    await engine.write_file(sandbox.id, "/tmp/d/f", b"old")

    async def failing() -> AsyncIterator[bytes]:
        yield b"new"
        raise RuntimeError("the source failed")

    with pytest.raises(RuntimeError, match="the source failed"):
        await engine.write_file(sandbox.id, "/tmp/d/f", failing())
    assert await engine.read_file(sandbox.id, "/tmp/d/f") == b"old"
    assert [entry.name for entry in await engine.list_dir(sandbox.id, "/tmp/d")] == ["f"]


async def test_list_and_stat(engine: Engine, sandbox: Sandbox) -> None:
    await engine.exec(
        sandbox.id, "mkdir /l; cd /l; echo abc >f; mkdir d; ln -s f s; mkfifo p; touch 'a\nb'"
    )
    entries = {entry.name: entry for entry in await engine.list_dir(sandbox.id, "/l")}
    assert list(entries) == sorted(entries)
    assert {name: entry.type for name, entry in entries.items()} == {
        "f": FileType.FILE,
        "d": FileType.DIRECTORY,
        "s": FileType.SYMLINK,
        "p": FileType.OTHER,
        "a\nb": FileType.FILE,
    }
    assert entries["f"].size == 4
    assert (await engine.stat(sandbox.id, "/l/s")).type is FileType.FILE
    assert (await engine.stat(sandbox.id, "/l/s", follow=False)).type is FileType.SYMLINK
    assert await engine.real_path(sandbox.id, "/l/s") == "/l/f"


async def test_mkdir_move_and_remove(engine: Engine, sandbox: Sandbox) -> None:
    await engine.mkdir(sandbox.id, "/m/a/b")
    await engine.mkdir(sandbox.id, "/m/a/b")  # an existing one is fine
    with pytest.raises(FileConflictError):
        await engine.mkdir(sandbox.id, "/m/a/b", parents=False)
    await engine.write_file(sandbox.id, "/m/a/b/f", b"x")
    await engine.move(sandbox.id, "/m/a/b", "/m/c")
    assert await engine.read_file(sandbox.id, "/m/c/f") == b"x"
    with pytest.raises(FileError):
        await engine.remove_file(sandbox.id, "/m/c")
    await engine.remove_file(sandbox.id, "/m/c", recursive=True)
    with pytest.raises(FileMissingError):
        await engine.stat(sandbox.id, "/m/c")


async def test_moving_what_comes_from_the_image(engine: Engine, sandbox: Sandbox) -> None:
    await engine.move(sandbox.id, "/etc", "/other")
    assert b"root" in await engine.read_file(sandbox.id, "/other/passwd", user="0")
    with pytest.raises(FileMissingError):
        await engine.stat(sandbox.id, "/etc", user="0")


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("/nothing", FileMissingError),
        ("/tmp", FileIsDirectoryError),
        ("/etc/passwd/x", FileNotDirectoryError),
        ("/a\0b", InvalidPathError),
        ("/" + "x" * 300, InvalidPathError),
        ("/x" * 3000, InvalidPathError),
        ("/loop", InvalidPathError),
        ("/fifo", FileError),
        ("/dev/zero", FileError),
        ("/proc/self/root/etc/passwd", FileError),
        ("/proc/1/cwd/etc/passwd", FileError),
        ("/dev/fd/0", FileError),
    ],
)
async def test_reading_what_is_no_regular_file(
    engine: Engine, sandbox: Sandbox, path: str, error: type[FileError]
) -> None:
    await engine.exec(sandbox.id, "ln -s loop /loop; mkfifo /fifo")
    with pytest.raises(error) as caught:
        await engine.read_file(sandbox.id, path)
    assert caught.value.path == path


async def test_too_large_to_return_at_once(engine: Engine, sandbox: Sandbox) -> None:
    await engine.exec(sandbox.id, ["truncate", "-s", "8796093022208", "/tmp/sparse"])
    with pytest.raises(FileTooLargeError):
        await engine.read_file(sandbox.id, "/tmp/sparse")


@pytest.mark.parametrize("link", [CANARY, f"../../../../../..{CANARY}", "/proc/1/root" + CANARY])
async def test_links_stay_inside(engine: Engine, sandbox: Sandbox, link: str) -> None:
    canary = Path(CANARY)
    canary.write_text("canary")
    try:
        await engine.exec(sandbox.id, ["ln", "-s", link, "/link"])
        await engine.exec(sandbox.id, ["ln", "-s", os.path.dirname(link), "/dirlink"])
        for path in ("/link", f"/dirlink/{canary.name}", f"/../../..{CANARY}"):
            try:
                assert await engine.read_file(sandbox.id, path) == b"written"  # inside, by us
            except FileError:
                pass
            try:
                await engine.write_file(sandbox.id, path, b"written")
            except FileError:
                pass
            try:
                await engine.remove_file(sandbox.id, path)
            except FileError:
                pass
            assert canary.read_text() == "canary"
    finally:
        canary.unlink()


async def test_exchange_races_leak_nothing(engine: Engine, sandbox: Sandbox) -> None:
    """Row F4: a directory becomes a link to the host's and back while files are read."""
    canary = Path(CANARY + "-dir")
    canary.mkdir()
    (canary / "f").write_text("canary")
    try:
        await engine.exec(
            sandbox.id, f"mkdir -p /r/real; echo own >/r/real/f; ln -s {canary} /r/away"
        )
        swap = "while :; do mv -T /r/real /r/x; mv -T /r/away /r/real; mv -T /r/real /r/away; mv -T /r/x /r/real; done"
        async with engine.exec_stream(sandbox.id, swap):
            for _ in range(2000):
                try:
                    assert await engine.read_file(sandbox.id, "/r/real/f") == b"own\n"
                except FileError:
                    pass
                try:
                    await engine.write_file(sandbox.id, "/r/real/f", b"own\n")
                except FileError:
                    pass
        assert (canary / "f").read_text() == "canary"
        assert sorted(entry.name for entry in canary.iterdir()) == ["f"]
    finally:
        (canary / "f").unlink()
        canary.rmdir()


async def test_deep_trees_can_be_removed(engine: Engine, sandbox: Sandbox) -> None:
    line = "mkdir /deep; cd /deep; i=0; while [ $i -lt 3000 ]; do mkdir d; cd d; i=$((i+1)); done"
    assert (await engine.exec(sandbox.id, line)).exit_code == 0
    await engine.remove_file(sandbox.id, "/deep", recursive=True)
    with pytest.raises(FileMissingError):
        await engine.stat(sandbox.id, "/deep")


async def test_trees_both_ways(engine: Engine, sandbox: Sandbox) -> None:
    await engine.exec(sandbox.id, "mkdir -p /t/sub; echo 1 >/t/a; echo 2 >/t/sub/b; ln -s a /t/l")
    archive = b"".join([chunk async for chunk in engine.read_tree(sandbox.id, "/t")])
    await engine.write_tree(sandbox.id, "/copy/here", chunks(archive, 1000))
    result = await engine.exec(sandbox.id, "cat /copy/here/sub/b; readlink /copy/here/l")
    assert result.stdout == "2\na\n"
    with pytest.raises(FileError):
        await engine.write_tree(sandbox.id, "/copy", chunks(b"no archive" * 100, 100))


async def test_a_read_only_root(engine: Engine) -> None:
    sandbox = await engine.create_sandbox(SandboxConfig(image=IMAGE, read_only=True))
    with pytest.raises(FileError):
        await engine.write_file(sandbox.id, "/x", b"")
    assert (await engine.exec(sandbox.id, "echo x >/x")).exit_code != 0

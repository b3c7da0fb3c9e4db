"""Files: what docs/python-api.md promises of them, and rows F1-F3, F11-F13, F16 of abuse."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from hutch import Engine, Sandbox, SandboxConfig
from hutch.errors import (
    DirectoryNotEmptyError,
    FileAccessError,
    FileConflictError,
    FileError,
    FileIsDirectoryError,
    FileMissingError,
    FileNotDirectoryError,
    FileTooLargeError,
    InvalidPathError,
    InvalidRequestError,
    NoSpaceError,
    SandboxUnavailableError,
)
from hutch.models import FileType, Tmpfs
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


async def test_a_file_that_is_rewritten_is_whole_or_as_it_was(
    engine: Engine, sandbox: Sandbox
) -> None:
    """The file is the user's, its directory is not: no other file can take its place."""
    await sh(engine, sandbox, "mkdir /d; echo old >/d/f; chown user /d/f; chmod 600 /d/f")

    async def failing() -> AsyncIterator[bytes]:
        yield b"new"
        raise RuntimeError("the source failed")

    with pytest.raises(RuntimeError, match="the source failed"):
        await engine.write_file(sandbox.id, "/d/f", failing(), user="user")
    assert await engine.read_file(sandbox.id, "/d/f") == b"old\n"
    data = os.urandom(3_000_000)
    await engine.write_file(sandbox.id, "/d/f", chunks(data, 100_000), user="user")
    assert await engine.read_file(sandbox.id, "/d/f") == data
    await engine.write_file(sandbox.id, "/d/f", b"short", user="user", mode=0o640)
    assert await engine.read_file(sandbox.id, "/d/f") == b"short"
    assert await sh(engine, sandbox, "stat -c '%u %a' /d/f") == "1000 640\n"
    assert await names(engine, sandbox, "/d", "/tmp") == ["/d/f"]


@pytest.mark.parametrize("data", [b"abc", bytearray(b"abc"), memoryview(b"abc"), "abc"])
async def test_what_can_be_written(
    engine: Engine, sandbox: Sandbox, data: bytes | bytearray | memoryview | str
) -> None:
    assert (await engine.write_file(sandbox.id, "/f", data)).size == 3
    assert await engine.read_file(sandbox.id, "/f") == b"abc"

    async def stream() -> AsyncIterator[bytes]:
        yield data  # type: ignore[misc]  # text is refused at run time

    if isinstance(data, str):
        with pytest.raises(InvalidRequestError):
            await engine.write_file(sandbox.id, "/g", stream())
        assert "/g" not in await names(engine, sandbox, "/")
    else:
        await engine.write_file(sandbox.id, "/g", stream())
        assert await engine.read_file(sandbox.id, "/g") == b"abc"


@pytest.mark.parametrize("data", [None, 5, ["abc"], "\ud800"])
async def test_what_cannot_be_written(engine: Engine, sandbox: Sandbox, data: object) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        await engine.write_file(sandbox.id, "/f", data)  # type: ignore[arg-type]  # what is tested
    assert caught.value.field == "data"


@pytest.mark.parametrize("path", [None, 5, b"/f", Path("/f")])
async def test_a_path_is_text(engine: Engine, sandbox: Sandbox, path: object) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        await engine.stat(sandbox.id, path)  # type: ignore[arg-type]  # what is tested
    assert caught.value.field == "path"


USERS = "printf '%s\\n' 'a:x:0100:07::/' '200:x:3000:3000::/' 'b:x:90000:5::/' 'c:x:5:5' 'd:x:x:y::/' >>/etc/passwd"
GROUPS = "printf '%s\\n' 'big:x:70000:user' 'named:x:900:a,b' 'short:x:901' 'user2:x:902:user' >>/etc/group"


@pytest.mark.parametrize(
    "user",
    ["user", "1000", "4321", "0100", "100", "a", "200", "3000", "b", "90000", "c", "5", "d", "user:tty",
     "user:big", "user:70000", "1000:12", "4321:named", "a:short", "user:", ":5", "nobody", "٣"],
)  # fmt: skip
async def test_files_and_commands_agree_on_who_a_user_is(
    engine: Engine, sandbox: Sandbox, user: str
) -> None:
    await sh(engine, sandbox, f"{USERS}; {GROUPS}")
    try:
        result = await engine.exec(sandbox.id, "id -u; id -g", user=user)
    except InvalidRequestError:
        with pytest.raises(InvalidRequestError):
            await engine.write_file(sandbox.id, "/tmp/f", b"", user=user)
        return
    await engine.write_file(sandbox.id, "/tmp/f", b"", user=user)
    info = await engine.stat(sandbox.id, "/tmp/f")
    assert [info.uid, info.gid] == [int(number) for number in result.stdout.split()]


async def test_files_and_commands_agree_on_groups(engine: Engine, sandbox: Sandbox) -> None:
    await sh(engine, sandbox, f"{USERS}; {GROUPS}; echo x >/f; chgrp 2000 /f; chmod 640 /f")
    for user in ("user", "1000", "user:1000", "a", "4321:2000"):
        result = await engine.exec(sandbox.id, ["cat", "/f"], user=user)
        if result.exit_code == 0:
            assert await engine.read_file(sandbox.id, "/f", user=user) == b"x\n"
        else:
            with pytest.raises(FileAccessError):
                await engine.read_file(sandbox.id, "/f", user=user)


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


@pytest.fixture
async def mounted(engine: Engine) -> Sandbox:
    """A sandbox with a mount of its own at /mem: nothing can be renamed between it and the rest."""
    return await engine.create_sandbox(SandboxConfig(image=IMAGE, tmpfs=(Tmpfs("/mem"),)))


async def sh(engine: Engine, sandbox: Sandbox, line: str) -> str:
    result = await engine.exec(sandbox.id, line)
    assert result.exit_code == 0, result.stderr
    return result.stdout


async def names(engine: Engine, sandbox: Sandbox, *directories: str) -> list[str]:
    """What is in these directories, hidden leftovers too."""
    return [
        entry.path
        for directory in directories
        for entry in await engine.list_dir(sandbox.id, directory, user="0")
    ]


DESCRIBE = "cd %s && find . -exec stat -c '%%n %%F %%u:%%g %%a %%Y' {} + | sort"


@pytest.mark.parametrize("source", ["/home", "/mem/tree"])
async def test_a_move_that_copies_keeps_everything(
    engine: Engine, mounted: Sandbox, source: str
) -> None:
    await sh(
        engine,
        mounted,
        f"mkdir -p {source}/d/e; cd {source}; echo x >d/f; ln -s /nowhere l; mkfifo p; "
        "chown 1000:2000 d/f d p; chown -h 7:8 l; chmod 4751 d/f; chmod 640 p; chmod 2555 d; "
        "touch -h -d @1000 l; touch -d @1001 d/f d/e p; touch -d @1002 d; touch -d @1003 .",
    )
    before = await sh(engine, mounted, DESCRIBE % source)
    assert "1000:2000" in before
    await engine.move(mounted.id, source, "/moved")
    assert await sh(engine, mounted, DESCRIBE % "/moved") == before
    assert await sh(engine, mounted, "cat /moved/d/f; readlink /moved/l") == "x\n/nowhere\n"
    with pytest.raises(FileMissingError):
        await engine.stat(mounted.id, source)


async def test_a_move_that_copies_keeps_holes(engine: Engine, mounted: Sandbox) -> None:
    await sh(
        engine,
        mounted,
        "cd /mem; truncate -s 10G f; echo middle | dd of=f bs=1M seek=5000 conv=notrunc; "
        "dd if=/dev/urandom of=g bs=1M count=3; cp g /copy; truncate -s 1G hole",
    )
    for name in ("f", "g", "hole"):
        await engine.move(mounted.id, f"/mem/{name}", f"/{name}")
    assert (await engine.stat(mounted.id, "/f")).size == 10 * 1024**3
    assert (await engine.stat(mounted.id, "/hole")).size == 1024**3
    blocks = await sh(engine, mounted, "du -k /f /hole | cut -f 1")
    assert all(int(kibibytes) < 1024 for kibibytes in blocks.split())
    line = "dd if=/f bs=1M skip=5000 count=1 2>/dev/null | head -c 6; cmp /g /copy"
    assert await sh(engine, mounted, line) == "middle"


async def test_deep_trees_can_be_copied(engine: Engine, mounted: Sandbox) -> None:
    line = "mkdir /mem/deep; cd /mem/deep; for i in $(seq 2000); do mkdir d; cd d || exit; done; echo x >f"
    await sh(engine, mounted, line)
    await engine.move(mounted.id, "/mem/deep", "/deep")
    line = "cd /deep; for i in $(seq 2000); do cd d || exit; done; cat f"
    assert await sh(engine, mounted, line) == "x\n"
    assert await names(engine, mounted, "/mem") == []
    await engine.remove_file(mounted.id, "/deep", recursive=True)


REPLACED = {
    # what is moved and onto what: what comes of it
    ("file", "file"): None,
    ("file", "link"): None,
    ("link", "file"): None,
    ("link", "link"): None,
    ("fifo", "file"): None,
    ("directory", "empty"): None,
    ("directory", "full"): DirectoryNotEmptyError,
    ("directory", "file"): FileNotDirectoryError,
    ("directory", "link"): FileNotDirectoryError,
    ("file", "empty"): FileIsDirectoryError,
    ("link", "full"): FileIsDirectoryError,
}


@pytest.mark.parametrize("top", ["/mem", "/one"])
@pytest.mark.parametrize(("source", "target"), REPLACED)
async def test_a_move_replaces_what_rename_would(
    engine: Engine, mounted: Sandbox, top: str, source: str, target: str
) -> None:
    await sh(
        engine,
        mounted,
        f"mkdir -p {top} /one/to; cd {top}; mkdir directory; echo new >directory/f; echo new >file; "
        "ln -s /new link; mkfifo fifo; cd /one/to; echo old >file; ln -s file link; mkdir empty full; "
        "echo old >full/f",
    )
    before = await sh(engine, mounted, (DESCRIBE % "/one/to") + "; " + (DESCRIBE % top))
    moved = await engine.stat(mounted.id, f"{top}/{source}", follow=False)
    error = REPLACED[source, target]
    if error is None:
        await engine.move(mounted.id, f"{top}/{source}", f"/one/to/{target}")
        after = await engine.stat(mounted.id, f"/one/to/{target}", follow=False)
        assert (after.type, after.target) == (moved.type, moved.target)
        if target == "link":
            assert await engine.read_file(mounted.id, "/one/to/file") == b"old\n"
        assert f"{top}/{source}" not in await names(engine, mounted, top)
        assert len(await names(engine, mounted, "/one/to")) == 4
        return
    with pytest.raises(error) as caught:
        await engine.move(mounted.id, f"{top}/{source}", f"/one/to/{target}")
    assert caught.value.path == f"/one/to/{target}"
    assert before == await sh(engine, mounted, (DESCRIBE % "/one/to") + "; " + (DESCRIBE % top))


async def test_a_directory_is_not_moved_below_itself(engine: Engine, mounted: Sandbox) -> None:
    await sh(engine, mounted, "mkdir -p /d/e /home/e")
    for source, target in [("/d", "/d/e/x"), ("/home", "/home/e/x"), ("/home", "/home/x")]:
        with pytest.raises(InvalidPathError) as caught:
            await engine.move(mounted.id, source, target)
        assert caught.value.path == target
    assert await names(engine, mounted, "/home", "/home/e") == ["/home/e", "/home/user"]


async def test_a_target_is_replaced_in_one_step(engine: Engine, mounted: Sandbox) -> None:
    """Who has the old file open reads on in it."""
    await sh(engine, mounted, "echo old >/target; echo new >/mem/source")
    async with engine.exec_stream(
        mounted.id, "exec 3</target; echo; read x; cat <&3", stdin=True
    ) as reading:
        assert (await anext(reading)).data == b"\n"
        await engine.move(mounted.id, "/mem/source", "/target")
        await reading.write_stdin(b"\n")
        assert (await anext(reading)).data == b"old\n"
    assert await engine.read_file(mounted.id, "/target") == b"new\n"


async def test_a_device_is_not_moved(engine: Engine, mounted: Sandbox) -> None:
    with pytest.raises(FileError) as caught:
        await engine.move(mounted.id, "/dev/null", "/mem/null")
    assert caught.value.path == "/dev/null"
    assert await names(engine, mounted, "/mem") == []
    await sh(engine, mounted, "echo x >/dev/null")


async def test_a_copy_that_does_not_fit_is_removed(engine: Engine) -> None:
    config = SandboxConfig(image=IMAGE, tmpfs=(Tmpfs("/mem", size=1024**2),))
    sandbox = await engine.create_sandbox(config)
    await sh(engine, sandbox, "cd /home; seq 300 >small; dd if=/dev/urandom of=big bs=1M count=2")
    with pytest.raises(NoSpaceError) as caught:
        await engine.move(sandbox.id, "/home", "/mem/moved")
    assert caught.value.path == "/mem/moved"
    assert await names(engine, sandbox, "/mem") == []
    assert (await engine.stat(sandbox.id, "/home/big")).size == 2 * 1024**2


async def test_a_mount_is_neither_moved_nor_replaced(engine: Engine, mounted: Sandbox) -> None:
    await sh(engine, mounted, "echo x >/mem/f; mkdir /d")
    for source, target in [("/mem", "/x"), ("/d", "/mem")]:
        with pytest.raises(FileError) as caught:
            await engine.move(mounted.id, source, target)
        assert caught.value.path == "/mem"
    assert await engine.read_file(mounted.id, "/mem/f") == b"x\n"


@pytest.mark.parametrize("top", ["/mem", "/one"])
async def test_a_move_that_is_not_permitted_changes_nothing(
    engine: Engine, mounted: Sandbox, top: str
) -> None:
    await sh(
        engine,
        mounted,
        f"mkdir -p {top} /one/open /one/closed; cd {top}; mkdir own other shut; echo x >own/f; "
        "echo y >own/of-a-group; echo z >other/f; mkdir shut/in; echo z >shut/in/f; "
        "chown -R user own shut; chown user /one/open; chmod 400 own/f; chmod 555 shut/in shut",
    )
    before = await sh(engine, mounted, (DESCRIBE % top) + "; " + (DESCRIBE % "/one"))
    for source, target, named in [
        ("own/f", "/one/closed/f", "/one/closed/f"),
        ("own/f", "/one/closed", "/one/closed"),
        ("other/f", "/one/open/f", f"{top}/other/f"),
        ("shut/in", "/one/open/in", f"{top}/shut/in"),
        ("own", "/one/open/own", f"{top}/own"),
    ]:
        with pytest.raises(FileError) as caught:
            await engine.move(mounted.id, f"{top}/{source}", target, user="user")
        assert (caught.value.path, source) == (named, source)
    after = await sh(engine, mounted, (DESCRIBE % top) + "; " + (DESCRIBE % "/one"))
    assert after == before


@pytest.mark.parametrize(
    ("source", "target", "error", "named"),
    [
        ("f", "nothing/../x\0", InvalidPathError, "nothing/../x\0"),
        ("f", "x" * 300, InvalidPathError, "x" * 300),
        ("f", "../f/x", FileNotDirectoryError, "../f/x"),
        ("missing", "there", FileMissingError, "missing"),
        ("x" * 300, "there", InvalidPathError, "x" * 300),
        ("f/x", "there", FileNotDirectoryError, "f/x"),
        ("f", "loop/x", InvalidPathError, "loop/x"),
        ("", "there", InvalidPathError, ""),
        ("f", "", InvalidPathError, ""),
        ("\ud800", "there", InvalidPathError, "\ud800"),
        ("f", "\ud800", InvalidPathError, "\ud800"),
    ],
)
async def test_an_error_of_a_move_names_the_path_it_is_about(
    engine: Engine, source: str, target: str, error: type[FileError], named: str
) -> None:
    sandbox = await engine.create_sandbox(SandboxConfig(image=IMAGE, workdir="/home"))
    await sh(engine, sandbox, "echo x >/home/f; echo x >/f; ln -s loop /home/loop")
    with pytest.raises(error) as caught:
        await engine.move(sandbox.id, source, target)
    assert caught.value.path == named
    assert await names(engine, sandbox, "/home") == ["/home/f", "/home/loop", "/home/user"]


MANY = 20_000


async def many_files(
    engine: Engine, sandbox: Sandbox, directory: str, *, count: int = MANY
) -> None:
    await sh(engine, sandbox, f"mkdir {directory}; cd {directory}; seq {count} | xargs touch")


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(10):
        while not await condition():
            await asyncio.sleep(0.01)


async def test_a_cancelled_move_stops_and_leaves_nothing(engine: Engine, mounted: Sandbox) -> None:
    await many_files(engine, mounted, "/mem/many")

    async def copying() -> bool:
        return any(".hutch-" in name for name in await names(engine, mounted, "/"))

    async def over() -> bool:
        return not await copying()

    moving = asyncio.create_task(engine.move(mounted.id, "/mem/many", "/moved"))
    await until(copying)
    moving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await moving
    await until(over)
    assert len(await engine.list_dir(mounted.id, "/mem/many")) == MANY
    assert "/moved" not in await names(engine, mounted, "/")


async def test_work_ends_with_its_sandbox(engine: Engine, mounted: Sandbox) -> None:
    await many_files(engine, mounted, "/mem/many")
    await many_files(engine, mounted, "/mem/removed", count=2 * MANY)
    moving = asyncio.create_task(engine.move(mounted.id, "/mem/many", "/moved"))
    removing = asyncio.create_task(engine.remove_file(mounted.id, "/mem/removed", recursive=True))
    await asyncio.sleep(0.05)
    assert not moving.done()
    assert not removing.done()
    await engine.destroy_sandbox(mounted.id)
    for task in (moving, removing):
        with pytest.raises(SandboxUnavailableError):
            await task


async def test_streams_end_with_their_sandbox(engine: Engine, sandbox: Sandbox) -> None:
    await sh(engine, sandbox, "truncate -s 10M /big")
    reading = engine.read_file_stream(sandbox.id, "/big")
    await anext(reading)
    delivered = 0

    async def source() -> AsyncIterator[bytes]:
        nonlocal delivered
        yield b"x"
        await engine.destroy_sandbox(sandbox.id)
        for number in range(1, 100):
            delivered = number
            yield b"x"

    with pytest.raises(SandboxUnavailableError):
        await engine.write_file(sandbox.id, "/tmp/f", source())
    assert delivered == 1
    with pytest.raises(SandboxUnavailableError):
        await anext(reading)


async def test_one_sandboxs_work_does_not_keep_others_waiting(
    engine: Engine, mounted: Sandbox
) -> None:
    other = await engine.create_sandbox(SandboxConfig(image=IMAGE))
    await many_files(engine, mounted, "/mem/many")
    listing = [asyncio.create_task(engine.list_dir(mounted.id, "/mem/many")) for _ in range(80)]
    await asyncio.sleep(0)
    await engine.write_file(other.id, "/f", b"x")
    done = [task for task in listing if task.done()]
    for task in listing:
        task.cancel()
    await asyncio.gather(*listing, return_exceptions=True)
    assert len(done) < 20


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("/nothing", FileMissingError),
        ("/tmp", FileIsDirectoryError),
        ("/etc/passwd/x", FileNotDirectoryError),
        ("/a\0b", InvalidPathError),
        ("\ud800", InvalidPathError),
        ("", InvalidPathError),
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


async def test_exchange_races_do_not_lead_a_copy_outside(engine: Engine, mounted: Sandbox) -> None:
    """Row F4, of moves between mounts: names below the source and beside the target change."""
    canary = Path(CANARY + "-dir")
    canary.mkdir()
    (canary / "f").write_text("canary")
    try:
        await sh(
            engine,
            mounted,
            f"mkdir -p /mem/r/real /swap; cd /mem/r; echo own >real/f; seq 50 | xargs touch; "
            f"ln -s {canary} away; ln -s {canary}/f link; echo own >file",
        )
        swap = (
            "while :; do for r in /mem/r /to; do for names in 'real away' 'file link'; do set -- $names; "
            "mv -T $r/$1 $r/x; mv -T $r/$2 $r/$1; mv -T $r/$1 $r/$2; mv -T $r/x $r/$1; done; done; "
            f"for t in /.hutch-* /mem/.hutch-*; do rm -rf /swap/t; mv -T $t /swap/t && ln -s {canary} $t; done; done 2>/dev/null"
        )
        async with engine.exec_stream(mounted.id, swap):
            moved = 0
            for _ in range(150):
                for source, target in [("/mem/r", "/to"), ("/to", "/mem/r")]:
                    try:
                        await engine.move(mounted.id, source, target)
                        moved += 1
                    except FileError:
                        pass
        assert moved > 0
        assert (canary / "f").read_text() == "canary"
        assert sorted(entry.name for entry in canary.iterdir()) == ["f"]
        found = await engine.exec(
            mounted.id, "find / -xdev -type f -exec grep -l canary {} +; grep -r canary /mem"
        )
        assert found.stdout == ""
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


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("missing", FileMissingError),
        ("f", FileNotDirectoryError),
        ("link-to-f", FileNotDirectoryError),
        ("loop", InvalidPathError),
        ("", InvalidPathError),
        ("\ud800", InvalidPathError),
    ],
)
async def test_reading_what_is_no_tree(
    engine: Engine, sandbox: Sandbox, path: str, error: type[FileError]
) -> None:
    await sh(engine, sandbox, "cd /; echo x >f; ln -s f link-to-f; ln -s loop loop")
    with pytest.raises(error) as caught:
        async for _ in engine.read_tree(sandbox.id, path):
            pass
    assert caught.value.path == path


async def test_a_read_only_root(engine: Engine) -> None:
    sandbox = await engine.create_sandbox(SandboxConfig(image=IMAGE, read_only=True))
    with pytest.raises(FileError):
        await engine.write_file(sandbox.id, "/x", b"")
    assert (await engine.exec(sandbox.id, "echo x >/x")).exit_code != 0


async def test_a_time_beyond_the_calendar(engine: Engine, sandbox: Sandbox) -> None:
    await engine.exec(sandbox.id, "touch -d @1000000000000 /dev/shm/far; touch /dev/shm/now")
    assert [info.name for info in await engine.list_dir(sandbox.id, "/dev/shm")] == ["far", "now"]


async def test_a_directory_of_too_many(engine: Engine, sandbox: Sandbox) -> None:
    """Row F16."""
    limit = engine.settings.list_limit
    line = f"mkdir /dev/shm/d; cd /dev/shm/d; seq {limit} | xargs touch"
    assert (await engine.exec(sandbox.id, line)).exit_code == 0
    assert len(await engine.list_dir(sandbox.id, "/dev/shm/d")) == limit
    await engine.exec(sandbox.id, "touch /dev/shm/d/more")
    with pytest.raises(FileTooLargeError):
        await engine.list_dir(sandbox.id, "/dev/shm/d")

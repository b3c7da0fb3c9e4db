"""Rows F9, F10, F13, F19: what links, device nodes, holes and mounts do to layers and to the host."""

from __future__ import annotations

import json
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hutch import Engine, Sandbox, SandboxConfig, Settings, Tmpfs, open_engine
from hutch.errors import FileError, FileTooLargeError
from hutch.models import FileType
from tests.abuse.conftest import Attack, describe
from tests.runtime.test_posture import processes_of

TIB = 1024**4

ON_FILES = """
import ctypes, errno, fcntl, json, mmap, os, sys
libc = ctypes.CDLL(None, use_errno=True)
outcome = {}
def attempt(name, work):
    try:
        outcome[name] = work() and "worked"
    except OSError as error:
        outcome[name] = errno.errorcode[error.errno]
def checked(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), "")
    return True
def copied(fd):
    with open("/tmp/source", "w+") as source:
        source.write("evil")
        source.flush()
        return os.copy_file_range(source.fileno(), fd, 4, 0)
def spliced(fd):
    reading, writing = os.pipe()
    os.write(writing, b"evil")
    return os.splice(reading, fd, 4, offset_dst=0)
def sent(fd):
    other = os.memfd_create("x")
    os.write(other, b"evil")
    return os.sendfile(fd, other, 0, 4)
def write_memory(at):
    # What a debugger does: it writes to pages that are mapped to be read.
    with open("/proc/self/mem", "r+b", buffering=0) as memory:
        memory.seek(at)
        return memory.write(b"evil")
def on_descriptor(name, fd):
    libc.mmap.restype = ctypes.c_void_p
    at = libc.mmap(None, ctypes.c_size_t(4096), 1, 1, fd, ctypes.c_long(0))
    attempt(name + " write", lambda: os.write(fd, b"evil"))
    attempt(name + " pwrite", lambda: os.pwrite(fd, b"evil", 0))
    attempt(name + " ftruncate", lambda: checked(libc.ftruncate(fd, ctypes.c_long(4))))
    attempt(name + " fallocate", lambda: checked(
        libc.fallocate(fd, 2 | 1, ctypes.c_long(0), ctypes.c_long(4096))))
    attempt(name + " copy_file_range", lambda: copied(fd))
    attempt(name + " splice", lambda: spliced(fd))
    attempt(name + " sendfile", lambda: sent(fd))
    attempt(name + " map to write", lambda: mmap.mmap(fd, 4, mmap.MAP_SHARED))
    attempt(name + " mprotect", lambda: checked(
        libc.mprotect(ctypes.c_void_p(at), ctypes.c_size_t(4096), 3)))
    attempt(name + " /proc/self/mem", lambda: write_memory(at))
    libc.munmap(ctypes.c_void_p(at), ctypes.c_size_t(4096))
control = os.open("/tmp/control", os.O_RDWR | os.O_CREAT)
os.write(control, b"control")
on_descriptor("control", control)
for path in sys.argv[1:]:
    fd = os.open(path, os.O_RDONLY)  # of the layer, also after a copy has taken its place
    on_descriptor("first " + path, fd)
    os.link(path, "/tmp/linked")
    with open("/tmp/linked", "r+b") as file:
        file.write(b"evil")
    os.chown(path, 1000, 1000)
    os.chmod(path, 0o4777)
    os.utime(path, (1, 1))
    for work in (lambda: os.setxattr(path, "user.evil", b"x"), lambda: os.fchmod(fd, 0o777),
                 lambda: os.fchown(fd, 5, 5), lambda: os.utime(fd, (2, 2)),
                 lambda: fcntl.ioctl(fd, 0x40086602, b"\\x10" + bytes(7)),
                 lambda: os.truncate(path, 9)):
        try:
            work()
        except OSError:
            pass
    on_descriptor("later " + path, fd)
    with open(f"/proc/self/fd/{fd}", "r+b") as file:
        file.write(b"again")
    os.unlink("/tmp/linked")
    os.rename("/tmp/control", path)
    os.rename(path, "/tmp/control")
print(json.dumps(outcome))
"""
IMPOSSIBLE = {"EBADF", "EACCES", "EINVAL", "EIO"}


FILES = ("/usr/bin/env", "/etc/passwd", "/etc/shadow")


def check_attempts(
    outcome: dict[str, str], *, count: int, also: frozenset[str] = frozenset()
) -> None:
    """The same attempts work on a file of the attacker's own, and on none of the others."""
    control = {name: word for name, word in outcome.items() if name.startswith("control ")}
    assert len(control) == 10
    assert set(control.values()) == {"worked"}, control
    others = {name: word for name, word in outcome.items() if name not in control}
    assert len(others) == count
    assert set(others.values()) <= IMPOSSIBLE | also, others


async def layer_of(engine: Engine, image: str) -> Path:
    """The layer that all sandboxes of an image share."""
    return (await engine.images.ensure(image)).layers[-1]


async def test_what_is_done_to_a_file_of_a_layer_is_done_to_a_copy(
    engine: Engine, python: Sandbox, attack: Attack
) -> None:
    """F9, F19: also through a descriptor from before the copy was made."""
    layer = await layer_of(engine, "debian")
    before = describe(layer / "etc") | describe(layer / "usr/bin")
    outcome = await attack(python, ON_FILES, *FILES)
    check_attempts(outcome, count=60)
    assert describe(layer / "etc") | describe(layer / "usr/bin") == before
    neighbour = await engine.create_sandbox(python.config)
    for path in FILES:
        content = await engine.read_file(neighbour.id, path, user="root")
        assert content == (layer / path[1:]).read_bytes()


async def test_links_to_what_belongs_to_another_user(
    engine: Engine, python: Sandbox, attack: Attack
) -> None:
    """F9."""
    layer = await layer_of(engine, "debian")
    before = describe(layer / "etc")
    await engine.exec(python.id, "echo secret >/var/secret; chmod 600 /var/secret", user="root")
    program = """
import json, os, sys
reached = []
for number, path in enumerate(sys.argv[1:]):
    for link in (f"/tmp/link-{number}", f"/home/user/link-{number}"):
        try:
            os.link(path, link)
        except PermissionError:
            continue
        for flags in (os.O_RDONLY, os.O_WRONLY, os.O_WRONLY | os.O_TRUNC):
            try:
                os.close(os.open(link, flags))
                reached.append((path, flags))
            except PermissionError:
                pass
print(json.dumps(reached))
"""
    assert await attack(python, program, "/etc/shadow", "/var/secret", user="user") == []
    control = await attack(python, program, "/home/user/.profile", user="user")
    assert control != []
    assert await engine.read_file(python.id, "/var/secret", user="root") == b"secret\n"
    assert describe(layer / "etc") == before


DEVICES = """
import errno, json, os, stat, sys
made, refused = [], set()
for directory in ("/tmp", "/dev/shm", "/scratch", "/home/user"):
    for kind in (stat.S_IFCHR, stat.S_IFBLK):
        for major in range(1, 13):
            for minor in range(17):
                path = f"{directory}/node-{kind}-{major}-{minor}"
                try:
                    os.mknod(path, kind | 0o666, os.makedev(major, minor))
                except OSError as error:
                    refused.add(errno.errorcode[error.errno])
                    continue
                made.append(path)
print(json.dumps([made, sorted(refused)]))
"""


@pytest.mark.parametrize("user", ["root", "user"])
@pytest.mark.parametrize("escalation", [False, True])
async def test_no_device_node_can_be_made(
    engine: Engine, debian: str, attack: Attack, data_dir: Path, user: str, escalation: bool
) -> None:
    """F10, K11."""
    config = SandboxConfig(
        image=debian, tmpfs=(Tmpfs("/scratch"),), allow_privilege_escalation=escalation
    )
    sandbox = await engine.create_sandbox(config)
    made, refused = await attack(sandbox, DEVICES, user=user)
    assert made == []
    assert "EPERM" in refused
    assert set(refused) <= {"EPERM", "EACCES"}  # where the user may not write at all
    (upper,) = data_dir.glob("sandboxes/*/rw/upper")
    modes = [path.lstat().st_mode for path in upper.rglob("*")]
    assert not any(stat.S_ISBLK(mode) or stat.S_ISCHR(mode) for mode in modes)


async def test_a_whiteout_is_no_device(engine: Engine, debian: str, data_dir: Path) -> None:
    """F10: what overlayfs hides files with, anybody may make where it is no overlay."""
    config = SandboxConfig(image=debian, tmpfs=(Tmpfs("/scratch"),))
    sandbox = await engine.create_sandbox(config)
    line = "mknod /tmp/w c 0 0; mknod /scratch/w c 0 0; cat /scratch/w; echo x >/scratch/w; ls /scratch"
    result = await engine.exec(sandbox.id, line, user="root")
    assert result.stdout == "w\n"
    assert result.stderr.count("ermitted") == 1
    assert result.stderr.count("ermission denied") == 2, result.stderr
    (entry,) = await engine.list_dir(sandbox.id, "/scratch", user="root")
    assert entry.type is FileType.OTHER
    with pytest.raises(FileError):
        await engine.read_file(sandbox.id, "/scratch/w", user="root")
    with pytest.raises(FileError):
        await engine.write_file(sandbox.id, "/scratch/w", b"x", user="root")
    for target in ("/etc/passwd", "/tmp/moved", "/dev/shm/moved"):
        with pytest.raises(FileError):
            await engine.move(sandbox.id, "/scratch/w", target, user="root")
    assert b"root" in await engine.read_file(sandbox.id, "/etc/passwd", user="root")
    (upper,) = data_dir.glob("sandboxes/*/rw/upper")
    assert not any(stat.S_ISCHR(path.lstat().st_mode) for path in upper.rglob("*"))
    await engine.remove_file(sandbox.id, "/scratch/w", user="root")
    assert await engine.list_dir(sandbox.id, "/scratch", user="root") == []


async def test_a_file_of_eight_tebibytes(engine: Engine, sandbox: Sandbox, data_dir: Path) -> None:
    """F13."""
    result = await engine.exec(sandbox.id, ["truncate", "-s", str(8 * TIB), "/tmp/sparse"])
    assert result.exit_code == 0, result.stderr
    assert (await engine.stat(sandbox.id, "/tmp/sparse")).size == 8 * TIB
    (entry,) = await engine.list_dir(sandbox.id, "/tmp")
    assert entry.size == 8 * TIB
    with pytest.raises(FileTooLargeError, match=str(8 * TIB)):
        await engine.read_file(sandbox.id, "/tmp/sparse")
    stream = engine.read_file_stream(sandbox.id, "/tmp/sparse", offset=8 * TIB - 3)
    assert b"".join([chunk async for chunk in stream]) == bytes(3)
    used = (await engine.stats(sandbox.id)).disk
    assert used is not None
    assert used < 1024**2
    await engine.write_file(sandbox.id, "/tmp/sparse", b"small")
    assert await engine.read_file(sandbox.id, "/tmp/sparse") == b"small"


MOUNTS = """
import ctypes, errno, json, os, platform
libc = ctypes.CDLL(None, use_errno=True)
RDONLY, NOSUID, NODEV, REMOUNT, BIND, MOVE, REC, PRIVATE = 1, 2, 4, 32, 4096, 8192, 16384, 1 << 18
outcome = {}
def attempt(name, result):
    outcome[name] = errno.errorcode[ctypes.get_errno()] if result < 0 else "worked"
def mount(source, target, kind, flags, data=None):
    attempt(f"mount {kind} {flags} {source} on {target}", libc.mount(
        source and source.encode(), target.encode(), kind and kind.encode(),
        ctypes.c_ulong(flags), data))
with open("/proc/self/mountinfo") as table:
    points = [line.split()[4] for line in table]
os.makedirs("/tmp/dir", exist_ok=True)
open("/tmp/file", "w").close()
for point in points:
    mount(None, point, None, REMOUNT)
    mount(None, point, None, REMOUNT | BIND)
    mount(None, point, None, REMOUNT | BIND | NOSUID)
    mount("/tmp/dir" if os.path.isdir(point) else "/tmp/file", point, None, BIND)
    mount(None, point, None, PRIVATE | REC)
    for flags in (0, 2, 8):  # MNT_DETACH, UMOUNT_NOFOLLOW
        attempt(f"umount {point} {flags}", libc.umount2(point.encode(), flags))
    mount(point, "/tmp/dir", None, MOVE)
mount("/proc", "/tmp/dir", None, BIND | REC)
for kind in ("proc", "sysfs", "tmpfs", "cgroup", "cgroup2", "overlay", "debugfs", "tracefs",
             "securityfs", "bpf", "mqueue", "devpts", "devtmpfs", "fuse", "ext4", "binfmt_misc"):
    mount(kind, "/tmp/dir", kind, 0)
    mount("none", "/tmp/dir", kind, NOSUID | NODEV, b"rdma,memory")
X86 = platform.machine() == "x86_64"
def call(name, number, *arguments):
    attempt(name, libc.syscall(ctypes.c_long(number), *(
        ctypes.c_char_p(a) if isinstance(a, bytes) else ctypes.c_long(a) for a in arguments)))
call("open_tree", 428, -100, b"/proc/sys", 1)
call("move_mount", 429, -100, b"/tmp/dir", -100, b"/proc/sys", 0)
call("fsopen", 430, b"proc", 0)
call("fspick", 433, -100, b"/proc/sys", 0)
attributes = (ctypes.c_uint64 * 4)(0, 1, 0, 0)  # clear MOUNT_ATTR_RDONLY
call("mount_setattr", 442, -100, b"/proc/sys", 0, ctypes.addressof(attributes), 32)
call("pivot_root", 155 if X86 else 41, b"/tmp", b"/tmp/dir")
call("unshare mounts", 272 if X86 else 97, 0x20000)
call("unshare user and mounts", 272 if X86 else 97, 0x10020000)
print(json.dumps(outcome))
"""


@pytest.mark.parametrize("escalation", [False, True])
async def test_no_mount_can_be_changed(
    engine: Engine, debian: str, attack: Attack, escalation: bool
) -> None:
    """F19, K9: neither the masks and read-only mounts nor anything else."""
    config = SandboxConfig(
        image=debian, read_only=True, tmpfs=(Tmpfs("/tmp"),), allow_privilege_escalation=escalation
    )
    sandbox = await engine.create_sandbox(config)
    (init,) = processes_of(sandbox)
    before = (init / "mountinfo").read_bytes()
    assert b" /proc/sys ro," in before
    outcome = await attack(sandbox, MOUNTS)
    assert len(outcome) > 200
    assert {name: word for name, word in outcome.items() if word != "EPERM"} == {}
    assert (init / "mountinfo").read_bytes() == before
    line = "echo x >/etc/x; echo x >/proc/sys/kernel/core_pattern; echo x >/usr/bin/env"
    result = await engine.exec(sandbox.id, line, user="root")
    assert result.stderr.count("Read-only file system") == 3, result.stderr


async def test_chroot_leads_nowhere_but_the_own_root(
    engine: Engine, python: Sandbox, attack: Attack, canary: Path
) -> None:
    """F19: root inside may change its root, and with an open directory climb out of it again."""
    program = """
import json, os, sys
top = os.open("/", os.O_RDONLY)
root = os.fstat(top)
os.mkdir("/tmp/jail")
os.chroot("/tmp/jail")
os.fchdir(top)
for _ in range(100):
    os.chdir("..")
os.chroot(".")
now = os.stat("/")
print(json.dumps([(root.st_dev, root.st_ino) == (now.st_dev, now.st_ino),
                  os.path.exists(sys.argv[1]), sorted(os.listdir("/"))]))
"""
    same, found, names = await attack(python, program, str(canary))
    assert same
    assert not found
    assert "hutch" not in names
    assert {"etc", "usr", "proc"} <= set(names)


@pytest.fixture
async def host_engine(tmp_path: Path, settings: Settings) -> AsyncIterator[Engine]:
    """With an image store of its own, for the image of the host as it is now."""
    async with open_engine(data_dir=tmp_path / "data", settings=settings) as engine:
        try:
            yield engine
        finally:
            await engine.shutdown(destroy=True)


async def test_what_is_bound_of_the_host_cannot_be_changed(host_engine: Engine) -> None:
    """F9, F19: the image `host` shows the host's own files."""
    sandbox = await host_engine.create_sandbox(SandboxConfig(image="host"))
    before = describe(Path("/usr/bin/env"))
    program = (
        ON_FILES.partition("    os.link(path")[0]
        + """
    attempt("open again", lambda: os.open(f"/proc/self/fd/{fd}", os.O_RDWR))
    attempt("open", lambda: os.open(path, os.O_WRONLY | os.O_TRUNC))
    attempt("chmod", lambda: os.fchmod(fd, 0o777) or True)
    attempt("chown", lambda: os.fchown(fd, 0, 0) or True)
    attempt("utime", lambda: os.utime(fd, (1, 1)) or True)
    attempt("setxattr", lambda: os.setxattr(path, "user.evil", b"x") or True)
    attempt("link", lambda: os.link(path, "/usr/bin/evil") or True)
    attempt("link away", lambda: os.link(path, "/tmp/evil") or True)
    attempt("rename", lambda: os.rename(path, "/usr/bin/evil") or True)
    attempt("unlink", lambda: os.unlink(path) or True)
    attempt("mkdir", lambda: os.mkdir("/usr/evil") or True)
print(json.dumps(outcome))
"""
    )
    argv = ["python3", "-", "/usr/bin/env"]
    result = await host_engine.exec(sandbox.id, argv, stdin=program, user="root")
    assert result.exit_code == 0, result.stderr
    also = frozenset({"EROFS", "EPERM", "EXDEV"})
    check_attempts(json.loads(result.stdout), count=21, also=also)
    assert describe(Path("/usr/bin/env")) == before

"""What every process of a sandbox looks like from the host, held to an expectation.

The expectation is what docs/security.md promises. A change here is a change of that promise.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hutch import Engine, Sandbox, SandboxConfig, Tmpfs
from tests.conftest import BUSYBOX

NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")
KEPT = 0x404FB  # CHOWN DAC_OVERRIDE FOWNER FSETID KILL SETGID SETUID NET_BIND_SERVICE SYS_CHROOT

MOUNTS = {
    "/": ("overlay", {"rw", "nosuid", "nodev"}),
    "/dev": ("tmpfs", {"ro", "nosuid", "noexec"}),
    "/dev/pts": ("devpts", {"nosuid", "noexec"}),
    "/dev/shm": ("tmpfs", {"rw", "nosuid", "nodev", "noexec"}),
    "/proc": ("proc", {"nosuid", "nodev", "noexec"}),
    "/proc/sys": ("proc", {"ro"}),
    "/sys": ("tmpfs", {"ro", "nosuid", "nodev", "noexec"}),
}
HOSTS_DEVICES = {f"/dev/{name}" for name in ("full", "null", "random", "tty", "urandom", "zero")}
"""Without root there can be no nodes of the sandbox's own: the host's are bound."""
MASKED = {
    "acpi", "asound", "buddyinfo", "bus", "cmdline", "config.gz", "driver", "fs", "interrupts",
    "irq", "kallsyms", "kcore", "key-users", "keys", "kmsg", "kpagecgroup", "kpagecount",
    "kpageflags", "latency_stats", "pagetypeinfo", "pressure", "sched_debug", "schedstat", "scsi",
    "slabinfo", "softirqs", "sysrq-trigger", "timer_list", "timer_stats", "vmallocinfo",
    "zoneinfo",
}  # fmt: skip


def processes_of(sandbox: Sandbox) -> list[Path]:
    """All processes in a sandbox, found from the host by their pid namespace."""
    name = b"hutch-init\0launch\0" + sandbox.id.encode()
    processes = [*Path("/proc").glob("[0-9]*")]
    init = next(path for path in processes if _command_line(path) == name)
    own = os.readlink(init / "ns/pid")
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(path / "ns/pid") == own:
                found.append(path)
        except (FileNotFoundError, PermissionError, ProcessLookupError):
            continue  # it has ended, or is none of ours
    return found


def _command_line(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes().rstrip(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return b""  # it has ended


def status(process: Path) -> dict[str, str]:
    lines = (process / "status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def check_posture(process: Path, *, escalation: bool = False) -> None:
    fields = status(process)
    user = fields["Uid"].split()[1]
    if os.getuid() == 0 and Path("/proc/self/uid_map").read_text().split()[2] == "4294967295":
        assert int(user) >= 65536, "no process is a user of the host"
    for name in ("CapInh", "CapAmb"):
        assert int(fields[name], 16) == 0
    for name in ("CapPrm", "CapEff", "CapBnd"):
        assert int(fields[name], 16) & ~KEPT == 0
    assert fields["NoNewPrivs"] == ("0" if escalation else "1")
    assert (fields["Seccomp"], fields["Seccomp_filters"]) == ("2", "1")
    for namespace in NAMESPACES:
        own = os.readlink(process / "ns" / namespace)
        assert own != os.readlink(f"/proc/self/ns/{namespace}"), namespace
    limits = {
        line[:26].strip(): line[26:].split()[:2]
        for line in (process / "limits").read_text().splitlines()[1:]
    }
    assert limits["Max core file size"] == ["0", "0"]
    assert limits["Max locked memory"] == ["8388608", "8388608"]
    assert limits["Max nice priority"] == ["0", "0"]
    assert limits["Max realtime priority"] == ["0", "0"]
    assert int((process / "oom_score_adj").read_text()) >= 0


def mounts_of(process: Path) -> dict[str, tuple[str, set[str]]]:
    found = {}
    for line in (process / "mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        point, options = before.split(" ")[4:6]
        assert point not in found, "nothing is mounted twice on one place"
        found[point] = (after.split(" ")[0], set(options.split(",")))
    return found


async def test_every_process_after_start_and_after_exec(engine: Engine, sandbox: Sandbox) -> None:
    for process in processes_of(sandbox):
        check_posture(process)
    await engine.exec_detached(sandbox.id, ["sleep", "1234"])
    await engine.exec_detached(sandbox.id, ["sleep", "1234"], user="user")
    processes = processes_of(sandbox)
    assert len(processes) == 5  # init, two supervisors, two programs
    for process in processes:
        check_posture(process)
    users = [process for process in processes if status(process)["Uid"].split()[1].endswith("000")]
    for process in users:
        assert int(status(process)["CapPrm"], 16) == 0 or "hutch-init" in status(process)["Name"]


async def test_escalation_lifts_no_new_privs_and_nothing_else(engine: Engine) -> None:
    sandbox = await engine.create_sandbox(
        SandboxConfig(image=BUSYBOX, allow_privilege_escalation=True)
    )
    for process in processes_of(sandbox):
        check_posture(process, escalation=True)


async def test_mounts(engine: Engine) -> None:
    config = SandboxConfig(image=BUSYBOX, tmpfs=(Tmpfs("/scratch", 4096),))
    sandbox = await engine.create_sandbox(config)
    (init,) = processes_of(sandbox)
    found = mounts_of(init)
    rootless = (await engine.capabilities()).rootless
    masks = {point for point in found if point.startswith("/proc/") and point != "/proc/sys"}
    assert masks == {f"/proc/{name}" for name in MASKED if Path("/proc", name).exists()}
    for point in masks:
        kind, options = found[point]
        assert rootless or (kind == "tmpfs" and "ro" in options), point
    assert found["/scratch"][0] == "tmpfs"
    assert {"nosuid", "nodev"} <= found["/scratch"][1]
    rest = {point: value for point, value in found.items() if point not in masks}
    del rest["/scratch"]
    assert set(rest) == set(MOUNTS) | (HOSTS_DEVICES if rootless else set())
    for point, (kind, options) in MOUNTS.items():
        assert rest[point][0] == kind, point
        assert options <= rest[point][1], point


async def test_what_can_be_read_and_written_of_proc(engine: Engine, sandbox: Sandbox) -> None:
    line = (
        "for f in $(find /proc /sys -maxdepth 3 -path '/proc/[0-9]*' -prune -o -type f -print"
        " 2>/dev/null | grep -v '^/proc/self\\|^/proc/thread-self'); do"
        " (: >>$f) 2>/dev/null && echo $f; done"
    )
    result = await engine.exec(sandbox.id, line, timeout=60)
    assert result.stdout == ""  # root of a sandbox opens none of the kernel's files to write
    sysctl = await engine.exec(sandbox.id, "echo x >/proc/sys/kernel/core_pattern")
    assert "Read-only" in sysctl.stderr or "denied" in sysctl.stderr


async def test_dev_has_the_minimum(engine: Engine, sandbox: Sandbox) -> None:
    result = await engine.exec(sandbox.id, "ls /dev; touch /dev/x; mknod /tmp/m c 1 1; cat /tmp/m")
    assert set(result.stdout.split()) == {
        "fd", "full", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout", "tty",
        "urandom", "zero",
    }  # fmt: skip
    assert "Read-only" in result.stderr


async def test_device_nodes_are_the_sandboxs_own(engine: Engine, debian: str) -> None:
    """A lock on one, or a new time, is seen by nobody else."""
    if (await engine.capabilities()).rootless:
        pytest.skip("without root the host's nodes are bound")
    first, second = [await engine.create_sandbox(SandboxConfig(image=debian)) for _ in range(2)]
    line = "flock /dev/null sh -c 'echo held; sleep 1234'"
    holding = await engine.exec_detached(first.id, line)
    assert (await anext(engine.command_output(first.id, holding.id))).data == b"held\n"
    assert (await engine.exec(second.id, "flock -n /dev/null echo free")).stdout == "free\n"
    line = "stat -c '%n %U %a %t:%T' /dev/null /dev/tty; echo x >/dev/null; head -c 4 /dev/zero"
    result = await engine.exec(first.id, line, user="user")
    assert result.stdout == "/dev/null root 666 1:3\n/dev/tty root 666 5:0\n" + "\0" * 4


async def test_no_descriptor_but_the_standard_streams(engine: Engine, sandbox: Sandbox) -> None:
    """Row P9."""
    for user in ("0", "user"):
        result = await engine.exec(sandbox.id, ["ls", "/proc/self/fd"], user=user)
        assert result.stdout.split() == ["0", "1", "2", "3"]  # the last is the listing's own
    for number in range(3, 64):
        result = await engine.exec(sandbox.id, ["ls", f"/proc/1/fd/{number}/.."], user="user")
        assert result.stdout == ""


async def test_init_cannot_be_touched_from_inside(engine: Engine, sandbox: Sandbox) -> None:
    """Rows P10, P13, P14."""
    rootless = (await engine.capabilities()).rootless
    for user in ("0", "user"):
        line = (
            "kill -9 1; kill -STOP 1; cat /proc/1/environ /proc/1/mem /proc/1/maps;"
            " ls /proc/1/root/; echo x >/proc/1/exe; echo 0 >/proc/1/oom_score_adj;"
            " cat /proc/1/auxv; for n in $(seq 0 64); do readlink /proc/1/fd/$n; done;"
            " cat /proc/1/fd/[0-9]*"
        )
        result = await engine.exec(sandbox.id, line, user=user)
        assert result.stdout == "", user
        listing = await engine.exec(sandbox.id, ["ls", "/proc/1/fd"], user=user)
        # Without root, root inside is the same host user as the one that started init, and sees
        # which numbers are open: docs/security.md.
        assert listing.stdout == "" or (rootless and user == "0")
    assert (await engine.exec(sandbox.id, ["echo", "alive"])).stdout == "alive\n"


async def test_the_sandboxs_root_can_do_what_programs_expect(
    engine: Engine, sandbox: Sandbox
) -> None:
    line = (
        "chown 5:6 /tmp && chmod 4755 /bin/busybox && mkdir /x && chroot / true && "
        "su user -c 'id -u' && kill -0 1 && { nc -l -p 80 & sleep 0.2; netstat -ltn | grep -c :80; }"
    )
    result = await engine.exec(sandbox.id, line)
    assert result.stdout.split() == ["1000", "1"], result.stderr


@pytest.mark.parametrize("path", ["proc", "sys", "dev"])
async def test_an_image_whose_mount_points_are_links(
    engine: Engine, tmp_path: Path, path: str
) -> None:
    """Row F18: refused by name, and what the link leads to is untouched."""
    from hutch.errors import IsolationError
    from tests.conftest import make_busybox_root

    root, canary = tmp_path / "root", tmp_path / "canary"
    make_busybox_root(root)
    canary.mkdir()
    (root / path).symlink_to(canary)
    image = await engine.images.pull(f"rootfs:{root}", name=f"linked-{path}-{os.getpid()}")
    try:
        with pytest.raises(IsolationError) as caught:
            await engine.create_sandbox(SandboxConfig(image=image.names[0]))
        assert path in str(caught.value)
        assert [*canary.iterdir()] == []
        assert await engine.list_sandboxes() == []
    finally:
        await engine.remove_image(image.names[0])

"""What an attacker would try first, run inside a sandbox with whatever Python it has.

Prints one JSON object a line: the attempt, and what it reached, null where it was kept out. Uses
the standard library only, and changes nothing that outlives its sandbox.
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
import sys
from collections.abc import Callable

libc = ctypes.CDLL(None, use_errno=True)


def syscall(number: int, *arguments: int) -> str | None:
    """Make a system call; None if it worked, else the reason why not."""
    if libc.syscall(ctypes.c_long(number), *(ctypes.c_long(a) for a in arguments)) >= 0:
        return None
    return os.strerror(ctypes.get_errno())


def attempt(name: str, work: Callable[[], object]) -> None:
    """`work` returns what it reached, or None where it was kept out."""
    try:
        reached = work()
    except (OSError, ValueError):
        reached = None
    print(json.dumps({"attempt": name, "reached": reached}), flush=True)


def status(field: str) -> str:
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith(field + ":"):
                return line.split()[1]
    return ""


X86 = os.uname().machine == "x86_64"
CALLS = {
    # name: x86_64 number, aarch64 number, arguments
    "unshare a user namespace": (272, 97, (0x10000000,)),
    "unshare a mount namespace": (272, 97, (0x00020000,)),
    "mount": (165, 40, (0, 0, 0, 0, 0)),
    "open a filesystem context": (430, 430, (0, 0)),
    "load a BPF program": (321, 280, (5, 0, 0)),
    "open a performance counter": (298, 241, (0, 0, -1, -1, 0)),
    "set up io_uring": (425, 425, (1, 0)),
    "userfaultfd": (323, 282, (0,)),
    "add a key": (248, 217, (0, 0, 0, 0, 0)),
    "keyctl": (250, 219, (0, 0, 0)),
    "read the kernel's log": (103, 116, (3, 0, 0)),
    "open by file handle": (304, 265, (-1, 0, 0)),
    "load a module": (313, 273, (-1, 0, 0)),
    "reboot": (169, 142, (0, 0, 0, 0)),
    "set the host's name": (170, 161, (0, 0)),
    "kexec": (246, 104, (0, 0, 0, 0)),
    "swap on": (167, 224, (0, 0)),
    "acct": (163, 89, (0,)),
    "quotactl": (179, 60, (0, 0, 0, 0)),
    "setns": (308, 268, (-1, 0)),
    "pivot_root": (155, 41, (0, 0)),
}
REFUSED = {os.strerror(1), os.strerror(38)}  # EPERM, ENOSYS: refused before it was looked at


def call(numbers: tuple[int, int, tuple[int, ...]]) -> Callable[[], object]:
    def work() -> object:
        problem = syscall(numbers[0] if X86 else numbers[1], *numbers[2])
        return None if problem in REFUSED else f"the kernel looked at it: {problem or 'it worked'}"

    return work


FAMILIES = {3: "AX.25", 17: "packet", 29: "CAN", 31: "Bluetooth", 33: "RxRPC", 38: "crypto",
            40: "vsock", 44: "XDP", 30: "TIPC", 41: "KCM"}  # fmt: skip


def family(number: int) -> Callable[[], object]:
    def work() -> object:
        socket.socket(number, socket.SOCK_DGRAM).close()
        return "a socket"

    return work


def netlink() -> object:
    socket.socket(16, socket.SOCK_RAW, 6).close()
    return "a socket"


def raw_ip() -> object:
    socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP).close()
    return "a socket"


def opens(path: str) -> Callable[[], object]:
    def work() -> object:
        with open(path, "rb") as file:
            data = file.read(64)
        return f"{path}: {data[:40]!r}" if data else None

    return work


def writes(path: str) -> Callable[[], object]:
    def work() -> object:
        fd = os.open(path, os.O_WRONLY)
        masked = os.path.samestat(os.fstat(fd), os.stat("/dev/null"))
        os.close(fd)
        return None if masked else f"{path} opened for writing"

    return work


def trace_init() -> object:
    return None if syscall(101 if X86 else 117, 16, 1, 0, 0) else "it was attached to"


def devices() -> object:
    known = {"null", "zero", "full", "random", "urandom", "tty", "pts", "shm", "ptmx", "fd",
             "stdin", "stdout", "stderr"}  # fmt: skip
    return sorted(set(os.listdir("/dev")) - known) or None


def make_device() -> object:
    os.mknod("/tmp/attack-device", 0o020600, os.makedev(1, 1))
    try:
        with open("/tmp/attack-device", "rb") as file:
            file.read(1)
        return "the host's memory"
    finally:
        os.unlink("/tmp/attack-device")


def interfaces() -> object:
    return [name for _, name in socket.if_nameindex() if name != "lo"] or None


def network() -> object:
    with socket.create_connection(("1.1.1.1", 53), timeout=2):
        return "the internet"


def host_processes() -> object:
    names = [pid for pid in os.listdir("/proc") if pid.isdigit()]
    return f"{len(names)} processes" if len(names) > 50 else None


def inject_input() -> object:
    import fcntl

    master, slave = os.openpty()
    try:
        fcntl.ioctl(slave, 0x5412, b"x")
        return "TIOCSTI"
    finally:
        os.close(master)
        os.close(slave)


def capabilities() -> object:
    allowed = 0x404FB
    extra = int(status("CapEff"), 16) & ~allowed
    return hex(extra) if extra else None


def bounding() -> object:
    extra = int(status("CapBnd"), 16) & ~0x404FB
    return hex(extra) if extra else None


def unfiltered() -> object:
    return None if status("Seccomp") == "2" else "no seccomp filter"


def privileges() -> object:
    return None if status("NoNewPrivs") == "1" else "no_new_privs is not set"


def mapped() -> object:
    with open("/proc/self/uid_map") as file:
        return "the host's own uids" if file.read().split()[1] == "0" else None


def sockets() -> object:
    for path in ("/var/run/docker.sock", "/run/docker.sock", "/run/containerd/containerd.sock"):
        if os.path.exists(path):
            return path
    return None


def main() -> None:
    for name, numbers in CALLS.items():
        attempt(name, call(numbers))
    for number, name in FAMILIES.items():
        attempt(f"a {name} socket", family(number))
    attempt("netlink to the packet filter", netlink)
    attempt("a raw IP socket", raw_ip)
    attempt("trace init", trace_init)
    attempt("devices beyond the minimum", devices)
    attempt("make a device and read it", make_device)
    attempt("network interfaces", interfaces)
    attempt("reach the network", network)
    attempt("processes of the host", host_processes)
    attempt("type into the terminal", inject_input)
    attempt("capabilities beyond the short list", capabilities)
    attempt("a wide bounding set", bounding)
    attempt("run without a system call filter", unfiltered)
    if "--escalation" not in sys.argv:
        attempt("gain privileges", privileges)
    attempt("the host's uids", mapped)
    attempt("a container engine's socket", sockets)
    for path in ("/proc/kcore", "/proc/kmsg", "/proc/keys", "/proc/kallsyms", "/proc/config.gz",
                 "/proc/timer_list", "/proc/interrupts", "/proc/cmdline", "/proc/1/environ",
                 "/dev/mem", "/dev/kmsg", "/dev/sda", "/dev/vda", "/sys/kernel/uevent_helper",
                 "/sys/firmware/efi"):  # fmt: skip
        attempt(f"read {path}", opens(path))
    for path in ("/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe",
                 "/proc/sysrq-trigger", "/proc/sys/vm/drop_caches", "/proc/1/oom_score_adj",
                 "/sys/fs/cgroup/release_agent"):  # fmt: skip
        attempt(f"write {path}", writes(path))


main()

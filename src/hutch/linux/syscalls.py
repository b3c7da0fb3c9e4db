"""System calls that Python does not wrap, typed; each raises OSError as `os` does.

Credentials set here are those of the calling thread alone: the raw system calls have no notion
of a process, it is the C library that spreads setgroups(2) over all threads (nptl(7)).
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Sequence

RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
MNT_DETACH = 2

CAP_CHOWN = 0
CAP_DAC_OVERRIDE = 1
CAP_FOWNER = 3
CAP_FSETID = 4

PROC_SUPER_MAGIC = 0x9FA0
"""`statfs_type` of procfs: statfs(2)."""

_NUMBERS = {
    "x86_64": {
        "syncfs": 306,
        "pivot_root": 155,
        "setgroups": 116,
        "setfsuid": 122,
        "setfsgid": 123,
        "capget": 125,
        "capset": 126,
    },
    "aarch64": {
        "syncfs": 267,
        "pivot_root": 41,
        "setgroups": 159,
        "setfsuid": 151,
        "setfsgid": 152,
        "capget": 90,
        "capset": 91,
    },
}[os.uname().machine]
_OPENAT2 = 437  # the same on every architecture since 5.6
_ATTEMPTS = 128
_CAPABILITY_VERSION_3 = 0x20080522
_LAST_CAPABILITY = 40
_PR_SET_PDEATHSIG = 1
_PR_SET_SECCOMP = 22
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_SECCOMP_MODE_FILTER = 2

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long


class _OpenHow(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


class _CapHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _CapData(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


class _FilterProgram(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def _checked(result: int, path: bytes | None = None) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return result


def openat2(dir_fd: int, path: bytes, flags: int, *, mode: int = 0, resolve: int = 0) -> int:
    """Open `path` below `dir_fd` under the restrictions of `resolve`: openat2(2).

    The descriptor is close-on-exec. EAGAIN, which the kernel answers when a rename raced with
    the resolution of `..`, is retried; not for ever, for a file with a lease has it for as long
    as its holder likes: fcntl(2).
    """
    how = _OpenHow(flags | os.O_CLOEXEC, mode, resolve)
    for attempt in range(_ATTEMPTS):
        result = _syscall(
            ctypes.c_long(_OPENAT2),
            ctypes.c_int(dir_fd),
            ctypes.c_char_p(path),
            ctypes.byref(how),
            ctypes.c_size_t(ctypes.sizeof(how)),
        )
        if result >= 0 or ctypes.get_errno() != errno.EAGAIN or attempt == _ATTEMPTS - 1:
            break
    return _checked(result, path)


def setfsuid(uid: int) -> None:
    """Set this thread's filesystem uid: setfsuid(2), which reports failure only by its absence.

    Leaving 0 takes the filesystem capabilities out of the effective set; coming back to 0 puts
    them in again (capabilities(7)).
    """
    _set_fs_id("setfsuid", uid)


def setfsgid(gid: int) -> None:
    """Set this thread's filesystem gid."""
    _set_fs_id("setfsgid", gid)


def _set_fs_id(name: str, number: int) -> None:
    call = ctypes.c_long(_NUMBERS[name])
    _syscall(call, ctypes.c_uint(number))
    # A second call with an invalid id changes nothing and returns what is set now.
    if _syscall(call, ctypes.c_uint(0xFFFFFFFF)) & 0xFFFFFFFF != number:
        raise OSError(errno.EPERM, f"{name} to {number} was refused")


def setgroups(groups: Sequence[int]) -> None:
    """Set this thread's supplementary groups: setgroups(2)."""
    array = (ctypes.c_uint * len(groups))(*groups)
    _checked(
        _syscall(
            ctypes.c_long(_NUMBERS["setgroups"]),
            ctypes.c_size_t(len(groups)),
            ctypes.byref(array),
        )
    )


def raise_effective(capabilities: Sequence[int]) -> None:
    """Put capabilities this thread is permitted into its effective set: capset(2)."""
    header = _CapHeader(_CAPABILITY_VERSION_3, 0)
    data = (_CapData * 2)()
    _checked(_syscall(ctypes.c_long(_NUMBERS["capget"]), ctypes.byref(header), ctypes.byref(data)))
    for capability in capabilities:
        data[capability // 32].effective |= 1 << (capability % 32)
    _checked(_syscall(ctypes.c_long(_NUMBERS["capset"]), ctypes.byref(header), ctypes.byref(data)))


def keep_capabilities(capabilities: Sequence[int]) -> None:
    """Give up all capabilities of this thread but these, and any way back: capabilities(7)."""
    for number in range(_LAST_CAPABILITY + 1):
        if number not in capabilities:
            result = _libc.prctl(_PR_CAPBSET_DROP, ctypes.c_ulong(number), 0, 0, 0)
            if result < 0 and ctypes.get_errno() != errno.EINVAL:  # EINVAL: an older kernel's last
                _checked(result)
    header = _CapHeader(_CAPABILITY_VERSION_3, 0)
    data = (_CapData * 2)()
    for number in capabilities:
        data[number // 32].effective |= 1 << (number % 32)
        data[number // 32].permitted |= 1 << (number % 32)
    _checked(_syscall(ctypes.c_long(_NUMBERS["capset"]), ctypes.byref(header), ctypes.byref(data)))


def set_no_new_privs() -> None:
    """Let no program that this process executes gain privileges: prctl(2)."""
    _checked(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))


def set_parent_death_signal(signal: int) -> None:
    """Have this signal sent to this process when the thread that started it ends: prctl(2)."""
    _checked(_libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal), 0, 0, 0))


def set_syscall_filter(instructions: bytes) -> None:
    """Have this thread's system calls decided by an array of struct sock_filter: seccomp(2)."""
    program = _FilterProgram(len(instructions) // 8, instructions)
    mode = ctypes.c_ulong(_SECCOMP_MODE_FILTER)
    _checked(_libc.prctl(_PR_SET_SECCOMP, mode, ctypes.byref(program), 0, 0))


def mount(source: bytes | None, target: bytes, flags: int) -> None:
    """Bind a directory to another place, or change how mounts propagate: mount(2)."""
    _checked(_libc.mount(source, target, None, ctypes.c_ulong(flags), None), target)


def pivot_root(new_root: bytes, put_old: bytes) -> None:
    """Make a mount the root, and put the old root below it: pivot_root(2)."""
    _checked(_syscall(ctypes.c_long(_NUMBERS["pivot_root"]), new_root, put_old), new_root)


def unmount(target: bytes, flags: int) -> None:
    """Take a mount away: umount2(2)."""
    _checked(_libc.umount2(target, ctypes.c_int(flags)), target)


def syncfs(fd: int) -> None:
    """Write all of the filesystem `fd` is on to its disk: syncfs(2)."""
    _checked(_syscall(ctypes.c_long(_NUMBERS["syncfs"]), ctypes.c_int(fd)))


def unshare(flags: int) -> None:
    """Give this process namespaces of its own: unshare(2)."""
    _checked(_libc.unshare(ctypes.c_int(flags)))


def setns(fd: int, flags: int) -> None:
    """Enter the namespace that `fd` is about: setns(2)."""
    _checked(_libc.setns(ctypes.c_int(fd), ctypes.c_int(flags)))


def statfs_type(fd: int) -> int:
    """Return the magic number of the filesystem `fd` is on: fstatfs(2)."""
    buffer = (ctypes.c_long * 32)()
    _checked(_libc.fstatfs(ctypes.c_int(fd), ctypes.byref(buffer)))
    return buffer[0]

"""What the unpacker may still ask of the kernel: a list, compiled to classic BPF for seccomp(2).

It is a single-threaded program that reads and writes files below its root directory and its
standard streams, so the list is short: no processes, signals, sockets, namespaces or mounts, and no
memory that can be executed. Whatever is not on it answers ENOSYS, which the C library takes as an
older kernel's answer.
"""

from __future__ import annotations

import errno
import os
import struct

_ALLOWED: dict[str, tuple[int | None, int | None]] = {
    # memory and the interpreter's own upkeep
    "brk": (12, 214), "madvise": (28, 233), "mremap": (25, 216), "munmap": (11, 215),
    "futex": (202, 98), "getpid": (39, 172), "gettid": (186, 178), "rseq": (334, 293),
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139),
    "restart_syscall": (219, 128), "sched_yield": (24, 124), "getrandom": (318, 278),
    "clock_gettime": (228, 113), "exit": (60, 93), "exit_group": (231, 94),
    # descriptors
    "read": (0, 63), "write": (1, 64), "close": (3, 57), "lseek": (8, 62), "pread64": (17, 67),
    "pwrite64": (18, 68), "fcntl": (72, 25), "ftruncate": (77, 46), "getdents64": (217, 61),
    # looking at files
    "open": (2, None), "openat": (257, 56), "stat": (4, None), "fstat": (5, 80),
    "lstat": (6, None), "newfstatat": (262, 79), "statx": (332, 291), "access": (21, None),
    "faccessat": (269, 48), "faccessat2": (439, 439), "readlink": (89, None),
    "readlinkat": (267, 78), "statfs": (137, 43), "fstatfs": (138, 44),
    # making and removing them
    "mkdir": (83, None), "mkdirat": (258, 34), "mknod": (133, None), "mknodat": (259, 33),
    "link": (86, None), "linkat": (265, 37), "symlink": (88, None), "symlinkat": (266, 36),
    "unlink": (87, None), "unlinkat": (263, 35), "rmdir": (84, None),
    # their attributes
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452),
    "chown": (92, None), "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54),
    "utimensat": (280, 88), "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7),
}  # fmt: skip
"""Numbers on x86_64 and aarch64; None where the architecture lacks the call."""
_WITHOUT_EXECUTION = {"mmap": (9, 222), "mprotect": (10, 226)}
_PROT_EXEC = 4
_PROTECTION = 2
"""The argument of both that says what memory is for."""

_COLUMNS = {"x86_64": 0, "aarch64": 1}
_AUDIT_ARCHES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32_BIT = 0x40000000

# struct seccomp_data, linux/seccomp.h
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16

# linux/filter.h
_LOAD = 0x20
_JUMP_EQUAL = 0x15
_JUMP_GREATER_OR_EQUAL = 0x35
_JUMP_IF_SET = 0x45
_RETURN = 0x06

_KILL_PROCESS = 0x80000000
_ERRNO = 0x00050000
_ALLOW = 0x7FFF0000

_Instruction = tuple[int, int, int, int]
"""struct sock_filter: code, jump if true, jump if false, operand."""


def unpacker_filter(machine: str | None = None) -> bytes:
    """Return the filter as an array of struct sock_filter; for this host unless told otherwise."""
    machine = machine or os.uname().machine
    column = _COLUMNS[machine]
    numbers = [known[column] for known in _ALLOWED.values()]
    allowed = [number for number in numbers if number is not None]
    program: list[_Instruction] = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_JUMP_EQUAL, 1, 0, _AUDIT_ARCHES[machine]),
        (_RETURN, 0, 0, _KILL_PROCESS),
        (_LOAD, 0, 0, _NUMBER),
        (_JUMP_GREATER_OR_EQUAL, 0, 1, _X32_BIT),
        (_RETURN, 0, 0, _KILL_PROCESS),
    ]
    for guarded in _WITHOUT_EXECUTION.values():
        program += _guard(guarded[column])
    for left, number in zip(range(len(allowed), 0, -1), allowed, strict=True):
        program.append((_JUMP_EQUAL, left, 0, number))  # to the last instruction
    program += [(_RETURN, 0, 0, _ERRNO | errno.ENOSYS), (_RETURN, 0, 0, _ALLOW)]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


def _guard(number: int) -> list[_Instruction]:
    return [
        (_JUMP_EQUAL, 0, 4, number),
        (_LOAD, 0, 0, _ARGUMENTS + 8 * _PROTECTION),
        (_JUMP_IF_SET, 0, 1, _PROT_EXEC),
        (_RETURN, 0, 0, _ERRNO | errno.EPERM),
        (_RETURN, 0, 0, _ALLOW),
    ]

"""The system call filter: against a model of BPF, and against the kernel."""

from __future__ import annotations

import errno
import json
import os
import struct
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hutch.runtime.native.seccomp import (
    Architecture,
    Decision,
    Policy,
    Switch,
    compile_policy,
    default_filter,
    load_policy,
)

ARCHES: dict[Architecture, int] = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
KILL, ERRNO, ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
MARKER = 133  # an errno that the kernel itself gives for none of these


def run_bpf(program: bytes, arch: int, number: int, arguments: list[int]) -> int:
    """Interpret classic BPF as far as filters use it: the kernel's documentation, filter.rst."""
    data = struct.pack("=iIQ6Q", number, arch, 0, *arguments)
    code = list(struct.iter_unpack("=HBBI", program))
    accumulator, at = 0, 0
    while True:
        operation, true, false, operand = code[at]
        at += 1
        match operation:
            case 0x20:
                (accumulator,) = struct.unpack_from("=I", data, operand)
            case 0x54:
                accumulator &= operand
            case 0x05:
                at += operand
            case 0x15:
                at += true if accumulator == operand else false
            case 0x35:
                at += true if accumulator >= operand else false
            case 0x06:
                return int(operand)
            case _:
                raise AssertionError(f"an instruction that no filter needs: {operation:#x}")


def meaning(policy: Policy, number: int, arguments: list[int]) -> int:
    if policy.architecture == "x86_64" and number >= 0x40000000:
        return KILL
    if number > policy.newest:
        return ERRNO | errno.ENOSYS
    decision: Decision = policy.decisions.get(number, policy.refused)
    while isinstance(decision, Switch):
        value = arguments[decision.argument] & 0xFFFFFFFF & decision.mask
        decision = next(
            (then for values, then in decision.cases if value in values), decision.otherwise
        )
    return decision


@given(
    arch=st.sampled_from(sorted(ARCHES)),
    number=st.integers(0, 520) | st.integers(0, 2**31 - 1),
    arguments=st.lists(
        st.integers(0, 48) | st.sampled_from([0x5412, 0x541C, 0x10000000, 2**32 + 0x5412])
        | st.integers(0, 2**64 - 1),
        min_size=6,
        max_size=6,
    ),
)  # fmt: skip
@settings(max_examples=1500, deadline=None)
def test_the_filter_means_what_the_policy_says(
    arch: Architecture, number: int, arguments: list[int]
) -> None:
    policy = load_policy(arch)
    answer = run_bpf(default_filter(architecture=arch), ARCHES[arch], number, arguments)
    assert answer == meaning(policy, number, arguments)


@pytest.mark.parametrize("arch", sorted(ARCHES))
def test_every_number_of_every_architecture(arch: Architecture) -> None:
    policy = load_policy(arch)
    program = compile_policy(policy)
    for number in range(policy.newest + 50):
        expected = meaning(policy, number, [0] * 6)
        assert run_bpf(program, ARCHES[arch], number, [0] * 6) == expected, number


@pytest.mark.parametrize("arch", sorted(ARCHES))
def test_another_architectures_calls_kill(arch: Architecture) -> None:
    for other in (0x40000003, 0x40000028, *(set(ARCHES.values()) - {ARCHES[arch]})):
        assert run_bpf(default_filter(architecture=arch), other, 1, [0] * 6) == KILL


def test_every_entry_has_its_reason_and_its_own_number() -> None:
    data = json.loads(files("hutch.runtime.native").joinpath("seccomp_policy.json").read_text())
    entries = [
        (name, numbers) for group in data["allow"] for name, numbers in group["syscalls"].items()
    ] + [(rule["syscall"], rule["numbers"]) for rule in data["rules"]]
    assert all(len(item["why"]) > 20 for item in [*data["allow"], *data["rules"]])
    assert len({name for name, _ in entries}) == len(entries)
    for column in (0, 1):
        known = [numbers[column] for _, numbers in entries if numbers[column] is not None]
        assert len(set(known)) == len(known)
        assert max(known) <= data["newest"]


def test_the_numbers_are_the_kernels() -> None:
    header = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
    if not header.is_file():
        pytest.skip("the kernel's headers for x86_64 are not here")
    known = {
        line.split()[1].removeprefix("__NR_"): int(line.split()[2])
        for line in header.read_text().splitlines()
        if line.startswith("#define __NR_")
    }
    data = json.loads(files("hutch.runtime.native").joinpath("seccomp_policy.json").read_text())
    for group in data["allow"]:
        for name, (number, _) in group["syscalls"].items():
            assert known.get(name, number) == number, name


PROBE = """
import ctypes, json, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
program = bytes.fromhex(sys.argv[1])
buffer = ctypes.create_string_buffer(program)
fprog = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer)))
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.syscall(317, 1, 0, fprog) == 0, ctypes.get_errno()
answers = {}
for name, number, arguments in json.loads(sys.argv[2]):
    result = libc.syscall(ctypes.c_long(number), *(ctypes.c_ulong(a) for a in arguments))
    answers[name] = ctypes.get_errno() if result < 0 else 0
print(json.dumps(answers))
"""
DENIED = {
    "unshare": 272, "setns": 308, "mount": 165, "umount2": 166, "pivot_root": 155, "fsopen": 430,
    "fsmount": 432, "fsconfig": 431, "fspick": 433, "move_mount": 429, "open_tree": 428,
    "mount_setattr": 442, "bpf": 321, "perf_event_open": 298, "userfaultfd": 323,
    "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "keyctl": 250,
    "add_key": 248, "request_key": 249, "open_by_handle_at": 304, "name_to_handle_at": 303,
    "quotactl": 179, "quotactl_fd": 443, "swapon": 167, "swapoff": 168, "kexec_load": 246,
    "kexec_file_load": 320, "reboot": 169, "init_module": 175, "finit_module": 313,
    "delete_module": 176, "iopl": 172, "ioperm": 173, "modify_ldt": 154, "acct": 163,
    "settimeofday": 164, "clock_settime": 227, "syslog": 103, "sethostname": 170,
    "setdomainname": 171, "vhangup": 153, "lookup_dcookie": 212, "nfsservctl": 180, "uselib": 134,
    "ustat": 136, "sysfs": 139, "kcmp": 312, "fanotify_init": 300, "fanotify_mark": 301,
    "memfd_secret": 447, "pidfd_getfd": 438, "process_madvise": 440, "vmsplice": 278,
    "migrate_pages": 256, "move_pages": 279, "mbind": 237, "set_mempolicy": 238,
    "get_kernel_syms": 177, "query_module": 178, "create_module": 174, "lsm_get_self_attr": 459,
}  # fmt: skip


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers are of x86_64")
def test_the_kernel_refuses_by_the_filter() -> None:
    calls: list[tuple[str, int, list[int]]] = [
        (name, number, [0] * 6) for name, number in DENIED.items()
    ]
    calls += [
        ("clone a user namespace", 56, [0x10000000, 0, 0, 0, 0]),
        ("an odd personality", 135, [0x0400000]),
        ("TIOCSTI", 16, [0, 0x5412, 0]),
        ("TIOCSTI with high bits", 16, [0, 0xFFFFFFFF00005412, 0]),
        ("TIOCLINUX", 16, [0, 0x541C, 0]),
        ("a raw socket", 41, [2, 3, 1]),
    ]
    answers = _probe(calls)
    assert {name: number for name, number in answers.items() if number != MARKER} == {}
    others = _probe([
        ("clone3", 435, [0, 0]),
        ("a call of the future", 800, []),
        ("vsock", 41, [40, 1, 0]),
        ("crypto", 41, [38, 5, 0]),
        ("packet", 41, [17, 2, 0]),
        ("netfilter", 41, [16, 3, 12]),
        ("sctp", 41, [2, 1, 132]),
        ("getpid", 39, []),
        ("tcp", 41, [2, 1, 0]),
        ("rtnetlink", 41, [16, 3, 0]),
    ])  # fmt: skip
    assert others == {
        "clone3": errno.ENOSYS,
        "a call of the future": errno.ENOSYS,
        "vsock": errno.EAFNOSUPPORT,
        "crypto": errno.EAFNOSUPPORT,
        "packet": errno.EAFNOSUPPORT,
        "netfilter": errno.EPROTONOSUPPORT,
        "sctp": errno.EPROTONOSUPPORT,
        "getpid": 0,
        "tcp": 0,
        "rtnetlink": 0,
    }


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="x32 is of x86_64")
def test_x32_calls_kill() -> None:
    process = _run_probe([("getpid", 0x40000000 + 39, [])])
    assert process.returncode == -31  # SIGSYS


def _run_probe(calls: list[tuple[str, int, list[int]]]) -> subprocess.CompletedProcess[str]:
    program = default_filter(deny_errno=MARKER).hex()
    return subprocess.run(
        [sys.executable, "-c", PROBE, program, json.dumps(calls)],
        capture_output=True,
        text=True,
        check=False,
    )


def _probe(calls: list[tuple[str, int, list[int]]]) -> dict[str, int]:
    process = _run_probe(calls)
    assert process.returncode == 0, process.stderr
    answers: dict[str, int] = json.loads(process.stdout)
    return answers

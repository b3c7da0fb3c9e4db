"""The system call filter: seccomp_policy.json, compiled to the classic BPF that seccomp(2) takes.

The kernel runs the filter for every system call, and once for every number when it is attached
(it caches which numbers are always allowed). So numbers are found by binary search over the
ranges with the same answer, not one by one. Whatever the policy does not name is refused; what is
newer than the policy answers ENOSYS, so that programs fall back to what they used before it.
"""

from __future__ import annotations

import errno
import json
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal, NotRequired, TypeAlias, TypedDict

Architecture = Literal["x86_64", "aarch64"]

_COLUMNS: Mapping[Architecture, int] = {"x86_64": 0, "aarch64": 1}
_AUDIT_ARCHES: Mapping[Architecture, int] = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32_BIT = 0x40000000

# struct seccomp_data, linux/seccomp.h; the low words are first on both architectures
_NUMBER = 0
_ARCHITECTURE = 4
_ARGUMENTS = 16

# linux/filter.h
_LOAD = 0x20
_AND = 0x54
_JUMP = 0x05
_JUMP_EQUAL = 0x15
_JUMP_GREATER_OR_EQUAL = 0x35
_RETURN = 0x06

_KILL_PROCESS = 0x80000000
_ERRNO = 0x00050000
_ALLOW = 0x7FFF0000

_FARTHEST = 255  # what a conditional jump can skip

Instruction = tuple[int, int, int, int]
"""struct sock_filter: code, jump if true, jump if false, operand."""


@dataclass(frozen=True, slots=True)
class Switch:
    """Compare the low word of an argument, masked; the first case that has it decides."""

    argument: int
    mask: int
    cases: tuple[tuple[tuple[int, ...], Decision], ...]
    otherwise: Decision


Decision = int | Switch
"""What seccomp(2) returns for a system call, or how to find out."""


@dataclass(frozen=True, slots=True)
class Policy:
    """The system calls of one architecture that are not refused outright."""

    architecture: Architecture
    decisions: Mapping[int, Decision]
    newest: int
    """The greatest number the policy knows of."""
    refused: int


def load_policy(architecture: Architecture, *, deny_errno: int = errno.EPERM) -> Policy:
    """Read the policy for an architecture; what it denies answers `deny_errno`."""
    data = json.loads(files(__package__).joinpath("seccomp_policy.json").read_text())
    column = _COLUMNS[architecture]
    refused = _ERRNO | deny_errno
    decisions: dict[int, Decision] = {
        numbers[column]: _ALLOW
        for group in data["allow"]
        for numbers in group["syscalls"].values()
        if numbers[column] is not None
    }
    for rule in data["rules"]:
        number = rule["numbers"][column]
        if number is not None:
            decisions[number] = _decision(rule["action"], refused)
    return Policy(architecture, decisions, data["newest"], refused)


class _Case(TypedDict):
    values: list[int]
    then: _Action


class _SwitchAction(TypedDict):
    argument: int
    mask: NotRequired[int]
    cases: list[_Case]
    otherwise: _Action


_Action: TypeAlias = "str | _SwitchAction"


def _decision(action: _Action, refused: int) -> Decision:
    if isinstance(action, str):
        known = {"allow": _ALLOW, "deny": refused}
        return known[action] if action in known else _ERRNO | getattr(errno, action)
    return Switch(
        argument=action["argument"],
        mask=action.get("mask", 0xFFFFFFFF),
        cases=tuple(
            (tuple(case["values"]), _decision(case["then"], refused)) for case in action["cases"]
        ),
        otherwise=_decision(action["otherwise"], refused),
    )


def compile_policy(policy: Policy) -> bytes:
    """Return the filter as an array of struct sock_filter."""
    program: list[Instruction] = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_JUMP_EQUAL, 1, 0, _AUDIT_ARCHES[policy.architecture]),
        (_RETURN, 0, 0, _KILL_PROCESS),
        (_LOAD, 0, 0, _NUMBER),
    ]
    if policy.architecture == "x86_64":
        program += [(_JUMP_GREATER_OR_EQUAL, 0, 1, _X32_BIT), (_RETURN, 0, 0, _KILL_PROCESS)]
    program += _search(_ranges(policy))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


def _ranges(policy: Policy) -> list[tuple[int, Decision]]:
    """Where each run of numbers with one decision begins."""
    ranges: list[tuple[int, Decision]] = []
    for number in range(policy.newest + 1):
        decision = policy.decisions.get(number, policy.refused)
        if not ranges or ranges[-1][1] != decision:
            ranges.append((number, decision))
    ranges.append((policy.newest + 1, _ERRNO | errno.ENOSYS))
    return ranges


def _search(ranges: list[tuple[int, Decision]]) -> list[Instruction]:
    if len(ranges) == 1:
        return _decide(ranges[0][1])
    middle = len(ranges) // 2
    below, above = _search(ranges[:middle]), _search(ranges[middle:])
    start = ranges[middle][0]
    if len(below) <= _FARTHEST:
        return [(_JUMP_GREATER_OR_EQUAL, len(below), 0, start), *below, *above]
    far = (_JUMP, 0, 0, len(below))
    return [(_JUMP_GREATER_OR_EQUAL, 0, 1, start), far, *below, *above]


def _decide(decision: Decision) -> list[Instruction]:
    if isinstance(decision, int):
        return [(_RETURN, 0, 0, decision)]
    program: list[Instruction] = [(_LOAD, 0, 0, _ARGUMENTS + 8 * decision.argument)]
    if decision.mask != 0xFFFFFFFF:
        program.append((_AND, 0, 0, decision.mask))
    for values, then in decision.cases:
        body = _decide(then)
        last = len(values) - 1
        for index, value in enumerate(values):
            program.append((_JUMP_EQUAL, last - index, len(body) if index == last else 0, value))
        program += body
    return program + _decide(decision.otherwise)


@cache
def default_filter(
    *, deny_errno: int = errno.EPERM, architecture: Architecture | None = None
) -> bytes:
    """Return the filter every sandbox gets, for this host's architecture unless told otherwise."""
    if architecture is None:
        machine = os.uname().machine
        architecture = "aarch64" if machine == "aarch64" else "x86_64"
    return compile_policy(load_policy(architecture, deny_errno=deny_errno))

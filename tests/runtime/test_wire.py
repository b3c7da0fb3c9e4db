"""Both sides of the wire: what wire.py says is what native/wire.h says."""

from __future__ import annotations

import re
import struct
from enum import IntEnum
from pathlib import Path

import pytest

from hutch.runtime.native import wire

HEADER = (Path(__file__).parents[2] / "native/wire.h").read_text()
CODE = re.sub(r"/\*.*?\*/", "", HEADER, flags=re.DOTALL)
SIZES = {"uint16_t": "H", "uint32_t": "I", "int32_t": "i", "uint64_t": "Q", "char": "s"}


def enumeration(name: str) -> dict[str, int]:
    (body,) = re.findall(rf"enum {name} {{(.*?)}};", CODE, re.DOTALL)
    return {key: int(value) for key, value in re.findall(r"(\w+) = (\d+)", body)}


def layout(name: str) -> str:
    """A C structure as the struct module writes it; all of ours are without padding."""
    (body,) = re.findall(rf"struct {name} {{(.*?)}};", CODE, re.DOTALL)
    fields = re.findall(r"(\w+) \w+(?:\[(\d+)\])?;", body)
    return "=" + "".join(count + SIZES[kind] for kind, count in fields)


@pytest.mark.parametrize(
    ("name", "prefix", "ours"),
    [
        ("wire_request_kind", "WIRE_", wire.Kind),
        ("wire_launch_tag", "WIRE_LAUNCH_", wire.LaunchTag),
        ("wire_launch_flag", "WIRE_", wire.LaunchFlag),
        ("wire_exec_tag", "WIRE_EXEC_", wire.ExecTag),
        ("wire_exec_flag", "WIRE_", wire.ExecFlag),
        ("wire_deadline_tag", "WIRE_DEADLINE_", wire.DeadlineTag),
        ("wire_message_type", "WIRE_", wire.MessageType),
        ("wire_exited_flag", "WIRE_", wire.ExitedFlag),
    ],
)
def test_enumerations(name: str, prefix: str, ours: type[IntEnum]) -> None:
    theirs = {key.removeprefix(prefix): value for key, value in enumeration(name).items()}
    assert theirs
    assert {member.name: member.value for member in ours} == theirs


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("wire_error", wire.ERROR),
        ("wire_exited", wire.EXITED),
        ("wire_index_entry", wire.INDEX_ENTRY),
    ],
)
def test_structures(name: str, ours: struct.Struct) -> None:
    assert ours.format == layout(name)
    native = struct.Struct("@" + ours.format[1:])
    assert native.size == ours.size, "the compiler would pad it"


def test_numbers() -> None:
    assert f"WIRE_MAGIC 0x{wire.MAGIC:X}U" in CODE
    assert f"WIRE_MAX_FDS {wire.MAX_FDS}" in CODE
    assert "WIRE_MAX_REQUEST (8U * 1024 * 1024)" in CODE
    assert wire.MAX_REQUEST == 8 * 1024 * 1024
    assert "WIRE_MAX_MESSAGE (64U * 1024)" in CODE
    assert wire.MAX_MESSAGE == 64 * 1024

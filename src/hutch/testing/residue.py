"""What a test may have left on the host: compared before and after, seen from outside."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

_NAMES = frozenset({b"hutch-init\n", b"hutch-hold\n"})


@dataclass(frozen=True, slots=True)
class Residue:
    """The host's state as far as sandboxes can change it."""

    mounts: frozenset[str]
    cgroups: frozenset[str]
    processes: frozenset[str]
    descriptors: frozenset[str]

    def since(self, before: Residue) -> dict[str, list[str]]:
        """What is here now and was not before, by kind; empty when nothing is left."""
        left = {
            item.name: sorted(getattr(self, item.name) - getattr(before, item.name))
            for item in fields(self)
        }
        return {name: values for name, values in left.items() if values}


def look() -> Residue:
    """Look at the host now."""
    return Residue(
        mounts=frozenset(Path("/proc/self/mountinfo").read_text().splitlines()),
        cgroups=frozenset(_cgroups()),
        processes=frozenset(_processes()),
        descriptors=frozenset(_descriptors()),
    )


def _cgroups() -> Iterator[str]:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if not after.startswith("cgroup"):
            continue
        top = Path(before.split(" ")[4])
        for parent in top.glob("hutch-*"):
            for child in parent.iterdir():
                if child.is_dir():
                    yield str(child)


def _processes() -> Iterator[str]:
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            comm = Path("/proc", entry, "comm").read_bytes()
            state = Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if comm in _NAMES and state != "Z":
            yield f"{entry} {comm.decode().strip()}"


def _descriptors() -> Iterator[str]:
    for entry in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{entry}")
        except FileNotFoundError:
            continue
        yield f"{entry} {target}"

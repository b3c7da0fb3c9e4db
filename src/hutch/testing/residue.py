"""What a test may have left on the host: compared before and after, seen from outside."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

from hutch.assembly import data_dir_tag
from hutch.config import is_host_root

_PROGRAM = b"hutch-init\n"


@dataclass(frozen=True, slots=True)
class Residue:
    """The host's state as far as one data directory's sandboxes can change it."""

    mounts: frozenset[str]
    loops: frozenset[str]
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


def look(data_dir: Path) -> Residue:
    """Look at the host now. Sandboxes of other data directories are nobody's residue here."""
    parent = f"hutch-{data_dir_tag(data_dir)}"
    return Residue(
        mounts=frozenset(Path("/proc/self/mountinfo").read_text().splitlines()),
        loops=frozenset(_loops(data_dir)),
        cgroups=frozenset(_cgroups(parent)),
        processes=frozenset(_processes(parent)),
        descriptors=frozenset(_descriptors()),
    )


def _loops(data_dir: Path) -> Iterator[str]:
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            file = path.read_text().strip()
        except OSError:  # it has just ended
            continue
        if file.startswith(f"{data_dir}/"):
            yield file


def _cgroups(parent: str) -> Iterator[str]:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if not after.startswith("cgroup"):
            continue
        top = Path(before.split(" ")[4])
        for group in top.glob(f"{parent}/*/"):
            yield str(group)


def _processes(parent: str) -> Iterator[str]:
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        process = Path("/proc", entry)
        try:
            comm = (process / "comm").read_bytes()
            state = (process / "stat").read_text().rpartition(")")[2].split()[0]
            ours = comm == _PROGRAM and state != "Z" and _is_ours(process, parent)
        except (FileNotFoundError, ProcessLookupError):
            continue
        if ours:
            yield f"{entry} {comm.decode().strip()}"


def _is_ours(process: Path, parent: str) -> bool:
    """By its control group or its parent; where the host gives no groups, by its user."""
    if parent in (process / "cgroup").read_text():
        return True
    if not is_host_root() and process.stat().st_uid == 0:
        return True
    return f"\nPPid:\t{os.getpid()}\n" in (process / "status").read_text()


def _descriptors() -> Iterator[str]:
    for entry in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{entry}")
        except FileNotFoundError:
            continue
        yield f"{entry} {target}"

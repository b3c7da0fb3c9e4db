"""What proc(5) says of processes and of this boot."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache


@cache
def boot_id() -> str:
    """Return this boot's own random id: random(4)."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def start_time(pid: int) -> int:
    """Return when a process began, in clock ticks since boot: with its pid it is unmistakable.

    Raises:
        ProcessLookupError: there is no such process, or it has ended and waits for its parent.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read()
    except FileNotFoundError as error:
        raise ProcessLookupError(pid) from error
    # The name, the second field, may itself hold spaces and parentheses.
    fields = text.rpartition(b")")[2].split()
    if fields[0] in {b"Z", b"X"}:
        raise ProcessLookupError(pid)
    return int(fields[19])


def pids_by_name(name: str, *, argument: str) -> Iterator[int]:
    """Yield the processes called `name` that were started with `argument` last.

    A process can choose both; whoever acts on the answer must be sure that it may.
    """
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            with open(f"/proc/{entry}/comm", "rb") as file:
                if file.read().rstrip(b"\n") != os.fsencode(name):
                    continue
            with open(f"/proc/{entry}/cmdline", "rb") as file:
                arguments = file.read().rstrip(b"\0").split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended meanwhile
        if arguments[-1] == os.fsencode(argument):
            yield int(entry)

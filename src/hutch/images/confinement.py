"""Confinement of the process that unpacks a layer: it keeps one directory and standard streams.

It becomes the first process of a process namespace, in a user namespace that maps ids 0 to 65,535
to themselves. So owners come out as archives have them, while being root there is worth nothing
outside: no host process is visible, none of the host's files is reachable, and the four
capabilities that remain are over files of those ids. Of system calls it keeps those of
hutch.images.syscall_filter. Each step that fails is an OSError; there is no lesser confinement.
"""

from __future__ import annotations

import os
import resource
import signal
from typing import NoReturn

from hutch.images.syscall_filter import unpacker_filter
from hutch.linux.syscalls import (
    CAP_CHOWN,
    CAP_DAC_OVERRIDE,
    CAP_FOWNER,
    CAP_FSETID,
    CLONE_NEWCGROUP,
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUSER,
    CLONE_NEWUTS,
    MNT_DETACH,
    MS_BIND,
    MS_PRIVATE,
    MS_REC,
    keep_capabilities,
    mount,
    pivot_root,
    set_no_new_privs,
    set_parent_death_signal,
    set_syscall_filter,
    unmount,
    unshare,
)

MAX_ID = 65_535
"""The greatest uid and gid of a layer, as of a sandbox's user namespace."""
MAX_MEMORY = 512 * 1024**2
"""Bytes of address space: the interpreter takes 50 MiB, zstd and xz up to 130 MiB."""

_NAMESPACES = (
    CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP
)
_STANDARD_INPUT, _STANDARD_ERROR = 0, 2
_MAX_FILES = 64


def confine(directory: str) -> None:
    """Go on as a confined process whose root is `directory`; this one waits for it, and ends so.

    The caller must have imported and initialised whatever it will need, have one thread, and be
    root of the host or of a user namespace with ids 0 to 65,535.

    Raises:
        OSError: the kernel refused a step. It may be raised in either process.
    """
    try:
        set_parent_death_signal(signal.SIGKILL)
        os.chdir(directory)
        unshare(CLONE_NEWPID)
        started, mapped = os.pipe(), os.pipe()
        pid = os.fork()
        if pid != 0:
            os.close(started[1])
            _tend(pid, started[0], mapped[1])
        os.close(mapped[1])
        unshare(_NAMESPACES)
        set_parent_death_signal(signal.SIGKILL)
        os.write(started[1], b".")
        if not os.read(mapped[0], 1):
            os._exit(1)  # the parent has said why
        _enter_root()
        _give_up()
    except OSError as error:
        message = f"this host does not let the unpacker confine itself: {error.strerror}"
        raise OSError(error.errno, message) from error


def _tend(pid: int, started: int, mapped: int) -> NoReturn:
    """Map the ids of a confined child, wait for its end, and end in the same way."""
    if os.read(started, 1):
        _map_ids(pid, "uid_map")
        _map_ids(pid, "gid_map")
        os.write(mapped, b".")
    os.close(mapped)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os._exit(status if status >= 0 else 128 - status)


def _map_ids(pid: int, name: str) -> None:
    """Map the ids this process has to themselves; a mapping may not span two of its own."""
    with open(f"/proc/self/{name}", "rb") as own:
        extents = [[int(number) for number in line.split()] for line in own]
    lines = [
        b"%d %d %d\n" % (first, first, min(count, MAX_ID + 1 - first))
        for first, _, count in extents
        if first <= MAX_ID
    ]
    fd = os.open(f"/proc/{pid}/{name}", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, b"".join(lines))
    finally:
        os.close(fd)


def _enter_root() -> None:
    """Make the working directory the root, and have no other filesystem below or above."""
    os.setgroups([])
    mount(None, b"/", MS_REC | MS_PRIVATE)
    here = os.fsencode(os.getcwd())
    mount(here, here, MS_BIND)
    os.chdir(here)
    pivot_root(b".", b".")
    unmount(b".", MNT_DETACH)
    os.chdir("/")


def _give_up() -> None:
    """Give up memory, files, capabilities and system calls that unpacking does not need."""
    os.dup2(_STANDARD_INPUT, _STANDARD_ERROR)  # which cannot be written to
    os.closerange(_STANDARD_ERROR + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    for limit, value in (
        (resource.RLIMIT_AS, MAX_MEMORY),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, _MAX_FILES),
    ):
        resource.setrlimit(limit, (value, value))
    os.umask(0o022)
    keep_capabilities((CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FOWNER, CAP_FSETID))
    set_no_new_privs()
    set_syscall_filter(unpacker_filter())

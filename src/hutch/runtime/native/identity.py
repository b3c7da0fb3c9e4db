"""Who a sandbox's user is on the host, and acting on files as that user.

The kernel then applies the user's own permissions and ownership, and a host file would be out of
reach even if a path led to one: filesystem uids are per thread (setfsuid(2)).
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from hutch.errors import InvalidRequestError
from hutch.linux.syscalls import (
    CAP_CHOWN,
    CAP_DAC_OVERRIDE,
    CAP_FOWNER,
    CAP_FSETID,
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
    openat2,
    raise_effective,
    setfsgid,
    setfsuid,
    setgroups,
)

_MAX_ACCOUNTS_BYTES = 1024**2
_MAX_ID = 65_535
_MAX_GROUPS = 1024
_ROOT_CAPABILITIES = (CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FOWNER, CAP_FSETID)


@dataclass(frozen=True, slots=True)
class Identity:
    """A user's ids as the sandbox has them."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()


def lookup(root_fd: int, user: str) -> Identity:
    """Find NAME, UID, NAME:GROUP or UID:GID in the sandbox's own /etc/passwd and /etc/group.

    Both files are hostile input: sizes are capped and lines that make no sense are passed over.

    Raises:
        InvalidRequestError: there is no such user or group.
    """
    name, _, group = user.partition(":")
    passwd = _entries(root_fd, b"etc/passwd")
    entry = next((e for e in passwd if name in (e[0], e[2])), None)
    if entry is None and not name.isdecimal():
        raise InvalidRequestError("user", f"the sandbox has no user {name!r}")
    uid = _number(entry[2] if entry else name)
    gid = _number(entry[3]) if entry else uid
    groups = _entries(root_fd, b"etc/group")
    if group:
        found = next((g for g in groups if group in (g[0], g[2])), None)
        if found is None and not group.isdecimal():
            raise InvalidRequestError("user", f"the sandbox has no group {group!r}")
        return Identity(uid, _number(found[2] if found else group))
    member_of = [g[2] for g in groups if entry and entry[0] in g[3].split(",")]
    return Identity(uid, gid, tuple(map(_number, member_of[:_MAX_GROUPS])))


def _number(text: str) -> int:
    if not text.isdecimal() or int(text) > _MAX_ID:
        raise InvalidRequestError("user", f"{text!r} is not an id that the sandbox has")
    return int(text)


def _entries(root_fd: int, path: bytes) -> list[list[str]]:
    """Read a colon-separated account file; each entry has at least four fields."""
    try:
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY
        fd = openat2(root_fd, path, flags, resolve=RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
    except OSError:
        return []  # an image without accounts: ids work, names do not
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return []
        text = os.read(fd, _MAX_ACCOUNTS_BYTES).decode("utf-8", "surrogateescape")
    finally:
        os.close(fd)
    lines = (line.split(":") for line in text.split("\n"))
    return [fields for fields in lines if len(fields) >= 4 and fields[2].isdecimal()]


@contextlib.contextmanager
def acting_as(identity: Identity, uid_base: int) -> Iterator[None]:
    """Do file work as a sandbox's user, on this thread, until the block ends.

    The sandbox's root keeps what root can do to files: with a uid range of its own that is four
    capabilities, which reach beyond the range only where a path does, and no path leads out.
    """
    groups = os.getgroups()
    try:
        setgroups([uid_base + group for group in identity.groups])
        setfsgid(uid_base + identity.gid)
        setfsuid(uid_base + identity.uid)
        if identity.uid == 0 and uid_base:
            raise_effective(_ROOT_CAPABILITIES)
        yield
    finally:
        setfsuid(0)
        setfsgid(0)
        setgroups(groups)

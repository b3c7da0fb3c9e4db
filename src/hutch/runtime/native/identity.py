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
_MAX_REMEMBERED = 256
_Version = tuple[tuple[int, ...], tuple[int, ...]]
_MAX_GROUPS = 64
MAX_ID = 65_535
"""What a sandbox's user namespace maps, and so its highest uid and gid."""
_ROOT_CAPABILITIES = (CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FOWNER, CAP_FSETID)


@dataclass(frozen=True, slots=True)
class Identity:
    """A user's ids as the sandbox has them."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()


class Accounts:
    """Who the users of one sandbox are; what was found holds until its account files change."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[_Version, Identity]] = {}

    def lookup(self, root_fd: int, user: str) -> Identity:
        """As `lookup`, from memory where that is right."""
        version = (_version(root_fd, b"etc/passwd"), _version(root_fd, b"etc/group"))
        known = self._known.get(user)
        if known is not None and known[0] == version:
            return known[1]
        identity = lookup(root_fd, user)
        if len(self._known) >= _MAX_REMEMBERED:
            self._known.clear()
        self._known[user] = version, identity
        return identity


def _version(root_fd: int, path: bytes) -> tuple[int, ...]:
    """What changes whenever a file does; empty where there is none."""
    try:
        fd = openat2(root_fd, path, os.O_PATH, resolve=RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
    except OSError:
        return ()
    try:
        status = os.fstat(fd)
    finally:
        os.close(fd)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def lookup(root_fd: int, user: str) -> Identity:
    """Find NAME, UID, NAME:GROUP or UID:GID in the sandbox's own /etc/passwd and /etc/group.

    The answer is the one that programs get: native/users.c. Both files are hostile input: sizes
    are capped and lines that make no sense are passed over.

    Raises:
        InvalidRequestError: there is no such user or group.
    """
    name, *group = user.split(":")
    account = _find_user(_entries(root_fd, b"etc/passwd", holding=name, fields=6), name)
    if group:
        holding = _entries(root_fd, b"etc/group", holding=group[0], fields=3)
        gid = _find_group(holding, group[0])
        return Identity(account.uid, gid, (gid,))
    ids = [account.gid]
    if account.name:
        holding = _entries(root_fd, b"etc/group", holding=account.name, fields=4)
        ids += _memberships(holding, account.name)
    return Identity(account.uid, account.gid, tuple(dict.fromkeys(ids))[:_MAX_GROUPS])


@dataclass(frozen=True, slots=True)
class _Account:
    name: str
    """Empty for a uid without an entry."""
    uid: int
    gid: int


def _find_user(passwd: list[list[str]], wanted: str) -> _Account:
    """Take the first entry of that name, or of that uid if it is one."""
    wanted_uid = _parse_id(wanted)
    for name, _, uid_text, gid_text, *_ in passwd:
        uid, gid = _parse_id(uid_text), _parse_id(gid_text)
        if uid is None or gid is None:
            continue
        if name == wanted or uid == wanted_uid:
            return _Account(name, uid, gid)
    if wanted_uid is None:
        raise InvalidRequestError("user", f"the sandbox has no user {wanted!r}")
    return _Account("", wanted_uid, 0)


def _find_group(groups: list[list[str]], wanted: str) -> int:
    gid = _parse_id(wanted)
    if gid is not None:
        return gid
    named = (_parse_id(fields[2]) for fields in groups if fields[0] == wanted)
    gid = next((number for number in named if number is not None), None)
    if gid is None:
        raise InvalidRequestError("user", f"the sandbox has no group {wanted!r}")
    return gid


def _memberships(groups: list[list[str]], name: str) -> list[int]:
    """Return the groups that list a user; those that the sandbox cannot have are none."""
    numbers = [_parse_id(fields[2]) for fields in groups if name in fields[3].split(",")]
    return [number for number in numbers if number is not None]


def _parse_id(text: str) -> int | None:
    """Read a uid or gid of the sandbox; None if it is no such number."""
    if len(text) > 5 or not (text.isascii() and text.isdecimal()):
        return None
    return int(text) if int(text) <= MAX_ID else None


def _entries(root_fd: int, path: bytes, *, holding: str, fields: int) -> list[list[str]]:
    """Read the lines of an account file that have a text somewhere, split into their fields.

    Each has at least so many fields. Only those lines are looked into: with a hostile file of
    many, looking into all would keep every thread of this process from running.
    """
    try:
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY
        fd = openat2(root_fd, path, flags, resolve=RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
    except OSError:
        return []  # an image without accounts: ids work, names do not
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return []
        data = os.read(fd, _MAX_ACCOUNTS_BYTES).partition(b"\0")[0]
    finally:
        os.close(fd)
    wanted = os.fsencode(holding)
    lines = [line for line in data.split(b"\n") if wanted in line]
    split = [os.fsdecode(line).split(":") for line in lines]
    return [line for line in split if len(line) >= fields]


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

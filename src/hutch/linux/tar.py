"""Reading a tar archive, which is hostile, as it streams by: tar(5), and pax in POSIX.1.

The standard library's tarfile believes archives: it reads a header of whatever length is claimed,
recurses from header to header, takes quadratic time over some (CVE-2024-6232) and remembers all
members. Here memory is bounded by the constants below, and time by the archive's length. Formats:
v7, ustar, GNU and pax, and the sparse files of the latter two.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from itertools import pairwise
from typing import Protocol

from hutch.linux.holes import write_with_holes

MAX_ENTRIES = 4_000_000
MAX_HEADER = 1024**2
"""Bytes of an extended header: names, attributes, maps of sparse files."""
MAX_PATH = 4095
"""Bytes of a name or of what a link leads to: PATH_MAX."""
MAX_GLOBALS = 65_536
"""Bytes of all global headers together: each member inherits them."""
MAX_HEADERS = 8
"""Extended headers before one member: five are what the formats have."""
MAX_EXTENTS = 262_144

_BLOCK = 512
_ZEROS = bytes(_BLOCK)
_CHUNK = 1024**2
_MAX_SIZE = 2**63 - 1
_TIMES = (-(2**31), 2**34 - 2**31 - 1)
"""What ext4 can say of a time, in seconds since 1970: until the year 2446."""
_LENGTH = re.compile(rb"([0-9]{1,7}) ")
_NEWLINE = ord("\n")
_XATTR = b"SCHILY.xattr."
_MAP_ENTRIES, _MORE_MAP_ENTRIES = 4, 21
"""Of a GNU sparse file's map: those in its header, those in each block after it."""

Extent = tuple[int, int]
"""Where a piece of a file begins, and how many bytes it has; all else is a hole."""


class TarError(Exception):
    """The archive is corrupt or hostile; the message says how."""


class Kind(Enum):
    """What a member is, by its type flag."""

    FILE = b"0"
    HARD_LINK = b"1"
    SYMLINK = b"2"
    CHARACTER_DEVICE = b"3"
    BLOCK_DEVICE = b"4"
    DIRECTORY = b"5"
    FIFO = b"6"


_KINDS = {kind.value: kind for kind in Kind} | dict.fromkeys((b"\0", b"7", b"S"), Kind.FILE)
_PAX, _PAX_GLOBAL, _LONG_NAME, _LONG_LINK = b"xX", b"g", b"L", b"K"
_EXTENDED = _PAX + _PAX_GLOBAL + _LONG_NAME + _LONG_LINK


@dataclass(frozen=True, slots=True)
class Member:
    """What the archive says of one member: nothing of it is checked but that it can be read."""

    name: str
    kind: Kind
    mode: int
    """Permissions, with the setuid, setgid and sticky bits."""
    uid: int
    gid: int
    mtime_ns: int
    """Within what filesystems can say."""
    size: int
    """Of the file, holes included; 0 for all else."""
    link: str
    """Where a link leads: of a hard link, another member's name."""
    device: tuple[int, int]
    xattrs: Mapping[str, bytes]


class Source(Protocol):
    """Where an archive comes from."""

    def read(self, size: int, /) -> bytes:
        """Return that many bytes, fewer only at the end."""


@dataclass(slots=True)
class _Extended:
    """What extended headers say of the member that follows them."""

    records: dict[bytes, bytes]
    name: bytes = b""
    link: bytes = b""
    sparse: list[int] = field(default_factory=list)
    """Repeated records that make a sparse file's map: version 0.0 of the format."""


class TarReader:
    """An archive's members, each with its data, in order and once."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._globals: dict[bytes, bytes] = {}
        self._globals_size = 0
        self._size = 0
        self._extents: tuple[Extent, ...] = ()
        self._left = 0
        """Bytes of the current member's data, as they are in the archive, not read yet."""
        self._padding = 0

    def __iter__(self) -> Iterator[Member]:
        """Yield all members until the archive's end mark.

        Raises:
            TarError: it has none, or is corrupt, or has more of something than is taken.
        """
        for _ in range(MAX_ENTRIES):
            member = self._next()
            if member is None:
                return
            yield member
        raise TarError(f"it has more than {MAX_ENTRIES} entries")

    def copy_to(self, fd: int) -> None:
        """Write the current member's data into an empty file; zeros and holes become holes.

        Raises:
            TarError: the data ends early.
            OSError: it could not be written.
        """
        for begin, size in self._extents:
            for offset in range(begin, begin + size, _CHUNK):
                chunk = self._read(min(_CHUNK, begin + size - offset))
                self._left -= len(chunk)
                write_with_holes(fd, chunk, offset)
        self._extents = ()
        os.ftruncate(fd, self._size)

    def _read(self, size: int) -> bytes:
        data = self._source.read(size)
        if len(data) < size:
            raise TarError("it ends without its end mark: it is truncated")
        return data

    def _skip_data(self) -> None:
        left = self._left + self._padding
        while left > 0:
            left -= len(self._read(min(left, _CHUNK)))
        self._left = self._padding = 0

    def _next(self) -> Member | None:
        self._skip_data()
        extended = _Extended(dict(self._globals))
        for _ in range(MAX_HEADERS + 1):
            block = self._read(_BLOCK)
            if block == _ZEROS:
                return None
            _check_sum(block)
            if block[156] not in _EXTENDED:
                return self._member(block, extended)
            self._extend(block, extended)
        raise TarError(f"it has more than {MAX_HEADERS} extended headers in a row")

    def _extend(self, block: bytes, extended: _Extended) -> None:
        """Read an extended header's data."""
        size = _number(block[124:136])
        if not 0 <= size <= MAX_HEADER:
            raise TarError(f"it has an extended header of {size} bytes; {MAX_HEADER} are taken")
        data = self._read(size + -size % _BLOCK)[:size]
        kind = block[156]
        if kind in _LONG_NAME:
            extended.name = data.partition(b"\0")[0]
        elif kind in _LONG_LINK:
            extended.link = data.partition(b"\0")[0]
        elif kind in _PAX_GLOBAL:
            self._globals_size += size
            if self._globals_size > MAX_GLOBALS:
                raise TarError(f"its global headers have more than {MAX_GLOBALS} bytes")
            self._globals.update(_records(data))
            extended.records.update(self._globals)
        else:
            for key, value in _records(data):
                extended.records[key] = value
                if key in {b"GNU.sparse.offset", b"GNU.sparse.numbytes"}:
                    extended.sparse.append(_decimal(value))

    def _member(self, block: bytes, extended: _Extended) -> Member:
        records = extended.records
        name = records.get(b"GNU.sparse.name") or records.get(b"path")
        name = name or extended.name or _name(block)
        kind = _kind(block, name)
        size = _decimal(records[b"size"]) if records.get(b"size") else _number(block[124:136])
        if not 0 <= size <= _MAX_SIZE:
            raise TarError(f"{os.fsdecode(name)!r} has {size} bytes")
        if kind is not Kind.FILE:
            size = 0  # whatever the header says, no data follows
        self._left, self._padding = size, -size % _BLOCK
        self._size = self._map(block, extended, size)
        link = records.get(b"linkpath") or extended.link or block[157:257].partition(b"\0")[0]
        if max(len(name), len(link)) > MAX_PATH:
            raise TarError(f"{os.fsdecode(name[:80])!r}… has a path of more than {MAX_PATH} bytes")
        return Member(
            name=os.fsdecode(name),
            kind=kind,
            mode=_number(block[100:108]) & 0o7777,
            uid=_decimal(records[b"uid"]) if records.get(b"uid") else _number(block[108:116]),
            gid=_decimal(records[b"gid"]) if records.get(b"gid") else _number(block[116:124]),
            mtime_ns=_mtime_ns(block, records),
            size=self._size,
            link=os.fsdecode(link),
            device=_device(block, kind),
            xattrs={
                os.fsdecode(key[len(_XATTR) :]): value
                for key, value in records.items()
                if key.startswith(_XATTR)
            },
        )

    def _map(self, block: bytes, extended: _Extended, size: int) -> int:
        """Find out where the data belongs in the file; returns the file's size."""
        records = extended.records
        if block[156:157] == b"S":
            numbers, real = self._old_map(block), _number(block[483:495])
        elif records.get(b"GNU.sparse.major") == b"1":
            numbers, real = self._map_in_data(), _decimal(records.get(b"GNU.sparse.realsize", b""))
        elif b"GNU.sparse.size" in records:
            numbers = _values(records.get(b"GNU.sparse.map", b"")) or extended.sparse
            real = _decimal(records[b"GNU.sparse.size"])
        else:
            self._extents = ((0, size),)
            return size
        if len(numbers) % 2 != 0:
            raise TarError("it has a sparse file whose map is incomplete")
        self._extents = tuple(zip(numbers[::2], numbers[1::2], strict=True))
        _check_extents(self._extents, data=self._left, size=real)
        return real

    def _old_map(self, block: bytes) -> list[int]:
        """Read the map of a GNU sparse file: in its header, and in blocks after it."""
        numbers = _old_entries(block[386:482], _MAP_ENTRIES)
        more = block[482]
        while more:
            block = self._read(_BLOCK)
            numbers += _old_entries(block, _MORE_MAP_ENTRIES)
            more = block[504]
            if len(numbers) > 2 * MAX_EXTENTS:
                raise _too_many_extents()
        return numbers

    def _map_in_data(self) -> list[int]:
        """Read the map that comes before a sparse file's data: version 1.0 of the format."""
        lines = self._lines_in_data()
        count = _decimal(next(lines))
        if not 0 <= count <= MAX_EXTENTS:
            raise _too_many_extents()
        return [_decimal(next(lines)) for _ in range(2 * count)]

    def _lines_in_data(self) -> Iterator[bytes]:
        """Yield lines of the member's data; what is left of the last line's block is skipped."""
        rest = b""
        while True:
            self._left -= _BLOCK
            *lines, rest = (rest + self._read(_BLOCK)).split(b"\n")
            if self._left < 0 or len(rest) > _BLOCK:
                raise TarError("it has a sparse file whose map is corrupt")
            yield from lines


def _check_sum(block: bytes) -> None:
    """Check that a block is a header; some old programs took bytes for signed."""
    stored = _number(block[148:156])
    rest = block[:148] + b" " * 8 + block[156:]
    if stored != sum(rest) and stored != sum(byte - (byte & 0x80) * 2 for byte in rest):
        raise TarError("it is no tar archive, or corrupt: a header has a wrong checksum")


def _name(block: bytes) -> bytes:
    name = block[:100].partition(b"\0")[0]
    prefix = block[345:500].partition(b"\0")[0] if block[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _kind(block: bytes, name: bytes) -> Kind:
    flag = block[156:157]
    if flag not in _KINDS:
        raise TarError(f"{os.fsdecode(name)!r} is of the unknown type {flag!r}")
    if flag == b"\0" and name.endswith(b"/"):
        return Kind.DIRECTORY  # as it was before there was a type for them
    return _KINDS[flag]


def _device(block: bytes, kind: Kind) -> tuple[int, int]:
    if kind in {Kind.CHARACTER_DEVICE, Kind.BLOCK_DEVICE}:
        return _number(block[329:337]), _number(block[337:345])
    return 0, 0


def _number(octets: bytes) -> int:
    """Read a number of a header: octal digits, or GNU's two's complement."""
    if octets[0] in {0x80, 0xFF}:
        below_zero = 1 << 8 * (len(octets) - 1) if octets[0] == 0xFF else 0
        return int.from_bytes(octets[1:], "big") - below_zero
    text = octets.partition(b"\0")[0].strip(b" ")
    try:
        return int(text, 8) if text else 0
    except ValueError:
        raise TarError(f"a header has {octets!r} where a number belongs") from None


def _decimal(value: bytes) -> int:
    """Read a number of an extended header."""
    if not re.fullmatch(rb"-?[0-9]{1,19}", value):
        raise TarError(f"an extended header has {value[:40]!r} where a number belongs")
    return int(value)


def _values(value: bytes) -> list[int]:
    """Read a list of numbers."""
    if value.count(b",") > 2 * MAX_EXTENTS:
        raise _too_many_extents()
    return [_decimal(item) for item in value.split(b",")] if value else []


def _mtime_ns(block: bytes, records: Mapping[bytes, bytes]) -> int:
    value = records.get(b"mtime")
    if not value:
        seconds, fraction = _number(block[136:148]), 0
    else:
        match = re.fullmatch(rb"(-?)([0-9]{1,19})(?:\.([0-9]{0,40}))?", value)
        if match is None:
            raise TarError(f"an extended header has {value[:40]!r} where a time belongs")
        total = int(match[2]) * 10**9 + int((match[3] or b"")[:9].ljust(9, b"0"))
        seconds, fraction = divmod(-total if match[1] else total, 10**9)
    first, last = _TIMES
    return min(max(seconds, first), last) * 10**9 + fraction


def _records(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield an extended header's records: LENGTH KEY=VALUE, each on a line of its own."""
    start = 0
    while start < len(data):
        length = _LENGTH.match(data, start)
        end = start + int(length[1]) if length else 0
        if length is None or not (length.end() < end <= len(data)) or data[end - 1] != _NEWLINE:
            raise TarError("an extended header is corrupt")
        key, equals, value = data[length.end() : end - 1].partition(b"=")
        if not (key and equals):
            raise TarError("an extended header is corrupt")
        yield key, value
        start = end


def _old_entries(octets: bytes, count: int) -> list[int]:
    """Read a block's share of an old map; an empty entry ends it."""
    numbers = []
    for start in range(0, 24 * count, 24):
        entry = octets[start : start + 24]
        if entry[0] == 0:
            break
        numbers += [_number(entry[:12]), _number(entry[12:])]
    return numbers


def _check_extents(extents: tuple[Extent, ...], *, data: int, size: int) -> None:
    """Check that pieces are in order, in the file, and together what the archive has."""
    ordered = all(first[0] + first[1] <= second[0] for first, second in pairwise(extents))
    positive = all(offset >= 0 and length >= 0 for offset, length in extents)
    end = sum(extents[-1]) if extents else 0
    total = sum(length for _, length in extents)
    if not (ordered and positive and end <= size <= _MAX_SIZE and total == data):
        raise TarError("it has a sparse file whose map is corrupt")


def _too_many_extents() -> TarError:
    return TarError(f"it has a sparse file of more than {MAX_EXTENTS} pieces")

"""Writing files so that runs of zeros become holes, which take no space: lseek(2)."""

from __future__ import annotations

import os
from collections.abc import Iterator

_GRAIN = 65_536
_ZEROS = bytes(_GRAIN)


def write_with_holes(fd: int, data: bytes, offset: int) -> None:
    """Write `data` at `offset` of a file that has nothing there yet.

    Zeros at the end do not make the file longer: ftruncate(2) it when its size is known.
    """
    view = memoryview(data)
    for start, end in _written(data):
        while start < end:
            start += os.pwrite(fd, view[start:end], offset + start)  # noqa: PLW2901  # short writes


def _written(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield the parts that are not zeros: where each begins and ends."""
    start = end = 0
    for offset in range(0, len(data), _GRAIN):
        piece = data[offset : offset + _GRAIN]
        if piece == _ZEROS[: len(piece)]:
            if end > start:
                yield start, end
            start = end = offset + len(piece)
        else:
            end = offset + len(piece)
    if end > start:
        yield start, end

"""Archives with any members."""

from __future__ import annotations

import io
import tarfile


def member(name: str, type_: bytes = tarfile.REGTYPE, linkname: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = type_, linkname, 0o6755
    return info


def archive_of(*members: tarfile.TarInfo) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for info in members:
            tar.addfile(info)
    return archive.getvalue()

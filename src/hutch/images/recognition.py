"""Telling what kind of image a path is that has no scheme before it."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

_OCI_MARK = "oci-layout"
_DOCKER_MARK = "manifest.json"
_MOST_BYTES = 4 * 1024**2
"""Of a manifest.json; docker's has some hundred for each image."""


def recognise(path: Path) -> str:
    """Return the reference that `path` is: an OCI layout, an archive of an image, or else a rootfs.

    Names and the shape of one file are all that is looked at; the content is as hostile as any.
    """
    if (path / _OCI_MARK).is_file() and (path / "index.json").is_file():
        return f"oci:{path}"
    try:
        with tarfile.open(path) as tar:
            return f"{_kind_of(tar)}:{path}"
    except (OSError, EOFError, ValueError, tarfile.TarError):
        return f"rootfs:{path}"  # whoever reads it says what is wrong with it


def _kind_of(tar: tarfile.TarFile) -> str:
    """The transport for an archive; a docker archive may be an OCI one besides."""
    kind = "rootfs"
    for member in tar:
        name = member.name.removeprefix("./")
        if name == _DOCKER_MARK and _lists_layers(tar, member):
            return "docker-archive"
        if name == _OCI_MARK and member.isfile():
            kind = "oci-archive"
    return kind


def _lists_layers(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bool:
    if not member.isfile() or member.size > _MOST_BYTES:
        return False
    file = tar.extractfile(member)
    assert file is not None, "a regular file has content"
    try:
        images = json.load(file)
    except (ValueError, RecursionError):
        return False
    return isinstance(images, list) and any(
        isinstance(image, dict) and "Layers" in image for image in images
    )

"""Reading an OCI image layout: image-layout.md, manifest.md and config.md of the specification.

Its JSON is somebody else's: every field is checked for its type before it is used.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hutch.errors import ImageNotFoundError, ImageVerificationError
from hutch.models import ImageConfig

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_MAX_DOCUMENT = 8 * 1024**2
_MAX_LAYERS = 127
_MAX_NESTING = 4
_REFERENCE_NAME = "org.opencontainers.image.ref.name"
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True, slots=True)
class LayerBlob:
    """A layer as the layout has it: a file, its digest, and that of the tar archive in it."""

    path: Path
    digest: str
    diff_id: str
    size: int


@dataclass(frozen=True, slots=True)
class LayoutImage:
    """An image of a layout, for this host's architecture."""

    layers: tuple[LayerBlob, ...]
    config: ImageConfig


def read_layout(top: Path, tag: str = "") -> LayoutImage:
    """Read the one image of a layout, or the one called `tag`.

    Raises:
        ImageNotFoundError: there is none of that name, or none for this architecture.
        ImageVerificationError: the layout is corrupt.
    """
    index = _parse(_read(top / "index.json", "index.json"), "index.json")
    return _read_image(top, _choose(_objects(index, "manifests"), tag, top), _MAX_NESTING)


def _choose(manifests: list[Mapping[str, object]], tag: str, top: Path) -> Mapping[str, object]:
    if tag:
        manifests = [entry for entry in manifests if _annotation(entry) == tag]
    if len(manifests) == 1:
        return manifests[0]
    names = sorted(filter(None, (_annotation(entry) for entry in manifests)))
    wanted = f"{top}:{tag}" if tag else str(top)
    hint = f"it has: {', '.join(names)}" if names else ""
    raise ImageNotFoundError(wanted, hint=hint)


def _annotation(entry: Mapping[str, object]) -> str:
    annotations = entry.get("annotations")
    return str(annotations.get(_REFERENCE_NAME, "")) if isinstance(annotations, dict) else ""


def _read_image(top: Path, descriptor: Mapping[str, object], nesting: int) -> LayoutImage:
    document = _read_document(top, descriptor)
    if "manifests" in document:
        if nesting == 0:
            raise ImageVerificationError("its indexes are nested too deeply")
        chosen = _for_this_host(_objects(document, "manifests"), top)
        return _read_image(top, chosen, nesting - 1)
    config = _read_document(top, _object(document, "config"))
    blobs = _objects(document, "layers")
    diff_ids = _strings(_object(config, "rootfs"), "diff_ids")
    if len(blobs) != len(diff_ids):
        raise ImageVerificationError(f"it has {len(blobs)} layers and {len(diff_ids)} diff_ids")
    if len(blobs) > _MAX_LAYERS:
        raise ImageVerificationError(f"it has {len(blobs)} layers; {_MAX_LAYERS} are possible")
    layers = tuple(
        _layer(top, blob, diff_id) for blob, diff_id in zip(blobs, diff_ids, strict=True)
    )
    return LayoutImage(layers, _image_config(config))


def _for_this_host(manifests: list[Mapping[str, object]], top: Path) -> Mapping[str, object]:
    wanted = _ARCHITECTURES.get(os.uname().machine, os.uname().machine)
    for entry in manifests:
        platform = entry.get("platform")
        if isinstance(platform, dict) and (platform.get("os"), platform.get("architecture")) == (
            "linux",
            wanted,
        ):
            return entry
    raise ImageNotFoundError(str(top), hint=f"it has no image for linux/{wanted}")


def _layer(top: Path, blob: Mapping[str, object], diff_id: str) -> LayerBlob:
    digest = _string(blob, "digest")
    path = _blob(top, digest)
    if not _DIGEST.fullmatch(diff_id):
        raise ImageVerificationError(f"{diff_id!r} is not a sha256 digest")
    return LayerBlob(path, digest, diff_id, path.stat().st_size)


def _image_config(document: Mapping[str, object]) -> ImageConfig:
    config = document.get("config") or {}
    if not isinstance(config, dict):
        raise ImageVerificationError("its config is no object")
    env = dict(entry.partition("=")[::2] for entry in _strings(config, "Env"))
    labels = config.get("Labels") or {}
    if not isinstance(labels, dict):
        raise ImageVerificationError("its labels are no object")
    return ImageConfig(
        env=env,
        workdir=str(config.get("WorkingDir") or "/"),
        user=str(config.get("User") or ""),
        cmd=tuple(_strings(config, "Cmd")),
        entrypoint=tuple(_strings(config, "Entrypoint")),
        labels={str(key): str(value) for key, value in labels.items()},
    )


def _blob(top: Path, digest: str) -> Path:
    if not _DIGEST.fullmatch(digest):
        raise ImageVerificationError(f"{digest!r} is not a sha256 digest")
    path = top / "blobs" / "sha256" / digest.removeprefix("sha256:")
    if not path.is_file():
        raise ImageVerificationError(f"the blob {digest} is missing")
    return path


def _read_document(top: Path, descriptor: Mapping[str, object]) -> Mapping[str, object]:
    digest = _string(descriptor, "digest")
    data = _read(_blob(top, digest), digest)
    actual = f"sha256:{hashlib.sha256(data).hexdigest()}"
    if actual != digest:
        raise ImageVerificationError(f"the document {digest} has the digest {actual}")
    return _parse(data, digest)


def _read(path: Path, what: str) -> bytes:
    with path.open("rb") as file:
        data = file.read(_MAX_DOCUMENT + 1)
    if len(data) > _MAX_DOCUMENT:
        raise ImageVerificationError(f"the document {what} is larger than {_MAX_DOCUMENT} bytes")
    return data


def _parse(data: bytes, what: str) -> Mapping[str, object]:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ImageVerificationError(f"{what} is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise ImageVerificationError(f"{what} is no JSON object")
    return document


def _object(document: Mapping[str, object], key: str) -> Mapping[str, object]:
    value = document.get(key)
    if not isinstance(value, dict):
        raise ImageVerificationError(f"{key} is no object")
    return value


def _objects(document: Mapping[str, object], key: str) -> list[Mapping[str, object]]:
    value = document.get(key)
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise ImageVerificationError(f"{key} is no list of objects")
    return value


def _string(document: Mapping[str, object], key: str) -> str:
    value = document.get(key)
    if not isinstance(value, str):
        raise ImageVerificationError(f"{key} is no text")
    return value


def _strings(document: Mapping[str, object], key: str) -> list[str]:
    value = document.get(key) or []
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ImageVerificationError(f"{key} is no list of texts")
    return value

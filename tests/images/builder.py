"""Images made by the tests themselves: tar archives, OCI layouts."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import zstandard


@dataclass
class Entry:
    """One member of a layer's archive."""

    name: str
    data: bytes = b""
    type: bytes = tarfile.REGTYPE
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    link: str = ""
    xattrs: Mapping[str, str] = field(default_factory=dict)
    device: tuple[int, int] = (0, 0)


def directory(name: str, mode: int = 0o755) -> Entry:
    return Entry(name, type=tarfile.DIRTYPE, mode=mode)


def symlink(name: str, target: str) -> Entry:
    return Entry(name, type=tarfile.SYMTYPE, link=target, mode=0o777)


def hard_link(name: str, target: str) -> Entry:
    return Entry(name, type=tarfile.LNKTYPE, link=target)


def archive(*entries: Entry) -> bytes:
    """A tar archive of exactly these members, whatever they say."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for entry in entries:
            info = tarfile.TarInfo(entry.name)
            info.name = entry.name  # TarInfo strips what it finds odd
            info.type, info.mode = entry.type, entry.mode
            info.uid, info.gid, info.linkname = entry.uid, entry.gid, entry.link
            info.size = len(entry.data) if entry.type == tarfile.REGTYPE else 0
            info.devmajor, info.devminor = entry.device
            info.pax_headers = {f"SCHILY.xattr.{k}": v for k, v in entry.xattrs.items()}
            tar.addfile(info, io.BytesIO(entry.data))
    return buffer.getvalue()


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def compress(data: bytes, kind: str) -> tuple[bytes, str]:
    """The data and its media type."""
    media = "application/vnd.oci.image.layer.v1.tar"
    if kind == "gzip":
        return gzip.compress(data), f"{media}+gzip"
    if kind == "zstd":
        return zstandard.ZstdCompressor().compress(data), f"{media}+zstd"
    return data, media


class LayoutBuilder:
    """An OCI image layout in a directory."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.manifests: list[dict[str, object]] = []
        (top / "blobs/sha256").mkdir(parents=True)
        (top / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')

    def blob(self, data: bytes) -> str:
        name = digest(data)
        (self.top / "blobs/sha256" / name.removeprefix("sha256:")).write_bytes(data)
        return name

    def document(self, value: object, media: str) -> dict[str, object]:
        data = json.dumps(value).encode()
        return {"mediaType": media, "digest": self.blob(data), "size": len(data)}

    def image(
        self,
        *layers: bytes,
        tag: str = "latest",
        config: Mapping[str, object] | None = None,
        compression: str = "gzip",
        diff_ids: list[str] | None = None,
    ) -> dict[str, object]:
        described = []
        for layer in layers:
            data, media = compress(layer, compression)
            described.append({"mediaType": media, "digest": self.blob(data), "size": len(data)})
        architecture = {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]
        document = {
            "architecture": architecture,
            "os": "linux",
            "config": dict(config or {}),
            "rootfs": {"type": "layers", "diff_ids": diff_ids or [digest(x) for x in layers]},
        }
        manifest = self.document(
            {
                "schemaVersion": 2,
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "config": self.document(document, "application/vnd.oci.image.config.v1+json"),
                "layers": described,
            },
            "application/vnd.oci.image.manifest.v1+json",
        )
        manifest["annotations"] = {"org.opencontainers.image.ref.name": tag}
        manifest["platform"] = {"os": "linux", "architecture": architecture}
        self.manifests.append(manifest)
        self.write_index()
        return manifest

    def write_index(self) -> None:
        index = {"schemaVersion": 2, "manifests": self.manifests}
        (self.top / "index.json").write_text(json.dumps(index))

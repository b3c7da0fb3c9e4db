"""What the store knows of its images: one small file per image, one per name.

::

    images/ID.json     an image: its layers, its configuration
    names/NAME.json    which image a name means; NAME is percent-encoded
    names/@HASH.json   the same for a name too long to be a file's, which is written inside

Files are replaced as a whole, so that a reader sees the old record or the new one.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote, unquote

from hutch.errors import StateError
from hutch.models import ImageConfig
from hutch.wire import time_from_json

_MAX_ENCODED = 255 - len(".0123456789abcdef.new")
"""Bytes of an encoded name that with what `_write` puts after it are a file's name."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """An image as it is written down; layers are the digests of their archives, lowest first."""

    id: str
    layers: tuple[str, ...]
    config: ImageConfig
    size: int
    created_at: datetime
    source: str


class Records:
    """The records below one directory."""

    def __init__(self, root: Path) -> None:
        self._images = root / "images"
        self._names = root / "names"

    def open(self) -> None:
        """Make the directories if need be."""
        self._images.mkdir(exist_ok=True)
        self._names.mkdir(exist_ok=True)

    def _name(self, name: str) -> Path:
        encoded = quote(name, safe="")
        if len(encoded) > _MAX_ENCODED:
            encoded = f"@{sha256(name.encode()).hexdigest()}"
        return self._names / f"{encoded}.json"

    def put(self, record: ImageRecord) -> None:
        """Write an image down."""
        data = {
            "layers": record.layers,
            "config": {
                "env": dict(record.config.env),
                "workdir": record.config.workdir,
                "user": record.config.user,
                "cmd": record.config.cmd,
                "entrypoint": record.config.entrypoint,
                "labels": dict(record.config.labels),
                "host_paths": record.config.host_paths,
            },
            "size": record.size,
            "created_at": record.created_at.isoformat(),
            "source": record.source,
        }
        _write(self._images / f"{record.id.removeprefix('sha256:')}.json", data)

    def name(self, name: str, image_id: str) -> None:
        """Let `name` mean an image."""
        _write(self._name(name), {"id": image_id, "name": name})

    def unname(self, name: str) -> None:
        """Forget a name. Idempotent."""
        self._name(name).unlink(missing_ok=True)

    def drop(self, image_id: str) -> None:
        """Forget an image. Idempotent."""
        (self._images / f"{image_id.removeprefix('sha256:')}.json").unlink(missing_ok=True)

    def id_of(self, name: str) -> str | None:
        """The image a name means."""
        return _read(self._name(name), lambda data: str(data["id"]))

    def written(self, name: str) -> int | None:
        """When a name was last written, in nanoseconds; a file is replaced, never changed."""
        try:
            return self._name(name).stat().st_mtime_ns
        except FileNotFoundError:
            return None

    def names(self) -> dict[str, str]:
        """All names and the images they mean."""
        found = {}
        for path in self._names.glob("*.json"):
            data = _read(path, lambda data: (str(data["id"]), str(data.get("name", ""))))
            if data is not None:
                found[data[1] or unquote(path.stem)] = data[0]
        return dict(sorted(found.items()))

    def image(self, image_id: str) -> ImageRecord | None:
        """An image by its whole id."""
        path = self._images / f"{image_id.removeprefix('sha256:')}.json"
        return _read(path, lambda data: _image(image_id, data))

    def images(self) -> list[ImageRecord]:
        """All images."""
        found = [self.image(f"sha256:{path.stem}") for path in self._images.glob("*.json")]
        return [record for record in found if record is not None]


def _image(image_id: str, data: Mapping[str, object]) -> ImageRecord:
    config, layers, size = data["config"], data["layers"], data["size"]
    if not (isinstance(config, dict) and isinstance(layers, list) and isinstance(size, int)):
        raise TypeError("a field has another type")
    return ImageRecord(
        id=image_id,
        layers=tuple(layers),
        config=ImageConfig(
            env=config["env"],
            workdir=config["workdir"],
            user=config["user"],
            cmd=tuple(config["cmd"]),
            entrypoint=tuple(config["entrypoint"]),
            labels=config["labels"],
            host_paths=tuple(config.get("host_paths", ())),
        ),
        size=size,
        created_at=time_from_json(str(data["created_at"])),
        source=str(data["source"]),
    )


def _read(path: Path, parse: Callable[[Mapping[str, object]], T]) -> T | None:
    """Read a record; None when there is none."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        return None
    try:
        return parse(json.loads(text))
    except (ValueError, KeyError, TypeError) as error:
        raise StateError(
            f"the image record {path} is corrupt: {error}", hint="remove the file, and pull again"
        ) from error


def _write(path: Path, data: Mapping[str, object]) -> None:
    temporary = path.with_suffix(f".{secrets.token_hex(8)}.new")
    with temporary.open("w") as file:
        json.dump(data, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)

"""Models to and from JSON: one place, so that what is stored and what is sent cannot drift.

Writing covers every model; reading covers those that come back: what callers send and what the
store keeps. Reading is strict: an unknown key is an error that names it.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import TypeAlias, cast

from hutch.errors import InvalidRequestError
from hutch.models import ExecResult, Resources, SandboxConfig, SandboxSpec, Tmpfs

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"


def to_json(value: object) -> Json:
    """Turn a model, or a container of models, into JSON values.

    Times become RFC 3339 in UTC; bytes become base64, except that an `ExecResult` shows its
    output as text with the exact bytes beside it.
    """
    match value:
        case Enum():
            return cast("str", value.value)
        case None | bool() | int() | float():
            return value
        case str():
            return value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        case bytes():
            return base64.b64encode(value).decode()
        case datetime():
            return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
        case Path():
            return str(value)
        case Mapping():
            return {str(key): to_json(item) for key, item in value.items()}
        case list() | tuple():
            return [to_json(item) for item in value]
        case ExecResult():
            return {"stdout": to_json(value.stdout), "stderr": to_json(value.stderr)} | _fields(
                value
            )
        case _:
            return _fields(value)


def _fields(value: object) -> dict[str, Json]:
    if not is_dataclass(value) or isinstance(value, type):
        raise TypeError(f"{type(value).__name__} has no JSON form")
    return {item.name: to_json(getattr(value, item.name)) for item in fields(value)}


def dumps(value: object) -> str:
    """Write a model as one line of JSON."""
    return json.dumps(to_json(value), ensure_ascii=False, separators=(",", ":"))


def fingerprint(value: object) -> str:
    """Return a digest that is equal for equal models."""
    text = json.dumps(to_json(value), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def config_from_json(data: Mapping[str, object]) -> SandboxConfig:
    """Read a `SandboxConfig`; what is left out has its default.

    Raises:
        InvalidRequestError: a field is unknown or bad.
    """
    known = {item.name for item in fields(SandboxConfig)}
    for name in data:
        if name not in known:
            raise InvalidRequestError(name, "is not a field of a sandbox's configuration")
    values = dict(data)
    if isinstance(values.get("cmd"), list):
        values["cmd"] = tuple(cast("list[str]", values["cmd"]))
    if "tmpfs" in values:
        values["tmpfs"] = _tmpfs_from_json(values["tmpfs"])
    return SandboxConfig(**values)  # type: ignore[arg-type]  # __post_init__ checks every field


def _tmpfs_from_json(value: object) -> tuple[Tmpfs, ...]:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise InvalidRequestError("tmpfs", "must be a list of objects with path and size")
    for item in value:
        for name in item:
            if name not in {"path", "size"}:
                raise InvalidRequestError(f"tmpfs.{name}", "is not a field of a tmpfs")
    return tuple(Tmpfs(**item) for item in value)


def spec_from_json(data: Mapping[str, object]) -> SandboxSpec:
    """Read a `SandboxSpec` that `to_json` wrote."""
    values = dict(data)
    values["layers"] = tuple(Path(item) for item in cast("list[str]", data["layers"]))
    values["cmd"] = tuple(cast("list[str]", data["cmd"]))
    values["tmpfs"] = _tmpfs_from_json(data["tmpfs"])
    values["host_paths"] = tuple(cast("list[str]", data["host_paths"]))
    values["resources"] = Resources(**cast("dict[str, int]", data["resources"]))
    return SandboxSpec(**values)  # type: ignore[arg-type]  # our own writing


def time_from_json(text: str) -> datetime:
    """Read an RFC 3339 time."""
    return datetime.fromisoformat(text)

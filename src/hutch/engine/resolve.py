"""From what a caller asks for to what a runtime gets: every default resolved, by pure functions."""

from __future__ import annotations

import base64
import secrets
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hutch.config import Settings
from hutch.errors import UnsupportedError
from hutch.models import Capabilities, Image, Resources, SandboxConfig, SandboxSpec

_ID_PREFIX = "sb-"


def new_sandbox_id() -> str:
    """Return a fresh id of 128 random bits, in lower-case letters and digits."""
    digits = base64.b32encode(secrets.token_bytes(16)).decode().rstrip("=").lower()
    return _ID_PREFIX + digits


def resolve_resources(
    config: SandboxConfig, settings: Settings, capabilities: Capabilities
) -> Resources:
    """Fill in default limits; a default that the host cannot enforce is left out.

    Raises:
        UnsupportedError: a limit was asked for that the host cannot enforce.
    """
    asked = config.resources
    able = {
        "cpu": capabilities.cpu_limit,
        "memory": capabilities.memory_limit,
        "disk_limit": capabilities.disk_limit,
        "pid_limit": capabilities.pid_limit,
    }
    reasons = {"disk_limit": "disk", "pid_limit": "pids"}
    for name, possible in able.items():
        if getattr(asked, name) is not None and not possible:
            why = capabilities.missing.get(reasons.get(name, name), "this host cannot enforce it")
            raise UnsupportedError(name, why, hint="`hutch doctor` says how to enable it")
    return replace(
        asked,
        cpu=asked.cpu or (settings.default_cpu if able["cpu"] else None),
        memory=asked.memory or (settings.default_memory if able["memory"] else None),
        pid_limit=asked.pid_limit or (settings.default_pid_limit if able["pid_limit"] else None),
    )


def resolve_spec(
    sandbox_id: str,
    config: SandboxConfig,
    image: Image,
    resources: Resources,
    *,
    expires_at: datetime | None,
) -> SandboxSpec:
    """Merge a request with its image; the uid range comes from the state store."""
    return SandboxSpec(
        id=sandbox_id,
        layers=image.layers,
        env={**image.config.env, **config.env},
        workdir=config.workdir or image.config.workdir or "/",
        user=config.user or image.config.user or "root",
        cmd=config.cmd or (),
        resources=resources,
        make_workdir=config.workdir is not None,
        uid_base=0,
        read_only=config.read_only,
        tmpfs=config.tmpfs,
        host_paths=image.config.host_paths,
        allow_privilege_escalation=config.allow_privilege_escalation,
        expires_at=expires_at.timestamp() if expires_at else None,
    )


def expiry(timeout: float | None) -> datetime | None:
    """Return the moment `timeout` seconds from now."""
    return None if timeout is None else datetime.now(UTC) + timedelta(seconds=timeout)


def enforced(resources: Resources, capabilities: Capabilities) -> tuple[str, ...]:
    """Name the limits and optional layers that hold for a sandbox."""
    names = {
        "cpu": resources.cpu,
        "memory": resources.memory,
        "pids": resources.pid_limit,
        "disk": resources.disk_limit,
        "uids": capabilities.per_sandbox_uids or None,
    }
    return tuple(name for name, value in names.items() if value is not None)

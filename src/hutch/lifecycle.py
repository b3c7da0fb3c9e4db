"""The sandbox's states and what may follow what: the only place that knows.

`docs/architecture.md` draws its diagram from `TRANSITIONS`.
"""

from __future__ import annotations

from enum import StrEnum

from hutch.errors import InvalidStateError


class SandboxStatus(StrEnum):
    """Where a sandbox is in its life."""

    CREATING = "creating"
    """Being made or started; not usable yet."""
    RUNNING = "running"
    """Its init runs; commands can be executed."""
    STOPPED = "stopped"
    """No process runs; the filesystem is kept."""
    PAUSED = "paused"
    """Frozen: its processes exist and do not run."""
    ERROR = "error"
    """Something failed that left no usable sandbox; it can be destroyed."""


TRANSITIONS: dict[SandboxStatus, frozenset[SandboxStatus]] = {
    SandboxStatus.CREATING: frozenset(
        {SandboxStatus.RUNNING, SandboxStatus.STOPPED, SandboxStatus.ERROR}
    ),
    SandboxStatus.RUNNING: frozenset(
        {SandboxStatus.STOPPED, SandboxStatus.PAUSED, SandboxStatus.ERROR}
    ),
    SandboxStatus.STOPPED: frozenset({SandboxStatus.CREATING, SandboxStatus.ERROR}),
    SandboxStatus.PAUSED: frozenset(
        {SandboxStatus.RUNNING, SandboxStatus.STOPPED, SandboxStatus.ERROR}
    ),
    SandboxStatus.ERROR: frozenset(),
}
"""Status → the statuses that may follow it. Destruction may follow any and leaves no status."""


def transition(sandbox_id: str, current: SandboxStatus, wanted: SandboxStatus) -> SandboxStatus:
    """Return `wanted` if it may follow `current`.

    Raises:
        InvalidStateError: it may not.
    """
    if wanted not in TRANSITIONS[current]:
        raise InvalidStateError(sandbox_id, current, wanted)
    return wanted

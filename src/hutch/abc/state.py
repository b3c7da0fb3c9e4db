"""The contract of the state store: what must survive a restart, shared by every engine process.

The store is the one place where transitions are decided: each method is one atomic step, and
whoever comes second sees what the first did. Intent is written before action, so whatever a
crash leaves can be told from the records: a record with an `intent` whose `owner` is dead is
work that recovery must finish.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from hutch.abc.runtime import InstanceRecord
from hutch.lifecycle import SandboxStatus
from hutch.models import Event, SandboxConfig, SandboxCount, SandboxSpec


class Intent(StrEnum):
    """What some engine is doing to a sandbox right now."""

    CREATE = "create"
    START = "start"
    STOP = "stop"
    DESTROY = "destroy"


@dataclass(frozen=True, slots=True)
class SandboxRecord:
    """All that is known of one sandbox."""

    id: str
    config: SandboxConfig
    spec: SandboxSpec
    image_id: str
    status: SandboxStatus
    created_at: datetime
    expires_at: datetime | None
    reason: str | None = None
    enforced: tuple[str, ...] = ()
    instance: InstanceRecord | None = None
    intent: Intent | None = None
    owner: str | None = None
    """The engine process that has the intent: a lease of `StateStore.owner`."""


@dataclass(frozen=True, slots=True)
class SandboxDraft:
    """A sandbox that is to be recorded; the store assigns its uid range."""

    id: str
    config: SandboxConfig
    spec: SandboxSpec
    image_id: str
    created_at: datetime
    expires_at: datetime | None
    idempotency_key: str | None = None
    fingerprint: str = ""
    """Equal for equal requests: what a repeated idempotency key is held to."""
    ephemeral: bool = False
    """To be destroyed when this process is no more."""


class StateStore(Protocol):
    """Records of sandboxes and events.

    A record survives a crash of every process. `async with` opens and closes the store; opening
    brings an older schema up to date.
    """

    owner: str
    """This process's lease: other processes can tell whether its holder lives."""

    @abstractmethod
    async def add_sandbox(self, draft: SandboxDraft, *, limit: int) -> tuple[SandboxRecord, bool]:
        """Record a sandbox as CREATING with intent CREATE, and reserve a free uid range.

        Returns:
            The record, and whether it is new: an idempotency key that is known gives the record
            it was first used for.

        Raises:
            LimitReachedError: there are `limit` sandboxes already.
            IdempotencyError: the key is known with another fingerprint.
        """

    @abstractmethod
    async def get_sandbox(self, sandbox_id: str) -> SandboxRecord:
        """Return one record.

        Raises:
            SandboxNotFoundError: there is none.
        """

    @abstractmethod
    async def list_sandboxes(
        self,
        *,
        statuses: Collection[SandboxStatus] = (),
        labels: Mapping[str, str] | None = None,
    ) -> list[SandboxRecord]:
        """Return records, oldest first; all labels given must match."""

    @abstractmethod
    async def due(self, now: datetime) -> tuple[list[str], datetime | None]:
        """Return the sandboxes whose expiry has passed, and when the next one's will.

        Those that somebody is changing are left out.
        """

    @abstractmethod
    async def count(self) -> SandboxCount:
        """Count them."""

    @abstractmethod
    async def begin(
        self, sandbox_id: str, intent: Intent, *, expected: Collection[SandboxStatus]
    ) -> SandboxRecord:
        """Write an intent, owned by this process; START also moves the status to CREATING.

        DESTROY takes over any intent. Any other fails while a living process has one.

        Raises:
            SandboxNotFoundError: there is no such sandbox.
            InvalidStateError: its status is not `expected`, or another process is at work on it.
        """

    @abstractmethod
    async def finish(
        self,
        sandbox_id: str,
        status: SandboxStatus,
        *,
        event: str,
        instance: InstanceRecord | None = None,
        enforced: tuple[str, ...] | None = None,
        reason: str | None = None,
    ) -> SandboxRecord:
        """Write the outcome of an intent and clear it.

        Raises:
            SandboxNotFoundError: it was destroyed meanwhile.
        """

    @abstractmethod
    async def give_up(self, sandbox_id: str, *, reason: str) -> None:
        """Write that a destruction failed: ERROR, with the reason, and no intent. Idempotent."""

    @abstractmethod
    async def abandoned(self) -> list[SandboxRecord]:
        """Return the records whose intent belongs to a process that is dead."""

    @abstractmethod
    async def bereft(self) -> list[str]:
        """Return the ephemeral sandboxes whose process is dead."""

    @abstractmethod
    async def ephemeral(self) -> list[str]:
        """Return the ephemeral sandboxes of this process."""

    @abstractmethod
    async def mark_dead(
        self, sandbox_id: str, instance: InstanceRecord, *, reason: str
    ) -> SandboxRecord | None:
        """Record that a running instance ended by itself: STOPPED, with the reason.

        Returns:
            None if the record no longer is about that instance: somebody else saw it first.
        """

    @abstractmethod
    async def set_expiry(self, sandbox_id: str, expires_at: datetime | None) -> SandboxRecord:
        """Move its expiry."""

    @abstractmethod
    async def set_labels(self, sandbox_id: str, labels: Mapping[str, str]) -> SandboxRecord:
        """Replace its labels."""

    @abstractmethod
    async def remove_sandbox(self, sandbox_id: str, *, event: str) -> None:
        """Forget it, as the last step of its destruction. Idempotent."""

    @abstractmethod
    async def add_event(self, type_: str, sandbox_id: str | None, data: Mapping[str, str]) -> None:
        """Append an event."""

    @abstractmethod
    async def events(self, *, after: int, limit: int = 1000, wait: float = 0) -> list[Event]:
        """Return events with a sequence greater than `after`, oldest first.

        Without any, wait up to `wait` seconds for one, whichever process appends it.
        """

    @abstractmethod
    async def last_event(self) -> int:
        """The sequence of the newest event, 0 without any."""

    @abstractmethod
    async def try_maintenance(self) -> bool:
        """Become, or confirm being, the one process that runs the background loops."""

    @abstractmethod
    async def housekeep(self) -> None:
        """Trim old events and move the log into the database; for the maintenance holder."""

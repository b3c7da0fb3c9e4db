"""The state store on SQLite, shared by any number of processes on one host.

Write-ahead logging with `synchronous=NORMAL`: a commit costs no fsync, survives a crash of any
process, and after a power cut the database is consistent though its last commits may be gone;
the sandboxes they were about are gone then too. Checkpoints, which do fsync, are left to the
maintenance holder, off the path of requests.

All statements run on one thread of the store's own, so the event loop never waits for the disk
or for another process's lock.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import sqlite3
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from hutch.abc.runtime import InstanceRecord
from hutch.abc.state import Intent, SandboxDraft, SandboxRecord, StateStore
from hutch.errors import (
    IdempotencyError,
    InvalidStateError,
    LimitReachedError,
    SandboxNotFoundError,
    StateError,
)
from hutch.lifecycle import SandboxStatus, transition
from hutch.models import Event, SandboxConfig, SandboxCount, SandboxSpec
from hutch.state.leases import ExclusiveLock, Lease, exclusive, lease_held
from hutch.wire import config_from_json, dumps, spec_from_json, time_from_json

MIGRATIONS = (
    """
    CREATE TABLE sandboxes (
        id TEXT PRIMARY KEY,
        status TEXT NOT NULL,
        config TEXT NOT NULL,
        spec TEXT NOT NULL,
        image_id TEXT NOT NULL,
        created_at TEXT NOT NULL,
        expires_at TEXT,
        reason TEXT,
        enforced TEXT NOT NULL DEFAULT '[]',
        instance TEXT,
        intent TEXT,
        owner TEXT,
        uid_base INTEGER NOT NULL UNIQUE,
        idempotency_key TEXT UNIQUE,
        fingerprint TEXT NOT NULL,
        bound_to TEXT
    ) STRICT;
    CREATE TABLE events (
        sequence INTEGER PRIMARY KEY,
        timestamp TEXT NOT NULL,
        type TEXT NOT NULL,
        sandbox_id TEXT,
        data TEXT NOT NULL
    ) STRICT;
    """,
)
"""One script per schema version, applied in order; `PRAGMA user_version` counts them."""

_KEEP_EVENTS = 10_000
"""More than none, so that a sequence number, one more than the last, never comes back."""
_REMEMBERED = 2048
"""How many records are kept decoded."""
_POLL_S = 0.1
_CHECKPOINT_PAGES = 20_000
_BUSY_MS = 20_000
_UIDS_PER_SANDBOX = 65_536
_COLUMNS = (
    "id, status, config, spec, image_id, created_at, expires_at, reason, enforced, instance, "
    "intent, owner"
)

T = TypeVar("T")


class SqliteStateStore(StateStore):
    """Records in `DIRECTORY/state.db`.

    Args:
        directory: exists and is private to the engine's user.
        uid_base: first of the host uids that sandboxes get.
        uid_ranges: how many ranges of 65,536 there are.
    """

    def __init__(self, directory: Path, *, uid_base: int, uid_ranges: int) -> None:
        self._directory = directory
        self._uid_base = uid_base
        self._uid_ranges = uid_ranges
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="hutch-state")
        self._appended = asyncio.Event()
        """Set, and replaced, when this process changes something."""
        self.owner = ""

    async def __aenter__(self) -> Self:
        await self._run(self._open)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._run(self._close)
        self._executor.shutdown()

    async def _run(self, function: Callable[[], T]) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, function)

    async def _change(self, function: Callable[[], T]) -> T:
        result = await self._run(function)
        appended, self._appended = self._appended, asyncio.Event()
        appended.set()
        return result

    # Everything below with a leading underscore runs on the store's thread.

    def _open(self) -> None:
        with _translated(), self._alone():
            self._db = sqlite3.connect(self._directory / "state.db", isolation_level=None)
            self._db.execute(f"PRAGMA busy_timeout={_BUSY_MS}")
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.execute(f"PRAGMA wal_autocheckpoint={_CHECKPOINT_PAGES}")
            self._migrate()
        self._lease = Lease(self._directory / "leases")
        self.owner = self._lease.name
        self._maintenance = ExclusiveLock(self._directory / "maintenance.lock")

    def _close(self) -> None:
        self._maintenance.close()
        self._lease.close()
        with self._alone():
            self._db.close()

    def _alone(self) -> contextlib.AbstractContextManager[None]:
        """Keep others from opening or closing: then SQLite does not heed the busy timeout."""
        return exclusive(self._directory / "open.lock")

    def _migrate(self) -> None:
        if self._schema_version() == len(MIGRATIONS):
            return
        with self._transaction():
            version = self._schema_version()
            if version > len(MIGRATIONS):
                raise StateError(
                    f"{self._directory} was written by a newer version of hutch "
                    f"(schema {version}, this one knows {len(MIGRATIONS)})",
                    hint="upgrade hutch, or use another data directory",
                )
            for script in MIGRATIONS[version:]:
                for statement in filter(str.strip, script.split(";")):
                    self._db.execute(statement)
            self._db.execute(f"PRAGMA user_version={len(MIGRATIONS)}")

    def _schema_version(self) -> int:
        return int(self._db.execute("PRAGMA user_version").fetchone()[0])

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with _translated():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def _get(self, sandbox_id: str) -> SandboxRecord:
        with _translated():
            row = self._db.execute(
                f"SELECT {_COLUMNS} FROM sandboxes WHERE id = ?", (sandbox_id,)
            ).fetchone()
        if row is None:
            raise SandboxNotFoundError(sandbox_id, hint="`hutch ls` lists the sandboxes there are")
        return _record(row)

    def _set(self, sandbox_id: str, **values: str | None) -> None:
        names = ", ".join(f"{name} = ?" for name in values)
        self._db.execute(
            f"UPDATE sandboxes SET {names} WHERE id = ?", (*values.values(), sandbox_id)
        )

    def _log(self, type_: str, sandbox_id: str | None, data: Mapping[str, str]) -> None:
        self._db.execute(
            "INSERT INTO events (timestamp, type, sandbox_id, data) VALUES (?, ?, ?, ?)",
            (datetime.now(UTC).isoformat(), type_, sandbox_id, dumps(data)),
        )

    async def add_sandbox(self, draft: SandboxDraft, *, limit: int) -> tuple[SandboxRecord, bool]:
        def add() -> tuple[SandboxRecord, bool]:
            with self._transaction():
                if (known := self._by_key(draft)) is not None:
                    return known, False
                (total,) = self._db.execute("SELECT count(*) FROM sandboxes").fetchone()
                if total >= limit:
                    raise LimitReachedError(
                        f"there are {total} sandboxes and the limit is {limit}",
                        hint="destroy some, or raise the setting max_sandboxes",
                    )
                spec = replace(draft.spec, uid_base=self._free_uid_base())
                self._db.execute(
                    "INSERT INTO sandboxes (id, status, config, spec, image_id, created_at,"
                    " expires_at, intent, owner, uid_base, idempotency_key, fingerprint, bound_to)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        draft.id,
                        SandboxStatus.CREATING,
                        dumps(draft.config),
                        dumps(spec),
                        draft.image_id,
                        draft.created_at.isoformat(),
                        draft.expires_at.isoformat() if draft.expires_at else None,
                        Intent.CREATE,
                        self.owner,
                        spec.uid_base,
                        draft.idempotency_key,
                        draft.fingerprint,
                        self.owner if draft.ephemeral else None,
                    ),
                )
                return self._get(draft.id), True

        return await self._change(add)

    def _by_key(self, draft: SandboxDraft) -> SandboxRecord | None:
        if draft.idempotency_key is None:
            return None
        row = self._db.execute(
            "SELECT id, fingerprint FROM sandboxes WHERE idempotency_key = ?",
            (draft.idempotency_key,),
        ).fetchone()
        if row is None:
            return None
        if row[1] != draft.fingerprint:
            raise IdempotencyError(
                f"the idempotency key {draft.idempotency_key!r} was used for another request"
            )
        return self._get(row[0])

    def _free_uid_base(self) -> int:
        """Pick at random: sandboxes of other data directories share the host's uids."""
        for _ in range(64):
            base = self._uid_base + secrets.randbelow(self._uid_ranges) * _UIDS_PER_SANDBOX
            if not self._db.execute(
                "SELECT 1 FROM sandboxes WHERE uid_base = ?", (base,)
            ).fetchone():
                return base
        raise LimitReachedError(
            f"no free range among {self._uid_ranges} ranges of uids",
            hint="raise the setting uid_ranges, or destroy some sandboxes",
        )

    async def get_sandbox(self, sandbox_id: str) -> SandboxRecord:
        return await self._run(lambda: self._get(sandbox_id))

    async def list_sandboxes(
        self,
        *,
        statuses: Collection[SandboxStatus] = (),
        labels: Mapping[str, str] | None = None,
    ) -> list[SandboxRecord]:
        conditions = ["1"]
        values: list[str] = []
        if statuses:
            conditions.append(f"status IN ({', '.join('?' * len(statuses))})")
            values.extend(statuses)
        for key, text in (labels or {}).items():
            conditions.append(
                "EXISTS (SELECT 1 FROM json_each(config, '$.labels') WHERE key = ? AND value = ?)"
            )
            values.extend((key, text))
        query = (
            f"SELECT {_COLUMNS} FROM sandboxes WHERE {' AND '.join(conditions)}"
            " ORDER BY created_at, id"
        )

        def fetch() -> list[SandboxRecord]:
            with _translated():
                return [_record(row) for row in self._db.execute(query, values)]

        return await self._run(fetch)

    async def due(self, now: datetime) -> tuple[list[str], datetime | None]:
        def fetch() -> tuple[list[str], datetime | None]:
            with _translated():
                rows = self._db.execute(
                    "SELECT id, expires_at FROM sandboxes WHERE expires_at IS NOT NULL"
                    " AND intent IS NULL ORDER BY expires_at"
                ).fetchall()
            expiries = [(name, time_from_json(text)) for name, text in rows]
            later = (at for _, at in expiries if at > now)
            return [name for name, at in expiries if at <= now], next(later, None)

        return await self._run(fetch)

    async def count(self) -> SandboxCount:
        def fetch() -> SandboxCount:
            with _translated():
                row = self._db.execute(
                    "SELECT count(*), count(*) FILTER (WHERE status = 'running') FROM sandboxes"
                ).fetchone()
            return SandboxCount(*row)

        return await self._run(fetch)

    async def begin(
        self, sandbox_id: str, intent: Intent, *, expected: Collection[SandboxStatus]
    ) -> SandboxRecord:
        def begin() -> SandboxRecord:
            with self._transaction():
                record = self._get(sandbox_id)
                if record.status not in expected:
                    raise InvalidStateError(sandbox_id, record.status, " or ".join(expected))
                if intent is not Intent.DESTROY and self._claimed_elsewhere(record):
                    raise InvalidStateError(
                        sandbox_id, f"being changed ({record.intent})", " or ".join(expected)
                    )
                status = record.status
                if intent is Intent.START:
                    status = transition(sandbox_id, status, SandboxStatus.CREATING)
                self._set(sandbox_id, intent=intent, owner=self.owner, status=status)
                return self._get(sandbox_id)

        return await self._change(begin)

    def _claimed_elsewhere(self, record: SandboxRecord) -> bool:
        if record.intent is None:
            return False
        return record.intent is Intent.DESTROY or self._held(record.owner)

    def _held(self, owner: str | None) -> bool:
        if owner is None:
            return False
        return owner == self.owner or lease_held(self._directory / "leases", owner)

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
        def finish() -> SandboxRecord:
            with self._transaction():
                record = self._get(sandbox_id)
                if record.status is not status:
                    transition(sandbox_id, record.status, status)
                keep = record.intent if record.intent is Intent.DESTROY else None
                self._set(
                    sandbox_id,
                    status=status,
                    reason=reason,
                    instance=dumps(instance) if instance else None,
                    intent=keep,
                    owner=record.owner if keep else None,
                )
                if enforced is not None:
                    self._set(sandbox_id, enforced=dumps(enforced))
                self._log(event, sandbox_id, {"reason": reason} if reason else {})
                return self._get(sandbox_id)

        return await self._change(finish)

    async def give_up(self, sandbox_id: str, *, reason: str) -> None:
        def write() -> None:
            with self._transaction(), contextlib.suppress(SandboxNotFoundError):
                record = self._get(sandbox_id)
                if record.status is not SandboxStatus.ERROR:
                    transition(sandbox_id, record.status, SandboxStatus.ERROR)
                self._set(
                    sandbox_id,
                    status=SandboxStatus.ERROR,
                    reason=reason,
                    intent=None,
                    owner=None,
                )
                self._log("sandbox.failed", sandbox_id, {"reason": reason})

        await self._change(write)

    async def abandoned(self) -> list[SandboxRecord]:
        query = f"SELECT {_COLUMNS} FROM sandboxes WHERE intent IS NOT NULL AND owner != ?"

        def fetch() -> list[SandboxRecord]:
            with _translated():
                rows = self._db.execute(query, (self.owner,)).fetchall()
                records = [record for record in map(_record, rows) if not self._held(record.owner)]
                # An owner that has just finished its work has given up its lease since.
                return [record for record in records if self._get_or_none(record.id) == record]

        return await self._run(fetch)

    async def bereft(self) -> list[str]:
        query = "SELECT id, bound_to FROM sandboxes WHERE bound_to != ? AND intent IS NULL"

        def fetch() -> list[str]:
            with _translated():
                rows = self._db.execute(query, (self.owner,)).fetchall()
            return [sandbox_id for sandbox_id, owner in rows if not self._held(owner)]

        return await self._run(fetch)

    async def ephemeral(self) -> list[str]:
        def fetch() -> list[str]:
            with _translated():
                rows = self._db.execute(
                    "SELECT id FROM sandboxes WHERE bound_to = ?", (self.owner,)
                )
                return [sandbox_id for (sandbox_id,) in rows]

        return await self._run(fetch)

    def _get_or_none(self, sandbox_id: str) -> SandboxRecord | None:
        try:
            return self._get(sandbox_id)
        except SandboxNotFoundError:
            return None

    async def mark_dead(
        self, sandbox_id: str, instance: InstanceRecord, *, reason: str
    ) -> SandboxRecord | None:
        def mark() -> SandboxRecord | None:
            with self._transaction():
                try:
                    record = self._get(sandbox_id)
                except SandboxNotFoundError:
                    return None
                if record.instance != instance or self._claimed_elsewhere(record):
                    return None
                transition(sandbox_id, record.status, SandboxStatus.STOPPED)
                self._set(sandbox_id, status=SandboxStatus.STOPPED, reason=reason, instance=None)
                self._log("sandbox.died", sandbox_id, {"reason": reason})
                return self._get(sandbox_id)

        return await self._change(mark)

    async def set_expiry(self, sandbox_id: str, expires_at: datetime | None) -> SandboxRecord:
        def update() -> SandboxRecord:
            with self._transaction():
                self._get(sandbox_id)
                text = expires_at.isoformat() if expires_at else None
                self._set(sandbox_id, expires_at=text)
                self._log("sandbox.updated", sandbox_id, {"expires_at": text or "never"})
                return self._get(sandbox_id)

        return await self._change(update)

    async def set_labels(self, sandbox_id: str, labels: Mapping[str, str]) -> SandboxRecord:
        def update() -> SandboxRecord:
            with self._transaction():
                config: SandboxConfig = self._get(sandbox_id).config
                self._set(sandbox_id, config=dumps(replace(config, labels=labels)))
                self._log("sandbox.updated", sandbox_id, {"labels": dumps(labels)})
                return self._get(sandbox_id)

        return await self._change(update)

    async def remove_sandbox(self, sandbox_id: str, *, event: str) -> None:
        def remove() -> None:
            with self._transaction():
                cursor = self._db.execute("DELETE FROM sandboxes WHERE id = ?", (sandbox_id,))
                if cursor.rowcount:
                    self._log(event, sandbox_id, {})

        await self._change(remove)

    async def add_event(self, type_: str, sandbox_id: str | None, data: Mapping[str, str]) -> None:
        def add() -> None:
            with self._transaction():
                self._log(type_, sandbox_id, data)

        await self._change(add)

    async def events(self, *, after: int, limit: int = 1000, wait: float = 0) -> list[Event]:
        deadline = asyncio.get_running_loop().time() + wait
        while True:
            appended = self._appended
            if found := await self._run(lambda: self._events_after(after, limit)):
                return found
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0:
                return []
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(left, _POLL_S)):
                    await appended.wait()

    def _events_after(self, after: int, limit: int) -> list[Event]:
        with _translated():
            rows = self._db.execute(
                "SELECT sequence, timestamp, type, sandbox_id, data FROM events"
                " WHERE sequence > ? ORDER BY sequence LIMIT ?",
                (after, limit),
            ).fetchall()
        return [
            Event(row[0], time_from_json(row[1]), row[2], row[3], json.loads(row[4]))
            for row in rows
        ]

    async def last_event(self) -> int:
        def fetch() -> int:
            with _translated():
                row = self._db.execute("SELECT max(sequence) FROM events").fetchone()
            return row[0] or 0

        return await self._run(fetch)

    async def try_maintenance(self) -> bool:
        return await self._run(self._maintenance.try_acquire)

    async def housekeep(self) -> None:
        def work() -> None:
            with self._transaction():
                self._db.execute(
                    "DELETE FROM events WHERE sequence <= (SELECT max(sequence) FROM events) - ?",
                    (_KEEP_EVENTS,),
                )
            with _translated():
                self._db.execute("PRAGMA wal_checkpoint(PASSIVE)")

        await self._run(work)


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise StateError(
            f"the state database failed: {error}",
            hint="check that the disk has room and that state.db is intact",
        ) from error


@lru_cache(_REMEMBERED)
def _config(text: str) -> SandboxConfig:
    return config_from_json(json.loads(text))


@lru_cache(_REMEMBERED)
def _spec(text: str) -> SandboxSpec:
    return spec_from_json(json.loads(text))


def _record(row: tuple[str, ...]) -> SandboxRecord:
    """Read a row of `_COLUMNS`."""
    (id_, status, config, spec, image_id, created, expires, reason, enforced, instance, intent,
     owner) = row  # fmt: skip
    expires_at = time_from_json(expires) if expires else None
    return SandboxRecord(
        id=id_,
        config=_config(config),
        spec=replace(
            _spec(spec), expires_at=None if expires_at is None else expires_at.timestamp()
        ),
        image_id=image_id,
        status=SandboxStatus(status),
        created_at=time_from_json(created),
        expires_at=expires_at,
        reason=reason,
        enforced=tuple(json.loads(enforced)),
        instance=InstanceRecord(**json.loads(instance)) if instance else None,
        intent=Intent(intent) if intent else None,
        owner=owner,
    )

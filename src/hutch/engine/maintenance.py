"""What goes on in the background: noticing deaths, expiry, and finishing what a crash left.

Every engine watches the sandboxes it holds. One engine of those that share a data directory, the
holder of the maintenance lock, also watches all others, destroys what has expired, and carries
on work whose process died; when it goes, the next one takes over within a second. Nothing here is
needed for a sandbox to end in time: its own init does that.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

from hutch.abc.runtime import Instance, Runtime
from hutch.abc.state import Intent, SandboxRecord, StateStore
from hutch.errors import HutchError, SandboxNotFoundError
from hutch.lifecycle import SandboxStatus

_log = logging.getLogger(__name__)
_TICK_S = 1.0
_HOUSEKEEP_S = 60.0
_NEWS_S = 0.1
"""How often to look for what other processes have started."""
_ADOPTED = frozenset({"sandbox.created", "sandbox.started"})

Destroy = Callable[[str, str], Awaitable[None]]
"""Destroys a sandbox and records it as the event named."""


class Maintenance:
    """The background work of one engine."""

    def __init__(self, *, runtime: Runtime, state: StateStore, destroy: Destroy) -> None:
        self._runtime = runtime
        self._state = state
        self._destroy = destroy
        self._watchers: dict[str, tuple[Instance, asyncio.Task[None]]] = {}

    async def run(self) -> None:
        """Run until cancelled. Failures are logged and tried again."""
        try:
            while True:
                try:
                    if await self._state.try_maintenance():
                        await self._hold()
                except Exception:  # of any kind: the work must go on
                    _log.exception("maintenance failed; trying again")
                await asyncio.sleep(_TICK_S)
        finally:
            watchers = [task for _, task in self._watchers.values()]
            self._watchers.clear()
            for task in watchers:
                task.cancel()
            await asyncio.gather(*watchers, return_exceptions=True)

    async def _hold(self) -> None:
        """Do the work of the lock's holder for as long as this process lives."""
        last = await self._state.last_event()
        await self._recover()
        looked = housekeeping = 0.0
        while True:
            # Polled, not awaited: this process's own events are no news, and their moment is the
            # worst one to ask the store for anything.
            await asyncio.sleep(min(await self._expire(), _NEWS_S))
            for event in await self._state.events(after=last):
                last = event.sequence
                if event.sandbox_id is not None and event.type in _ADOPTED:
                    await self._adopt(event.sandbox_id)
            now = asyncio.get_running_loop().time()
            if now >= looked + _TICK_S:
                looked = now
                await self._finish_abandoned()
            if now >= housekeeping:
                housekeeping = now + _HOUSEKEEP_S
                await self._state.housekeep()

    async def _expire(self) -> float:
        """Destroy what has expired; return the seconds until there may be more to do."""
        now = datetime.now(UTC)
        expired, following = await self._state.due(now)
        for sandbox_id in expired:
            await self._end(sandbox_id, "sandbox.expired")
        if following is None:
            return _TICK_S
        return min(_TICK_S, (following - now).total_seconds())

    async def _end(self, sandbox_id: str, event: str) -> None:
        try:
            await self._destroy(sandbox_id, event)
        except SandboxNotFoundError:
            return  # another process was quicker
        except (HutchError, OSError):  # the record says so too; the others' turn comes all the same
            _log.exception("a sandbox could not be destroyed", extra={"sandbox_id": sandbox_id})

    # Watching

    def watch(self, sandbox_id: str, instance: Instance) -> None:
        """Notice the death of an instance at once."""
        known = self._watchers.get(sandbox_id)
        if known is not None:
            if known[0] is instance:
                return
            known[1].cancel()
        task = asyncio.create_task(self._watch(sandbox_id, instance), name=f"watch-{sandbox_id}")
        self._watchers[sandbox_id] = (instance, task)
        task.add_done_callback(lambda done: self._forget(sandbox_id, done))

    def _forget(self, sandbox_id: str, task: asyncio.Task[None]) -> None:
        known = self._watchers.get(sandbox_id)
        if known is not None and known[1] is task:
            del self._watchers[sandbox_id]
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("watching failed", extra={"sandbox_id": sandbox_id}, exc_info=error)

    async def _watch(self, sandbox_id: str, instance: Instance) -> None:
        await instance.wait_ended()
        try:
            record = await self._state.get_sandbox(sandbox_id)
        except SandboxNotFoundError:
            return
        if record.instance == instance.record:
            await self.died(record)

    async def _adopt(self, sandbox_id: str) -> None:
        """Watch a sandbox that another process started."""
        if sandbox_id in self._watchers:
            return
        try:
            record = await self._state.get_sandbox(sandbox_id)
        except SandboxNotFoundError:
            return
        await self._attach(record)

    async def _attach(self, record: SandboxRecord) -> None:
        if record.status is not SandboxStatus.RUNNING or record.instance is None:
            return
        instance = await self._runtime.attach(record.id, record.instance, record.spec)
        if instance is None:
            await self.died(record)
        else:
            self.watch(record.id, instance)

    async def died(self, record: SandboxRecord) -> None:
        """Record the end of an instance that no engine ended; destroy it if its time was up."""
        if record.instance is None or record.intent is not None:
            return  # whoever has the intent ended it, and records that
        death = await self._runtime.reap(record.id, record.instance)
        if death.reason == "expired":
            await self._end(record.id, "sandbox.expired")
        elif await self._state.mark_dead(record.id, record.instance, reason=death.reason):
            _log.info("sandbox died", extra={"sandbox_id": record.id, "reason": death.reason})

    # Recovery

    async def _recover(self) -> None:
        """Bring records and kernel to agreement after crashes: either running, or gone."""
        await self._finish_abandoned()
        for record in await self._state.list_sandboxes():
            if record.intent is None:
                await self._attach(record)
        await self._sweep()

    async def _finish_abandoned(self) -> None:
        """Finish what processes began that have died since, and what was theirs alone."""
        for sandbox_id in await self._state.bereft():
            await self._end(sandbox_id, "sandbox.destroyed")
        for record in await self._state.abandoned():
            try:
                await self._finish(record)
            except SandboxNotFoundError:
                continue
            except HutchError:
                _log.exception("recovery failed", extra={"sandbox_id": record.id})

    async def _sweep(self) -> None:
        """Remove what has no record: it is written before a sandbox and removed after it."""
        found = await self._runtime.list()
        known = {record.id for record in await self._state.list_sandboxes()}
        leftovers = set(found) - known
        if leftovers:  # unless their owners have just destroyed them
            leftovers &= set(await self._runtime.list())
        for sandbox_id in sorted(leftovers):
            _log.warning("removing a leftover", extra={"sandbox_id": sandbox_id})
            await self._runtime.delete(sandbox_id)

    async def _finish(self, record: SandboxRecord) -> None:
        _log.warning(
            "finishing what a dead process began",
            extra={"sandbox_id": record.id, "intent": str(record.intent)},
        )
        match record.intent:
            case Intent.CREATE:
                await self._end(record.id, "sandbox.failed")
            case Intent.DESTROY:
                await self._end(record.id, "sandbox.destroyed")
            case Intent.START | Intent.STOP:
                await self._runtime.halt(record.id)
                await self._state.finish(
                    record.id,
                    SandboxStatus.STOPPED,
                    event="sandbox.stopped",
                    reason="its engine died",
                )

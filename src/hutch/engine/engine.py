"""The engine: the life of sandboxes, and all that is done in them.

Any number of engines, in as many processes, may share one data directory. Each public method is
one or two atomic steps on the state store around one call of the runtime; what a crash between
them leaves is finished by `hutch.engine.maintenance`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Collection, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

from hutch.abc.images import ImageStore, ProgressCallback
from hutch.abc.runtime import Runtime
from hutch.abc.state import Intent, SandboxDraft, SandboxRecord, StateStore
from hutch.checks import check_seconds
from hutch.config import Settings
from hutch.engine.files import FileOperations
from hutch.engine.resolve import enforced, expiry, new_sandbox_id, resolve_resources, resolve_spec
from hutch.errors import SandboxNotFoundError, UnsupportedError
from hutch.lifecycle import SandboxStatus
from hutch.models import Capabilities, Event, Sandbox, SandboxConfig, SandboxCount, SandboxStats
from hutch.wire import fingerprint

_log = logging.getLogger(__name__)
_ANY = frozenset(SandboxStatus)
_SETTLE_POLL_S = 0.05


class Engine(FileOperations):
    """Creates sandboxes and works with them: `async with`, or `hutch.open_engine()`.

    Everything it needs is handed in; the constructor does nothing but keep it. Entering opens
    nothing either, it starts the background work; leaving it detaches: sandboxes live on.
    """

    def __init__(
        self, *, runtime: Runtime, images: ImageStore, state: StateStore, settings: Settings
    ) -> None:
        super().__init__(runtime=runtime, state=state, settings=settings, destroy=self._destroy)
        self.images = images
        self._background: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._background = asyncio.create_task(self._maintenance.run(), name="hutch-maintenance")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.shutdown()

    async def shutdown(self, *, destroy: bool = False) -> None:
        """End this engine, and its ephemeral sandboxes. Idempotent.

        Other sandboxes live on, unless `destroy` ends all of them.
        """
        if destroy:
            ending = [record.id for record in await self._state.list_sandboxes()]
        else:
            ending = await self._state.ephemeral()
        for sandbox_id in ending:
            with contextlib.suppress(SandboxNotFoundError):
                await self.destroy_sandbox(sandbox_id)
        background, self._background = self._background, None
        if background is not None:
            background.cancel()
            await asyncio.gather(background, return_exceptions=True)
        self._held.clear()

    async def capabilities(self) -> Capabilities:
        """Say what this host can do."""
        return await self._runtime.probe()

    # Lifecycle

    async def create_sandbox(
        self,
        config: SandboxConfig | None = None,
        *,
        idempotency_key: str | None = None,
        ephemeral: bool = False,
        progress: ProgressCallback | None = None,
    ) -> Sandbox:
        """Make a sandbox and start it; its image is pulled first if it is not there.

        Args:
            config: what is wanted; the default image without limits of its own if left out.
            idempotency_key: a repeated call with the same key returns the first one's sandbox.
            ephemeral: destroy it when this engine shuts down or its process ends, however it ends.
            progress: told how far a pull has come.

        Raises:
            LimitReachedError: `max_sandboxes` exist.
            IsolationError: a layer of isolation could not be applied; nothing is left.
            UnsupportedError: the host cannot do what is asked for.
            ImageError, ImageNotFoundError: the image could not be obtained.
            IdempotencyError: the key was used for another request.
        """
        config = config or SandboxConfig(image=self.settings.default_image)
        if config.allow_privilege_escalation and not self.settings.allow_privilege_escalation:
            raise UnsupportedError(
                "allow_privilege_escalation", "the operator's settings forbid it"
            )
        capabilities = await self._runtime.probe()
        resources = resolve_resources(config, self.settings, capabilities)
        image = await self.images.ensure(config.image, progress=progress)
        timeout = self.settings.default_timeout if config.timeout is None else config.timeout
        sandbox_id, expires_at = new_sandbox_id(), expiry(timeout)
        draft = SandboxDraft(
            id=sandbox_id,
            config=config,
            spec=resolve_spec(sandbox_id, config, image, resources, expires_at=expires_at),
            image_id=image.id,
            created_at=datetime.now(UTC),
            expires_at=expires_at,
            idempotency_key=idempotency_key,
            fingerprint=fingerprint(config),
            ephemeral=ephemeral,
        )
        new = False
        while not new:
            record, new = await self._state.add_sandbox(draft, limit=self.settings.max_sandboxes)
            if not new:
                with contextlib.suppress(SandboxNotFoundError):  # it failed: ours to make now
                    return _view(await self._settled(record))
        names = enforced(resources, capabilities)
        return _view(await self._bring_up(record, "sandbox.created", names))

    async def _settled(self, record: SandboxRecord) -> SandboxRecord:
        """Wait until whoever is creating a sandbox is done."""
        while record.status is SandboxStatus.CREATING:
            await asyncio.sleep(_SETTLE_POLL_S)
            record = await self._state.get_sandbox(record.id)
        return record

    async def _bring_up(
        self, record: SandboxRecord, event: str, names: tuple[str, ...]
    ) -> SandboxRecord:
        """Carry out a CREATE or START intent; undo it on failure."""
        create = record.intent is Intent.CREATE
        try:
            make = self._runtime.create if create else self._runtime.start
            instance = await make(record.spec)
            record = await self._state.finish(
                record.id,
                SandboxStatus.RUNNING,
                event=event,
                instance=instance.record,
                enforced=names,
            )
        except BaseException as error:
            destroyed = await asyncio.shield(self._take_down(record, error, create=create))
            if destroyed and isinstance(error, Exception):
                raise SandboxNotFoundError(record.id, hint="it was destroyed meanwhile") from error
            raise
        self._hold(record, instance)
        _log.info("sandbox running", extra={"sandbox_id": record.id, "image": record.config.image})
        return record

    async def _is_destroyed(self, sandbox_id: str) -> bool:
        try:
            return (await self._state.get_sandbox(sandbox_id)).intent is Intent.DESTROY
        except SandboxNotFoundError:
            return True

    async def _take_down(
        self, record: SandboxRecord, error: BaseException, *, create: bool
    ) -> bool:
        """Undo a bring-up; True if it failed because somebody destroyed the sandbox."""
        destroyed = await self._is_destroyed(record.id)
        _log.info("sandbox failed", extra={"sandbox_id": record.id, "error": str(error)})
        if create:
            await self._runtime.delete(record.id)
            await self._state.remove_sandbox(record.id, event="sandbox.failed")
            return destroyed
        await self._runtime.halt(record.id)
        with contextlib.suppress(SandboxNotFoundError):
            await self._state.finish(
                record.id, SandboxStatus.STOPPED, event="sandbox.failed", reason=str(error)
            )
        return destroyed

    async def get_sandbox(self, sandbox_id: str) -> Sandbox:
        """Return one sandbox as it is now.

        Raises:
            SandboxNotFoundError: there is none.
        """
        return _view(await self._checked(await self._state.get_sandbox(sandbox_id)))

    async def list_sandboxes(
        self,
        *,
        status: SandboxStatus | Collection[SandboxStatus] = (),
        labels: Mapping[str, str] | None = None,
    ) -> list[Sandbox]:
        """Return sandboxes, oldest first: of these statuses, with all of these labels."""
        wanted = (status,) if isinstance(status, SandboxStatus) else status
        views = []
        for record in await self._state.list_sandboxes(labels=labels):
            with contextlib.suppress(SandboxNotFoundError):
                views.append(_view(await self._checked(record)))
        return [view for view in views if not wanted or view.status in wanted]

    async def sandbox_count(self) -> SandboxCount:
        """Count all sandboxes and those that run."""
        return await self._state.count()

    async def start_sandbox(self, sandbox_id: str) -> Sandbox:
        """Start a stopped sandbox on the filesystem it left.

        Raises:
            InvalidStateError: it is not stopped. Others as `create_sandbox` does.
        """
        record = await self._state.begin(sandbox_id, Intent.START, expected={SandboxStatus.STOPPED})
        return _view(await self._bring_up(record, "sandbox.started", record.enforced))

    async def stop_sandbox(self, sandbox_id: str, *, grace: float | None = None) -> Sandbox:
        """End all its processes and keep its filesystem; one that is stopped stays so.

        Args:
            grace: seconds that its main process has between SIGTERM and SIGKILL.
        """
        if grace is not None:
            check_seconds("grace", grace, zero=True)
        record = await self._checked(await self._state.get_sandbox(sandbox_id))
        if record.status is SandboxStatus.STOPPED:
            return _view(record)
        record = await self._state.begin(
            sandbox_id, Intent.STOP, expected={SandboxStatus.RUNNING, SandboxStatus.PAUSED}
        )
        seconds = self.settings.stop_grace if grace is None else grace
        return _view(await asyncio.shield(self._stop(record, seconds)))

    async def _stop(self, record: SandboxRecord, grace: float) -> SandboxRecord:
        if record.instance is not None:
            instance = await self._runtime.attach(record.id, record.instance, record.spec)
            if instance is not None:
                await instance.stop(grace)
        self._held.pop(record.id, None)
        await self._runtime.halt(record.id)
        return await self._state.finish(
            record.id, SandboxStatus.STOPPED, event="sandbox.stopped", reason="stopped"
        )

    async def destroy_sandbox(self, sandbox_id: str) -> None:
        """End it and remove everything of it. When this returns nothing is left.

        Raises:
            SandboxNotFoundError: there is none.
        """
        await asyncio.shield(self._destroy(sandbox_id, "sandbox.destroyed"))

    async def _destroy(self, sandbox_id: str, event: str) -> None:
        await self._state.begin(sandbox_id, Intent.DESTROY, expected=_ANY)
        self._held.pop(sandbox_id, None)
        try:
            await self._runtime.delete(sandbox_id)
        except Exception as error:
            await self._state.give_up(sandbox_id, reason=f"it could not be destroyed: {error}")
            raise
        await self._state.remove_sandbox(sandbox_id, event=event)
        _log.info("sandbox destroyed", extra={"sandbox_id": sandbox_id})

    async def set_timeout(self, sandbox_id: str, timeout: float | None) -> Sandbox:
        """Move a sandbox's expiry to `timeout` seconds from now; None: it does not expire."""
        if timeout is not None:
            check_seconds("timeout", timeout)
        expires_at = expiry(timeout)
        record = await self._state.get_sandbox(sandbox_id)
        if record.status is SandboxStatus.RUNNING:
            instance = await self._instance(sandbox_id)
            await instance.set_deadline(expires_at.timestamp() if expires_at else None)
        return _view(await self._state.set_expiry(sandbox_id, expires_at))

    async def set_labels(self, sandbox_id: str, labels: Mapping[str, str]) -> Sandbox:
        """Replace a sandbox's labels."""
        record = await self._state.get_sandbox(sandbox_id)
        checked = replace(record.config, labels=labels).labels
        return _view(await self._state.set_labels(sandbox_id, checked))

    async def stats(self, sandbox_id: str) -> SandboxStats:
        """Say what a running sandbox uses now."""
        return await (await self._instance(sandbox_id)).stats()

    async def events(
        self, *, after: int | None = None, follow: bool = True
    ) -> AsyncIterator[Event]:
        """Yield changes of state, whichever process made them.

        Args:
            after: the sequence to go on from; None is from now on, 0 all that are kept.
            follow: wait for further ones instead of ending.
        """
        last = await self._state.last_event() if after is None else after
        while True:
            found = await self._state.events(after=last, wait=1.0 if follow else 0)
            for event in found:
                yield event
                last = event.sequence
            if not found and not follow:
                return

    # Images

    async def remove_image(self, reference: str) -> None:
        """Remove an image that no sandbox is made of.

        Raises:
            InUseError: one is.
        """
        await self.images.remove(reference, in_use=await self._images_in_use())

    async def prune_images(self) -> int:
        """Remove what no name and no sandbox needs; return the bytes freed."""
        return await self.images.prune(in_use=await self._images_in_use())

    async def _images_in_use(self) -> set[str]:
        return {record.image_id for record in await self._state.list_sandboxes()}


def _view(record: SandboxRecord) -> Sandbox:
    return Sandbox(
        id=record.id,
        image=record.config.image,
        status=record.status,
        config=record.config,
        created_at=record.created_at,
        expires_at=record.expires_at,
        reason=record.reason,
        enforced=record.enforced,
    )

"""How an engine reaches a running sandbox: by a handle it holds, or one it attaches."""

from __future__ import annotations

from hutch.abc.runtime import Instance, Runtime
from hutch.abc.state import Intent, SandboxRecord, StateStore
from hutch.config import Settings
from hutch.engine.maintenance import Destroy, Maintenance
from hutch.errors import InvalidStateError, SandboxNotFoundError
from hutch.lifecycle import SandboxStatus


class SandboxAccess:
    """What every operation on sandboxes starts from."""

    def __init__(
        self, *, runtime: Runtime, state: StateStore, settings: Settings, destroy: Destroy
    ) -> None:
        self.settings = settings
        self._runtime = runtime
        self._state = state
        self._held: dict[str, tuple[SandboxRecord, Instance]] = {}
        self._maintenance = Maintenance(runtime=runtime, state=state, destroy=destroy)

    def _hold(self, record: SandboxRecord, instance: Instance) -> None:
        self._held[record.id] = (record, instance)
        self._maintenance.watch(record.id, instance)

    async def _checked(self, record: SandboxRecord) -> SandboxRecord:
        """Make sure that a record that says running is right.

        Raises:
            SandboxNotFoundError: it is being destroyed.
        """
        if record.intent is Intent.DESTROY:
            raise SandboxNotFoundError(record.id, hint="it is being destroyed")
        if record.status is not SandboxStatus.RUNNING or record.instance is None:
            return record
        if record.intent is not None:
            return record  # whoever has it writes what comes of it
        if await self._runtime.attach(record.id, record.instance, record.spec) is not None:
            return record
        await self._maintenance.died(record)
        return await self._checked(await self._state.get_sandbox(record.id))

    async def _instance(self, sandbox_id: str) -> Instance:
        """Return the handle of a running sandbox.

        Raises:
            SandboxNotFoundError: there is none.
            InvalidStateError: it does not run.
        """
        return (await self._running(sandbox_id))[1]

    async def _running(self, sandbox_id: str) -> tuple[SandboxRecord, Instance]:
        held = self._held.get(sandbox_id)
        if held is not None and held[1].is_alive():
            return held
        self._held.pop(sandbox_id, None)
        record = await self._checked(await self._state.get_sandbox(sandbox_id))
        if record.status is SandboxStatus.RUNNING and record.instance is not None:
            instance = await self._runtime.attach(sandbox_id, record.instance, record.spec)
            if instance is not None:
                self._hold(record, instance)
                return record, instance
        raise InvalidStateError(
            sandbox_id,
            record.status + (f" ({record.reason})" if record.reason else ""),
            SandboxStatus.RUNNING,
            hint=f"`hutch start {sandbox_id}` starts it again",
        )


def absolute(path: str | None, workdir: str) -> str:
    """Return a path that is below the working directory unless it says otherwise."""
    if path is None:
        return workdir
    return path if path.startswith("/") else f"{workdir.rstrip('/')}/{path}"

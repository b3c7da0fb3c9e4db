"""Any order of operations, one after another and at the same time, from two engines.

The model knows what each sandbox must be. What races may be refused with a typed error or take
effect in any order; the records, the listing and the kernel agree afterwards.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import hypothesis
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from hutch import Engine, ExitReason, Sandbox, SandboxStatus, Settings, open_engine
from hutch.errors import (
    ConflictError,
    LimitReachedError,
    SandboxNotFoundError,
    SandboxUnavailableError,
)

LIMIT = 4
RUNNING, STOPPED = SandboxStatus.RUNNING, SandboxStatus.STOPPED

Operation = Callable[[Engine, str], Awaitable[object]]


async def run_and_mark(engine: Engine, sandbox_id: str) -> None:
    result = await engine.exec(sandbox_id, "echo x >>/marks; exit 7")
    assert (result.exit_code, result.reason) in {
        (7, ExitReason.EXITED),
        (137, ExitReason.SIGNALLED),
        (137, ExitReason.LOST),
    }


OPERATIONS: dict[str, Operation] = {
    "stop": lambda engine, sandbox_id: engine.stop_sandbox(sandbox_id),
    "start": lambda engine, sandbox_id: engine.start_sandbox(sandbox_id),
    "destroy": lambda engine, sandbox_id: engine.destroy_sandbox(sandbox_id),
    "exec": run_and_mark,
    "write": lambda engine, sandbox_id: engine.write_file(sandbox_id, "/file", b"x" * 5000),
    "extend": lambda engine, sandbox_id: engine.set_timeout(sandbox_id, 1000),
    "label": lambda engine, sandbox_id: engine.set_labels(sandbox_id, {"a": "b"}),
}
EFFECTS = {"stop": STOPPED, "start": RUNNING, "destroy": None}


def outcomes(before: SandboxStatus, names: list[str]) -> set[SandboxStatus | None]:
    """What a sandbox may be after these were tried at once: any order, some of them refused."""
    if "destroy" in names:
        return {None}
    possible: set[SandboxStatus | None] = set()
    for order in permutations(name for name in names if name in EFFECTS):
        state: SandboxStatus | None = before
        for name in order:
            state = EFFECTS[name]
        possible.add(state)
    return possible


class Lifecycle(RuleBasedStateMachine):
    sandboxes = Bundle("sandboxes")

    def __init__(self, data_dir: Path, settings: Settings) -> None:
        super().__init__()
        self.data_dir = data_dir
        self.settings = settings
        self.runner = asyncio.Runner()
        self.known: dict[str, SandboxStatus] = {}
        self.runner.run(self.open())

    async def open(self) -> None:
        self.stack = AsyncExitStack()
        self.engines = [
            await self.stack.enter_async_context(
                open_engine(data_dir=self.data_dir, settings=self.settings)
            )
            for _ in range(2)
        ]

    @rule()
    def reopen(self) -> None:
        """Engines come and go, sandboxes do not."""
        self.runner.run(self.stack.aclose())
        self.runner.run(self.open())

    @rule(target=sandboxes, at_once=st.integers(1, 3), which=st.integers(0, 1))
    def create(self, at_once: int, which: int) -> object:
        async def create() -> list[Sandbox | BaseException]:
            calls = [self.engines[which].create_sandbox() for _ in range(at_once)]
            return list(await asyncio.gather(*calls, return_exceptions=True))

        made = []
        for result in self.runner.run(create()):
            if isinstance(result, BaseException):
                assert isinstance(result, LimitReachedError)
            else:
                made.append(result.id)
        assert len(made) == min(at_once, LIMIT - len(self.known))
        self.known.update(dict.fromkeys(made, RUNNING))
        return multiple(*made)

    @rule(
        sandbox_id=sandboxes,
        names=st.lists(st.sampled_from(sorted(OPERATIONS)), min_size=1, max_size=3),
        which=st.lists(st.integers(0, 1), min_size=3, max_size=3),
    )
    def operate(self, sandbox_id: str, names: list[str], which: list[int]) -> None:
        """One operation, or several at the same time, from both engines."""

        async def operate() -> list[object]:
            calls = [
                OPERATIONS[name](self.engines[engine], sandbox_id)
                for name, engine in zip(names, which, strict=False)
            ]
            return list(await asyncio.gather(*calls, return_exceptions=True))

        results = self.runner.run(operate())
        for result in results:
            if isinstance(result, BaseException):
                assert isinstance(
                    result, ConflictError | SandboxNotFoundError | SandboxUnavailableError
                ), result
        if sandbox_id not in self.known:
            assert all(isinstance(result, SandboxNotFoundError) for result in results)
            return
        after = self.status(sandbox_id)
        assert after in outcomes(self.known[sandbox_id], names)
        if after is None:
            del self.known[sandbox_id]
        else:
            self.known[sandbox_id] = after

    def status(self, sandbox_id: str) -> SandboxStatus | None:
        try:
            return self.runner.run(self.engines[0].get_sandbox(sandbox_id)).status
        except SandboxNotFoundError:
            return None

    @rule(sandbox_id=consumes(sandboxes))
    def destroy(self, sandbox_id: str) -> None:
        try:
            self.runner.run(self.engines[1].destroy_sandbox(sandbox_id))
        except SandboxNotFoundError:
            assert sandbox_id not in self.known
        else:
            del self.known[sandbox_id]

    @invariant()
    def all_agree(self) -> None:
        self.runner.run(self.check())

    async def check(self) -> None:
        for engine in self.engines:
            listed = {view.id: view.status for view in await engine.list_sandboxes()}
            assert listed == self.known
        count = await self.engines[0].sandbox_count()
        running = [name for name, status in self.known.items() if status is RUNNING]
        assert (count.total, count.running) == (len(self.known), len(running))
        for name in running:
            assert (await self.engines[0].exec(name, ["true"])).exit_code == 0
        directories = {path.name for path in (self.data_dir / "sandboxes").iterdir()}
        assert directories == self.known.keys()

    def teardown(self) -> None:
        try:
            self.runner.run(self.engines[0].shutdown(destroy=True))
        finally:
            self.runner.run(self.stack.aclose())
            self.runner.close()


def test_any_order_of_operations(data_dir: Path, settings: Settings) -> None:
    limited = replace(settings, max_sandboxes=LIMIT)

    class Machine(Lifecycle):
        def __init__(self) -> None:
            super().__init__(data_dir, limited)

    run_state_machine_as_test(
        Machine,
        settings=hypothesis.settings(
            max_examples=15,
            stateful_step_count=15,
            deadline=None,
            database=None,
            phases=[hypothesis.Phase.generate],  # races do not shrink
            suppress_health_check=[*hypothesis.HealthCheck],
        ),
    )

"""Run a real program on real input in a sandbox, and time each step: what `make run` does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from hutch import Engine, HutchError, Image, SandboxConfig, open_engine
from hutch.models import MessageType, PullProgress

REPORT = Path(__file__).parent / "report"
HOME = "/home/user"


@contextmanager
def step(name: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    print(f"  {name:<46}{(time.perf_counter() - started) * 1000:10.1f} ms", flush=True)


async def obtain_image(engine: Engine) -> Image:
    """The default image; built when it is not there, which takes a minute."""
    with Progress(
        TextColumn("  building the default image"),
        BarColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as bar:
        task: TaskID | None = None

        def show(progress: PullProgress) -> None:
            nonlocal task
            if task is None:
                task = bar.add_task("", total=None)
            bar.update(
                task,
                description=f"{progress.step} {progress.detail}"[:50],
                completed=progress.done,
                total=progress.total,
            )

        return await engine.images.ensure("debian", progress=show)


async def main() -> None:
    print("hutch: a Python program in a sandbox, on a CSV file it is given\n")
    async with open_engine() as engine:
        with step("image debian"):
            await obtain_image(engine)
        with step("create a sandbox"):
            sandbox = await engine.create_sandbox(SandboxConfig(image="debian"))
        try:
            await work_in(engine, sandbox.id)
        finally:
            with step("destroy the sandbox"):
                await engine.destroy_sandbox(sandbox.id)


async def work_in(engine: Engine, sandbox_id: str) -> None:
    with step("write the program and its input"):
        for name in ("report.py", "sales.csv"):
            data = (REPORT / name).read_bytes()
            await engine.write_file(sandbox_id, f"{HOME}/{name}", data)
    with step("run it, with live output"):
        argv = ["python3", "report.py", "sales.csv", "report.md"]
        async with engine.exec_stream(sandbox_id, argv, timeout=60) as stream:
            async for message in stream:
                if message.type is MessageType.EXIT:
                    if message.data != b"0":
                        raise SystemExit(f"the program failed with {message.data.decode()}")
                else:
                    for line in message.data.decode().splitlines():
                        print(f"    | {line}", flush=True)
    with step("read the result back"):
        report = await engine.read_file(sandbox_id, f"{HOME}/report.md")
    print("\n" + report.decode())


if __name__ == "__main__":
    started = time.perf_counter()
    try:
        asyncio.run(main())
    except HutchError as error:
        raise SystemExit(
            f"hutch: {error}" + (f"\nhint: {error.hint}" if error.hint else "")
        ) from None
    print(f"\n  {'all of it':<46}{(time.perf_counter() - started) * 1000:10.1f} ms")

"""Run all measurements, print a table, save the numbers: `python -m benchmarks [--quick]`.

What is compared is measured in turn, round by round, so that whatever else the machine does
falls on all alike.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.measure import Report
from hutch import Engine, Sandbox, SandboxConfig, Settings, open_engine

HERE = Path(__file__).parent
RESULTS = HERE / "results"
IMAGE = "benchmark"
CONFIG = SandboxConfig(image=IMAGE)


def make_root(top: Path) -> None:
    """A root filesystem of one static binary."""
    for name in ("bin", "etc", "proc", "sys", "dev", "tmp"):
        (top / name).mkdir(parents=True)
    shutil.copy2("/bin/busybox", top / "bin/busybox")
    for name in ("sh", "true", "cat", "head", "sleep", "echo"):
        (top / "bin" / name).symlink_to("busybox")


def timed_process(argv: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def spawn_true() -> float:
    """fork and exec of the same program as in the sandbox, as cheaply as Python can."""
    started = time.perf_counter()
    os.waitpid(os.posix_spawn("/bin/busybox", ["true"], {}), 0)
    return time.perf_counter() - started


async def timed(work: Awaitable[object]) -> float:
    started = time.perf_counter()
    await work
    return time.perf_counter() - started


class Floor:
    """The C loop, and the tools people use instead."""

    def __init__(self, top: Path, root: Path) -> None:
        self.top = top
        self.root = root
        self.docker = docker_image(root)
        self.binary = top / "floor"
        subprocess.run(["cc", "-O2", "-static", "-o", self.binary, HERE / "floor.c"], check=True)
        (top / "loop").mkdir()
        (top / "loop/lower").symlink_to(root)
        self.bundle = top / "bundle"
        self.bundle.mkdir()
        if shutil.which("runc"):
            subprocess.run(["runc", "spec"], cwd=self.bundle, check=True)
            spec = (self.bundle / "config.json").read_text()
            spec = spec.replace('"terminal": true', '"terminal": false')
            spec = spec.replace('"sh"', '"true"').replace('"rootfs"', f'"{root}"')
            (self.bundle / "config.json").write_text(spec)

    def loop(self, report: Report) -> None:
        argv = [str(self.binary), str(self.top / "loop"), "1"]
        said = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split()
        report.of("floor: create").add(int(said[0]) / 1e6)
        report.of("floor: destroy").add(int(said[1]) / 1e6)

    def others(self, report: Report) -> None:
        if shutil.which("bwrap"):
            argv = ["bwrap", "--unshare-all", "--ro-bind", str(self.root), "/", "--proc", "/proc",
                    "--dev", "/dev", "true"]  # fmt: skip
            report.of("bwrap run true", floor="hutch: create, true, destroy").add(
                timed_process(argv)
            )
        if shutil.which("runc"):
            argv = ["runc", "run", "--bundle", str(self.bundle), f"bench-{os.getpid()}"]
            report.of("runc run true", floor="hutch: create, true, destroy").add(
                timed_process(argv)
            )
        if self.docker is not None:
            argv = ["docker", "run", "--rm", "--network=none", self.docker, "true"]
            report.of("docker run true", floor="hutch: create, true, destroy").add(
                timed_process(argv)
            )

    def close(self) -> None:
        if self.docker is not None:
            subprocess.run(["docker", "rmi", self.docker], check=True, stdout=subprocess.DEVNULL)


def docker_image(root: Path) -> str | None:
    """The root filesystem as an image of Docker's; None where no daemon answers."""
    if shutil.which("docker") is None:
        return None
    if subprocess.run(["docker", "info"], capture_output=True, check=False).returncode != 0:
        return None
    name = f"hutch-benchmark-{os.getpid()}"
    with subprocess.Popen(["tar", "-C", root, "-c", "."], stdout=subprocess.PIPE) as tar:
        subprocess.run(
            ["docker", "import", "-", name], stdin=tar.stdout, check=True, stdout=subprocess.DEVNULL
        )
    return name


async def sequential(engine: Engine, report: Report, floor: Floor, rounds: int) -> None:
    for _ in track(range(rounds), "one after the other"):
        floor.loop(report)
        started = time.perf_counter()
        sandbox = await engine.create_sandbox(CONFIG)
        created = time.perf_counter()
        await engine.exec(sandbox.id, ["true"])
        ran = time.perf_counter()
        report.of("create", floor="floor: create", aim="2.5 x").add(created - started)
        report.of("create to first result").add(ran - started)
        await inside(engine, report, sandbox)
        destroying = await timed(engine.destroy_sandbox(sandbox.id))
        report.of("destroy", floor="floor: destroy", aim="3 ms").add(destroying)
        report.of("hutch: create, true, destroy").add(ran - started + destroying)
        floor.others(report)


async def inside(engine: Engine, report: Report, sandbox: Sandbox) -> None:
    small, name = b"x" * 1024, sandbox.id
    for number in range(5):
        report.of("fork+exec true").add(spawn_true())
        running = timed(engine.exec(name, ["true"]))
        report.of("exec true", floor="fork+exec true", aim="2 x").add(await running)
        writing = timed(engine.write_file(name, f"/tmp/small-{number}", small))
        report.of("write 1 KiB", aim="0.3 ms").add(await writing)
        replacing = timed(engine.write_file(name, "/tmp/small-0", small))
        report.of("replace 1 KiB").add(await replacing)
        reading = timed(engine.read_file(name, "/tmp/small-0"))
        report.of("read 1 KiB", aim="0.3 ms").add(await reading)
    megabyte = engine.exec(name, ["head", "-c", "1048576", "/dev/zero"])
    report.of("exec with 1 MiB of output", floor="fork+exec true").add(await timed(megabyte))


async def large_files(engine: Engine, report: Report, top: Path) -> None:
    sandbox = await engine.create_sandbox(CONFIG)
    data = os.urandom(1 << 20) * 64
    for _ in track(range(5), "64 MiB files"):
        bare = asyncio.to_thread((top / "big").write_bytes, data)
        report.of("write 64 MiB, bare").add(await timed(bare))
        writing = timed(engine.write_file(sandbox.id, "/big", data))
        report.of("write 64 MiB", floor="write 64 MiB, bare").add(await writing)
        bare_reading = asyncio.to_thread((top / "big").read_bytes)
        report.of("read 64 MiB, bare").add(await timed(bare_reading))
        reading = timed(engine.read_file(sandbox.id, "/big"))
        report.of("read 64 MiB", floor="read 64 MiB, bare").add(await reading)
    await engine.destroy_sandbox(sandbox.id)


async def sustained(
    report: Report, name: str, count: int, work: Callable[[], Awaitable[None]], *, aim: str
) -> None:
    """`count` pieces of work, 50 at once: the rate, and each one's latency."""
    gate = asyncio.Semaphore(50)
    failed = 0

    async def one() -> None:
        nonlocal failed
        async with gate:
            started = time.perf_counter()
            try:
                await work()
            except Exception as error:
                failed += 1
                print(f"{name}: {error}")
            report.of(f"{name}, 50 at once").add(time.perf_counter() - started)

    started = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(count)))
    seconds = time.perf_counter() - started
    report.number(f"{name} per second, 50 at once", count / seconds, aim=aim)
    report.number(f"{name} success rate", (count - failed) / count)


async def concurrent(engine: Engine, report: Report, count: int) -> None:
    async def create() -> None:
        sandbox = await engine.create_sandbox(CONFIG)
        await engine.destroy_sandbox(sandbox.id)

    sandbox = await engine.create_sandbox(CONFIG)

    async def run() -> None:
        await engine.exec(sandbox.id, ["true"])

    await sustained(report, "create and destroy", count, create, aim="150")
    await sustained(report, "exec", count * 4, run, aim="600")
    await engine.destroy_sandbox(sandbox.id)


async def burst(engine: Engine, report: Report, count: int) -> None:
    """Time from create to the first command's result, all asked for at one moment."""
    made: list[Sandbox] = []

    async def one() -> None:
        started = time.perf_counter()
        sandbox = await engine.create_sandbox(CONFIG)
        made.append(sandbox)
        await engine.exec(sandbox.id, ["true"])
        report.of("create to first result, in a burst").add(time.perf_counter() - started)

    results = await asyncio.gather(*(one() for _ in range(count)), return_exceptions=True)
    report.number("burst success rate", sum(r is None for r in results) / count)
    await asyncio.gather(*(engine.destroy_sandbox(sandbox.id) for sandbox in made))


def available_memory() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this kernel does not say how much memory is available")


async def density(engine: Engine, report: Report, count: int) -> None:
    """Many alive at once: memory of the host and descriptors of the engine for each."""
    before, descriptors = available_memory(), len(os.listdir("/proc/self/fd"))
    gate = asyncio.Semaphore(16)

    async def one() -> Sandbox:
        async with gate:
            return await engine.create_sandbox(CONFIG)

    started = time.perf_counter()
    made = await asyncio.gather(*(one() for _ in range(count)))
    report.number(f"seconds until {count} are alive", time.perf_counter() - started)
    used = (before - available_memory()) / count / 1024
    report.number("KiB of host memory per idle sandbox", used, aim="1024")
    opened = len(os.listdir("/proc/self/fd")) - descriptors
    report.number("descriptors per idle sandbox", opened / count)
    for sandbox in made[:: max(1, count // 50)]:
        latency = await timed(engine.exec(sandbox.id, ["true"]))
        report.of(f"exec true, {count} alive", floor="fork+exec true").add(latency)
    await asyncio.gather(*(engine.destroy_sandbox(sandbox.id) for sandbox in made))


WORK = {
    "compile hutch-init": "cp -r native build && make -s -C build clean all",
    "install pip into a new environment": "/usr/bin/python3 -m venv build",
}


async def real_work(engine: Engine, report: Report, top: Path, rounds: int) -> None:
    """What sandboxes are for, with the same programs as beside them: the image is the host's."""
    bare = top / "work"
    shutil.copytree(HERE.parent / "native", bare / "native", ignore=shutil.ignore_patterns("build"))
    sandbox = await engine.create_sandbox(SandboxConfig(image="host"))
    with subprocess.Popen(["tar", "-C", bare, "-c", "."], stdout=subprocess.PIPE) as tar:
        assert tar.stdout is not None
        data = await asyncio.to_thread(tar.stdout.read)
    await engine.exec(sandbox.id, ["tar", "-x"], stdin=data)
    for _ in track(range(rounds), "real work"):
        for name, line in WORK.items():
            started = time.perf_counter()
            await asyncio.to_thread(subprocess.run, ["sh", "-ec", line], cwd=bare, check=True)
            report.of(f"{name}, bare").add(time.perf_counter() - started)
            started = time.perf_counter()
            result = await engine.exec(sandbox.id, ["sh", "-ec", line])
            report.of(f"{name}, in a sandbox", floor=f"{name}, bare").add(
                time.perf_counter() - started
            )
            assert result.exit_code == 0, result.stderr
            shutil.rmtree(bare / "build")
            await engine.exec(sandbox.id, ["rm", "-r", "build"])
    await engine.destroy_sandbox(sandbox.id)


def command_line(report: Report, data_dir: Path) -> None:
    """From a cold start of the process to its end."""
    python, hutch = Path(sys.executable), Path(sys.executable).parent / "hutch"
    argv = [str(hutch), "--data-dir", str(data_dir), "run", "--image", IMAGE, "--", "true"]
    for _ in track(range(10), "the command line"):
        report.of("python -c 'import asyncio'").add(
            timed_process([str(python), "-c", "import asyncio"])
        )
        report.of("hutch run -- true", floor="python -c 'import asyncio'", aim="250 ms").add(
            timed_process(argv)
        )


def show(report: Report) -> str:
    """Print all that was measured; return the same as text."""
    console = Console(record=True, width=None if sys.stdout.isatty() else 120)
    table = Table("what", "n", "p50 ms", "p99 ms", "p50 against", "aim", title="hutch benchmark")
    for row in report.rows():
        table.add_row(*row)
    console.print(table)
    numbers = Table("what", "value", "aim")
    for name, value in report.numbers.items():
        numbers.add_row(name, f"{value:.2f}", report.number_aims[name])
    console.print(numbers)
    return console.export_text()


async def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    quick = parser.parse_args().quick
    report = Report()
    with tempfile.TemporaryDirectory() as name:
        top = Path(name)
        top.chmod(0o755)  # the floor's sandboxes have ids of their own
        make_root(top / "root")
        floor = Floor(top, top / "root")
        settings = Settings(default_image=IMAGE, max_sandboxes=2000)
        async with open_engine(data_dir=top / "data", settings=settings) as engine:
            await engine.images.pull(f"rootfs:{top}/root", name=IMAGE)
            await sequential(engine, report, floor, 20 if quick else 100)
            await large_files(engine, report, top)
            await concurrent(engine, report, 100 if quick else 500)
            await burst(engine, report, 50 if quick else 100)
            await density(engine, report, 100 if quick else 500)
            await real_work(engine, report, top, 2 if quick else 5)
            await asyncio.to_thread(command_line, report, top / "data")
        floor.close()
    path = report.save(RESULTS, show(report))
    print(f"saved to {path} and beside it as text")


if __name__ == "__main__":
    asyncio.run(main())

"""Fixtures of all tests: images made once, an engine per test, and nothing left behind."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from blockbuster import blockbuster_ctx

from hutch import Engine, Sandbox, SandboxConfig, Settings, open_engine
from hutch.errors import UnsupportedError
from hutch.images.store import LocalImageStore
from hutch.testing.residue import look

CHECKOUT = Path(__file__).parent.parent
IMAGES = CHECKOUT / ".cache" / "images"
BUSYBOX = "busybox"
DEBIAN = "debian"

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # So it is in the background of a shell, and would be in all that is started here.
    signal.signal(signal.SIGINT, signal.default_int_handler)

CreateSandbox = Callable[..., Awaitable[Sandbox]]


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path) -> Iterator[None]:
    """No mount, loop device, cgroup, process or descriptor outlives a test."""
    directory = tmp_path / "data"
    before = look(directory)
    yield
    assert look(directory).since(before) == {}


_QUICK = (
    # Descriptors that do not block, and the kernel's own files: as quick as any system call.
    "io.BufferedReader.read",
    "io.TextIOWrapper.read",
    "os.access",
    "os.getcwd",
    "os.path.abspath",
    "os.path.islink",
    "os.read",
    "os.readlink",
    "os.stat",
    "os.write",
)


@pytest.fixture(autouse=True)
def nothing_blocks() -> Iterator[None]:
    """Code of the engine that blocks the event loop fails its test."""
    with blockbuster_ctx(
        "hutch", excluded_modules=["hutch.cli", "hutch.sync", "hutch.testing"]
    ) as blocker:
        for name in _QUICK:
            blocker.functions[name].deactivate()
        # Its threads are idle when an executor is shut down, and end at once.
        blocker.functions["threading.Lock.acquire"].can_block_in("futures/thread.py", "shutdown")
        yield


def make_busybox_root(top: Path) -> None:
    """A root filesystem of one static binary, with an ordinary user."""
    for name in ("bin", "etc", "home/user", "tmp", "usr/bin"):
        (top / name).mkdir(parents=True)
    shutil.copy2("/bin/busybox", top / "bin" / "busybox")
    (top / "bin/busybox").chmod(0o755)
    applets = subprocess.run(["/bin/busybox", "--list"], capture_output=True, text=True, check=True)
    for applet in applets.stdout.split():
        if applet != "busybox":
            (top / "bin" / applet).symlink_to("busybox")
    (top / "tmp").chmod(0o1777)
    os.chown(top / "home/user", 1000, 1000)
    (top / "etc/passwd").write_text(
        "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n"
    )
    (top / "etc/group").write_text("root:x:0:\ntty:x:5:\nuser:x:1000:\nextra:x:2000:user\n")


async def _obtain(reference: str, name: str) -> None:
    store = LocalImageStore(IMAGES, aliases={}, insecure_registries=())
    if name not in [known for image in await store.list() for known in image.names]:
        await store.pull(reference, name=name)


@pytest.fixture(scope="session")
def images() -> Path:
    """An image store with `busybox` in it, shared by all tests and kept between runs."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    with (IMAGES.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with tempfile.TemporaryDirectory() as top:
            root = Path(top, "root")
            make_busybox_root(root)
            asyncio.run(_obtain(f"rootfs:{root}", BUSYBOX))
    return IMAGES


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "debian" in getattr(item, "fixturenames", ()):
            item.add_marker("needs_debian")


@pytest.fixture(scope="session")
def debian(images: Path) -> str:
    """The default image, built once."""
    with (IMAGES.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        asyncio.run(_obtain(DEBIAN, DEBIAN))
    return DEBIAN


@pytest.fixture
def data_dir(images: Path, tmp_path: Path) -> Path:
    """A data directory of the test's own, with the shared images."""
    top = tmp_path / "data"
    top.mkdir(mode=0o700)
    (top / "images").symlink_to(images)
    return top


@pytest.fixture
def settings() -> Settings:
    return Settings(default_image=BUSYBOX, exec_grace=0.5, stop_grace=0.5)


@pytest.fixture
async def engine(data_dir: Path, settings: Settings) -> AsyncIterator[Engine]:
    """An engine of the test's own; what it made is destroyed afterwards."""
    async with open_engine(data_dir=data_dir, settings=settings) as engine:
        try:
            yield engine
        finally:
            await engine.shutdown(destroy=True)


@pytest.fixture
async def limits(engine: Engine) -> None:
    """For tests of limits; where the host has none, they must be refused."""
    capabilities = await engine.capabilities()
    if capabilities.memory_limit and capabilities.pid_limit and capabilities.cpu_limit:
        return
    for limit in ({"memory": 1 << 30}, {"pid_limit": 100}, {"cpu": 1.0}):
        with pytest.raises(UnsupportedError):
            await engine.create_sandbox(SandboxConfig(image=BUSYBOX, **limit))
    pytest.skip("this host lets this user set no limits, and says so")


@pytest.fixture
async def sandbox(engine: Engine) -> Sandbox:
    return await engine.create_sandbox(SandboxConfig(image=BUSYBOX))


@contextlib.asynccontextmanager
async def another_engine(data_dir: Path, settings: Settings) -> AsyncIterator[Engine]:
    """A second engine on the same data directory."""
    async with open_engine(data_dir=data_dir, settings=settings) as engine:
        yield engine

"""The composition root: from settings to a working engine. Only here do drivers meet the engine."""

from __future__ import annotations

import asyncio
import os
import pwd
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path

from hutch.config import Settings, is_host_root, load_settings
from hutch.engine.engine import Engine
from hutch.errors import StateError
from hutch.images.store import LocalImageStore
from hutch.linux.userns import join_or_create, needs_userns
from hutch.runtime.native.binary import installed_binary
from hutch.runtime.native.driver import NativeOptions, NativeRuntime
from hutch.runtime.native.seccomp import default_filter
from hutch.state.sqlite import SqliteStateStore


@asynccontextmanager
async def open_engine(
    *, data_dir: Path | str | None = None, settings: Settings | None = None
) -> AsyncIterator[Engine]:
    """Open an engine with the real drivers: the native runtime, SQLite, the local image store.

    Leaving the block detaches; sandboxes live on, and any later engine on the same data directory
    finds them. An ordinary user's process enters a user namespace of hutch's (rootless mode),
    which needs it to have a single thread at that moment.

    Args:
        data_dir: where everything lives, instead of the settings' place.
        settings: instead of those that the files and the environment give.

    Raises:
        SettingsError: a setting is bad.
        IsolationError: rootless, and the host does not let this user have a user namespace.
        StateError: the data directory cannot be used.
    """
    settings = resolve_settings(data_dir, settings)
    enter_user_namespace(settings)
    directory = settings.resolved_data_dir()
    await asyncio.to_thread(_prepare, directory)
    rootless = not is_host_root()
    images = LocalImageStore(
        directory / "images",
        aliases=settings.image_aliases,
        insecure_registries=settings.insecure_registries,
    )
    runtime = NativeRuntime(native_options(settings, rootless=rootless))
    state = SqliteStateStore(directory, uid_base=settings.uid_base, uid_ranges=settings.uid_ranges)
    async with (
        state,
        runtime,
        Engine(runtime=runtime, images=images, state=state, settings=settings) as engine,
    ):
        yield engine


def resolve_settings(data_dir: Path | str | None, settings: Settings | None) -> Settings:
    """Return the settings to use: those given, or of files and environment; with the directory.

    Raises:
        SettingsError: a setting is bad.
    """
    if settings is None:
        return load_settings({"data_dir": data_dir} if data_dir is not None else {})
    return settings if data_dir is None else settings.with_data_dir(Path(data_dir))


def enter_user_namespace(settings: Settings) -> None:
    """Make an ordinary user's process root of hutch's user namespace; for root, do nothing.

    The process must have a single thread.

    Raises:
        IsolationError: it has several, or the host does not allow it.
        StateError: the data directory cannot be used.
    """
    if needs_userns():
        directory = settings.resolved_data_dir()
        _prepare(directory)
        join_or_create(directory / "userns", installed_binary())


def native_options(settings: Settings, *, rootless: bool) -> NativeOptions:
    """Say how the native runtime is made from these settings."""
    directory = settings.resolved_data_dir()
    return NativeOptions(
        directory=directory / "sandboxes",
        tag=data_dir_tag(directory),
        binary=installed_binary(),
        seccomp=default_filter(),
        rootless=rootless,
        shm_size=settings.shm_size,
        open_files=settings.open_files,
        log_limit=settings.log_limit,
    )


def data_dir_tag(directory: Path) -> str:
    """Return what tells the sandboxes of one data directory from those of others on the host."""
    return sha256(os.fsencode(directory)).hexdigest()[:12]


_OURS = frozenset(
    {"images", "leases", "lost+found", "maintenance.lock", "open.lock", "sandboxes", "userns"}
)
"""What may be in a data directory that has no records yet: another process may be making them."""
_PLACE_HINT = "choose another with --data-dir or HUTCH_DATA_DIR"


def _prepare(directory: Path) -> None:
    """Make the data directory, private to this user: it holds the sandboxes' files.

    Raises:
        StateError: it cannot be made, or there is one that is not hutch's and this user's alone.
    """
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        try:
            directory.mkdir(mode=0o700)
        except FileExistsError:
            problem, hint = _objection(directory)
        else:
            directory.chmod(0o700)  # whatever the umask took away
            return
    except OSError as error:
        problem, hint = f"cannot be used: {error.strerror}", _PLACE_HINT
    if problem:
        raise StateError(f"the data directory {directory} {problem}", hint=hint)


def _objection(directory: Path) -> tuple[str, str]:
    """Say what is wrong with an existing data directory, and what would help; or nothing."""
    info = directory.stat()
    if not stat.S_ISDIR(info.st_mode):
        return "is no directory", _PLACE_HINT
    if info.st_uid != os.geteuid():
        return f"belongs to {_name(info.st_uid)}", f"run hutch as that user, or {_PLACE_HINT}"
    found = set(os.listdir(directory))
    if "state.db" not in found and not found <= _OURS:
        return "holds other things", _PLACE_HINT
    if info.st_mode & 0o077:
        return "is open to other users", f"chmod 700 {directory}, or {_PLACE_HINT}"
    return "", ""


def _name(uid: int) -> str:
    try:
        return f"the user {pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"the user {uid}"

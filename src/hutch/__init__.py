"""Hutch: isolated Linux sandboxes that start in milliseconds, on one ordinary machine.

>>> from hutch import SandboxConfig, open_engine
>>> async with open_engine() as engine:
...     sandbox = await engine.create_sandbox(SandboxConfig(image="debian"))
...     result = await engine.exec(sandbox.id, ["python3", "-c", "print(2 + 2)"])

Importing this pulls in no third-party package, and nothing else of hutch until it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hutch.assembly import open_engine
    from hutch.config import Settings, load_settings
    from hutch.engine.engine import Engine
    from hutch.engine.execution import ExecStream
    from hutch.errors import HutchError
    from hutch.lifecycle import SandboxStatus
    from hutch.models import (
        Command,
        Event,
        ExecMessage,
        ExecResult,
        ExitReason,
        ExitStatus,
        FileInfo,
        Image,
        Sandbox,
        SandboxConfig,
        SandboxCount,
        SandboxStats,
        TerminalSize,
        Tmpfs,
        WriteReceipt,
    )

__all__ = [
    "Command",
    "Engine",
    "Event",
    "ExecMessage",
    "ExecResult",
    "ExecStream",
    "ExitReason",
    "ExitStatus",
    "FileInfo",
    "HutchError",
    "Image",
    "Sandbox",
    "SandboxConfig",
    "SandboxCount",
    "SandboxStats",
    "SandboxStatus",
    "Settings",
    "TerminalSize",
    "Tmpfs",
    "WriteReceipt",
    "load_settings",
    "open_engine",
]
__version__ = "0.1.0"

_HOMES = {
    "Engine": "hutch.engine.engine",
    "ExecStream": "hutch.engine.execution",
    "HutchError": "hutch.errors",
    "SandboxStatus": "hutch.lifecycle",
    "Settings": "hutch.config",
    "load_settings": "hutch.config",
    "open_engine": "hutch.assembly",
}
"""Where names are from; the others are models."""


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value: object = getattr(import_module(_HOMES.get(name, "hutch.models")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]

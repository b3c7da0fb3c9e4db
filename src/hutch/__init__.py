"""Hutch: isolated Linux sandboxes that start in milliseconds, on one ordinary machine.

>>> from hutch import SandboxConfig, open_engine
>>> async with open_engine() as engine:
...     sandbox = await engine.create_sandbox(SandboxConfig(image="debian"))
...     result = await engine.exec(sandbox.id, ["python3", "-c", "print(2 + 2)"])

Importing this pulls in no third-party package.
"""

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

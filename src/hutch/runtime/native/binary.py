"""hutch-init as a file that nothing can change: every sandbox's PID 1 runs from it."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from hutch.errors import UnsupportedError

_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


def installed_binary() -> Path:
    """Return where this installation has hutch-init.

    Raises:
        UnsupportedError: it has none.
    """
    path = Path(__file__).parents[2] / "_bin" / "hutch-init"
    if not path.is_file():
        raise UnsupportedError(
            "the native runtime",
            f"{path} is missing",
            hint="install hutch where a C compiler is present: apt-get install gcc libc6-dev make",
        )
    return path


def sealed_copy(path: Path) -> int:
    """Return a descriptor of a sealed in-memory copy: memfd_create(2), F_ADD_SEALS.

    A sandbox that reaches its init through /proc/PID/exe reaches this copy, which is read-only
    for everyone for ever (CVE-2019-5736).
    """
    fd = os.memfd_create("hutch-init", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.write(fd, path.read_bytes())
        os.fchmod(fd, 0o500)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10)  # above the descriptors a child gets
    finally:
        os.close(fd)

"""Building a fresh Debian with mmdebstrap(1), as a tar archive."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from hutch.errors import ImagePullError
from hutch.images.references import Debootstrap
from hutch.images.tools import is_unreachable, run_tool
from hutch.models import ImageConfig, PullProgress

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_OWN_MOUNTS = ("unshare", "--mount", "--propagation=private", "--fork", "--kill-child", "--")
"""What mmdebstrap mounts goes with its last process, whichever way it ends."""

_LEFT_OUT = ("doc", "man", "info", "lintian", "linda", "locale")
"""Directories of /usr/share that programs do not need."""

_CUSTOMIZE = (
    # What mmdebstrap copies from this host; the store's skeleton has what a sandbox needs.
    'rm -f "$1/etc/hostname" "$1/etc/resolv.conf" "$1/etc/hosts"',
)
_MAKE_USER = (
    'chroot "$1" useradd --create-home --shell /bin/bash --uid 1000 {user}',
    (
        'if [ -d "$1/etc/sudoers.d" ]; then '
        'echo "{user} ALL=(ALL:ALL) NOPASSWD:ALL" >"$1/etc/sudoers.d/{user}" && '
        'chmod 0440 "$1/etc/sudoers.d/{user}"; fi'
    ),
)

_STEPS = ("Get:", "Unpacking ", "Setting up ")
"""What apt and dpkg say once for each package, in this order."""
_PACKAGES = re.compile(r"(\d+) newly installed")


async def build_debian(
    source: Debootstrap, target: Path, progress: Callable[[PullProgress], None]
) -> ImageConfig:
    """Build the system and return how programs run in it; `target` becomes its tar archive.

    Raises:
        ImagePullError: mmdebstrap is missing or failed.
    """
    include = [*source.include, *(["passwd"] if source.user else [])]
    hooks = [*_CUSTOMIZE]
    if source.user:
        hooks += [hook.format(user=source.user) for hook in _MAKE_USER]
    argv = ["mmdebstrap", "--mode=root", "--variant=apt", "--format=tar", "--verbose"]
    if include:
        argv.append(f"--include={','.join(include)}")
    argv += [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in _LEFT_OUT]
    argv += [f"--customize-hook={hook}" for hook in hooks]
    argv += [source.suite, str(target), *([source.mirror] if source.mirror else [])]
    try:
        await run_tool(
            [*_OWN_MOUNTS, *argv],
            package="mmdebstrap",
            program="mmdebstrap",
            on_line=_Follower(progress),
        )
    except ImagePullError as error:
        if is_unreachable(error):
            error.hint = "building needs the mirror: a network, or another one with --mirror"
        raise
    home = f"/home/{source.user}" if source.user else "/root"
    return ImageConfig(
        env={"PATH": _PATH, "LANG": "C.UTF-8"},
        workdir=home if source.user else "/",
        user=source.user,
        cmd=("bash",),
    )


class _Follower:
    """Turns what apt and dpkg say into progress: three steps for each package."""

    def __init__(self, progress: Callable[[PullProgress], None]) -> None:
        self._progress = progress
        self._done = 0
        self._total = 0

    def __call__(self, line: str) -> None:
        if match := _PACKAGES.search(line):
            self._total += len(_STEPS) * int(match[1])
        elif self._total and line.startswith(_STEPS):
            self._done += 1
            total = max(self._total, self._done)
            self._progress(PullProgress("building", _shorten(line), self._done, total))
        elif line.startswith("I: "):
            total_or_none = max(self._total, self._done) or None
            self._progress(PullProgress("building", line[3:], self._done, total_or_none))


def _shorten(line: str) -> str:
    """Leave out addresses and versions."""
    words = line.split()
    if words[0].startswith("Get:"):
        return f"downloading {words[4]}" if len(words) > 4 else "downloading"
    verb = "unpacking" if words[0] == "Unpacking" else "setting up"
    return f"{verb} {words[-2] if words[-1] == '...' and len(words) > 2 else words[-1]}"

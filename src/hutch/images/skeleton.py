"""The layer under every image: what a root filesystem must have for a sandbox to be made of it."""

from __future__ import annotations

from pathlib import Path

VERSION = 1
"""Part of the layer's name: a changed skeleton is a new layer."""

_DIRECTORIES = {
    "dev": 0o755,
    "etc": 0o755,
    "home": 0o755,
    "proc": 0o555,
    "root": 0o700,
    "run": 0o755,
    "sys": 0o555,
    "tmp": 0o1777,
    "var": 0o755,
    "var/tmp": 0o1777,
}
_FILES = {
    "etc/hosts": "127.0.0.1\tlocalhost hutch\n::1\tlocalhost ip6-localhost hutch\n",
    "etc/hostname": "hutch\n",
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\n"
    "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    "etc/group": "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n",
    "etc/resolv.conf": "",
}


def make_skeleton(top: Path) -> None:
    """Fill an empty directory."""
    top.chmod(0o755)
    for name, mode in _DIRECTORIES.items():
        (top / name).mkdir()
        (top / name).chmod(mode)
    for name, content in _FILES.items():
        (top / name).write_text(content)
        (top / name).chmod(0o644)

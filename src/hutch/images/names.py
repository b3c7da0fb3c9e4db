"""What an image is called: a short name, or the reference it is from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

DEFAULT_ALIASES: Mapping[str, str] = MappingProxyType(
    {
        "debian": "debootstrap:bookworm?include="
        "adduser,bash,ca-certificates,coreutils,curl,findutils,git,procps,python3,"
        "python-is-python3,sudo,tar,util-linux,xz-utils&user=user"
    }
)
"""Names that stand for references unless the settings say otherwise."""

WITH_TAG = frozenset({"oci", "docker-archive"})
"""Schemes whose path may have a tag after it."""
_WITH_PATH = WITH_TAG | {"oci-archive", "rootfs"}


def absolute(reference: str) -> str:
    """Return the reference with its path, where it has one, absolute: names are for all places."""
    scheme, _, rest = reference.partition(":")
    if scheme not in _WITH_PATH or not rest or rest.startswith("/"):
        return reference
    path, colon, tag = rest.partition(":") if scheme in WITH_TAG else (rest, "", "")
    return f"{scheme}:{Path(path).absolute()}{colon}{tag}"

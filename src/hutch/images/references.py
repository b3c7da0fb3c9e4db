"""What an image reference says: where an image comes from, or what it is called.

::

    debian:bookworm  host:5000/team/tool@sha256:…     a registry's (Docker's short names too)
    oci:DIR[:TAG]    oci-archive:FILE  docker-archive:FILE[:TAG]
    rootfs:DIR       rootfs:FILE.tar[.gz|.bz2|.xz|.zst]
    debootstrap:SUITE[?include=a,b&mirror=URL&user=NAME]
    host                                              this host's own programs
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl

from hutch.errors import InvalidRequestError
from hutch.images.names import WITH_TAG

FORMS = (
    "NAME[:TAG], HOST[:PORT]/NAME[:TAG][@DIGEST], oci:DIR[:TAG], oci-archive:FILE, "
    "docker-archive:FILE[:TAG], rootfs:DIR, rootfs:FILE.tar, debootstrap:SUITE[?include=a,b], host"
)

_MAX_NAME = 255
"""Bytes: of a file's name, and of a repository's."""
_REGISTRY = re.compile(
    r"""(?:(?P<host>[A-Za-z0-9.-]+(?::[0-9]{1,5})?)/)?
        (?P<path>[a-z0-9]+(?:[._-]+[a-z0-9]+)*(?:/[a-z0-9]+(?:[._-]+[a-z0-9]+)*)*)
        (?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{0,127}))?
        (?:@(?P<digest>sha256:[0-9a-f]{64}))?""",
    re.VERBOSE,
)
_SUITE = re.compile(r"[a-z][a-z0-9.-]*")
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]*")
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}")


@dataclass(frozen=True, slots=True)
class Registry:
    """An image in a registry, by the name skopeo's `docker:` transport takes."""

    name: str
    host: str


@dataclass(frozen=True, slots=True)
class Layout:
    """An image in a file or directory that skopeo's `transport` reads."""

    transport: str
    path: Path
    tag: str


@dataclass(frozen=True, slots=True)
class Rootfs:
    """A directory, or a tar archive of one."""

    path: Path


@dataclass(frozen=True, slots=True)
class Debootstrap:
    """A fresh Debian (or Debian-like) system."""

    suite: str
    include: tuple[str, ...] = ()
    mirror: str = ""
    user: str = ""
    """A non-root user to make, whom programs run as; with sudo included, without a password."""


@dataclass(frozen=True, slots=True)
class Host:
    """The host's own programs and libraries."""


Source = Registry | Layout | Rootfs | Debootstrap | Host


def parse_reference(reference: str) -> Source:
    """Tell where an image comes from.

    Raises:
        InvalidRequestError: it has none of the forms above.
    """
    scheme, colon, rest = reference.partition(":")
    if colon and not rest:
        raise _invalid(reference)
    if scheme in WITH_TAG:
        path, _, tag = rest.partition(":")
        return Layout(scheme, _path(reference, path), tag)
    if scheme == "oci-archive":
        return Layout(scheme, _path(reference, rest), "")
    if scheme == "rootfs":
        return Rootfs(_path(reference, rest))
    if scheme == "debootstrap":
        return _debootstrap(reference, rest)
    if reference == "host":
        return Host()
    return _registry(reference)


def _invalid(reference: str, problem: str = "is not an image reference") -> InvalidRequestError:
    hint = f"the forms are: {FORMS}"
    return InvalidRequestError("image", f"{reference[:80]!r} {problem}", hint=hint)


def _path(reference: str, text: str) -> Path:
    if max(map(len, text.encode().split(b"/"))) > _MAX_NAME:
        raise _invalid(reference, f"names a file of more than {_MAX_NAME} bytes")
    return Path(text)


def _registry(reference: str) -> Registry:
    match = _REGISTRY.fullmatch(reference)
    if match is None or len(match["path"]) > _MAX_NAME:
        raise _invalid(reference)
    host, path = match["host"], match["path"]
    if host is not None and not re.search(r"[.:]", host) and host != "localhost":
        host, path = None, f"{host}/{path}"  # a Docker Hub user: a host has a dot or a port
        if path != path.lower():
            raise _invalid(reference)
    if host is None:
        host, path = "docker.io", path if "/" in path else f"library/{path}"
    # skopeo takes a tag or a digest; the digest is the stricter of the two
    suffix = f"@{match['digest']}" if match["digest"] else f":{match['tag'] or 'latest'}"
    return Registry(f"{host}/{path}{suffix}", host)


def _debootstrap(reference: str, rest: str) -> Debootstrap:
    suite, _, query = rest.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    include = tuple(name for name in options.pop("include", "").split(",") if name)
    mirror, user = options.pop("mirror", ""), options.pop("user", "")
    if not _SUITE.fullmatch(suite):
        raise _invalid(reference, "names no suite")
    for name in include:
        if not _PACKAGE.fullmatch(name):
            raise _invalid(reference, f"includes {name!r}, which is no package name")
    if user and (not _USER.fullmatch(user) or user == "root"):
        raise _invalid(reference, f"names a bad user {user!r}")
    if mirror and not re.match(r"(https?|file)://", mirror):
        raise _invalid(reference, f"names a bad mirror {mirror!r}")
    if options:
        raise _invalid(reference, f"has unknown options: {', '.join(options)}")
    return Debootstrap(suite, include, mirror, user)

"""Where the control group hierarchies of this host are, and where in them this process is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """One mounted hierarchy.

    `controllers` is empty for version 2, which has its own list in `cgroup.controllers`.
    """

    top: Path
    own: Path
    """The group this process is in."""
    controllers: frozenset[str]


@dataclass(frozen=True, slots=True)
class Hierarchies:
    """What is mounted: version 1 by controller, and version 2."""

    v1: Mapping[str, Hierarchy]
    v2: Hierarchy | None


def read_hierarchies(proc: Path = Path("/proc/self")) -> Hierarchies:
    """Read the mounted hierarchies from mountinfo and cgroup: proc(5), cgroups(7)."""
    memberships = _memberships((proc / "cgroup").read_text())
    v1: dict[str, Hierarchy] = {}
    v2 = None
    for line in (proc / "mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        root, mount_point = before.split(" ")[3:5]
        kind, _, options = after.split(" ", 2)
        top = Path(_unescape(mount_point))
        if kind == "cgroup2" and v2 is None and "" in memberships:
            v2 = Hierarchy(top, _own(top, root, memberships[""]), frozenset())
        elif kind == "cgroup":
            for controller in options.split(","):
                if controller in memberships and controller not in v1:
                    own = _own(top, root, memberships[controller])
                    v1[controller] = Hierarchy(top, own, frozenset({controller}))
    return Hierarchies(v1, v2)


def _memberships(text: str) -> dict[str, str]:
    """The own group's path by controller; by the empty string for version 2."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            found[controller] = path
    return found


def _own(top: Path, root: str, path: str) -> Path:
    """Where the group `path` is below a mount of the hierarchy's directory `root`."""
    relative = path.removeprefix(root.rstrip("/")) if root != "/" else path
    return top / relative.lstrip("/")


def _unescape(field: str) -> str:
    """Undo mountinfo's octal escapes of blanks: proc(5)."""
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        field = field.replace(code, character)
    return field

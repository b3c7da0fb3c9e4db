"""What the host offers by way of control groups, and the parent of our sandboxes' groups."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

from hutch.errors import IsolationError, UnsupportedError
from hutch.linux.cgroups.group import SandboxCgroup, write_control
from hutch.linux.cgroups.hierarchies import Hierarchies, Hierarchy, read_hierarchies
from hutch.models import Resources

CONTROLLERS = ("memory", "cpu", "pids")
_ACCOUNTING = "cpuacct"  # version 1 counts CPU time by a controller of its own
_ATTEMPTS = 10
_PID_MAX = Path("/proc/sys/kernel/pid_max")
_RESERVED_SHARE_OF_PIDS = 8
_LEAST_RESERVED_PIDS = 1024


class CgroupHost:
    """The host's hierarchies as far as they are ours to use.

    Sandboxes get a group each below one parent, `hutch-TAG`, which is made with the first of them.
    """

    def __init__(self, hierarchies: Hierarchies, tag: str, *, whole_host: bool) -> None:
        self._parent_name = f"hutch-{tag}"
        self._missing: dict[str, str] = {}
        self._v2_base, self._v2_controllers = self._find_v2(hierarchies.v2, whole_host=whole_host)
        self._v1_bases = self._find_v1(hierarchies, whole_host=whole_host)
        self._missing = {name: why for name, why in self._missing.items() if name in CONTROLLERS}
        for controller in CONTROLLERS:
            if not self.supports(controller) and controller not in self._missing:
                self._missing[controller] = "the kernel has it in no mounted cgroup hierarchy"

    @classmethod
    def probe(cls, tag: str, *, whole_host: bool) -> CgroupHost:
        """Look at this host. Its root works at the top, others where they are delegated."""
        return cls(read_hierarchies(), tag, whole_host=whole_host)

    @property
    def missing(self) -> Mapping[str, str]:
        """Why a controller cannot be used, and what would help, by its name."""
        return self._missing

    def supports(self, controller: str) -> bool:
        """Tell whether `memory`, `cpu` or `pids` can be limited."""
        return controller in self._v2_controllers or controller in self._v1_bases

    def _find_v2(
        self, v2: Hierarchy | None, *, whole_host: bool
    ) -> tuple[Path | None, frozenset[str]]:
        if v2 is None:
            return None, frozenset()
        if whole_host:
            base: Path | None = v2.top
        else:
            # A group with processes cannot hand controllers on to children (cgroups(7), "no
            # internal processes"), but the one around it often can.
            candidates = (v2.own, *v2.own.parents)
            usable = (path for path in candidates if path != v2.top and _is_delegated(path))
            base = next(usable, None)
        if base is None:
            for controller in CONTROLLERS:
                self._missing[controller] = (
                    "no part of the cgroup hierarchy is delegated to this user; "
                    "`systemd-run --user --scope -p Delegate=yes hutch …` gives one"
                )
            return None, frozenset()
        offered = frozenset((base / "cgroup.controllers").read_text().split())
        return base, offered.intersection(CONTROLLERS)

    def _find_v1(self, hierarchies: Hierarchies, *, whole_host: bool) -> dict[str, Path]:
        wanted = [*CONTROLLERS, _ACCOUNTING]
        if self._v2_base is None:
            wanted.append("freezer")  # so that there is a group at all: what kill() goes by
        bases: dict[str, Path] = {}
        for controller in wanted:
            hierarchy = hierarchies.v1.get(controller)
            if hierarchy is None:
                continue
            base = hierarchy.top if whole_host else hierarchy.own
            if os.access(base, os.W_OK):
                bases[controller] = base
            else:
                self._missing[controller] = (
                    f"{base} is not writable: an administrator would have to delegate it"
                )
        return bases

    def _parents(self) -> list[Path]:
        bases = [*self._v1_bases.values(), *([self._v2_base] if self._v2_base else [])]
        return [base / self._parent_name for base in dict.fromkeys(bases)]

    def get(self, sandbox_id: str) -> SandboxCgroup:
        """Return a sandbox's groups, which need not exist."""
        name = f"{self._parent_name}/{sandbox_id}"
        v1 = {controller: base / name for controller, base in self._v1_bases.items()}
        v2 = None if self._v2_base is None else self._v2_base / name
        return SandboxCgroup(v1, v2, self._v2_controllers)

    def create(self, sandbox_id: str, resources: Resources) -> SandboxCgroup:
        """Make a sandbox's groups and set its limits.

        Raises:
            UnsupportedError: a limit is asked for that this host cannot hold.
            IsolationError: the kernel refused.
        """
        self._check(resources)
        group = self.get(sandbox_id)
        for _ in range(_ATTEMPTS):
            try:
                group.make(resources)
            except FileNotFoundError as error:
                # An engine that ended has removed the empty parent, or one that begins has made
                # it and not yet given it its controllers.
                missing = error.filename
                self._make_parents()
            else:
                return group
        raise IsolationError("cgroup", f"{missing}: does not come to be")

    def _check(self, resources: Resources) -> None:
        wanted = {
            "memory": resources.memory is not None,
            "cpu": resources.cpu is not None,
            "pids": resources.pid_limit is not None,
        }
        for controller, is_wanted in wanted.items():
            if is_wanted and not self.supports(controller):
                raise UnsupportedError(
                    f"a {controller} limit",
                    self._missing[controller],
                    hint="`hutch doctor` says what this host offers",
                )

    def _make_parents(self) -> None:
        try:
            for parent in self._parents():
                parent.mkdir(exist_ok=True)
            if self._v2_base is not None and self._v2_controllers:
                for group in (self._v2_base, self._v2_base / self._parent_name):
                    _hand_on(group, self._v2_controllers)
            self._bound_all()
        except OSError as error:
            raise IsolationError(
                "cgroup", f"{error.filename}: {error.strerror}", errno=error.errno or 0
            ) from error

    def _bound_all(self) -> None:
        """Leave the host some process ids, however many sandboxes there are at their limits."""
        base = self._v2_base if "pids" in self._v2_controllers else self._v1_bases.get("pids")
        if base is None:
            return
        most = int(_PID_MAX.read_text())
        bound = most - max(_LEAST_RESERVED_PIDS, most // _RESERVED_SHARE_OF_PIDS)
        write_control(base / self._parent_name / "pids.max", str(bound))

    def list(self) -> set[str]:
        """The sandboxes that have a group in any hierarchy."""
        found: set[str] = set()
        for parent in self._parents():
            with contextlib.suppress(FileNotFoundError), os.scandir(parent) as entries:
                found.update(entry.name for entry in entries if entry.is_dir())
        return found

    def remove_parent(self) -> None:
        """Remove the parent group unless it is in use. Idempotent."""
        for parent in self._parents():
            with contextlib.suppress(OSError):  # EBUSY: another sandbox; ENOENT: another engine
                parent.rmdir()


def _is_delegated(group: Path) -> bool:
    return os.access(group, os.W_OK) and os.access(group / "cgroup.procs", os.W_OK)


def _hand_on(group: Path, controllers: frozenset[str]) -> None:
    """Give a group's children its controllers."""
    control = group / "cgroup.subtree_control"
    absent = controllers.difference(control.read_text().split())
    if not absent:
        return
    write_control(control, " ".join(f"+{controller}" for controller in sorted(absent)))

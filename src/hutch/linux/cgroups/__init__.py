"""Control groups, version 1, version 2 and both at once: cgroups(7)."""

from hutch.linux.cgroups.group import CgroupStats, SandboxCgroup
from hutch.linux.cgroups.host import CgroupHost

__all__ = ["CgroupHost", "CgroupStats", "SandboxCgroup"]

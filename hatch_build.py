"""Build hook: compile hutch-init, the native half of hutch, into the package."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_NEEDED = "hutch is part native: it needs a C compiler, make and the static C library to install"
_HINT = "On Debian and Ubuntu: apt-get install gcc make libc6-dev"


class NativeBuildHook(BuildHookInterface[Any]):
    """Runs `make` in native/ and takes the binary into the wheel, which is then of a platform."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        root = Path(self.root)
        for program in (os.environ.get("CC", "cc"), "make"):
            if shutil.which(program) is None:
                raise SystemExit(f"{_NEEDED}; {program} was not found.\n{_HINT}")
        result = subprocess.run(
            ["make", "--silent", "-C", str(root / "native")],
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode != 0:
            raise SystemExit(f"{_NEEDED}; compiling it failed:\n{result.stderr}\n{_HINT}")
        binary = root / "src" / "hutch" / "_bin" / "hutch-init"
        binary.parent.mkdir(exist_ok=True)
        temporary = binary.with_suffix(".new")
        shutil.copy2(root / "native" / "build" / "hutch-init", temporary)
        temporary.replace(binary)
        build_data["pure_python"] = False
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"py3-none-{platform}"
        build_data["artifacts"].append("src/hutch/_bin/hutch-init")

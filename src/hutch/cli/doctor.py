"""`hutch doctor`: what this host offers and lacks, and whether a sandbox holds."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Literal

import typer

from hutch.cli.output import Styled, print_json, print_table, size, tell
from hutch.cli.session import FAILED, GLOBALS, run
from hutch.engine.engine import Engine
from hutch.errors import HutchError, ImageNotFoundError
from hutch.models import Capabilities, SandboxConfig

_LEAST_KERNEL = (6, 1)
_LEAST_SPACE = 2 * 1024**3

_KNOWN_WITHOUT_ROOT = {
    "the host's uids": "run as root: root of a sandbox is then nobody outside, here it is you",
    "write /proc/1/oom_score_adj": "run as root: a sandbox can offer its own init up, no other",
}
"""What the attack reaches where there is no root, and docs/security.md says so."""

Verdict = Literal["good", "note", "weak", "bad"]
"""`bad`: sandboxes cannot be made; `weak`: the host is open where it could be closed."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at: what was found, what it costs, what would change it."""

    subject: str
    verdict: Verdict
    found: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Sysctl:
    """A kernel setting that an attacker inside a sandbox would like otherwise."""

    name: str
    good: frozenset[str]
    reason: str


_SYSCTLS = (
    Sysctl("kernel.unprivileged_bpf_disabled", frozenset("12"), "BPF is a large attack surface"),
    Sysctl("kernel.perf_event_paranoid", frozenset("234"), "performance counters leak"),
    Sysctl("kernel.io_uring_disabled", frozenset("12"), "io_uring has had many exploits"),
    Sysctl("kernel.kptr_restrict", frozenset("12"), "kernel addresses help exploits"),
    Sysctl("kernel.dmesg_restrict", frozenset("1"), "the kernel's log leaks addresses"),
    Sysctl("kernel.yama.ptrace_scope", frozenset("123"), "processes of a user trace each other"),
    Sysctl("fs.protected_hardlinks", frozenset("1"), "links to files of others"),
    Sysctl("fs.protected_symlinks", frozenset("1"), "links in sticky directories"),
    Sysctl("fs.protected_fifos", frozenset("12"), "FIFOs in sticky directories"),
    Sysctl("fs.protected_regular", frozenset("12"), "files in sticky directories"),
    Sysctl("dev.tty.legacy_tiocsti", frozenset("0"), "typing into another's terminal"),
    Sysctl("vm.unprivileged_userfaultfd", frozenset("0"), "userfaultfd widens kernel races"),
)


def examine(*, as_json: bool, attack: bool) -> None:
    """Print all findings; exit with 1 where a sandbox cannot be made or did not hold."""
    findings = [*_kernel(), *_tools(), *_space(), *_sysctls(), *_vulnerabilities()]
    try:
        findings += run(_of_engine(attack=attack))
    except typer.Exit:
        findings.append(Finding("sandboxes", "bad", "the engine could not be opened, see above"))
    if as_json:
        print_json(findings)
    else:
        _print(findings)
    if any(finding.verdict == "bad" for finding in findings):
        raise typer.Exit(FAILED)


def _print(findings: list[Finding]) -> None:
    colours = {"good": "green", "note": "cyan", "weak": "yellow", "bad": "bold red"}
    print_table(
        ("", "SUBJECT", "FOUND", "WHAT WOULD HELP"),
        [(Styled(f.verdict, colours[f.verdict]), f.subject, f.found, f.advice) for f in findings],
    )


def _of_engine(*, attack: bool) -> Callable[[Engine], Awaitable[list[Finding]]]:
    async def body(engine: Engine) -> list[Finding]:
        findings = [*_capabilities(await engine.capabilities())]
        if attack:
            findings += await _attack(engine)
        return findings

    return body


def _kernel() -> Iterator[Finding]:
    release = os.uname().release
    numbers = tuple(int(part) for part in release.split("-")[0].split(".")[:2] if part.isdigit())
    if numbers >= _LEAST_KERNEL:
        yield Finding("kernel", "good", release)
    else:
        yield Finding("kernel", "bad", release, "6.1 or newer, for id-mapped layers")
    if not Path("/proc/self/ns/user").exists():
        yield Finding("user namespaces", "bad", "not in this kernel", "CONFIG_USER_NS")
    filesystems = Path("/proc/filesystems").read_text().split()
    if "overlay" not in filesystems:
        yield Finding("overlayfs", "weak", "not loaded", "modprobe overlay")
    pressure = Path("/proc/pressure/memory").exists()
    yield Finding(
        "pressure stall information",
        "good" if pressure else "note",
        "present" if pressure else "absent",
        "" if pressure else "psi=1 on the kernel's command line",
    )


def _tools() -> Iterator[Finding]:
    for program, package, purpose in (
        ("skopeo", "skopeo", "images from registries and archives"),
        ("mmdebstrap", "mmdebstrap", "the default image, and Debian images"),
        ("newuidmap", "uidmap", "sandboxes without root"),
        ("mkfs.ext4", "e2fsprogs", "disk limits"),
    ):
        path = shutil.which(program)
        if path is None:
            yield Finding(program, "note", f"missing: no {purpose}", f"apt-get install {package}")
        else:
            yield Finding(program, "good", path)


def _space() -> Iterator[Finding]:
    directory = GLOBALS.settings().resolved_data_dir()
    existing = next(path for path in (directory, *directory.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    verdict: Verdict = "good" if free >= _LEAST_SPACE else "weak"
    yield Finding("data directory", verdict, f"{directory}, {size(free)} free")


def _sysctls() -> Iterator[Finding]:
    for setting in _SYSCTLS:
        path = Path("/proc/sys", *setting.name.split("."))
        try:
            value = path.read_text().strip()
        except OSError:
            continue  # this kernel does not have it, or keeps it from us
        if value in setting.good:
            yield Finding(setting.name, "good", value)
        else:
            advice = f"sysctl -w {setting.name}={min(setting.good)}: {setting.reason}"
            yield Finding(setting.name, "weak", value, advice)
    pattern = Path("/proc/sys/kernel/core_pattern").read_text().strip()
    if pattern.startswith("|"):
        yield Finding("kernel.core_pattern", "note", pattern, "a crash runs this program as root")


def _vulnerabilities() -> Iterator[Finding]:
    directory = Path("/sys/devices/system/cpu/vulnerabilities")
    if not directory.is_dir():
        return
    for path in sorted(directory.iterdir()):
        state = path.read_text().strip()
        if state.startswith("Vulnerable"):
            yield Finding(f"processor: {path.name}", "weak", state, "newer microcode or kernel")


def _capabilities(found: Capabilities) -> Iterator[Finding]:
    mode = "rootless" if found.rootless else "root"
    yield Finding("runtime", "good", f"{found.name}, {mode}")
    for name, supported in (
        ("memory", found.memory_limit),
        ("cpu", found.cpu_limit),
        ("pids", found.pid_limit),
        ("disk", found.disk_limit),
    ):
        if supported:
            yield Finding(f"{name} limit", "good", "can be set")
    for name, reason in found.missing.items():
        yield Finding(name, "note", "missing", reason)


async def _attack(engine: Engine) -> list[Finding]:
    """Attack a throw-away sandbox of the default image from inside."""
    reference = engine.settings.default_image
    try:
        await engine.images.get(reference)
    except ImageNotFoundError:
        advice = f"hutch image pull {reference}"
        return [Finding("self-attack", "note", "skipped: the default image is missing", advice)]
    payload = files("hutch.cli").joinpath("attack.py").read_text()
    try:
        sandbox = await engine.create_sandbox(SandboxConfig(image=reference, timeout=120))
    except HutchError as error:
        tell(error)
        return [Finding("self-attack", "bad", "no sandbox could be made", error.hint)]
    try:
        result = await engine.exec(
            sandbox.id, ["python3", "-"], stdin=payload, user="0", timeout=60
        )
    finally:
        await engine.destroy_sandbox(sandbox.id)
    attempts = [json.loads(line) for line in result.stdout.splitlines()]
    if result.exit_code != 0 or not attempts:
        return [Finding("self-attack", "bad", f"did not finish: {result.stderr.strip()[-200:]}")]
    rootless = (await engine.capabilities()).rootless
    known = _KNOWN_WITHOUT_ROOT if rootless else {}
    reached = {item["attempt"]: item["reached"] for item in attempts if item["reached"] is not None}
    findings = [
        Finding(name, "weak", f"reached: {what}", known[name])
        if name in known
        else Finding(name, "bad", f"reached: {what}")
        for name, what in reached.items()
    ]
    kept_out = f"{len(attempts) - len(reached)} of {len(attempts)} attempts kept out"
    return [*findings, Finding("self-attack", "good", kept_out)]

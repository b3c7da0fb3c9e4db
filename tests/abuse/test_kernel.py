"""Rows K: `hutch doctor`'s attack, run as root and as a user of the default image."""

from __future__ import annotations

import json
from importlib.resources import files

import pytest

from hutch import Engine, SandboxConfig


@pytest.mark.parametrize("user", ["0", "user"])
async def test_the_attack_reaches_nothing(engine: Engine, debian: str, user: str) -> None:
    sandbox = await engine.create_sandbox(SandboxConfig(image=debian))
    payload = files("hutch.cli").joinpath("attack.py").read_text()
    result = await engine.exec(sandbox.id, ["python3", "-"], stdin=payload, user=user, timeout=60)
    assert result.exit_code == 0, result.stderr
    attempts = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(attempts) > 60
    assert [item for item in attempts if item["reached"] is not None] == []


async def test_the_default_image(engine: Engine, debian: str) -> None:
    """What docs/images.md promises of it."""
    sandbox = await engine.create_sandbox(SandboxConfig(image=debian))
    result = await engine.exec(
        sandbox.id,
        "id -un; pwd; for p in bash python3 python ps find setsid tar git curl adduser sudo xz; do "
        "command -v $p >/dev/null || echo missing $p; done; touch w && echo writable; "
        "python -c 'print(2+2)'; test -s /etc/ssl/certs/ca-certificates.crt && echo certificates",
    )
    assert result.stdout.split("\n")[:-1] == [
        "user", "/home/user", "writable", "4", "certificates",
    ], result  # fmt: skip


async def test_sudo_where_the_sandbox_allows_it(engine: Engine, debian: str) -> None:
    allowed = await engine.create_sandbox(
        SandboxConfig(image=debian, allow_privilege_escalation=True)
    )
    result = await engine.exec(allowed.id, ["sudo", "id", "-u"])
    assert (result.stdout, result.exit_code) == ("0\n", 0), result.stderr
    plain = await engine.create_sandbox(SandboxConfig(image=debian))
    refused = await engine.exec(plain.id, ["sudo", "id", "-u"])
    assert refused.exit_code != 0
    assert "no new privileges" in refused.stderr


async def test_setuid_binaries_gain_nothing(engine: Engine) -> None:
    """F17."""
    sandbox = await engine.create_sandbox(SandboxConfig(image="busybox"))
    await engine.exec(sandbox.id, "cp /bin/busybox /tmp/su; chmod 4755 /tmp/su")
    result = await engine.exec(sandbox.id, ["/tmp/su", "id", "-u"], user="user")
    assert result.stdout.strip() != "0"

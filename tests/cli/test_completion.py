"""Shell completion: what a shell gets when it asks as its script does."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Hutch


def complete(hutch: Hutch, *words: str, **variables: str) -> set[str]:
    line = " ".join(("hutch", *words))
    asked = hutch(_HUTCH_COMPLETE="complete_bash", COMP_WORDS=line,
                  COMP_CWORD=str(len(words)), **variables)  # fmt: skip
    assert asked.stderr == b""
    return set(asked.stdout.decode().split())


@pytest.mark.parametrize(
    ("shell", "text"), [("bash", "complete -o"), ("zsh", "#compdef hutch"), ("fish", "--command")]
)
def test_scripts(hutch: Hutch, shell: str, text: str) -> None:
    shown = hutch("--show-completion", shell, check=True).stdout.decode()
    assert text in shown
    assert f"_HUTCH_COMPLETE=complete_{shell}" in shown


def test_installing(hutch: Hutch, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    hutch("--install-completion", "fish", check=True, HOME=str(home))
    assert "hutch" in (home / ".config/fish/completions/hutch.fish").read_text()
    assert hutch("--install-completion", "tcsh", HOME=str(home)).returncode == 2


def test_ids_and_names(hutch: Hutch, data_dir: Path) -> None:
    made = hutch("create", "--", "sleep", "1234", check=True).stdout.decode().strip()
    for command in ("rm", "stats", "inspect", "stop", "exec", "logs"):
        assert complete(hutch, command, "") == {made}
    for command in ("attach", "logs", "wait", "kill"):
        assert "main" in complete(hutch, command, made, "")
    assert "busybox" in complete(hutch, "run", "--image", "busy")
    assert "busybox" in complete(hutch, "image", "rm", "busy")
    assert "inspect" in complete(hutch, "ins")
    elsewhere = {"HUTCH_DATA_DIR": str(data_dir.parent / "other")}
    assert complete(hutch, "rm", "", **elsewhere) == set()
    assert complete(hutch, "--data-dir", str(data_dir), "rm", "", **elsewhere) == {made}


def test_what_goes_wrong_completes_nothing(hutch: Hutch) -> None:
    assert complete(hutch, "rm", "", HUTCH_LOG_LEVEL="loud") == set()
    assert complete(hutch, "logs", "nothing", "") == set()

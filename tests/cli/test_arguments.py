"""Where hutch's options end and a command's words begin."""

from __future__ import annotations

import json

import pytest

from tests.cli.conftest import Hutch


@pytest.fixture
def sandbox(hutch: Hutch) -> str:
    return hutch("create", check=True).stdout.decode().strip()


SHOW = ("sh", "-c", 'printf "%s|" "$(id -un)" "$@"', "sh")


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "-u", "user", *SHOW, "-la", "--json", "--", "-u"),
        ("run", "-u", "user", "--", *SHOW, "-la", "--json", "--", "-u"),
        ("run", "-uuser", *SHOW, "-la", "--json", "--", "-u"),
    ],
)
def test_words_of_a_command_are_its_own(hutch: Hutch, arguments: tuple[str, ...]) -> None:
    assert hutch(*arguments).stdout == b"user|-la|--json|--|-u|"


@pytest.mark.parametrize(
    "arguments",
    [
        ("{id}", "-u", "user", *SHOW, "-la", "--json", "--", "-u"),
        ("{id}", "-u", "user", "--", *SHOW, "-la", "--json", "--", "-u"),
        ("-u", "user", "{id}", *SHOW, "-la", "--json", "--", "-u"),
        ("-u", "user", "{id}", "--", *SHOW, "-la", "--json", "--", "-u"),
        ("-w", "/tmp", "{id}", "--user=user", *SHOW, "-la", "--json", "--", "-u"),
        ("-u", "user", "--", "{id}", *SHOW, "-la", "--json", "--", "-u"),
    ],
)
def test_options_stand_on_either_side_of_the_id(
    hutch: Hutch, sandbox: str, arguments: tuple[str, ...]
) -> None:
    result = hutch("exec", *(word.format(id=sandbox) for word in arguments))
    assert result.stdout == b"user|-la|--json|--|-u|", result.stderr


def test_a_main_process_has_its_words(hutch: Hutch) -> None:
    made = hutch("create", "-l", "k=v", "sh", "-c", "sleep 1234", "-l", "x", check=True)
    (inspected,) = json.loads(hutch("inspect", made.stdout.decode().strip()).stdout)
    assert inspected["config"]["cmd"] == ["sh", "-c", "sleep 1234", "-l", "x"]
    assert inspected["config"]["labels"] == {"k": "v"}


@pytest.mark.parametrize(
    "arguments", [("exec",), ("exec", "id"), ("exec", "id", "--none", "true"), ("run", "-e")]
)
def test_what_is_missing_or_unknown(hutch: Hutch, arguments: tuple[str, ...]) -> None:
    assert hutch(*arguments).returncode == 2


@pytest.mark.parametrize("option", ["--json", "--idempotency-key=k"])
def test_collected_commands_read_stdin(hutch: Hutch, sandbox: str, option: str) -> None:
    line = "cat; echo err >&2"
    result = hutch("exec", "-i", option, sandbox, "--", "sh", "-c", line, stdin=b"typed")
    assert option == "--json" or result.stderr == b"err\n"
    output = json.loads(result.stdout)["stdout"] if option == "--json" else result.stdout.decode()
    assert output == "typed"

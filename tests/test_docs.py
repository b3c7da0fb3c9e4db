"""The documentation names what there is: every setting, command, option and method, and no other."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main
from click import Command, Group, Option

from hutch import Engine
from hutch.cli.app import make_app
from hutch.config import describe

CHECKOUT = Path(__file__).parent.parent
PAGES = sorted([*CHECKOUT.glob("*.md"), *CHECKOUT.glob("docs/*.md")])
PLACES = re.compile(r"`((?:src|tests|native|docs|scripts|examples|benchmarks)/[\w./-]+)")


def commands(group: Group, path: str = "hutch") -> Iterator[tuple[str, Command]]:
    for name, command in group.commands.items():
        if isinstance(command, Group):
            yield from commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


COMMANDS = dict(commands(typer.main.get_group(make_app())))


def sections() -> dict[str, str]:
    text = (CHECKOUT / "docs/cli.md").read_text()
    parts = re.split(r"^### (.*)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_every_command_is_documented_and_no_other() -> None:
    assert sections().keys() == COMMANDS.keys()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_documented(name: str) -> None:
    whole = (CHECKOUT / "docs/cli.md").read_text()
    for option in COMMANDS[name].params:
        if isinstance(option, Option):
            text = whole if {"--json", "--help"} & {*option.opts} else sections()[name]
            if name == "hutch create":
                text += sections()["hutch run"]
            names = [*option.opts, *option.secondary_opts]
            assert any(long in text for long in names if long.startswith("--")), option.opts


def test_every_setting_is_documented_with_its_default() -> None:
    text = (CHECKOUT / "docs/configuration.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (.*) \| (.*) \|$", text, re.MULTILINE)
    shown = {
        name: (meaning, "none" if default is None else f"`{default}`" if default else "empty")
        for name, (meaning, default) in describe().items()
    }
    assert {name: (meaning, default) for name, meaning, default in rows} == shown


def test_every_method_of_the_engine_is_documented() -> None:
    text = (CHECKOUT / "docs/python-api.md").read_text()
    methods = [name for name in dir(Engine) if not name.startswith("_")]
    assert [name for name in methods if f"`{name}" not in text] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_paths_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    links = re.findall(r"\]\((?!https:)([^)#]+)[^)]*\)", text)
    assert [link for link in links if not (page.parent / link).exists()] == []
    assert [place for place in PLACES.findall(text) if not (CHECKOUT / place).exists()] == []

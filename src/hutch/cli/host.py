"""Commands about this host and hutch itself."""

from __future__ import annotations

from typing import Annotated

import typer

import hutch
from hutch.cli.options import AsJson
from hutch.cli.output import print_json, print_table
from hutch.cli.session import GLOBALS


def doctor(
    as_json: AsJson = False,
    attack: Annotated[
        bool, typer.Option("--attack/--no-attack", help="Also try to break out of a sandbox.")
    ] = True,
) -> None:
    """Say what this host offers and lacks, and attack a throw-away sandbox to see that it holds."""
    from hutch.cli.doctor import examine

    examine(as_json=as_json, attack=attack)


def settings(as_json: AsJson = False) -> None:
    """Show the settings in effect."""
    from hutch.config import describe

    current = GLOBALS.settings()
    names = describe()
    if as_json:
        print_json({name: getattr(current, name) for name in names})
        return
    rows = [(name, str(getattr(current, name)), meaning) for name, (meaning, _) in names.items()]
    print_table(("SETTING", "VALUE", "MEANING"), rows)


def version(as_json: AsJson = False) -> None:
    """Print hutch's version."""
    if as_json:
        print_json({"version": hutch.__version__})
    else:
        typer.echo(f"hutch {hutch.__version__}")

"""The entry point: which command is which function."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import hutch
from hutch.cli import commands, files, images, sandboxes
from hutch.cli.options import AsJson
from hutch.cli.output import print_json
from hutch.cli.session import GLOBALS

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Isolated Linux sandboxes that start in milliseconds.",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _options(
    data_dir: Annotated[
        Path | None, typer.Option("--data-dir", help="Where sandboxes and images live.")
    ] = None,
    log_level: Annotated[
        str | None, typer.Option("--log-level", help="debug, info, warning or error.")
    ] = None,
    log_format: Annotated[str | None, typer.Option("--log-format", help="text or json.")] = None,
) -> None:
    GLOBALS.data_dir = data_dir
    GLOBALS.log_level = log_level
    GLOBALS.log_format = log_format


def version(as_json: AsJson = False) -> None:
    """Print hutch's version."""
    if as_json:
        print_json({"version": hutch.__version__})
    else:
        typer.echo(f"hutch {hutch.__version__}")


def doctor(
    as_json: AsJson = False,
    attack: Annotated[
        bool, typer.Option("--attack/--no-attack", help="Also try to break out of a sandbox.")
    ] = True,
) -> None:
    """Say what this host offers and lacks, and attack a throw-away sandbox to see that it holds."""
    from hutch.cli.doctor import examine

    examine(as_json=as_json, attack=attack)


_LIFE = "Sandboxes"
_WORK = "Work in sandboxes"
_HOST = "This host"

app.command(name="run", rich_help_panel=_LIFE)(sandboxes.run_command)
app.command(rich_help_panel=_LIFE)(sandboxes.create)
app.command(rich_help_panel=_LIFE)(sandboxes.ls)
app.command(rich_help_panel=_LIFE)(sandboxes.inspect)
app.command(rich_help_panel=_LIFE)(sandboxes.start)
app.command(rich_help_panel=_LIFE)(sandboxes.stop)
app.command(rich_help_panel=_LIFE)(sandboxes.rm)
app.command(rich_help_panel=_LIFE)(sandboxes.extend)
app.command(rich_help_panel=_LIFE)(sandboxes.label)
app.command(name="exec", rich_help_panel=_WORK)(commands.exec_command)
app.command(rich_help_panel=_WORK)(commands.ps)
app.command(rich_help_panel=_WORK)(commands.attach)
app.command(rich_help_panel=_WORK)(commands.logs)
app.command(rich_help_panel=_WORK)(commands.wait)
app.command(rich_help_panel=_WORK)(commands.kill)
app.command(rich_help_panel=_WORK)(files.cp)
app.command(rich_help_panel=_WORK)(sandboxes.stats)
app.command(rich_help_panel=_WORK)(sandboxes.events)
app.add_typer(images.app, name="image", rich_help_panel=_HOST)
app.command(rich_help_panel=_HOST)(doctor)
app.command(rich_help_panel=_HOST)(sandboxes.settings)
app.command(rich_help_panel=_HOST)(version)


def main() -> None:
    """Run the command line; never returns."""
    app()


if __name__ == "__main__":
    main()

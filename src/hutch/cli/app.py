"""Which command is which function, and the options before it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Annotated, NamedTuple

import click
import typer
from typer.core import TyperCommand

from hutch.cli.arguments import CommandLine
from hutch.cli.session import GLOBALS

PROGRAM = "hutch"
COMPLETION_VARIABLE = "_HUTCH_COMPLETE"
"""What a shell sets when it asks for completions."""

_LIFE = "Sandboxes"
_WORK = "Work in sandboxes"
_HOST = "This host"


class _Entry(NamedTuple):
    """Where a command is, imported only when it is wanted, and where `--help` shows it."""

    place: str
    panel: str
    kind: type[TyperCommand] = TyperCommand


_COMMANDS = {
    "run": _Entry("sandboxes:run_command", _LIFE, CommandLine),
    "create": _Entry("sandboxes:create", _LIFE, CommandLine),
    "ls": _Entry("sandboxes:ls", _LIFE),
    "inspect": _Entry("sandboxes:inspect", _LIFE),
    "start": _Entry("sandboxes:start", _LIFE),
    "stop": _Entry("sandboxes:stop", _LIFE),
    "rm": _Entry("sandboxes:rm", _LIFE),
    "extend": _Entry("sandboxes:extend", _LIFE),
    "label": _Entry("sandboxes:label", _LIFE),
    "exec": _Entry("commands:exec_command", _WORK, CommandLine),
    "ps": _Entry("commands:ps", _WORK),
    "attach": _Entry("commands:attach", _WORK),
    "logs": _Entry("commands:logs", _WORK),
    "wait": _Entry("commands:wait", _WORK),
    "kill": _Entry("commands:kill", _WORK),
    "cp": _Entry("files:cp", _WORK),
    "stats": _Entry("sandboxes:stats", _WORK),
    "events": _Entry("sandboxes:events", _WORK),
    "image": _Entry("images:app", _HOST),
    "doctor": _Entry("host:doctor", _HOST),
    "settings": _Entry("host:settings", _HOST),
    "version": _Entry("host:version", _HOST),
}
_WITH_VALUE = ("--data-dir", "--log-level", "--log-format")


def make_app(argv: Sequence[str] = ()) -> typer.Typer:
    """Make the command line with the one command that `argv` is for, or else with all of them."""
    app = typer.Typer(
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        help="Isolated Linux sandboxes that start in milliseconds.",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_options)
    wanted = _command_of(argv)
    for name, entry in _COMMANDS.items():
        if wanted in {None, name}:
            _add(app, name, entry)
    return app


def _command_of(argv: Sequence[str]) -> str | None:
    """The command, where it is plain which one it is."""
    words = iter(argv)
    for word in words:
        if word in _WITH_VALUE:
            next(words, None)
        else:
            return word if word in _COMMANDS else None
    return None


def _add(app: typer.Typer, name: str, entry: _Entry) -> None:
    module, _, function = entry.place.partition(":")
    what = getattr(import_module(f"hutch.cli.{module}"), function)
    if isinstance(what, typer.Typer):
        app.add_typer(what, name=name, rich_help_panel=entry.panel)
    else:
        app.command(name=name, cls=entry.kind, rich_help_panel=entry.panel)(what)


def _show_completion(shell: str) -> None:
    from typer._completion_shared import get_completion_script

    script = get_completion_script(prog_name=PROGRAM, complete_var=COMPLETION_VARIABLE, shell=shell)
    typer.echo(script)


def _install_completion(shell: str) -> None:
    from typer._completion_shared import install

    _, path = install(shell, PROGRAM, COMPLETION_VARIABLE)
    typer.echo(f"{path} is written; a new shell completes")


def _version_only(wanted: bool) -> None:
    if wanted:
        from hutch.cli.host import version

        version()
        raise typer.Exit


def _eager(act: Callable[[str], None]) -> Callable[[str | None], None]:
    """What an option does instead of any command."""

    def callback(value: str | None) -> None:
        if value is not None:
            act(value)
            raise typer.Exit

    return callback


_SHELLS = click.Choice(("bash", "zsh", "fish"))


def _options(
    data_dir: Annotated[
        str | None, typer.Option("--data-dir", help="Where sandboxes and images live.")
    ] = None,
    log_level: Annotated[
        str | None, typer.Option("--log-level", help="debug, info, warning or error.")
    ] = None,
    log_format: Annotated[str | None, typer.Option("--log-format", help="text or json.")] = None,
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_version_only, help="Print it, and end."),
    ] = False,
    show_completion: Annotated[
        str | None,
        typer.Option(
            "--show-completion",
            click_type=_SHELLS,
            is_eager=True,
            callback=_eager(_show_completion),
            help="Print what makes this shell complete hutch's commands.",
        ),
    ] = None,
    install_completion: Annotated[
        str | None,
        typer.Option(
            "--install-completion",
            click_type=_SHELLS,
            is_eager=True,
            callback=_eager(_install_completion),
            help="Put that in this shell's start-up files.",
        ),
    ] = None,
) -> None:
    GLOBALS.data_dir = data_dir
    GLOBALS.log_level = log_level
    GLOBALS.log_format = log_format

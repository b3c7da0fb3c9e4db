"""Where hutch's own arguments end and a command's begin."""

from __future__ import annotations

from click import Argument, Context
from typer.core import TyperCommand


class CommandLine(TyperCommand):
    """From the first word of COMMAND on, all words are the command's: `hutch run ls -la`.

    Options before it are hutch's, also between the arguments that come first, as in
    `hutch exec ID --user root ls -la`. What comes after `--` is never an option.
    """

    def parse_args(self, ctx: Context, args: list[str]) -> list[str]:
        """Put `--` where the options end, and parse as ever."""
        ctx.allow_interspersed_args = False
        before = sum(isinstance(p, Argument) and p.nargs == 1 for p in self.params)
        options: list[str] = []
        words: list[str] = []
        rest = args
        for _ in range(before + 1):
            end = len(rest) - self._count_words(ctx, rest)
            taken, rest = rest[:end], rest[end:]
            options += taken
            if taken[-1:] == ["--"]:
                options.pop()
                break
            words, rest = words + rest[:1], rest[1:]
        words += rest
        return super().parse_args(ctx, [*options, "--", *words] if words else options)

    def _count_words(self, ctx: Context, args: list[str]) -> int:
        """How many are left from the first on that is no option, nor an option's value."""
        values, left, _ = self.make_parser(ctx).parse_args([*args])
        found = [values.get(str(p.name)) for p in self.params if isinstance(p, Argument)]
        return len(left) + sum(
            len(value) if isinstance(value, tuple | list) else isinstance(value, str)
            for value in found
        )

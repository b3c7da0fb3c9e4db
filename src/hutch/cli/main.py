"""The entry point: from the first moment on, whatever goes wrong ends in a sentence.

It imports next to nothing, since Ctrl-C may come while the rest is being imported.
"""

from __future__ import annotations

import io
import os
import sys

_FAILED = 1
_MISUSED = 2
_INTERRUPTED = 128 + 2
_UNREAD = 128 + 13
"""What a shell reports of a program whose output nobody reads any more."""


def main() -> None:
    """Run the command line; never returns."""
    try:
        _open_streams()
        code = _run()
    except BaseException as error:
        code = _explain(error)
    # Not sys.exit(): what could not be written would be tried again, and Ctrl-C be told.
    os._exit(_flush(code))


def _run() -> int:
    from hutch.cli.app import COMPLETION_VARIABLE, PROGRAM, make_app

    if COMPLETION_VARIABLE in os.environ:
        from hutch.cli.completion import prepare

        prepare()
    try:
        make_app(sys.argv[1:])(prog_name=PROGRAM)
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else bool(ended.code)
    return 0


def _flush(code: int) -> int:
    """Write what is still to be written; returns the exit code, of the first thing that failed."""
    try:
        sys.stdout.flush()
    except BaseException as error:
        code = code or _explain(error)
    try:
        sys.stderr.flush()
    except OSError:
        pass  # there is nowhere to say so
    return code


def _explain(error: BaseException) -> int:
    """Say what went wrong; returns the exit code."""
    if isinstance(error, KeyboardInterrupt):
        return _INTERRUPTED
    if isinstance(error, BrokenPipeError):
        return _UNREAD
    from hutch.cli.output import say, sentence
    from hutch.errors import InvalidRequestError

    if text := sentence(error):
        say(text)
        return _MISUSED if isinstance(error, InvalidRequestError) else _FAILED
    import traceback

    traceback.print_exception(error)
    return _FAILED


class _StandardOutput(io.FileIO):
    """Standard output, which the errors of writing to it name."""

    def write(self, data: bytes, /) -> int:  # type: ignore[override]  # any buffer, in 3.12's words
        try:
            return super().write(data)
        except BrokenPipeError:
            raise BrokenPipeError("nobody reads standard output") from None  # without errno, or
        except OSError as error:  # click makes it an exit code of its own
            error.filename = "standard output"
            raise


def _open_streams() -> None:
    """Have all three streams: a closed input is an empty one, a closed output refuses.

    Otherwise the next file that is opened would be one of them.
    """
    for fd, flags in enumerate((os.O_RDONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(fd)
        except OSError:
            os.set_inheritable(os.open("/dev/null", flags), True)
    if sys.stdin is None:
        sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)))
    if sys.stderr is None:
        output = io.BufferedWriter(io.FileIO(2, "w", closefd=False))
        sys.stderr = io.TextIOWrapper(output, errors="backslashreplace", line_buffering=True)
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(_StandardOutput(1, "w", closefd=False)),
        encoding=getattr(sys.stdout, "encoding", None) or "utf-8",
        errors="backslashreplace",
        line_buffering=os.isatty(1),
    )


if __name__ == "__main__":
    main()

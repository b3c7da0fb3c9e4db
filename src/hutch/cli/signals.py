"""Signals to this process: for a while, to whoever has a use for them.

The event loop cannot be asked what it does with a signal, so it is kept here: what a block put in
place of a handler goes, and the handler is back.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

Handler = Callable[[int], None]

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What asks a process to end: Ctrl-C, kill(1), the end of its terminal."""

_handlers: dict[int, Handler] = {}
"""Of the running loop, by number."""


@contextmanager
def handled(numbers: Collection[int], handler: Handler) -> Iterator[None]:
    """Call `handler` with each of these signals; those that are ignored stay so: nohup(1)."""
    wanted = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: _handlers.get(number) for number in wanted}
    for number in wanted:
        _handle(number, handler)
    try:
        yield
    finally:
        for number, handler_before in before.items():
            _handle(number, handler_before)


def _handle(number: int, handler: Handler | None) -> None:
    loop = asyncio.get_running_loop()
    if handler is None:
        del _handlers[number]
        loop.remove_signal_handler(number)
    else:
        _handlers[number] = handler
        loop.add_signal_handler(number, handler, number)

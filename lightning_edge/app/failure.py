"""How a command ends when something goes wrong: an exit status and one clear last line."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

from lightning_edge.errors import EdgeError

__all__: list[str] = []

FULL_ERROR = "HYDRA_FULL_ERROR"  # set to 1 by who wants to see where an error came from


class CommandError(EdgeError):
    """A command cannot go on; the message is all that the user has to see.

    Args:
        text: The message.
        status: Exit status of the command.
    """

    def __init__(self, text: str, status: int = 1) -> None:
        super().__init__(text)
        self.status = status


class Interrupted(BaseException):
    """Somebody wants this process to end.

    Attributes:
        number: The signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def guarded(command: str, call: Callable[[], int]) -> int:
    """Return what `call` returns, or the exit status that goes with its error.

    Args:
        command: Its name, for the last line.
        call: Does the work.
    """
    with ending_on_signals():
        try:
            return call()
        except CommandError as error:
            return ended(command, str(error), error.status)
        except EdgeError as error:
            if os.environ.get(FULL_ERROR) == "1":
                traceback.print_exc()
            return ended(command, str(error), 1)
        except (Interrupted, KeyboardInterrupt) as error:
            number = error.number if isinstance(error, Interrupted) else signal.SIGINT
            return ended(command, f"interrupted ({signal.Signals(number).name})", 128 + number)


def ended(command: str, text: str, status: int) -> int:
    """Print the last line, or lines where a list of problems is the message."""
    sys.stdout.flush()
    print(f"lightning-edge {command}: {text}", file=sys.stderr, flush=True)
    return status


@contextlib.contextmanager
def ending_on_signals() -> Iterator[None]:
    """Let SIGINT, SIGTERM and SIGHUP raise `Interrupted`; put back what was there before."""

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        raise Interrupted(number)

    try:
        handled = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {number: signal.signal(number, interrupt) for number in handled}
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""What the devices print: passed on line by line, each line under its device's name."""

from __future__ import annotations

import contextlib
import os
import selectors
import threading
from collections import deque
from collections.abc import Callable
from typing import IO

__all__: list[str] = []

KEPT_LINES = 1000  # per device, for error reports and for callers from Python

Printer = Callable[[str, str], None]  # (device's name, line)


class Output:
    """Reads the pipes of all devices in one thread.

    Args:
        printer: Called with a device's name and a line; None prints nothing.
    """

    def __init__(self, printer: Printer | None) -> None:
        self._printer = printer
        self._selector = selectors.DefaultSelector()
        self._lines: dict[str, deque[str]] = {}
        self._thread = threading.Thread(target=self._read, name="testbed-output", daemon=True)

    def add(self, name: str, pipe: IO[bytes]) -> None:
        """Read this pipe too; before `start` only."""
        os.set_blocking(pipe.fileno(), False)
        self._lines[name] = deque(maxlen=KEPT_LINES)
        self._selector.register(pipe, selectors.EVENT_READ, (name, bytearray()))

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def finish(self) -> None:
        """Read what is left, and close the pipes; all writers have to be gone."""
        if self._thread.ident is not None:
            self._thread.join()
        for key in list(self._selector.get_map().values()):
            self._close(key)
        self._selector.close()

    def lines(self, name: str) -> tuple[str, ...]:
        """Return the last lines of a device."""
        return tuple(self._lines.get(name, ()))

    def _read(self) -> None:
        while self._selector.get_map():
            for key, _ in self._selector.select():
                name, rest = key.data
                try:
                    data = os.read(key.fd, 1 << 16)
                except BlockingIOError:
                    continue
                rest += data
                *lines, left = rest.split(b"\n")
                rest[:] = left
                if not data:
                    lines += [bytes(left)] if left else []
                    self._close(key)
                for line in lines:
                    self._emit(name, line.decode(errors="replace").rstrip("\r"))

    def _close(self, key: selectors.SelectorKey) -> None:
        self._selector.unregister(key.fileobj)
        key.fileobj.close()  # type: ignore[union-attr]  # registered as a file, never as a number

    def _emit(self, name: str, line: str) -> None:
        self._lines[name].append(line)
        if self._printer is not None:
            with contextlib.suppress(OSError, ValueError):  # whoever read our output has gone
                self._printer(name, line)

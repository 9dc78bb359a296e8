"""Waits that can be ended from outside, whatever state the connection is in.

When a connection breaks in the middle of a message, gloo wakes neither who waits for the rest to
leave nor who waits for the rest to come (torch 2.11 to 2.13: a pair tells its error only to
messages that have not begun). So a thread at the caller's side waits in gloo, and may be left
behind there::

    caller              helper
    wait(work)  ----->  work.wait()      in gloo, for as long as it takes
      asleep    <-----  done, or its error
      asleep    <- - -  release()        by whoever finds out that a device is lost
"""

from __future__ import annotations

import queue
import threading
import time
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING

from lightning_edge.train.gloo import FOREVER

if TYPE_CHECKING:
    from lightning_edge.train.staging import Waitable

__all__ = ["Waits"]


class Waits:
    """The waits of one transport, each with a helper; helpers are used again."""

    def __init__(self) -> None:
        self._idle: list[_Helper] = []
        self._busy: set[_Helper] = set()
        self._lock = threading.Lock()
        self._released = False

    def wait(self, work: Waitable, timeout: timedelta) -> bool:
        """Wait for work; return whether it is done: it is not when time is over, or on `release`.

        Raises:
            RuntimeError: The work's own.
        """
        with self._lock:
            if self._released:
                return False
            helper = self._idle.pop() if self._idle else _Helper()
            self._busy.add(helper)
        if not helper.wait(work, timeout):
            return False
        error, helper.error = helper.error, None
        with self._lock:
            if helper in self._busy:  # else it was told to end
                self._busy.discard(helper)
                self._idle.append(helper)
        if error is not None:
            raise error
        return True

    def release(self) -> None:
        """End all waits, now and from now on."""
        with self._lock:
            self._released = True
            for helper in self._busy:
                helper.wake()

    def close(self, patience_s: float) -> None:
        """End the helpers; those that gloo does not let go within `patience_s` are left behind."""
        self.release()
        deadline_s = time.monotonic() + patience_s
        with self._lock:
            helpers = [*self._idle, *self._busy]
            self._idle.clear()
            self._busy.clear()
        for helper in helpers:
            helper.end()
        for helper in helpers:
            helper.thread.join(max(0.0, deadline_s - time.monotonic()))


class _Helper:
    def __init__(self) -> None:
        self.error: RuntimeError | None = None
        self._done = False
        self._awake = threading.Lock()
        self._awake.acquire()
        self._works: queue.SimpleQueue[Waitable | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._run, name="edge-wait", daemon=True)
        self.thread.start()

    def wait(self, work: Waitable, timeout: timedelta) -> bool:
        self._done = False
        self._works.put(work)
        seconds = min(timeout.total_seconds(), threading.TIMEOUT_MAX)
        # Who was not woken is not used again: a late wake-up would end its next wait.
        return self._awake.acquire(timeout=seconds) and self._done

    def wake(self) -> None:
        with suppress(RuntimeError):  # it is awake
            self._awake.release()

    def end(self) -> None:
        self._works.put(None)

    def _run(self) -> None:
        while (work := self._works.get()) is not None:
            try:
                work.wait(FOREVER)
            except RuntimeError as error:
                self.error = error
            del work  # its buffer may be free now
            self._done = True
            self.wake()

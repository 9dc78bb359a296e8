"""Looks at every device twenty times a second: CPU time, bytes, memory; and drives its meter."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning_edge.testbed.cgroups import Group
from lightning_edge.testbed.meter import Meter

__all__: list[str] = []

PERIOD_S = 0.05
_CLONE_NEWNET = 0x40000000


@dataclass
class Probe:
    """One device as the sampler sees it, and what it has seen.

    Args:
        port: Name of its interface at the switch.
        group: Its processes.
        cores: Cores it may use at most, which is what a utilisation of 1 means.
        meter: Its power meter, if it has a power curve.
    """

    port: str
    group: Group
    cores: float
    meter: Meter | None
    cpu_s: float = 0.0
    sent_bytes: int = 0
    received_bytes: int = 0
    memory_peak_bytes: int = 0
    anonymous_peak_bytes: int = 0


class Sampler:
    """A thread that keeps `Probe` figures and meters up to date between `start` and `stop`."""

    def __init__(self, hub: Path, probes: Sequence[Probe]) -> None:
        self._hub = hub
        self._probes = tuple(probes)
        self._first: dict[str, tuple[int, int]] = {}
        self._stop = threading.Event()
        self._ready = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="testbed-sampler", daemon=True)

    def start(self) -> None:
        """Begin to sample; returns once the first sample is taken."""
        self._thread.start()
        self._ready.wait()
        self._raise()

    def stop(self) -> None:
        """Take the last sample and end the thread."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()
        self._raise()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            self._enter_hub()
            before_s = time.monotonic()
            self._first = self._counters()
            self._ready.set()
            while not self._stop.wait(PERIOD_S):
                before_s = self._sample(before_s)
            self._sample(before_s)
        except BaseException as error:  # raised in the thread that waits
            self._error = error
        finally:
            self._ready.set()

    def _enter_hub(self) -> None:
        """Move this thread alone into the switch's namespace, where the links are counted."""
        with open(self._hub) as file:
            if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), _CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), f"cannot enter {self._hub}")

    def _counters(self) -> dict[str, tuple[int, int]]:
        """Return bytes (received, sent) by each interface of the switch."""
        found = {}
        # Not /proc/net: that shows the namespace of the process's first thread.
        lines = Path(f"/proc/self/task/{threading.get_native_id()}/net/dev").read_text()
        for line in lines.splitlines()[2:]:
            name, _, numbers = line.partition(":")
            fields = numbers.split()
            found[name.strip()] = (int(fields[0]), int(fields[8]))
        return found

    def _sample(self, before_s: float) -> float:
        now_s = time.monotonic()
        counters = self._counters()
        for probe in self._probes:
            first_in, first_out = self._first[probe.port]
            entered, left = counters[probe.port]
            # What enters the switch was sent by the device.
            sent, received = entered - first_in, left - first_out
            cpu_s = probe.group.cpu_s()
            if probe.meter is not None and now_s > before_s:
                moved = sent + received - probe.sent_bytes - probe.received_bytes
                used = (cpu_s - probe.cpu_s) / (probe.cores * (now_s - before_s))
                probe.meter.update(used, now_s - before_s, moved, now_s)
            probe.cpu_s, probe.sent_bytes, probe.received_bytes = cpu_s, sent, received
            group = probe.group
            probe.memory_peak_bytes = max(probe.memory_peak_bytes, group.memory_peak_bytes())
            probe.anonymous_peak_bytes = max(probe.anonymous_peak_bytes, group.anonymous_bytes())
        return now_s

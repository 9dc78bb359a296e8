"""The meter: sources, a sampling thread, windows and phases.

::

    with EnergyMeter() as meter:
        with meter.window("warm-up") as window:
            train()
        print(window.report.energy_j, "J +-", window.report.uncertainty_j)
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

import numpy as np

from lightning_edge.energy.attribution import PhaseReport, Series, attribute
from lightning_edge.energy.domain import Domain
from lightning_edge.energy.feed import Feed
from lightning_edge.energy.host import HostEnv
from lightning_edge.energy.phases import PhaseMarks
from lightning_edge.energy.report import DomainEnergy, EnergyReport, count_roots
from lightning_edge.energy.sampler import Sampler
from lightning_edge.energy.select import Choice, Wanted, open_sources
from lightning_edge.energy.sources.model import PowerModel
from lightning_edge.energy.trace import Trace
from lightning_edge.errors import EnergyError


class EnergyMeter:
    """Measures the joules of this machine.

    Windows may nest and overlap, and may be opened and closed by any thread. A process that forks
    keeps its meter; the child's copy is stopped and must be started there, a spawned copy likewise.

    Args:
        sources: ``"auto"``, or kinds of sources (``["rapl", "nvml"]``), source classes, or sources.
        host: The machine; another one in tests.
        period_s: Mean time between two readings of a source; longer where a reading is costly.
        strict: Refuse estimates.
        model: Idle and full power of this machine for the estimate of last resort.
        background: Poll in a thread. Without it only window boundaries and `read` take readings.
    """

    def __init__(
        self,
        sources: str | Sequence[Wanted] = "auto",
        *,
        host: HostEnv | None = None,
        period_s: float = 0.1,
        strict: bool = False,
        model: PowerModel | None = None,
        background: bool = True,
    ) -> None:
        if not period_s > 0:
            raise EnergyError(f"period_s={period_s} must be above 0; 0.1 is a good choice")
        self.host = host or HostEnv()
        self.choices: tuple[Choice, ...] = ()
        self._wanted, self._period_s, self._strict = sources, period_s, strict
        self._model, self._background = model, background
        self._carried: EnergyReport | None = None
        self._open: weakref.WeakSet[Window] = weakref.WeakSet()
        self._idle_w: dict[str, float] = {}
        self._forget()

    def _forget(self) -> None:
        """Be a meter that was not started: new locks, no thread, no sources."""
        self._lock = threading.Lock()
        self._feeds: list[Feed] = []
        self._sampler: Sampler | None = None
        self._pid = os.getpid()
        self._started_s: float | None = None
        self.phases = PhaseMarks(self.host.clock)

    def start(self) -> EnergyMeter:
        """Probe the sources, take the first reading and begin to poll.

        Does nothing on a running meter.

        Raises:
            EnergyError: If what was asked for is not available.
        """
        if self.running:
            return self
        if self._pid != os.getpid():
            self._forget()  # a forked child: the parent's thread and locks did not come along
        opened, choices = open_sources(
            self._wanted, self.host, strict=self._strict, power_model=self._model
        )
        self.choices = tuple(choices)
        self._feeds = [Feed(source, self._period_s, self.host.clock) for source in opened]
        for feed in self._feeds:
            feed.read()
        self._started_s = self.host.clock()
        self.phases = PhaseMarks(self.host.clock)
        if self._background:
            self._sampler = Sampler(self._feeds, self._lock, self.host.clock, self._thin)
            self._sampler.start()
        return self

    def close(self) -> None:
        """Stop polling and give the sources back.

        What was measured stays readable. May be called twice.
        """
        if self._pid != os.getpid() or self._sampler is None and not self._feeds:
            return
        if self._sampler is not None:
            self._sampler.stop()
            self._sampler = None
            self.read()
        for feed in self._feeds:
            feed.close()
            feed.lost = True

    @property
    def running(self) -> bool:
        """Whether the meter was started in this process and not closed."""
        mine = self._started_s is not None and self._pid == os.getpid()
        return mine and not (self._feeds and all(feed.lost for feed in self._feeds))

    @property
    def feeds(self) -> tuple[Feed, ...]:
        """The sources at work, with their cost and pace."""
        return tuple(self._feeds)

    @property
    def domains(self) -> tuple[Domain, ...]:
        """What is read, parents and parts."""
        return tuple(domain for feed in self._feeds for domain in feed.source.domains)

    @property
    def aux(self) -> dict[str, float]:
        """The newest of other values that sources give, such as ``gpu:0:temp_c``."""
        return {key: value for feed in self._feeds for key, value in feed.aux.items()}

    def read(self) -> float:
        """Read every source now and return the time just before, in monotonic seconds.

        A window's boundary.
        """
        self._check()
        with self._lock:
            now_s = self.host.clock()
            for feed in self._feeds:
                feed.read()
        return now_s

    def report(self, start_s: float, stop_s: float, name: str = "window") -> EnergyReport:
        """The account between two boundaries that `read` returned."""
        self._check()
        with self._lock:
            entries = []
            notes: list[str] = []
            for feed in self._feeds:
                notes += feed.notes
                for domain in feed.source.domains:
                    part = feed.traces[domain.id].between(
                        start_s, stop_s, min_s=domain.update_period_s
                    )
                    known = part.covered_s > 0
                    entries.append(
                        DomainEnergy(
                            domain,
                            stop_s - start_s,
                            part.covered_s,
                            part.energy_j if known else None,
                            None,
                            part.max_power_w if known else None,
                        )
                    )
        return EnergyReport(name, stop_s - start_s, count_roots(entries), tuple(notes))

    def window(self, name: str = "window") -> Window:
        """A window that opens now (or at ``with``) and whose report is there once it is closed."""
        return Window(self, name)

    def totals(self) -> EnergyReport:
        """The account since `start`, with what a checkpoint brought along."""
        assert self._started_s is not None or self._check()
        now_s = self.read()
        report = self.report(self._started_s or now_s, now_s, "total")
        return report if self._carried is None else self._carried + report

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Mark the block as a phase.

        Compute, communication, waiting, data, evaluation or checkpoint.
        """
        return self.phases.phase(name)

    def attribute(self, start_s: float, stop_s: float) -> PhaseReport:
        """Divide the joules between two boundaries among the phases, if they can be told apart."""
        report = self.report(start_s, stop_s)
        with self._lock:
            series = [
                _series(feed.traces[entry.domain.id], entry, start_s, stop_s, self._idle_w)
                for feed in self._feeds
                for entry in report.counted
                if entry.domain.id in feed.traces
            ]
        return attribute(series, self.phases, start_s, stop_s)

    def idle_baseline(self, seconds: float = 3.0) -> float | None:
        """Measure the idle power for `seconds`, for the attribution.

        Returns watts, None if nothing could be read.
        """
        start_s = self.read()
        threading.Event().wait(seconds)
        report = self.report(start_s, self.read())
        self._idle_w = {e.domain.id: e.power_w for e in report.counted if e.power_w is not None}
        return report.power_w

    def power_series(
        self, start_s: float, stop_s: float, bins: int = 300
    ) -> list[tuple[float, float]]:
        """``(seconds since start_s, watts)`` of the whole machine, at most `bins` points.

        Gaps left out.
        """
        counted = {entry.domain.id for entry in self.report(start_s, stop_s).counted}
        if not counted:
            return []
        edges = np.linspace(start_s, stop_s, bins + 1)
        known = np.ones(bins, dtype=bool)
        power_w = np.zeros(bins)
        with self._lock:
            for feed in self._feeds:
                for domain in feed.source.domains:
                    if domain.id in counted:
                        points = np.array([feed.traces[domain.id].at(float(t)) for t in edges])
                        energy_j, covered_s = np.diff(points, axis=0).T
                        known &= covered_s > 0.01 * (stop_s - start_s) / bins
                        power_w += energy_j / np.where(covered_s > 0, covered_s, 1.0)
        middle_s = 0.5 * (edges[1:] + edges[:-1]) - start_s
        return [(float(t), float(p)) for t, p, k in zip(middle_s, power_w, known, strict=True) if k]

    def state_dict(self) -> dict[str, Any]:
        """The account so far as plain values, for a checkpoint."""
        return {"version": 1, "totals": self.totals().to_mapping()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue an account from a checkpoint: `totals` goes on from there."""
        self._carried = EnergyReport.from_mapping(state["totals"])

    def _thin(self) -> None:
        keep = [window.start_s for window in self._open]
        for feed in self._feeds:
            for trace in feed.traces.values():
                trace.thin(keep)

    def _check(self) -> bool:
        if self._started_s is None or self._pid != os.getpid():
            raise EnergyError(
                "the energy meter does not run in this process; call start() here"
                + (" (it was started before a fork)" if self._pid != os.getpid() else "")
            )
        return True

    def __enter__(self) -> EnergyMeter:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        """Settings and account travel to a spawned process.

        Threads, locks and open files do not.
        """
        gone = ("_lock", "_feeds", "_sampler", "_open", "phases", "_pid", "_started_s")
        return {key: value for key, value in self.__dict__.items() if key not in gone}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open = weakref.WeakSet()
        self._forget()


class Window:
    """A stretch of time whose joules are wanted. Open from its making until `close`.

    Args:
        meter: A running meter.
        name: What the window is for.
    """

    def __init__(self, meter: EnergyMeter, name: str) -> None:
        self.name = name
        self.stop_s: float | None = None
        self._meter = meter
        self._report: EnergyReport | None = None
        self.start_s = meter.read()
        meter._open.add(self)

    @property
    def report(self) -> EnergyReport:
        """The account so far, or of the whole window once it is closed."""
        if self._report is not None:
            return self._report
        return self._meter.report(self.start_s, self._meter.read(), self.name)

    def close(self) -> EnergyReport:
        """End the window and return its account. May be called twice."""
        if self._report is None:
            self.stop_s = self._meter.read()
            self._report = self._meter.report(self.start_s, self.stop_s, self.name)
            self._meter._open.discard(self)
        return self._report

    def __enter__(self) -> Window:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _series(
    trace: Trace, entry: DomainEnergy, start_s: float, stop_s: float, idle_w: Mapping[str, float]
) -> Series:
    """The readings of one domain as the attribution wants them."""
    domain, energy_j = entry.domain, entry.counted_j or 0.0
    idle = idle_w.get(domain.id)
    times, powers = trace.samples(start_s, stop_s)
    if len(times):
        return Series(domain, energy_j, np.array(times), np.array(powers), idle_w=idle)
    stretches = np.array(trace.steps(start_s, stop_s, update_s=domain.update_period_s))
    stretches = stretches.reshape(len(stretches), 3)
    return Series(domain, energy_j, stretches[:, 1], stretches[:, 2], stretches[:, 0], idle)

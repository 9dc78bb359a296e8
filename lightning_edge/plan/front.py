"""The plans that no other one beats in both time and joules.

joules
  |  x   o                 x   on the front: nothing is faster and thriftier
  |     x   o              o   not on it
  |        x     o
  |             x
  +------------------ seconds
"""

from __future__ import annotations

from collections.abc import Iterable

from lightning_edge.plan.assignment import Assignment
from lightning_edge.plan.judge import Judge, Verdict
from lightning_edge.plan.simulate import Prediction

__all__: list[str] = []

_FINEST = 2e-3  # joules saved by less than this make no entry


def front(verdicts: Iterable[Verdict]) -> list[Verdict]:
    """Return the verdicts on the front, fastest first."""
    known = [v for v in verdicts if v.excess <= 0 and v.energy_j is not None]
    found: list[Verdict] = []
    for verdict in sorted(known, key=lambda v: (v.step_s, v.energy_j)):
        if not found or (verdict.energy_j or 0.0) < (found[-1].energy_j or 0.0) * (1 - _FINEST):
            found.append(verdict)
    return found


def predicted(judge: Judge, verdicts: Iterable[Verdict]) -> list[tuple[Assignment, Prediction]]:
    """Return what is still on the front when sending and receiving count as well."""
    found: list[tuple[Assignment, Prediction]] = []
    for verdict in verdicts:
        prediction = judge.simulator.predict(verdict.assignment)
        last = found[-1][1].energy_j if found else None
        joules = prediction.energy_j
        if joules is not None and (last is None or joules < last * (1 - _FINEST)):
            found.append((verdict.assignment, prediction))
    return found

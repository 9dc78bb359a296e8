"""At an epoch's end: is every device as fast as profiled, and is the plan still the best one?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from lightning.pytorch.utilities import rank_zero_info

from lightning_edge.errors import EdgeError
from lightning_edge.loop.pace import WARM_UP
from lightning_edge.loop.planning import Decision, objective_of
from lightning_edge.plan.search import search
from lightning_edge.plan.simulate import simulate
from lightning_edge.profile.refine import Paces, paces, refined
from lightning_edge.report import Measured

if TYPE_CHECKING:
    from lightning_edge.loop.options import Options
    from lightning_edge.train.transport import Transport

__all__: list[str] = []

DRIFT = 0.15
"""How much slower or faster than profiled a device computes before it is told of."""
MATTERS = 0.05
"""Of a step, the seconds that a device has to be slower or faster by to be told of."""
WORTH_SEARCHING = 0.05
FEW_BATCHES = 5  # fewer say little about a device


class Drift:
    """Watches a training that was predicted; all ranks have one and use it at the same time.

    Args:
        decision: What was decided and predicted.
        transport: Connects the ranks.
        names: Of the devices, by rank.
        options: What the user set.
        rows: Of the whole batch.
        owner: Rank that loads the data; None if all do.
    """

    def __init__(
        self,
        decision: Decision,
        transport: Transport,
        names: tuple[str, ...],
        options: Options,
        rows: int,
        owner: int | None,
    ) -> None:
        self._decision, self._transport, self._names = decision, transport, names
        self._options, self._rows, self._owner = options, rows, owner
        self._told: set[str] = set()
        self._from, self._last = Measured(), Measured()
        self._begun = False

    def begin(self, measured: Measured) -> None:
        """Begin to count once the first steps are over; asked before each step."""
        if not self._begun and measured.batches >= WARM_UP:
            self._from, self._last = replace(measured), replace(measured)
            self._begun = True

    def look(
        self,
        measured: Measured,
        pace_s: float,
        drift: float = DRIFT,
        peak_bytes: int | None = None,
    ) -> dict[int, Paces]:
        """Compare what was measured since the last look with the prediction, and say what matters.

        Collective. A few batches since the last look are put together with those before it.

        Args:
            measured: Of this device since training began.
            pace_s: From one of its steps to the next.
            drift: From how much on a device is told of.
            peak_bytes: The most memory that training has taken here; None if unknown.
        """
        if measured.batches - self._last.batches >= FEW_BATCHES:
            self._from, self._last = self._last, replace(measured)
        n = measured.batches - self._from.batches
        if n < 1:
            return {}
        compute_s = (measured.compute_s - self._from.compute_s) / n
        between_s = max(pace_s - (measured.total_s - self._from.total_s) / n, 0.0)
        profile, prediction = self._decision.profile, self._decision.prediction
        if profile is None or prediction is None:
            return {}
        gathered = list(self._transport.all_gather([compute_s, between_s, peak_bytes]))
        by_rank = {rank: (float(a), float(b)) for rank, (a, b, _) in enumerate(gathered)}
        peaks = {rank: peak for rank, (*_, peak) in enumerate(gathered)}
        found = paces(profile, self._decision.plan, prediction, by_rank, peaks)
        telling = {
            self._names[rank]: pace.slower
            for rank, pace in found.items()
            if abs(pace.slower - 1) * prediction.devices[rank].compute_s
            > MATTERS * prediction.step_s
        }
        for sentence in drifted(telling, drift):
            self._tell(sentence.partition(" is ")[0], sentence)
        moved = any(abs(pace.slower - 1) > WORTH_SEARCHING for pace in found.values())
        auto = self._options.plan is None and self._options.replan > 0
        if auto and moved and self._transport.rank == 0:
            self._look_for_better(found)
        return found

    def _look_for_better(self, found: Mapping[int, Paces]) -> None:
        """On rank 0: search again with the devices as they are now."""
        assert self._decision.profile is not None
        now = refined(self._decision.profile, found)
        try:
            current = simulate(self._decision.plan, now, rows=self._rows, owner=self._owner)
            choice = search(
                now, rows=self._rows, objective=objective_of(self._options), owner=self._owner
            )
        except EdgeError:
            return
        goal = choice.objective.minimize
        ratios = {
            "time": choice.prediction.step_s / current.step_s,
            "energy": (choice.prediction.energy_j or 1.0) / (current.energy_j or 1.0),
        }
        ratio = ratios["time"] * ratios["energy"] if goal == "edp" else ratios[goal]
        if ratio < 1 - self._options.replan and choice.plan != self._decision.plan:
            stages = " -> ".join(
                "+".join(self._names[int(rank)] for rank in stage.devices)
                for stage in choice.plan.stages
            )
            self._tell(
                stages,
                f"another plan would now be {100 * (1 - ratio):.0f} % better ({goal}): {stages},"
                f" {choice.plan.micro_batches} micro-batches; start again with profile='measure'"
                f" to use it",
            )

    def _tell(self, about: str, sentence: str) -> None:
        """Say one sentence about something, once."""
        if about not in self._told:
            self._told.add(about)
            rank_zero_info(f"edge_collab: {sentence}")


def drifted(slowdowns: Mapping[str, float], limit: float) -> list[str]:
    """Say which devices are not as fast as they were profiled.

    Args:
        slowdowns: Device -> measured seconds of computing over the predicted ones.
        limit: From how much on it is told.
    """
    found = []
    for name, ratio in slowdowns.items():
        if ratio > 1 + limit:
            found.append(
                f"{name} is {100 * (ratio - 1):.0f} % slower than profiled: hot, on battery, or"
                f" busy with something else?"
            )
        elif ratio < 1 - limit:
            found.append(
                f"{name} is {100 * (1 - ratio):.0f} % faster than profiled: was it busy then?"
                f" profile='measure' looks again"
            )
    return found

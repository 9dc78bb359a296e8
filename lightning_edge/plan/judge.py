"""How good an assignment is under an objective: limits first, then what is to be least.

The simulator has the last word. In front of it stands a bound that no step can beat, so that most
of what a search looks at needs no simulation:

    stage 0   [F0]........................[B0]     the step takes at least, for every stage p,
    stage 1       [F0]................[B0]           all the computing of p
    stage 2           [  computing   ]               + one forward, one backward and two messages
                                                       of each stage in front of it
"""

from __future__ import annotations

from typing import NamedTuple

from lightning_edge.plan.assignment import Assignment, Part
from lightning_edge.plan.memory import peak_bytes
from lightning_edge.plan.network import NoLinkError
from lightning_edge.plan.objective import Objective
from lightning_edge.plan.rules import Rules
from lightning_edge.plan.simulate import Simulator
from lightning_edge.plan.wiring import spread

__all__: list[str] = []

INFINITE = float("inf")


class Verdict(NamedTuple):
    """An assignment and its worth; the lesser `(excess, value)` is the better one.

    Attributes:
        excess: By how much limits are broken, each relative to itself; 0 if all hold.
        value: What is to be least.
        step_s: Predicted, or a bound if it was not worth simulating.
        energy_j: None if watts are unknown, or not simulated; without what sending and receiving
            needs if seconds are all that counts.
        assignment: What was judged.
    """

    excess: float
    value: float
    step_s: float
    energy_j: float | None
    assignment: Assignment


class Judge:
    """Judges assignments on one profile for one objective.

    Args:
        simulator: Of the profile.
        objective: What to plan for.
        rules: The same for this profile.
        max_step_s: Deadline in force, from either of the objective's limits.
    """

    def __init__(
        self, simulator: Simulator, objective: Objective, rules: Rules, max_step_s: float | None
    ) -> None:
        self.simulator, self.costs = simulator, simulator.costs
        self.objective, self.rules, self.max_step_s = objective, rules, max_step_s
        self.instructions = 0
        self._known: dict[Assignment, Verdict] = {}
        self._seconds: dict[tuple[object, ...], tuple[float, float, float]] = {}
        self.powered = all(
            mode.has_power for rank in rules.ranks for mode in self.costs.devices[rank].modes
        )

    def afresh(self) -> Judge:
        """Return the same judge, that knows no verdicts yet."""
        return Judge(self.simulator, self.objective, self.rules, self.max_step_s)

    @property
    def wants_joules(self) -> bool:
        """Whether the fewest joules may be better than the shortest step."""
        limited = bool(self.rules.caps_w or self.rules.budgets_j)
        return self.powered and (self.objective.minimize != "time" or limited)

    @property
    def verdicts(self) -> list[Verdict]:
        """Everything simulated so far."""
        return list(self._known.values())

    def judge(self, assignment: Assignment, best: Verdict | None = None) -> Verdict:
        """Return the verdict on an assignment that the rules allow.

        Args:
            assignment: What to judge.
            best: If even the bound is not better than this, the bound is returned.
        """
        known = self._known.get(assignment)
        if known is not None:
            return known
        excess = self._memory_excess(assignment)
        bound_s, bound_j = self.bound(assignment)
        if self.max_step_s is not None:
            excess += max(0.0, bound_s / self.max_step_s - 1)
        quick = Verdict(excess, self._value(bound_s, bound_j), bound_s, None, assignment)
        # What does not fit will not run: its bound is enough to tell which way is out.
        if excess > 0 or (best is not None and quick[:2] >= best[:2]):
            return quick
        try:
            outcome = self.simulator.run(assignment)
        except NoLinkError:
            return Verdict(INFINITE, INFINITE, INFINITE, None, assignment)
        self.instructions += sum(len(line) for line in outcome.work.lists)
        energy = None
        if self.objective.minimize == "time" and not self.rules.caps_w and not self.rules.budgets_j:
            energy = self.bound(assignment, outcome.step_s)[1] if self.powered else None
        else:
            parts = self.simulator.energies(assignment, outcome)
            for rank, each in parts.items():
                if each is None:
                    continue
                cap, budget = self.rules.caps_w.get(rank), self.rules.budgets_j.get(rank)
                if cap is not None:
                    excess += max(0.0, each.total_j / outcome.step_s / cap - 1)
                if budget is not None:
                    excess += max(0.0, each.total_j / budget - 1)
            if self.powered:
                energy = sum(each.total_j for each in parts.values() if each is not None)
        if self.max_step_s is not None:
            excess += max(0.0, outcome.step_s / self.max_step_s - 1 - 1e-9)
        value = self._value(outcome.step_s, energy or 0.0)
        found = Verdict(excess, value, outcome.step_s, energy, assignment)
        self._known[assignment] = found
        return found

    def promise(self, assignment: Assignment) -> float:
        """Return a value that the assignment cannot beat."""
        return self._value(*self.bound(assignment))

    def _value(self, step_s: float, energy_j: float) -> float:
        goal = self.objective.minimize
        if goal == "time":
            return step_s
        return energy_j if goal == "energy" else step_s * energy_j

    def _memory_excess(self, assignment: Assignment) -> float:
        excess = 0.0
        for index, part in enumerate(assignment.parts):
            peaks: list[float] | None = None
            for i, rank in enumerate(part.ranks):
                limit = self.costs.devices[rank].memory_bytes
                if limit is not None:
                    peaks = peaks or peak_bytes(assignment, index, self.costs)
                    excess += max(0.0, round(peaks[i]) / limit - 1)
        return excess

    def bound(self, assignment: Assignment, step_s: float | None = None) -> tuple[float, float]:
        """Return seconds and joules that the step cannot beat (joules 0 for unknown watts).

        With `step_s` the joules are those of a step so long, but for sending and receiving.
        """
        most, in_front, dynamic, idle = 0.0, 0.0, 0.0, 0.0
        parts, number = assignment.parts, assignment.micro_batches
        for index, part in enumerate(parts):
            hop = INFINITE
            for i, rank in enumerate(part.ranks):
                computing, fixed, one = self.seconds(part, i, number)
                most = max(most, in_front + computing, computing + fixed)
                hop = min(hop, one)
                watts = self.costs.power_w(rank, part.modes[i])
                if watts is not None:
                    idle += watts[0]
                    dynamic += (watts[1] - watts[0]) * (computing + fixed)
            if index + 1 < len(parts):
                in_front += hop + self._messages_s(part, parts[index + 1], number)
        return most, dynamic + idle * (most if step_s is None else step_s)

    def _messages_s(self, front: Part, behind: Part, number: int) -> float:
        """The least that one message each way can take between two stages."""
        if len(front.ranks) > 1 or len(behind.ranks) > 1:
            return 0.0
        paths, size = self.simulator.network.paths, self.simulator.network.size
        forth = paths[front.ranks[0] * size + behind.ranks[0]]
        back = paths[behind.ranks[0] * size + front.ranks[0]]
        if forth is None or back is None:
            return 0.0
        rows = front.rows[0] // number
        ahead, behind_bytes = self.costs.crossing_bytes(behind.first)
        total = ahead * rows * forth.seconds_per_byte + forth.latency_s
        if behind_bytes:
            total += behind_bytes * rows * back.seconds_per_byte + back.latency_s
        return total

    def seconds(self, part: Part, i: int, number: int) -> tuple[float, float, float]:
        """Seconds of a stage's i-th device: all passes, the step, one pass of its smallest share.

        The last is 0 for a device that has no rows of some micro-batch.
        """
        key = (part.ranks[i], part.modes[i], part.first, part.stop, part.rows[i], number,
               part.checkpoint)  # fmt: skip
        found = self._seconds.get(key)
        if found is None:
            rank, mode, first, stop, rows, _, checkpoint = key
            small, larger = divmod(rows, number)
            low = sum(self.costs.pass_s(rank, mode, first, stop, small, checkpoint))
            high = sum(self.costs.pass_s(rank, mode, first, stop, small + 1, checkpoint))
            found = (
                low * (number - larger) + high * larger if larger else low * number,
                self.costs.step_s(rank, mode, first, stop),
                low,
            )
            self._seconds[key] = found
        return found


def counts(part: Part, i: int, number: int) -> list[int]:
    """Rows of a stage's i-th device in each micro-batch."""
    return [stop - start for start, stop in spread(part.rows, number)[i]]

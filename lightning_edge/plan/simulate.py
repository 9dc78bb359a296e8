"""Predicting a training step: the instruction lists of a plan, run on the numbers of a profile.

    plan --> assignment --> wiring --> events --> prediction
             whole numbers  seconds    who waits  seconds, bytes, joules
                            messages   for whom   per device

The lists are those of `plan.schedule`, which the executor runs as well, so that a prediction can be
held against a measured step instruction by instruction.
"""

from __future__ import annotations

from typing import NamedTuple

from lightning_edge.errors import ScheduleError
from lightning_edge.plan import events
from lightning_edge.plan.assignment import Assignment, from_plan, to_plan
from lightning_edge.plan.costs import Costs
from lightning_edge.plan.events import Trace
from lightning_edge.plan.instruction import Lists
from lightning_edge.plan.memory import peak_bytes
from lightning_edge.plan.network import Network
from lightning_edge.plan.occupancy import communication_s
from lightning_edge.plan.plan import Plan
from lightning_edge.plan.prediction import DeviceForecast, Energy, Event, Prediction
from lightning_edge.plan.profile import Profile
from lightning_edge.plan.wiring import REDUCE, STEP, Work, encode, wire

__all__ = ["DeviceForecast", "Energy", "Event", "Prediction", "Simulator", "simulate"]


def simulate(
    plan: Plan,
    profile: Profile,
    *,
    rows: int,
    owner: int | None = 0,
    lists: Lists | None = None,
) -> Prediction:
    """Predict one training step.

    Args:
        plan: Any plan of one pipeline; what is "auto" in it is resolved.
        profile: Devices, model and links.
        rows: Of the global batch.
        owner: Rank that loads the data and sends each device its rows of the next batch; None if
            every device loads its own.
        lists: Instructions to run instead of those that the plan is scheduled to.

    Raises:
        PlanError: If the plan does not fit the profile, or devices that have to talk cannot.
        ProfileError: If the profile lacks timings.
        ScheduleError: If the given lists wait for each other.
    """
    if rows < 1:
        raise ValueError(f"a batch has at least one row, not {rows}")
    simulator = Simulator(profile, owner)
    return simulator.predict(from_plan(plan, simulator.costs, rows), lists)


class Outcome(NamedTuple):
    """The numbers of a step without its events."""

    step_s: float
    work: Work
    trace: Trace


class Simulator:
    """Runs many assignments on one profile.

    Args:
        profile: Devices, model and links.
        owner: Who sends the rows, as in `simulate`.
    """

    def __init__(self, profile: Profile, owner: int | None = 0) -> None:
        if owner is not None and not 0 <= owner < len(profile.devices):
            raise ValueError(f"owner is rank {owner}, of {len(profile.devices)} devices")
        self.costs = Costs(profile)
        self.network = Network(profile)
        self.owner = owner
        self._copy = [device.copy_s_per_byte for device in profile.devices]

    def run(self, assignment: Assignment, lists: Lists | None = None) -> Outcome:
        """Return how long a step takes and what happens in it.

        Raises:
            NoLinkError: If devices that have to talk cannot.
            ScheduleError: If given lists wait for each other.
        """
        codes = None
        if lists is not None:
            codes = {r: encode(line, assignment.micro_batches) for r, line in lists.items()}
        work = wire(assignment, self.costs, self.network, self.owner, codes)
        try:
            trace = events.run(work, self.network, self._copy)
        except events.StuckError:
            raise ScheduleError("the instruction lists wait for each other for ever") from None
        # Device d is busy from first_s to end_s. If all repeat this every `step_s`, shifted
        # alike, nobody is late; so steps follow each other at least this fast.
        step_s = self.network.busy_s(work.pair_bytes, [(s.ring, sum(s.buckets)) for s in work.sums])
        for first, end, fed in zip(trace.first_s, trace.end_s, trace.fed_s, strict=True):
            step_s = max(step_s, end - first, fed - first)
        return Outcome(step_s, work, trace)

    def energies(self, assignment: Assignment, outcome: Outcome) -> dict[int, Energy | None]:
        """Return the joules of each device that has work."""
        talking = communication_s(outcome.trace, outcome.work, self._copy)
        found: dict[int, Energy | None] = {}
        for part in assignment.parts:
            for rank, mode in zip(part.ranks, part.modes, strict=True):
                watts = self.costs.power_w(rank, mode)
                computing = outcome.work.compute_s[rank]
                waiting = max(0.0, outcome.step_s - computing - talking[rank])
                found[rank] = watts and Energy(
                    watts[1] * computing, watts[2] * talking[rank], watts[0] * waiting
                )
        return found

    def predict(self, assignment: Assignment, lists: Lists | None = None) -> Prediction:
        """Return everything about an assignment.

        Raises:
            NoLinkError: If devices that have to talk cannot.
            ScheduleError: If given lists wait for each other.
        """
        outcome = self.run(assignment, lists)
        talking = communication_s(outcome.trace, outcome.work, self._copy)
        energies = self.energies(assignment, outcome)
        sent = _bytes_sent(outcome)
        devices = {}
        for index, part in enumerate(assignment.parts):
            peaks = peak_bytes(assignment, index, self.costs)
            for rank, mode, peak in zip(part.ranks, part.modes, peaks, strict=True):
                device = self.costs.devices[rank]
                computing = outcome.work.compute_s[rank]
                devices[rank] = DeviceForecast(
                    device.name,
                    device.modes[mode].name,
                    index,
                    computing,
                    talking[rank],
                    max(0.0, outcome.step_s - computing - talking[rank]),
                    energies[rank],
                    round(peak),
                    device.memory_bytes,
                    sent[rank],
                )
        return Prediction(
            outcome.step_s,
            max(outcome.trace.end_s),
            assignment.rows,
            dict(sorted(devices.items())),
            _timeline(outcome),
        )

    def plan(self, assignment: Assignment) -> Plan:
        """Return the plan that says what an assignment says."""
        return to_plan(assignment, self.costs)


def _bytes_sent(outcome: Outcome) -> list[dict[int, float]]:
    sent: list[dict[int, float]] = [{} for _ in range(outcome.work.size)]
    for pair, amount in outcome.work.pair_bytes.items():
        source, target = divmod(pair, outcome.work.size)
        sent[source][target] = amount
    for members, _, _, amount in outcome.trace.sums:
        number = len(members)
        for i, rank in enumerate(members):
            peer = members[(i + 1) % number]
            share = 2 * (number - 1) / number * amount
            sent[rank][peer] = sent[rank].get(peer, 0.0) + share
    return [dict(sorted(peers.items())) for peers in sent]


def _timeline(outcome: Outcome) -> list[Event]:
    work, trace = outcome.work, outcome.trace
    number = work.micro_batches
    found = []
    for rank, line in enumerate(work.lists):
        for code, start, end in zip(line, trace.starts[rank], trace.ends[rank], strict=True):
            if code == STEP:
                found.append(Event(rank, "step", None, start, end))
            elif code != REDUCE and work.seconds[rank][code]:
                kind = "forward" if code < number else "backward"
                found.append(Event(rank, kind, code % number, start, end))
    for source, target, code, start, end, arrival, amount in trace.transfers:
        m = None if code < 0 else code % number
        found.append(Event(source, "send", m, start, end, target, amount))
        found.append(Event(target, "receive", m, start, arrival, source, amount))
    for members, start, end, amount in trace.sums:
        found += [Event(rank, "reduce", None, start, end, None, amount) for rank in members]
    return sorted(found, key=lambda event: (event.rank, event.start_s, event.end_s))

"""Why a plan is as it is: one line per decision, each with what the other way would cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from lightning_edge.plan.assignment import Assignment
from lightning_edge.plan.choice import percent
from lightning_edge.plan.judge import Judge, Verdict
from lightning_edge.plan.memory import peak_bytes
from lightning_edge.plan.moves import Moves
from lightning_edge.plan.prediction import Prediction, seconds, size
from lightning_edge.plan.shaping import drafts, slope

__all__: list[str] = []

WithDevice = Callable[[int], Verdict | None]
"""Returns the best plan found in which a device takes part."""


def label(assignment: Assignment, names: Sequence[str]) -> str:
    """Say what an assignment is in a few words."""
    parts = assignment.parts
    if len(parts) == 1:
        ranks = parts[0].ranks
        if len(ranks) == 1:
            return f"{names[ranks[0]]} alone"
        return f"data parallelism on {_listed([names[r] for r in ranks])}"
    stages = " -> ".join("+".join(names[r] for r in part.ranks) for part in parts)
    if len(stages) > 60:
        stages = f"{len(parts)} stages on {len(assignment.ranks)} devices"
    return f"{stages}, {assignment.micro_batches} micro-batches"


def _listed(words: Sequence[str]) -> str:
    return ", ".join(words) if len(words) <= 4 else f"{len(words)} devices"


def limits(judge: Judge, best: Verdict, prediction: Prediction) -> tuple[str, ...]:
    """Say what keeps a plan from being better."""
    found = []
    step_s = prediction.step_s or 1.0
    busiest = max(prediction.devices.values(), key=lambda d: d.compute_s)
    found.append(
        f"{busiest.name} computes {100 * busiest.compute_s / step_s:.0f} % of the step"
        f" ({seconds(busiest.compute_s)} of {seconds(step_s)})"
    )
    busy: dict[tuple[int, int], float] = {}
    for event in prediction.timeline:
        if event.kind == "send" and event.peer is not None:
            path = judge.simulator.network.paths[
                event.rank * judge.simulator.network.size + event.peer
            ]
            pace = path.seconds_per_byte if path else 0.0
            pair = (event.rank, event.peer)
            busy[pair] = busy.get(pair, 0.0) + event.bytes * pace
    names = judge.costs.profile.names
    if busy:
        (source, target), busy_s = max(busy.items(), key=lambda item: item[1])
        if busy_s > 0.5 * step_s:
            found.append(
                f"the link from {names[source]} to {names[target]} is busy for"
                f" {100 * busy_s / step_s:.0f} % of the step"
            )
    summing = max(
        (
            sum(
                e.end_s - e.start_s
                for e in prediction.timeline
                if e.kind == "reduce" and e.rank == r
            )
            for r in prediction.devices
        ),
        default=0.0,
    )
    if summing > 0.2 * step_s:
        found.append(f"summing gradients takes {100 * summing / step_s:.0f} % of the step")
    for device in prediction.devices.values():
        if device.memory_bytes is not None and device.peak_bytes > 0.85 * device.memory_bytes:
            found.append(
                f"the memory of {device.name}: {size(device.peak_bytes)} of"
                f" {size(device.memory_bytes)} are needed"
            )
    if judge.max_step_s is not None and step_s > 0.95 * judge.max_step_s:
        found.append(f"the longest step allowed, {seconds(judge.max_step_s)}")
    return tuple(found)


def reasons(judge: Judge, moves: Moves, best: Verdict, with_device: WithDevice) -> tuple[str, ...]:
    """Say why, decision by decision."""
    found = [*_devices(judge, moves, best, with_device), *_stages(judge, best)]
    return (*found, *_pace(judge, moves, best))


def _devices(judge: Judge, moves: Moves, best: Verdict, with_device: WithDevice) -> list[str]:
    names = judge.costs.profile.names
    assignment = best.assignment
    found = []
    if len(assignment.ranks) == 1:
        found.append(f"{names[assignment.ranks[0]]} does everything: alone it is best")
    alike: dict[int, Verdict | None] = {}
    for rank in judge.rules.ranks:
        if rank in assignment.ranks:
            continue
        kind = moves.alike[rank]
        if kind not in alike:
            alike[kind] = with_device(rank)
        with_it = alike[kind]
        text = f"{names[rank]} left out"
        found.append(f"{text}: {_compared(with_it, best, 'with it')}" if with_it else text)
    return found


def _stages(judge: Judge, best: Verdict) -> list[str]:
    costs, assignment = judge.costs, best.assignment
    found = []
    for index, part in enumerate(assignment.parts):
        each = [judge.seconds(part, i, assignment.micro_batches)[0] for i in range(len(part.ranks))]
        names = [costs.devices[rank].name for rank in part.ranks]
        if index:
            ahead, back = costs.crossing_bytes(part.first)
            found.append(
                f"cut at {costs.blocks[part.first].name}: {size((ahead + back) * assignment.rows)}"
                f" cross it per step, and the stage behind it computes {seconds(max(each))}"
            )
        if len(part.ranks) > 1:
            rows = ", ".join(f"{n} of {name}" for n, name in zip(part.rows, names, strict=True))
            found.append(
                f"rows of stage {index}: {rows}; they compute {', '.join(seconds(s) for s in each)}"
            )
        if part.checkpoint:
            kept = assignment._replace(
                parts=(*assignment.parts[:index], part._replace(checkpoint=False),
                       *assignment.parts[index + 1 :])
            )  # fmt: skip
            peaks = peak_bytes(kept, index, costs)
            needed = max(zip(peaks, names, strict=True))
            found.append(
                f"stage {index} computes activations again: keeping them needs"
                f" {size(needed[0])} on {needed[1]}"
            )
    return found


def _pace(judge: Judge, moves: Moves, best: Verdict) -> list[str]:
    assignment, found = best.assignment, []
    least = judge.rules.rows_each(assignment.rows, assignment.micro_batches)
    if least > 1:
        found.append(
            f"at least {least} rows of each micro-batch on a device: the model normalises over"
            " them (batch normalisation)"
        )
    if judge.rules.micro_batches is None and len(assignment.parts) > 1:
        texts = []
        for number in (assignment.micro_batches // 2, assignment.micro_batches * 2):
            if not 1 <= number <= assignment.rows:
                continue
            change = moves.shaper.complete(drafts(assignment), number, slope(assignment))
            verdict = _least(judge, moves, [change] if change else [])
            if verdict:
                texts.append(_compared(verdict, best, f"with {number}"))
        if texts:
            found.append(f"{assignment.micro_batches} micro-batches: {'; '.join(texts)}")
    if not judge.rules.free_modes:
        return found
    for index, part in enumerate(assignment.parts):
        for i, rank in enumerate(part.ranks):
            device = judge.costs.devices[rank]
            others = [
                change for change in moves.modes(assignment, index, i) if judge.rules.allow(change)
            ]
            verdict = _least(judge, moves, others)
            if verdict is None or len(device.modes) < 2:
                continue
            other = next(
                mode
                for p in verdict.assignment.parts
                for r, mode in zip(p.ranks, p.modes, strict=True)
                if r == rank
            )
            found.append(
                f"{device.name} in mode {device.modes[part.modes[i]].name}:"
                f" {_compared(verdict, best, f'in {device.modes[other].name}')}"
            )
    return found


def _least(judge: Judge, moves: Moves, changes: Iterable[Assignment]) -> Verdict | None:
    """The best of some changes, whether or not it holds the limits."""
    found = [judge.judge(change) for change in changes]
    return min(found, key=lambda v: v[:2], default=None)


def _compared(other: Verdict, best: Verdict, how: str) -> str:
    if other.excess == float("inf"):
        return f"{how} devices would have to talk that cannot"
    if other.excess > 0:
        return f"{how} a limit is broken by {100 * other.excess:.0f} %"
    change = 100 * (other.step_s / best.step_s - 1)
    if abs(change) < 0.05:
        text = f"{how} as fast"
    else:
        text = f"{how} {abs(change):.1f} % {'slower' if change > 0 else 'faster'}"
    if other.energy_j is not None and best.energy_j:
        text += f", {percent(other.energy_j / best.energy_j)} energy"
    return text

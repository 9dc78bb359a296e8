"""Choosing a plan: which devices, in which order, on which blocks and rows, at which pace.

    seeds        one device alone, data parallelism, even pipelines    always looked at
    construct    dynamic programming over blocks and devices           good plans of every shape
    climb        small changes while they help, from the best of them  the simulator judges
    exhaust      every plan, if there are few                          nothing is missed

All of it is deterministic: budgets count simulated instructions, not seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import islice

from lightning_edge.errors import PlanError
from lightning_edge.plan.assignment import Assignment
from lightning_edge.plan.choice import Choice, Option
from lightning_edge.plan.construct import construct
from lightning_edge.plan.exhaust import exhaust
from lightning_edge.plan.front import front, predicted
from lightning_edge.plan.judge import Judge, Verdict
from lightning_edge.plan.moves import Moves
from lightning_edge.plan.objective import Objective
from lightning_edge.plan.profile import Profile
from lightning_edge.plan.reasons import label, limits, reasons
from lightning_edge.plan.remedies import remedies
from lightning_edge.plan.rules import Rules, resolve
from lightning_edge.plan.seeds import seeds
from lightning_edge.plan.shaping import Shaper, drafts, slope
from lightning_edge.plan.simulate import Simulator

__all__ = ["Choice", "Objective", "Option", "search"]

BUDGET = 250_000
"""Instructions simulated at most, about; a second or so."""
_BEAM = 24
_LARGE = 40_000  # (devices x cuts) squared from which the front is what the search came by
_PIECES = 8  # into which the rows of a stage are divided while every plan is looked at
_PER_MOVE = 20  # instructions that looking at a change costs, in time
_NEAR = 1.1  # starts whose bound is worse than this are not simulated
_ALIKE = 2e-4  # values that differ by less are as good as each other


def search(
    profile: Profile,
    *,
    rows: int,
    objective: Objective | str = "time",
    owner: int | None = 0,
    budget: int = BUDGET,
) -> Choice:
    """Return the best plan found for a profile.

    Args:
        profile: Devices, model and links.
        rows: Of the global batch.
        objective: What to plan for; see `Objective.parse`.
        owner: Rank that loads the data; None if every device loads its own.
        budget: Instructions to simulate at most.

    Raises:
        PlanError: If nothing fits, with what would; or if the objective does not fit the profile.
        ProfileError: If the profile lacks timings.
    """
    if rows < 1:
        raise PlanError(f"a batch has at least one row, found {rows}")
    goal = Objective.parse(objective)
    simulator = Simulator(profile, owner)
    rules = _possible(resolve(goal, simulator.costs), simulator, goal, rows)
    deadline = goal.max_step_s
    if goal.max_slowdown is not None:
        fastest = Objective.parse({**_settings(goal), "minimize": "time"})
        quick = _Search(Judge(simulator, fastest, rules, None), rules, rows, budget // 2)
        deadline = goal.max_slowdown * quick.best().step_s
    judge = Judge(simulator, goal, rules, deadline)
    run = _Search(judge, rules, rows, budget)
    best = run.best()
    if best.excess > 0:

        def attempt(other: Objective, fewer: int) -> Verdict:
            allowed = _possible(resolve(other, simulator.costs), simulator, other, fewer)
            limit = deadline if other.max_step_s or other.max_slowdown else None
            judge = Judge(simulator, other, allowed, limit)
            return _Search(judge, allowed, fewer, budget // 4).best()

        raise PlanError(remedies(run.judge, best, attempt))
    return _choice(run, best)


def _possible(rules: Rules, simulator: Simulator, goal: Objective, rows: int) -> Rules:
    """Ask for fewer rows per device where no plan at all has as many as the model wants."""
    while rules.least_rows > 1:
        shaper = Shaper(Judge(simulator, goal, rules, None), rows)
        if any(True for _ in seeds(shaper, rules, _numbers(rules, rows))):
            break
        rules = replace(rules, least_rows=rules.least_rows // 2)
    return rules


def _settings(goal: Objective) -> dict[str, object]:
    return {
        name: value
        for name, value in vars(goal).items()
        if value is not None and name != "max_slowdown"
    }


class _Search:
    """One search.

    Args:
        judge: Of the objective.
        rules: What is allowed.
        rows: Of the batch.
        budget: Instructions to simulate at most.
        piece: Rows are shared out in such pieces.
        numbers: Numbers of micro-batches to choose from, instead of many.
    """

    def __init__(
        self,
        judge: Judge,
        rules: Rules,
        rows: int,
        budget: int,
        piece: int = 1,
        numbers: tuple[int, ...] = (),
    ) -> None:
        self.judge, self.rules, self.rows, self.budget = judge, rules, rows, budget
        self.shaper = Shaper(judge, rows, piece)
        self.numbers = numbers or _numbers(rules, rows)
        alike = classes(judge.simulator)
        self.moves = Moves(self.shaper, rules, self.numbers, alike)
        self.exhaustive = False
        self._spent = 0

    def best(self) -> Verdict:
        """Return the best verdict found.

        Raises:
            PlanError: If the rules allow nothing at all.
        """
        pool: dict[Assignment, Verdict] = {}
        ceiling: Verdict | None = None
        for seed in self._starts():
            if seed not in pool:
                found = pool[seed] = self.judge.judge(seed, ceiling)
                worth = found._replace(value=found.value * _NEAR)
                if ceiling is None or worth[:2] < ceiling[:2]:
                    ceiling = worth
        if not pool:
            raise PlanError(
                "no plan satisfies groups, split_points, keep and first_stage_on together:"
                " take one of them away"
            )
        ranked = sorted(pool.values(), key=lambda v: v[:2])
        best = ranked[0]
        piece = max(self.shaper.piece, self.rows // _PIECES)
        least = exhaust(self.judge, self.numbers, self.rows, piece, best)
        if least is not None:
            self.exhaustive = True
            return self.polish(self.climb(least, self.budget))
        for start in _varied(ranked, _BEAM):
            # at most half of what is left for each, so that the best start goes farthest
            limit = self._used + (self.budget - self._used) / 2
            best = min(best, self.climb(start, limit), key=lambda v: v[:2])
        return self.polish(best)

    @property
    def _used(self) -> int:
        return self.judge.instructions + self._spent

    def _starts(self) -> Iterable[Assignment]:
        yield from seeds(self.shaper, self.rules, self.numbers)
        yield from construct(self.shaper, self.rules, self.numbers, self.judge.wants_joules)

    def _thrift(self, verdict: Verdict) -> tuple[float, float, int]:
        """What decides between plans that are as good as each other."""
        assignment = verdict.assignment
        slowest = sum(
            max(
                self.judge.seconds(part, i, assignment.micro_batches)[0]
                for i in range(len(part.ranks))
            )
            for part in assignment.parts
        )
        joules = float(f"{verdict.energy_j or 0.0:.3g}")
        return joules, float(f"{slowest:.4g}"), sum(part.depth for part in assignment.parts)

    def widen(self) -> None:
        """Look at plans for fewer joules as well, for the front, if that costs little."""
        devices, cuts = len(self.rules.ranks), len(self.rules.legal)
        if not self.judge.powered or (devices * cuts) ** 2 > _LARGE:
            return
        limit = self._used + self.budget // 5
        starts = construct(self.shaper, self.rules, self.numbers, joules=True)
        found = {start: self.judge.bound(start)[1] for start in starts}
        for start in sorted(found, key=lambda start: found[start]):
            if self._used < limit:
                self.judge.judge(start)

    def with_device(self, best: Verdict, rank: int) -> Verdict | None:
        """Return the best plan found with a device that the best one leaves out, and all of its."""
        starts = [self.judge.judge(plan) for plan in self.moves.joining(best.assignment, rank)]
        team = {*best.assignment.ranks, rank}
        starts += [v for v in self.judge.verdicts if team.issubset(v.assignment.ranks)]
        if not starts:
            return None
        rules = replace(self.rules, keep=self.rules.keep | team)
        with_it = Moves(self.shaper, rules, self.numbers, self.moves.alike)
        start = min(starts, key=lambda v: v[:2])
        return self.climb(start, self._used + self.budget / 20, with_it)

    def climb(self, start: Verdict, budget: float, moves: Moves | None = None) -> Verdict:
        """Change an assignment for the better until nothing helps or the budget is used up.

        The first change that helps is taken, and the search goes on behind it: with many devices
        a change here seldom spoils one there.
        """
        moves = moves or self.moves
        now, idle = start, 0
        kinds = moves.kinds
        turn = 0
        while idle < len(kinds) and self._used < budget:
            kind = kinds[turn % len(kinds)]
            turn, idle, seen = turn + 1, idle + 1, 0
            changes = moves.of(kind, now.assignment)
            while (change := next(changes, None)) is not None and self._used < budget:
                self._spent += _PER_MOVE
                seen += 1
                found = self.judge.judge(change, now)
                if found[:2] < (now.excess, now.value * (1 - 1e-9)):
                    now, idle = found, 0
                    changes = islice(moves.of(kind, now.assignment), seen, None)
        return now

    def polish(self, best: Verdict) -> Verdict:
        """Among plans as good as the best, take one with fewer joules, evener, less in flight."""
        floor = best._replace(value=best.value * (1 + _ALIKE))
        now, limit = best, self._used + self.budget // 10
        for kind in self.moves.slight:
            again = self.shaper.complete(
                drafts(now.assignment), now.assignment.micro_batches, slope(now.assignment)
            )
            asked = [again] if again is not None and self.rules.allow(again) else []
            for change in [*asked, *self.moves.of(kind, now.assignment)]:
                if self._used > limit:
                    return now
                self._spent += _PER_MOVE
                found = self.judge.judge(change, floor)
                if found[:2] <= floor[:2] and self._thrift(found) < self._thrift(now):
                    now = found
        return now


def _numbers(rules: Rules, rows: int) -> tuple[int, ...]:
    """Numbers of micro-batches to choose from."""
    if rules.micro_batches is not None:
        return (min(rules.micro_batches, rows),)
    found = {1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128}
    found |= {n for n in range(1, min(rows, 128) + 1) if rows % n == 0}
    least = rules.rows_each(rows, 1)
    return tuple(sorted(n for n in found if n * least <= rows))


def classes(simulator: Simulator) -> tuple[int, ...]:
    """Number the devices so that those with the same number are alike in all but their names."""
    profile = simulator.costs.profile
    found: dict[object, int] = {}
    numbers = []
    for rank, device in enumerate(profile.devices):
        facts = (device.timing, device.modes, device.mode, device.memory_bytes,
                 device.instruction_s, device.step_s, device.copy_s_per_byte,
                 device.battery_j, device.power_cap_w, device.holes_bytes,
                 device.holes_ratio)  # fmt: skip
        paths = simulator.network.paths
        size = simulator.network.size
        out = sorted(str(paths[rank * size + peer]) for peer in range(size) if peer != rank)
        back = sorted(str(paths[peer * size + rank]) for peer in range(size) if peer != rank)
        owner = rank == simulator.owner
        numbers.append(found.setdefault((facts, tuple(out), tuple(back), owner), len(found)))
    return tuple(numbers)


def shape(assignment: Assignment) -> tuple[tuple[int, ...], ...]:
    """Which devices stand where."""
    return tuple(part.ranks for part in assignment.parts)


def _varied(ranked: Sequence[Verdict], number: int) -> list[Verdict]:
    """The best for the same devices in the same places and modes, the best `number` of them."""
    found: dict[object, Verdict] = {}
    for verdict in ranked:
        parts = verdict.assignment.parts
        found.setdefault(tuple((part.ranks, part.modes) for part in parts), verdict)
        if len(found) == number:
            break
    return list(found.values())


def _choice(run: _Search, best: Verdict) -> Choice:
    judge, simulator = run.judge, run.judge.simulator
    names = simulator.costs.profile.names
    holding = sorted((v for v in judge.verdicts if v.excess <= 0), key=lambda v: v[:2])

    def option(verdict: Verdict) -> Option:
        assignment = verdict.assignment
        return Option(
            simulator.plan(assignment), simulator.predict(assignment), label(assignment, names)
        )

    others: dict[object, Verdict] = {}
    alone: Verdict | None = None
    for verdict in holding:
        key = shape(verdict.assignment)
        if key != shape(best.assignment):
            others.setdefault(key, verdict)
            if alone is None and len(verdict.assignment.ranks) == 1:
                alone = verdict
    listed = list(others.values())[:5]
    if alone is not None and alone not in listed:
        listed = [*listed[:4], alone]
    run.widen()
    fastest_first = predicted(judge, front([best, *judge.verdicts]))
    prediction = simulator.predict(best.assignment)
    return Choice(
        simulator.plan(best.assignment),
        prediction,
        judge.objective,
        tuple(option(verdict) for verdict in listed),
        tuple(
            Option(simulator.plan(assignment), found, label(assignment, names))
            for assignment, found in fastest_first
        ),
        limits(judge, best, prediction),
        reasons(judge, run.moves, best, lambda rank: run.with_device(best, rank)),
        run.exhaustive,
        names,
    )

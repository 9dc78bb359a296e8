"""An objective for the devices of a profile: ranks for names, and which assignments it allows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from lightning_edge.errors import PlanError
from lightning_edge.plan.assignment import Assignment, Part
from lightning_edge.plan.checks import find_device
from lightning_edge.plan.costs import Costs
from lightning_edge.plan.group_settings import (
    Group,
    check_across,
    check_split_points,
    read_groups,
)
from lightning_edge.plan.objective import Named, Objective
from lightning_edge.plan.problems import Problem, refuse
from lightning_edge.plan.rows import whole_rows
from lightning_edge.plan.wiring import spread

__all__: list[str] = []


@dataclass(frozen=True)
class Rules:
    """What must hold, in ranks and indices of blocks.

    Attributes:
        ranks: Devices that may take part.
        keep: Devices that must.
        first: Devices that may be in the first stage.
        cuts: Blocks at which stages must begin, after the first; None for any legal ones.
        legal: Blocks at which stages may begin.
        groups: Ranks with their group, in order; None without groups.
        side_by_side: Whether all groups share one stage.
        micro_batches: Number asked for.
        free_modes: Whether power modes may be changed.
        caps_w: Rank -> most watts.
        budgets_j: Rank -> most joules per step.
        shares: Devices of one stage -> rank -> the shares asked for.
        least_rows: Fewest rows of a micro-batch that a device with work may have.
    """

    ranks: tuple[int, ...]
    keep: frozenset[int]
    first: frozenset[int]
    cuts: tuple[int, ...] | None
    legal: tuple[int, ...]
    groups: tuple[Group, ...] | None
    side_by_side: bool
    micro_batches: int | None
    free_modes: bool
    caps_w: Mapping[int, float]
    budgets_j: Mapping[int, float]
    shares: Mapping[frozenset[int], Mapping[int, float]] = field(default_factory=dict)
    least_rows: int = 1

    @property
    def most_stages(self) -> int:
        """The most stages that the model and the devices allow."""
        if self.side_by_side:
            return 1
        cuts = self.legal if self.cuts is None else self.cuts
        return min(len(cuts) + 1, len(self.ranks))

    def allow(self, assignment: Assignment) -> bool:
        """Whether an assignment is one that was asked for."""
        parts = assignment.parts
        if self.cuts is not None and tuple(p.first for p in parts[1:]) != self.cuts:
            return False
        if not self.keep.issubset(assignment.ranks):
            return False
        if not self.first.issuperset(parts[0].ranks):
            return False
        if self.micro_batches is not None and assignment.micro_batches != min(
            self.micro_batches, assignment.rows
        ):
            return False
        if self.least_rows > 1 and not self._enough_rows(assignment):
            return False
        return self.groups is None or self._grouped(parts)

    def rows_each(self, rows: int, micro_batches: int) -> int:
        """Fewest rows of a micro-batch per device, where so many micro-batches divide so many rows.

        A small batch, or a number of micro-batches that was asked for, may leave fewer.
        """
        most = rows if self.micro_batches is None else rows // micro_batches
        return max(1, min(self.least_rows, most))

    def _enough_rows(self, assignment: Assignment) -> bool:
        number = assignment.micro_batches
        least = self.rows_each(assignment.rows, number)
        return all(
            stop - start >= least
            for part in assignment.parts
            if frozenset(part.ranks) not in self.shares
            for line in spread(part.rows, number)
            for start, stop in line
        )

    def _grouped(self, parts: Iterable[Part]) -> bool:
        """Whether groups follow each other, each divided as it asks for."""
        assert self.groups is not None
        if self.side_by_side:
            return len(list(parts)) == 1
        at = -1
        seen: list[list[int]] = [[] for _ in self.groups]
        for part in parts:
            homes = {
                i for i, g in enumerate(self.groups) if not g.shares.keys().isdisjoint(part.ranks)
            }
            if len(homes) != 1:
                return False
            home = homes.pop()
            group = self.groups[home]
            if home < at or (group.parallelism == "pipeline" and len(part.ranks) > 1):
                return False
            if group.parallelism == "data" and seen[home]:
                return False  # one stage
            at = home
            seen[home] += part.ranks
            wanted = self.shares.get(frozenset(part.ranks))
            if wanted is not None and part.rows != rows_of(wanted, part.ranks, sum(part.rows)):
                return False
        return all(
            group.parallelism == "auto"
            or (group.parallelism == "data" and set(seen[i]) == set(group.shares))
            or seen[i] == list(group.shares)
            for i, group in enumerate(self.groups)
        )


def resolve(objective: Objective, costs: Costs) -> Rules:
    """Return the rules of an objective for a profile.

    Raises:
        PlanError: With everything that does not fit the profile.
    """
    profile, problems = costs.profile, list[Problem]()
    names = profile.names

    def ranks(key: str, devices: Iterable[Named]) -> dict[Named, int]:
        found = {}
        for device in devices:
            rank = find_device(device, names)
            if isinstance(rank, str):
                problems.append(Problem(("objective", key), rank))
            else:
                found[device] = rank
        return found

    keep = set(ranks("keep", objective.keep).values())
    exclude = set(ranks("exclude", objective.exclude).values())
    first = set(ranks("first_stage_on", objective.first_stage_on).values())
    for rank in sorted(keep & exclude):
        problems.append(Problem(("objective",), f"{names[rank]} is in keep and in exclude"))
    caps = {r: d.power_cap_w for r, d in enumerate(profile.devices) if d.power_cap_w is not None}
    wanted = ranks("power_caps_w", objective.power_caps_w)
    caps.update(
        {wanted[name]: cap for name, cap in objective.power_caps_w.items() if name in wanted}
    )
    budgets: dict[int, float] = {}
    if objective.steps is not None:
        budgets = {
            r: d.battery_j / objective.steps
            for r, d in enumerate(profile.devices)
            if d.battery_j is not None
        }
    wanted = ranks("battery_j", objective.battery_j)
    for name, rank in wanted.items():
        budgets[rank] = objective.battery_j[name] / (objective.steps or 1)
    groups: tuple[Group, ...] | None = None
    allowed = [rank for rank in range(len(names)) if rank not in exclude]
    if objective.groups is not None:
        read, found = read_groups(objective.groups, names)
        problems += found
        groups = tuple(read)
        members = {rank for group in groups for rank in group.shares}
        allowed = [rank for rank in allowed if rank in members]
        keep |= {r for g in groups if g.parallelism != "auto" for r in g.shares}
    problems += check_across(objective.across)
    legal = tuple(i for i, block in enumerate(costs.blocks) if i and block.cut)
    problems += check_split_points(objective.split_points, profile.model.cuts)
    refuse(problems)
    cuts = None
    if objective.split_points != "auto":
        cuts = tuple(profile.model.index(name) for name in objective.split_points)
    rules = Rules(
        tuple(allowed),
        frozenset(keep),
        frozenset(first or allowed) & frozenset(allowed),
        cuts,
        legal,
        groups,
        groups is not None and objective.across == "data",
        None if objective.micro_batches == "auto" else objective.micro_batches,
        objective.power_modes == "auto",
        caps,
        budgets,
        _shares(objective, groups),
        profile.model.least_rows,
    )
    needs = (objective.minimize != "time", bool(caps), bool(budgets))
    _check_power(costs, rules, needs)
    if not rules.ranks:
        raise PlanError("exclude leaves no device: take one off")
    if not rules.first:
        raise PlanError("all devices of first_stage_on are excluded or in no group: take one in")
    if cuts is not None and len(cuts) + 1 > len(rules.ranks):
        raise PlanError(
            f"split_points make {len(cuts) + 1} stages, but {len(rules.ranks)} devices may take"
            f" part: give at most {len(rules.ranks) - 1}"
        )
    return rules


def rows_of(shares: Mapping[int, float], ranks: Iterable[int], rows: int) -> tuple[int, ...]:
    """Return the rows of each device for shares by rank."""
    return tuple(whole_rows([shares[rank] for rank in ranks], rows))


def _shares(
    objective: Objective, groups: tuple[Group, ...] | None
) -> dict[frozenset[int], Mapping[int, float]]:
    """Return the shares that were written down for groups that are one stage."""
    if groups is None or objective.groups is None:
        return {}
    return {
        frozenset(group.shares): group.shares
        for group in groups
        if isinstance(objective.groups[group.name]["devices"], Mapping)
        and (len(groups) == 1 or objective.across != "data")
    }


def _check_power(costs: Costs, rules: Rules, needs: tuple[bool, bool, bool]) -> None:
    """Refuse goals in joules for devices whose watts nobody knows."""
    needed = set(rules.ranks) if needs[0] else {*rules.caps_w, *rules.budgets_j} & set(rules.ranks)
    unknown = [
        f"{costs.devices[rank].name} ({mode.name})"
        for rank in sorted(needed)
        for mode in costs.devices[rank].modes
        if not mode.has_power
    ]
    if unknown:
        raise PlanError(
            f"to plan with joules the profile needs idle_w, compute_w and communication_w of"
            f" {', '.join(unknown)}: measure or declare them, or exclude these devices"
        )

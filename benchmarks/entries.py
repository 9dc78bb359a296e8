"""Who takes part in the end-to-end benchmark, on which devices, and what its numbers count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks import tasks
from benchmarks.contest import Contestant
from benchmarks.devices import Devices

ROWS, MICRO_BATCHES = 16, 8
# Watts idle and busy by percent of a core, fixed beforehand: a desktop, a laptop, boards.
WATTS = {80: (9.0, 30.0), 75: (9.0, 30.0), 60: (6.0, 18.0), 40: (4.0, 10.0), 25: (2.5, 6.0)}
BOUND = "each device for itself, at once"
KINDS = ("one", "each", "ddp", "pipeline", "edge")  # "one" is the first device alone


@dataclass(frozen=True)
class Entry:
    """A contestant and what its numbers count.

    Attributes:
        ranks: The devices it uses.
        rows: Rows of one of its steps.
    """

    contestant: Contestant
    ranks: tuple[int, ...]
    rows: int

    @property
    def name(self) -> str:
        return self.contestant.name


def baselines(
    devices: Devices, cpus: Sequence[int], task: str, only: Sequence[str] = KINDS
) -> list[Entry]:
    """Return what a user could pick instead: each kind of device alone, DDP, torch's pipeline.

    The first one is no choice, as it trains as many models as there are devices: their speeds
    together are the compute bound. It is measured with all at once, because they share a machine.
    """
    everyone, world = tuple(range(len(cpus))), len(cpus)
    entries = [_entry(devices, BOUND, "alone", everyone, {"task": task, "rows": ROWS})]
    alone = {0} if "one" in only else set()
    alone |= {cpus.index(cpu) for cpu in cpus} if "each" in only else set()
    for rank in sorted(alone):
        name = f"Lightning on device {rank} ({cpus[rank]} %)"
        entries.append(_entry(devices, name, "plain", (rank,), {"task": task, "rows": ROWS}))
    if "ddp" in only:
        shared = ROWS // world * world  # DDP gives every device as many
        options: dict[str, Any] = {"task": task, "rows": shared}
        entries.append(_entry(devices, "Lightning DDP", "ddp", everyone, options))
        local = {**options, "accumulate": 4}
        name = "Lightning DDP, 4 batches per sum"
        entries.append(_entry(devices, name, "ddp", everyone, local))
    if "pipeline" in only and task in tasks.GPTS:
        blocks = tasks.GPTS[task][2]
        cuts = {tuple(portions(blocks, weights)) for weights in ([1] * world, list(cpus))}
        for cut in sorted(cuts):
            pipeline = {"task": task, "rows": ROWS, "blocks": cut, "micro_batches": MICRO_BATCHES}
            title = f"torch 1F1B, blocks {'-'.join(map(str, cut))}"
            entries.append(_entry(devices, title, "pipeline", everyone, pipeline))
    return entries


def edge(devices: Devices, cpus: Sequence[int], task: str, objective: str, link: str) -> Entry:
    """Return ours with a plan made for this link."""
    # Its profile is kept for the other objectives on this link, and only for them.
    cache = str(devices.folder / f"profiles-{link.replace(' ', '-').replace('/', '-')}")
    options = {"task": task, "rows": ROWS, "objective": objective, "cache": cache}
    return _entry(devices, f"edge_collab, {objective}", "edge", tuple(range(len(cpus))), options)


def _entry(
    devices: Devices, name: str, function: str, ranks: tuple[int, ...], options: dict[str, Any]
) -> Entry:
    places = devices.places(ranks)
    target = f"benchmarks.fits:{function}"
    contestant = Contestant(name, target, options, places, devices.address)
    return Entry(contestant, ranks, options["rows"] * options.get("accumulate", 1))


def portions(total: int, weights: Sequence[int]) -> list[int]:
    """Divide ``total`` by weights, at least one each, largest remainders first."""
    exact = [total * weight / sum(weights) for weight in weights]
    parts = [max(1, int(share)) for share in exact]
    while sum(parts) < total:
        short = [share - part for share, part in zip(exact, parts, strict=True)]
        parts[short.index(max(short))] += 1
    while sum(parts) > total:
        parts[parts.index(max(parts))] -= 1
    return parts

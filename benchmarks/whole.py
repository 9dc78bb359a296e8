"""The whole model on every device: two against Lightning's DDP, one against plain Lightning."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks import network, ours
from benchmarks.contest import Contest, Contestant, Place, median_s, turns_s
from benchmarks.models import ROWS
from benchmarks.table import Row


def run_ddp(quick: bool) -> list[Row]:
    rounds, steps = (2, 2) if quick else (10, 4)
    rows = against_ddp("loopback", (Place(), Place()), "127.0.0.1", 12, rounds, steps)
    lacking = network.missing()
    if lacking:
        return [*rows, Row("two replicas", "100 Mbit/s", "all", None, note=f"left out: {lacking}")]
    with network.Line(2, 100) as line:
        # Four blocks: their gradients (14 MB) are on the link longer than they take to compute.
        return rows + against_ddp("100 Mbit/s", line.places, line.address, 4, rounds, steps)


def against_ddp(
    where: str, places: Sequence[Place], address: str, blocks: int, rounds: int, steps: int
) -> list[Row]:
    micro_batches = 8
    plan = ours.replicas([0.5, 0.5])
    options = {"plan": plan, "micro_batches": 1, "rows": ROWS * micro_batches, "size": blocks}
    rows = {"rows": ROWS * micro_batches, "blocks": blocks}
    contestants = [
        Contestant("lightning-edge", "benchmarks.ours:edge", options, places, address),
        Contestant("Lightning DDP", "benchmarks.peers:lightning_ddp", rows, places, address),
    ]
    setting = f"{where}, {blocks} blocks, {rows['rows']} rows"
    return duel("two replicas", setting, contestants, rounds, steps, "<= 1.02")


def run_single(quick: bool) -> list[Row]:
    rows, blocks = ROWS * 8, 4
    plan = ours.replicas([1.0])
    options = {"plan": plan, "micro_batches": 1, "rows": rows, "size": blocks}
    contestants = [
        Contestant("lightning-edge", "benchmarks.ours:edge", options, [Place()]),
        Contestant(
            "plain Lightning",
            "benchmarks.peers:lightning_plain",
            {"rows": rows, "blocks": blocks},
            [Place()],
        ),
    ]
    setting = f"{blocks} blocks, {rows} rows"
    return duel("one device", setting, contestants, 3 if quick else 20, 5, "<= 1.02")


def duel(
    what: str,
    setting: str,
    contestants: Sequence[Contestant],
    rounds: int,
    steps: int,
    target: str,
) -> list[Row]:
    """Compare the first contestant with the second."""
    with Contest(contestants) as contest:
        blocks = contest.alternate(rounds, steps)
    (mine, own), (peer, other) = blocks.items()
    ratios = [a / b for a, b in zip(turns_s(own), turns_s(other), strict=True)]
    return [
        Row(what, setting, peer, median_s(other)),
        Row(what, setting, mine, median_s(own), "s", f"it / {peer}", ratios, target),
    ]

"""Two stages on one machine: how much of the ideal speed-up ``2 M / (M + 1)`` is reached.

The ideal is measured in the same run: two processes that compute their stage's micro-batches and
never wait for each other. A pipeline has to add the time in which it fills and drains, one
micro-batch of the other stage: ``ideal = max(t0, t1) + min(t0, t1) / M``.
"""

from __future__ import annotations

import statistics

from benchmarks import ours
from benchmarks.contest import Block, Contest, Contestant, Place, median_s, turns_s
from benchmarks.table import Row

BLOCKS = 12
CUT = 1 + BLOCKS // 2


def run(quick: bool) -> list[Row]:
    rows = []
    for micro_batches in (8,) if quick else (8, 16):
        rows += compare(micro_batches, rounds=2 if quick else 8, steps=2 if quick else 3)
    return rows


def compare(micro_batches: int, rounds: int, steps: int) -> list[Row]:
    size = {"micro_batches": micro_batches}
    gpt = {**size, "model": "gpt", "size": BLOCKS}
    torch_pipeline = "benchmarks.peers:torch_pipeline"
    contestants = [
        Contestant("lightning-edge", "benchmarks.ours:edge", {**gpt, "plan": ours.pipeline([CUT])}),
        Contestant("torch GPipe", torch_pipeline, {**gpt, "schedule": "GPipe"}),
        Contestant("torch 1F1B", torch_pipeline, {**gpt, "schedule": "1F1B"}),
        Contestant("alone", "benchmarks.peers:alone", {**size, "blocks": BLOCKS}),
        Contestant(
            "one process", "benchmarks.peers:one_process", {**size, "blocks": BLOCKS}, [Place()]
        ),
    ]
    with Contest(contestants) as contest:
        blocks = contest.alternate(rounds, steps)
    ideals = [ideal_s(block, micro_batches) for block in blocks.pop("alone")]
    turns = {name: turns_s(own) for name, own in blocks.items()}
    what, setting = "two stages, loopback", f"10M parameters, {micro_batches} micro-batches"
    rows = [Row(what, setting, "ideal (no communication)", statistics.median(ideals))]
    for name, own in blocks.items():
        ratios = [ideal / turn for ideal, turn in zip(ideals, turns[name], strict=True)]
        target = ">= 0.93" if name == "lightning-edge" else None
        rows.append(Row(what, setting, name, median_s(own), "s", "ideal / it", ratios, target))
    mine = turns["lightning-edge"]
    for peer in ("torch GPipe", "torch 1F1B"):
        ratios = [a / b for a, b in zip(mine, turns[peer], strict=True)]
        median = median_s(blocks["lightning-edge"])
        rows.append(
            Row(what, setting, "lightning-edge", median, "s", f"it / {peer}", ratios, "<= 1.0")
        )
    return rows


def ideal_s(block: Block, micro_batches: int) -> float:
    slow, fast = sorted((statistics.median(own) for own in block.ranks_s), reverse=True)
    return slow + fast / micro_batches

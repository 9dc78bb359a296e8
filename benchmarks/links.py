"""Slow links and computing of known length: how close the executor comes to the lower bound.

Blocks sleep 30 ms forwards and 60 ms backwards, so that what is measured is waiting only, even when
the machine has fewer cores than there are stages. What crosses a cut is 262 KB per micro-batch.
"""

from __future__ import annotations

import statistics

from benchmarks import models, network, ours
from benchmarks.bound import fitting_depths, lower_bound_s
from benchmarks.contest import Contest, Contestant, median_s, turns_s
from benchmarks.table import Row

MICRO_BATCHES = 8
FORWARD_S, BACKWARD_S = 0.03, 0.06
TARGETS = {100: ">= 0.97", 50: ">= 0.97", 25: ">= 0.95"}  # Mbit/s
CROSSING_BYTES = models.ROWS * models.LENGTH * models.WIDTH * 4
PROBE_BYTES = 1 << 20
DELAY_S = 0.01  # of packing, threads that wake up and a measurement's own noise


def run(quick: bool) -> list[Row]:
    lacking = network.missing()
    if lacking:
        return [Row("slow links", "", "all", None, note=f"left out: {lacking}")]
    rows = []
    for stages in (2,) if quick else (2, 3):
        rows += compare(stages, rounds=2 if quick else 5, steps=2)
    return rows


def compare(stages: int, rounds: int, steps: int) -> list[Row]:
    # With some delay at each message: at the exact depth a millisecond of it is a wait.
    slowest_s = CROSSING_BYTES * 8 / (min(TARGETS) * 1e6)
    depths = fitting_depths(stages, MICRO_BATCHES, FORWARD_S, BACKWARD_S, slowest_s, DELAY_S)
    plan = ours.pipeline(list(range(2, stages + 1)), depths)
    sleepers = {"micro_batches": MICRO_BATCHES, "model": "sleepers", "size": stages}
    rows = []
    with network.Line(stages, min(TARGETS)) as line:

        def contestant(name: str, target: str, **options: object) -> Contestant:
            return Contestant(name, target, options, line.places, line.address)

        executor = contestant(
            "executor alone", "benchmarks.ours:executor", plan=plan, micro_batches=MICRO_BATCHES
        )
        contestants = [
            executor,
            contestant("Trainer with replay", "benchmarks.ours:edge", plan=plan, **sleepers),
            contestant(
                "torch 1F1B", "benchmarks.peers:torch_pipeline", schedule="1F1B", **sleepers
            ),
            Contestant(
                "link",
                "benchmarks.peers:link",
                {"size": PROBE_BYTES},
                line.places[:2],
                line.address,
            ),
        ]
        with Contest(contestants) as contest:
            for mbit, target in TARGETS.items():
                line.set_rate(mbit)
                blocks = contest.alternate(rounds, steps)
                message_s = median_s(blocks.pop("link")) * CROSSING_BYTES / PROBE_BYTES
                bound_s = lower_bound_s(stages, MICRO_BATCHES, FORWARD_S, BACKWARD_S, message_s)
                setting = f"{mbit} Mbit/s, {stages} stages, in flight {depths}"
                rows.append(Row("slow links", setting, "lower bound", bound_s))
                for name, own in blocks.items():
                    ratios = [bound_s / turn for turn in turns_s(own)]
                    wanted = target if name == "executor alone" else None
                    rows.append(
                        Row(
                            "slow links",
                            setting,
                            name,
                            median_s(own),
                            "s",
                            "bound / it",
                            ratios,
                            wanted,
                        )
                    )
                pairs = zip(
                    turns_s(blocks["Trainer with replay"]),
                    turns_s(blocks["executor alone"]),
                    strict=True,
                )
                extra = [replay - alone for replay, alone in pairs]
                rows.append(
                    Row(
                        "slow links",
                        setting,
                        "replay and loop",
                        statistics.median(extra) * 1e3,
                        "ms",
                    )
                )
    return rows

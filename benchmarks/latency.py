"""What a batch costs once, whatever its size: messages delayed by 5 ms on purpose.

A pipeline of two stages cannot hide one round trip per batch: the first activations have to come to
stage 1 before it can start, and its last gradients to stage 0. Two replicas cannot hide their sum.
Everything else (the batch's rows, logs, losses) has to travel while something is computed.
"""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks import ours
from benchmarks.contest import Contest, Contestant, turns_s
from benchmarks.table import Row

LATENCY_S = 0.005
ROUND_TRIP_S = 2 * LATENCY_S


def run(quick: bool) -> list[Row]:
    rounds = 4 if quick else 12
    two_stages = {"plan": ours.pipeline([2]), "micro_batches": 8, "size": 2}
    replicas = {"plan": ours.replicas([0.5, 0.5]), "micro_batches": 1, "rows": 32, "size": 1}
    return [
        *compare("two stages, 8 micro-batches", two_stages, rounds),
        *compare("two replicas", replicas, rounds),
    ]


def compare(setting: str, options: dict[str, Any], rounds: int) -> list[Row]:
    options = {"model": "sleepers", **options}
    contestants = [
        Contestant(name, "benchmarks.ours:edge", {**options, "latency_s": latency_s})
        for name, latency_s in (("no latency", 0.0), ("5 ms", LATENCY_S))
    ]
    with Contest(contestants) as contest:
        blocks = contest.alternate(rounds, steps=3)
    pairs = zip(turns_s(blocks["5 ms"]), turns_s(blocks["no latency"]), strict=True)
    extra = [slow - fast for slow, fast in pairs]
    return [
        Row(
            "5 ms of latency",
            setting,
            "lightning-edge",
            statistics.median(extra) * 1e3,
            "ms more per batch",
            "round trips",
            [seconds / ROUND_TRIP_S for seconds in extra],
            "<= 1.05",  # half a millisecond for the clocks of sleeping blocks
        )
    ]

"""How many micro-batches each stage keeps in flight, and which depths can run at all.

The depth K of a stage is the number of forwards it launches before its first backward; afterwards
it alternates backward and forward, so K is also the most activations it ever keeps. With M
micro-batches no stage launches more than M, so a depth counts as min(K, M).

A stage waits for its first gradient with K forwards launched; the stage after it launches K' before
it produces that gradient. So the depths must not grow along the pipeline:

    K of every stage >= K of the next stage                                   (capped at M)

    K = 1, 1   stage 0  F0 .. .. B0 F1          K = 1, 2   stage 0  F0 .. waits for B0 of stage 1
               stage 1  .. F0 B0 .. ..                     stage 1  .. F0 waits for F1 of stage 0

This is sufficient as well: whenever a stage waits for the gradient of micro-batch b it has launched
min(b + K, M) forwards, which is all that the next stage needs to produce it. Every depth from 1 up
can therefore run; small ones are only slower. Auto depths follow Asteroid's rule 2 (P - p) - 1,
which keeps a transfer in flight in each direction between two busy stages.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

__all__: list[str] = []


def auto_micro_batches(num_stages: int) -> int:
    """Return 1 for a single stage, else 4 per stage.

    Fill and drain of P equal stages, (P - 1) / (M + P - 1) of the time, then stay below a fifth.
    """
    return 1 if num_stages == 1 else 4 * num_stages


def resolve_depths(wanted: Sequence[int | Literal["auto"]], micro_batches: int) -> tuple[int, ...]:
    """Return the depth of every stage as a number.

    Args:
        wanted: Per stage the depth asked for, or "auto"; without `conflicts`.
        micro_batches: Number of micro-batches M of a step.

    An automatic depth is 2 (P - p) - 1 for stage p of P, moved between the depths asked for around
    it so that depths never grow along the pipeline. All are capped at M.
    """
    capped = [None if depth == "auto" else min(depth, micro_batches) for depth in wanted]
    resolved = []
    for stage, depth in enumerate(capped):
        if depth is None:
            least = max((k for k in capped[stage + 1 :] if k is not None), default=1)
            most = min((k for k in capped[:stage] if k is not None), default=micro_batches)
            depth = max(least, min(2 * (len(capped) - stage) - 1, most))
        resolved.append(depth)
    return tuple(resolved)


def conflicts(wanted: Sequence[int | None], micro_batches: int) -> list[tuple[int, int]]:
    """Return the pairs (earlier stage, later stage) whose depths make both wait for ever.

    Only the nearest earlier stage that is too shallow is named for each later stage.
    """
    found = []
    for later, depth in enumerate(wanted):
        if depth is None:
            continue
        for earlier in range(later - 1, -1, -1):
            before = wanted[earlier]
            if before is not None and min(before, micro_batches) < min(depth, micro_batches):
                found.append((earlier, later))
                break
    return found

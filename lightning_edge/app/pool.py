"""What-if profiles: a pool of known boards, and a model that was measured on this machine.

    seconds on a board  =  seconds here  x  GFLOP/s here / GFLOP/s of the board

GFLOP/s are those of products of FP32 matrices: measured here, and from the table of boards there.
Watts and memory are the table's. So nothing of it was measured on a board, and the profile says so
("prior"); it ranks pools and plans, and a real device may well differ by a third.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lightning_edge.boards import Board, known_boards
from lightning_edge.errors import ProfileError
from lightning_edge.plan.participants import Device, PowerMode
from lightning_edge.plan.profile import Profile
from lightning_edge.plan.workload import Block, Model, Timing

__all__: list[str] = []

FREE = 0.75  # of a board's memory: the rest is the system's
PRIOR = {"all": "prior"}


def profile_of_pool(
    pool: Mapping[str, Any], model: Model, here: Device, here_gflops: float
) -> Profile:
    """Return the profile of a pool that need not exist.

    Args:
        pool: `devices`, each with `name`, `board` (such as "orin-nano:15W") and perhaps
            `memory_bytes`; `links` as in a profile.
        model: Measured on `here`.
        here: The device that measured it.
        here_gflops: GFLOP/s that it reaches in products of matrices, with the same threads.

    Raises:
        ProfileError: With every problem of the pool.
    """
    devices, problems, ratios = [], [], {}
    for index, given in enumerate(pool.get("devices") or ()):
        name = str(given.get("name") or f"device{index}")
        board = find_board(str(given.get("board")))
        if board is None:
            known = ", ".join(sorted({row.name for row in known_boards()}))
            problems.append(f"{name}: board {given.get('board')!r} is not known; known are {known}")
            continue
        ratio = here_gflops / board.gflops
        key = f"{board.name}:{board.mode}" if board.mode else board.name
        ratios[key] = ratio
        devices.append(_device(name, key, board, given.get("memory_bytes"), here, max(1.0, ratio)))
    if problems or not devices:
        raise ProfileError(problems or "a pool has at least one device", source="the pool")
    blocks = tuple(_scaled(block, here.timing, ratios) for block in model.blocks)
    partial = Profile(tuple(devices), replace(model, blocks=blocks))
    mapping = partial.to_mapping()
    mapping["links"] = list(pool.get("links") or ())
    return Profile.from_mapping(mapping)


def find_board(text: str) -> Board | None:
    """The board and mode that a text such as "orin-nano:15W" names; the default mode by itself."""
    name, _, mode = text.partition(":")
    rows = [row for row in known_boards() if row.name == name]
    if mode:
        return next((row for row in rows if row.mode.upper() == mode.upper()), None)
    return next((row for row in rows if row.default), None)


def _device(
    name: str, key: str, board: Board, memory_bytes: object, here: Device, slower: float
) -> Device:
    rows: Sequence[Board] = [row for row in known_boards() if row.name == board.name]
    modes = tuple(
        PowerMode(
            row.mode or "default",
            speed=round(row.gflops / board.gflops, 3),
            idle_w=row.idle_w,
            compute_w=row.busy_w,
            communication_w=row.idle_w,
            provenance=PRIOR,
        )
        for row in rows
    )
    memory = FREE * board.memory_bytes if memory_bytes is None else float(str(memory_bytes))
    return Device(
        name,
        board.name,
        timing=key,
        memory_bytes=round(memory),
        modes=modes,
        mode=board.mode or "default",
        instruction_s=here.instruction_s * slower,
        step_s=here.step_s * slower,
        copy_s_per_byte=here.copy_s_per_byte * slower,
        provenance=PRIOR,
    )


def _scaled(block: Block, key: str, ratios: Mapping[str, float]) -> Block:
    timing = block.timings[key]
    timings = {
        name: Timing(
            timing.rows,
            tuple(s * ratio for s in timing.forward_s),
            tuple(s * ratio for s in timing.backward_s),
            timing.step_s * ratio,
            provenance=PRIOR,
        )
        for name, ratio in ratios.items()
    }
    return replace(block, timings=timings)

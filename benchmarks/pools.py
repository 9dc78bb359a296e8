"""Profiles of made-up pools of devices and of two kinds of models, for the planner's benchmark."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_edge.plan.profile import Block, Device, Link, Model, PowerMode, Profile, Timing

ROWS = (1, 2, 4, 8, 16, 32)
KIB, MIB = 1 << 10, 1 << 20


def gpt(blocks: int = 12, seconds: float = 0.12) -> Model:
    """Equal layers between an embedding and a head; sequences of 128 tokens, 384 wide."""
    crossing = 128 * 384 * 4
    each = seconds / (blocks + 2)
    row = [_block("embedding", 0.2 * each, 8 * MIB, crossing, 0)]
    row += [_block(f"layers.{i}", each, 7 * MIB, 12 * crossing, crossing) for i in range(blocks)]
    row.append(_block("head", 1.8 * each, 8 * MIB, 6 * crossing, crossing))
    return Model("gpt", tuple(row), batch_bytes=128 * 8)


def convnet(blocks: int = 16, seconds: float = 0.12) -> Model:
    """Large activations and few parameters in front, the other way round behind."""
    row = []
    for i in range(blocks):
        level = 4 * i // blocks
        crossing = (800 * KIB) >> level
        parameters = (KIB * 300) << (2 * level)
        row.append(
            _block(f"blocks.{i}", seconds / blocks, parameters, 4 * crossing, crossing if i else 0)
        )
    return Model("convnet", tuple(row), batch_bytes=64 * 64 * 3 * 4)


def _block(name: str, seconds: float, parameters: int, kept: int, crossing: int) -> Block:
    """A block of `seconds` per row, both ways; a fixed part makes small batches less efficient."""
    fixed = 0.4 * seconds
    forward = tuple((fixed + seconds * rows) / 3 for rows in ROWS)
    timing = Timing(ROWS, forward, tuple(2 * s for s in forward), 0.02 * seconds)
    return Block(name, {"any": timing}, parameters, activation_bytes=kept, forward_bytes=crossing)


def speeds(devices: int, ratio: float) -> list[float]:
    """From the slowest to `ratio` times as fast in even steps; the fastest is in the middle."""
    steps = [1 + (ratio - 1) * i / max(1, devices - 1) for i in range(devices)]
    return steps[::2] + steps[1::2][::-1]


def pool(
    model: Model,
    speeds: Sequence[float],
    mbit: float,
    memory_bytes: int | None = None,
    latency_s: float = 5e-4,
    saving_mode: bool = True,
) -> Profile:
    """Devices of some speeds on a switch; a faster one draws more, and has a mode that saves."""
    devices = []
    for i, speed in enumerate(speeds):
        idle, busy = 2 + speed, 4 + 5 * speed
        modes = [PowerMode("full", speed, None, idle, idle + busy, idle + 0.2 * busy)]
        if saving_mode:
            modes.append(
                PowerMode("saving", 0.6 * speed, None, idle, idle + 0.45 * busy, idle + 0.15 * busy)
            )
        devices.append(
            Device(
                f"d{i}", timing="any", memory_bytes=memory_bytes, modes=tuple(modes),
                instruction_s=0.001, step_s=0.002, copy_s_per_byte=2e-10,
            )
        )  # fmt: skip
    links = tuple(
        Link(a.name, b.name, 8e-6 / mbit, latency_s) for a in devices for b in devices if a != b
    )
    return Profile(tuple(devices), model, links)

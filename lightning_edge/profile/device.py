"""What this device is: kind, free memory, cores, accelerator, power modes, battery.

Jetson          the device tree names it, nvpmodel its modes; memory is shared with the GPU
Raspberry Pi    the device tree names it
PC              its processor, and the GPU that the run computes on
"""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

import torch

from lightning_edge.boards import find_model
from lightning_edge.energy.host import HostEnv
from lightning_edge.energy.power_modes import current_mode, listed_modes
from lightning_edge.plan.participants import Device, PowerMode
from lightning_edge.room import free_bytes

__all__ = ["describe_device"]

RESERVE = 0.05  # of the free memory, for what a training allocates besides tensors
HOLES_BYTES, HOLES_RATIO = 30e6, 0.9
"""What the processor's allocator leaves unused, until training has shown it.

Torch asks for aligned blocks, and the place of a freed one is seldom good for the next (glibc
before 2.38). Fitted to 25 trainings of GPTs of 2 to 10M parameters on glibc 2.36.
"""


def describe_device(
    name: str, device: torch.device, *, held_bytes: int = 0, host: HostEnv | None = None
) -> Device:
    """Return what can be said about this device without running anything.

    Args:
        name: As the user calls it.
        device: Where the run computes.
        held_bytes: Of the model, which is in memory now and makes room when it is divided.
        host: The machine.
    """
    host = host or HostEnv()
    accelerator = accelerator_name(device)
    memory = _free_bytes(device, host)
    modes, mode = _modes(host)
    plain = device.type == "cpu"
    guessed = dict.fromkeys(("holes_bytes", "holes_ratio"), "prior") if plain else {}
    return Device(
        name,
        kind_of(host, accelerator),
        timing=name,
        memory_bytes=None if memory is None else round((memory + held_bytes) * (1 - RESERVE)),
        cores=_cores(),
        accelerator=accelerator,
        modes=modes,
        mode=mode,
        battery_j=_battery_j(host),
        holes_bytes=HOLES_BYTES if plain else 0.0,
        holes_ratio=HOLES_RATIO if plain else 0.0,
        provenance={"all": "measured", **guessed},
    )


def kind_of(host: HostEnv, accelerator: str | None) -> str:
    """Return a short name of a kind of device, the same for all of that kind."""
    if host.board:
        board = re.sub(r"\b(Rev \d.*|Developer Kit.*|Engineering.*|Module)\b", "", host.board)
        return slug(board.replace("NVIDIA ", ""))
    return slug(accelerator or _processor(host))


def slug(text: str) -> str:
    """Lower case, and dashes for everything but letters and digits."""
    plain = re.sub(r"\((R|TM|C)\)", "", text)
    plain = re.sub(r"\b(CPU|Processor)\b|@.*", "", plain)
    return re.sub(r"[^a-z0-9]+", "-", plain.lower()).strip("-") or "cpu"


def accelerator_name(device: torch.device) -> str | None:
    """Return what computes, if it is not the processor."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return None if device.type in ("cpu", "meta") else device.type.upper()


def _processor(host: HostEnv) -> str:
    text = host.text("/proc/cpuinfo") or ""
    found = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", text, re.MULTILINE)
    return found.group(1) if found else platform.processor() or platform.machine() or "cpu"


def _cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _free_bytes(device: torch.device, host: HostEnv) -> int | None:
    """Memory that is free where the run computes, within the limits of a container."""
    if device.type == "cuda" and not host.is_tegra:
        free, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + cached)
    return free_bytes(host)


def _battery_j(host: HostEnv) -> float | None:
    """Joules left in the batteries; None on mains."""
    joules, discharging = 0.0, False
    for folder in sorted(host.path("/sys/class/power_supply").glob("*")):
        read = {f: _micro(folder / f) for f in ("energy_now", "charge_now", "voltage_now")}
        try:
            kind = (folder / "type").read_text().strip()
            state = (folder / "status").read_text().strip()
            scope = (folder / "scope").read_text().strip() if (folder / "scope").exists() else ""
        except OSError:
            continue
        if kind != "Battery" or scope == "Device":  # a mouse has one as well
            continue
        discharging = discharging or state == "Discharging"
        if read["energy_now"] is not None:
            joules += read["energy_now"] * 3600
        elif read["charge_now"] is not None and read["voltage_now"] is not None:
            joules += read["charge_now"] * read["voltage_now"] * 3600
    return round(joules) if discharging and joules else None


def _micro(path: Path) -> float | None:
    try:
        return int(path.read_text()) / 1e6
    except (OSError, ValueError):
        return None


def _modes(host: HostEnv) -> tuple[tuple[PowerMode, ...], str]:
    """Power modes with what the table of boards says about them, relative to the current one."""
    current = current_mode(host)
    if current is None:
        return (PowerMode("default"),), "default"
    here = find_model(host.board, current)
    modes = [PowerMode(current)]
    for name in listed_modes(host).values():
        row = find_model(host.board, name)
        if name != current and row is not None and here is not None:
            modes.append(
                PowerMode(
                    name,
                    speed=round(row.gflops / here.gflops, 3),
                    idle_w=row.idle_w,
                    compute_w=row.busy_w,
                    communication_w=row.idle_w,
                    provenance={"all": "prior"},
                )
            )
    return tuple(modes), current

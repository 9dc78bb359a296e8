"""A pool as asked for, on this machine: numbers for every device, and the scale of the boards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from lightning_edge.errors import TestbedError
from lightning_edge.testbed.boards import Board, find_board
from lightning_edge.testbed.machine import Machine
from lightning_edge.testbed.power import PowerCurve
from lightning_edge.testbed.spec import DeviceSpec, PoolSpec, check_specs, raise_all
from lightning_edge.testbed.trace import Trace
from lightning_edge.testbed.units import show_bytes

__all__: list[str] = []

HEADROOM = 0.1  # of all cores: for this program, the kernel's networking and the user's desktop
LEAST_CORES = 0.002  # the kernel accepts a millisecond of CPU per second at best


@dataclass(frozen=True)
class Device:
    """A device as it is built; names and units as in `DeviceSpec`."""

    name: str
    board: str | None
    cores: float | None
    memory_bytes: int | None
    link_mbit: float | None
    trace: Trace | None
    latency_s: float
    loss: float
    power: PowerCurve | None

    @property
    def threads(self) -> int:
        """Return how many threads of arithmetic make sense within its quota."""
        return 1 if self.cores is None else max(1, -(-round(self.cores * 100) // 100))


@dataclass(frozen=True)
class Pool:
    """All devices as they are built.

    Args:
        devices: In the order of their ranks.
        medium_mbit: Shared rate, or None.
        medium_trace: Shared rate over time, or None.
        slowdown: One second of the boards takes this many seconds here; None without boards.
        link_slowdown: What the links were divided by (1 unless `scale_links`).
        notes: What the user should know about the emulation, in sentences.
    """

    devices: tuple[Device, ...]
    medium_mbit: float | None
    medium_trace: Trace | None
    slowdown: float | None
    link_slowdown: float
    notes: tuple[str, ...]

    def index(self, name: str) -> int:
        """Return the rank of the device of that name."""
        return [device.name for device in self.devices].index(name)


def resolve(pool: PoolSpec, machine: Machine) -> Pool:
    """Turn boards into quotas and check that this machine can hold what was asked for.

        board        GFLOP/s            cores here = GFLOP/s / (slowdown x core's GFLOP/s)
        orin-nano    473  ############  1.00
        xavier-nx    315  ########      0.67     slowdown: the least for which no board needs more
        pi5           64  ##            0.14     than one core, and all fit the cores that are left

    Raises:
        TestbedError: Naming everything that is wrong.
    """
    specs = pool.devices
    names = _names(specs)
    problems = check_specs(specs, names)
    boards: list[Board | None] = []
    for spec in specs:
        try:
            boards.append(find_board(spec.board) if spec.board else None)
        except TestbedError as error:
            problems.append(str(error))
            boards.append(None)
    slowdown = _slowdown(specs, boards, machine, problems)
    raise_all(problems, "the testbed")
    factor = slowdown if pool.scale_links and slowdown is not None else 1.0
    devices = tuple(
        _device(spec, name, board, slowdown or 1.0, factor, machine)
        for spec, name, board in zip(specs, names, boards, strict=True)
    )
    raise_all(_too_slow(devices), "the testbed")
    return Pool(
        devices=devices,
        medium_mbit=None if pool.medium_mbit is None else pool.medium_mbit / factor,
        medium_trace=_slower(pool.medium_trace, factor),
        slowdown=slowdown,
        link_slowdown=factor,
        notes=_notes(pool, devices, boards, slowdown, factor, machine),
    )


def _names(specs: Sequence[DeviceSpec]) -> list[str]:
    plain = [(spec.board or "").partition(":")[0].strip().lower() for spec in specs]
    unnamed = [board for spec, board in zip(specs, plain, strict=True) if not spec.name]
    names = []
    for number, (spec, board) in enumerate(zip(specs, plain, strict=True)):
        twice = unnamed.count(board) > 1
        default = f"{board}-{number}" if twice and board else board or f"device{number}"
        names.append(spec.name or default)
    return names


def _slowdown(
    specs: Sequence[DeviceSpec],
    boards: Sequence[Board | None],
    machine: Machine,
    problems: list[str],
) -> float | None:
    asked = sum(spec.cpu for spec in specs if spec.cpu is not None)
    if asked > machine.cores * 1.001:
        shrink = 100 * machine.cores * (1 - HEADROOM) / asked
        problems.append(
            f"the devices' cpu= add up to {asked:.0%} of a core and this machine has "
            f"{machine.cores * 100} %: no quota would hold; give each {shrink:.0f} % of that"
        )
        return None
    free = [b.gflops for s, b in zip(specs, boards, strict=True) if b and s.cpu is None]
    if not free:
        return None
    left = machine.cores * (1 - HEADROOM) - asked
    if left <= 0:
        problems.append(f"cpu= of the others leaves nothing of {machine.cores} cores to the boards")
        return None
    # At least 1: boards slower than this machine run at their own speed.
    speed = _core_gflops(machine)
    return max(1.0, max(free) / speed, sum(free) / (speed * left))


def _core_gflops(machine: Machine) -> float:
    assert machine.core_gflops is not None, "a pool with boards needs a measured machine"
    return machine.core_gflops


def _device(
    spec: DeviceSpec,
    name: str,
    board: Board | None,
    slowdown: float,
    link_factor: float,
    machine: Machine,
) -> Device:
    cores, memory, link_mbit, power = spec.cpu, spec.memory_bytes, spec.link_mbit, spec.power
    if board is not None:
        cores = board.gflops / (slowdown * _core_gflops(machine)) if cores is None else cores
        memory = board.memory_bytes if memory is None else memory
        power = board.curve if power is None else power
        link_mbit = board.link_mbit if link_mbit is None and spec.trace is None else link_mbit
    if power is not None:
        # Everything takes longer, so watts add up to more; bytes cost as much more, to keep step.
        power = replace(power, joules_per_byte=power.joules_per_byte * slowdown)
    return Device(
        name=name,
        board=None if board is None else board.title,
        cores=cores,
        memory_bytes=memory,
        link_mbit=None if link_mbit is None else link_mbit / link_factor,
        trace=_slower(spec.trace, link_factor),
        latency_s=spec.latency_s * link_factor,
        loss=spec.loss,
        power=power,
    )


def _slower(trace: Trace | None, factor: float) -> Trace | None:
    if trace is None or factor == 1:
        return trace
    return Trace(
        tuple(t * factor for t in trace.times_s),
        tuple(r / factor for r in trace.rates_mbit),
        trace.period_s * factor,
        f"{trace.name} / {factor:.3g}",
    )


def _too_slow(devices: Sequence[Device]) -> list[str]:
    return [
        f"{device.name} would get {device.cores:.2%} of a core; the least is {LEAST_CORES:.1%}: "
        "leave out the fastest board, or use a machine with more cores"
        for device in devices
        if device.cores is not None and device.cores < LEAST_CORES
    ]


def _notes(
    pool: PoolSpec,
    devices: Sequence[Device],
    boards: Sequence[Board | None],
    slowdown: float | None,
    factor: float,
    machine: Machine,
) -> tuple[str, ...]:
    notes = []
    if slowdown is not None:
        notes.append(
            f"1 s of the boards takes {slowdown:.2f} s here: one core of this machine does "
            f"{_core_gflops(machine):.0f} GFLOP/s, a board's figure is an estimate"
        )
        if factor != 1:
            notes.append(f"links are {factor:.2f} times slower too (scale_links)")
        elif slowdown > 1.05:
            notes.append(
                "links run at their real rate, so communication is relatively faster than on the "
                "boards; scale_links slows it down alike"
            )
    if any(device.power for device in devices):
        notes.append("watts and joules are emulated from CPU time and bytes, not measured")
        if slowdown is not None and slowdown > 1.05:
            notes.append(
                f"joules are {slowdown:.2f} times those of the boards, as all takes so much longer"
            )
    for spec, device, board in zip(pool.devices, devices, boards, strict=True):
        if board is not None and board.quality != "measured" and spec.power is None:
            notes.append(f"{device.name}'s watts are {board.curve.source}")
        if device.memory_bytes is not None and device.memory_bytes > machine.memory_bytes:
            notes.append(
                f"{device.name}'s {show_bytes(device.memory_bytes)} of memory are more than the "
                f"{show_bytes(machine.memory_bytes)} of this machine"
            )
    if pool.medium_mbit is not None or pool.medium_trace is not None:
        notes.append("all devices share one medium; each byte between two devices counts once")
    return tuple(notes)

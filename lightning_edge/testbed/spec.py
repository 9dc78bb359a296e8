"""What the user asks for: one `DeviceSpec` per device, and the `PoolSpec` around them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lightning_edge.errors import TestbedError
from lightning_edge.testbed import units
from lightning_edge.testbed.power import PowerCurve
from lightning_edge.testbed.trace import Trace, load_trace

__all__: list[str] = []

MOST_DEVICES = 250  # addresses of a /24 network
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")  # it becomes a host name


@dataclass(frozen=True)
class DeviceSpec:
    """One device. What is left out is not limited, or is the board's.

    Args:
        name: Host name on the testbed; `device0`, `device1`, ... or the board's name by default.
        board: A known board, with or without a power mode: `orin-nano:15W`.
        cpu: Cores it may use; 0.6 is 60 % of one core of this machine.
        memory_bytes: Memory it may use; a process that wants more is killed, as on a board.
        link_mbit: Rate of its link in Mbit/s, each way.
        trace: A rate that changes with time, instead of `link_mbit`.
        latency_s: Seconds added to each packet on its link, each way (needs netem).
        loss: Fraction of packets lost on its link, each way (needs netem).
        power: Its power curve; without one (and without a board) it has no meter.
    """

    name: str = ""
    board: str | None = None
    cpu: float | None = None
    memory_bytes: int | None = None
    link_mbit: float | None = None
    trace: Trace | None = None
    latency_s: float = 0.0
    loss: float = 0.0
    power: PowerCurve | None = None

    @classmethod
    def parse(cls, text: str) -> DeviceSpec:
        """Read `orin-nano:15W,cpu=60%,memory=2G,link=100mbit,latency=5ms,loss=1%,power=2W-8W`.

        `link=` also takes a trace: `wifi-indoors` or the path of a CSV file with t_s,mbit.

        Raises:
            TestbedError: Listing every part that cannot be read.
        """
        values: dict[str, Any] = {}
        problems = []
        for part in filter(None, (part.strip() for part in text.split(","))):
            key, equals, value = (piece.strip() for piece in part.partition("="))
            key, value = (key, value) if equals else ("board", key)
            if key in values:
                problems.append(f"{key} is given twice")
            values[key] = value
        return cls._build(values, problems, f"--device {text}")

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], where: str = "the device") -> DeviceSpec:
        """Read the same keys from a mapping, as in a YAML file."""
        return cls._build(values, [], where)

    @classmethod
    def _build(cls, values: Mapping[str, Any], problems: list[str], where: str) -> DeviceSpec:
        found: dict[str, Any] = {}
        for key, value in values.items():
            read = _READERS.get(str(key))
            if read is None:
                problems.append(f"there is no key {key!r}; known keys: {', '.join(_READERS)}")
                continue
            try:
                found.update(read(value))
            except (ValueError, TestbedError) as error:
                problems.append(f"{key}: {error}")
        raise_all(problems, where)
        return cls(**found)


@dataclass(frozen=True)
class PoolSpec:
    """All devices, and what they have in common.

    Args:
        devices: In the order of their ranks.
        medium_mbit: Rate in Mbit/s that all devices share, as on one Wi-Fi channel; None for
            separate links.
        medium_trace: A shared rate that changes with time, instead of `medium_mbit`.
        scale_links: Slow the links down by the same factor as the boards' arithmetic, so that the
            ratio of compute to communication is the boards' too.
    """

    devices: tuple[DeviceSpec, ...]
    medium_mbit: float | None = None
    medium_trace: Trace | None = None
    scale_links: bool = False

    @classmethod
    def from_yaml(cls, path: str | Path) -> PoolSpec:
        """Read a file with `devices:` (a list), `medium:` and `scale_links:`.

        Raises:
            TestbedError: Listing everything that is wrong with the file.
        """
        try:
            data = yaml.safe_load(Path(path).read_text())
        except OSError as error:
            raise TestbedError(f"the pool {str(path)!r} cannot be read: {error.strerror}") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise TestbedError(f"the pool {path} is not YAML: {error}") from None
        if not isinstance(data, Mapping) or not isinstance(data.get("devices"), list):
            raise TestbedError(f"the pool {path} needs a list `devices:`")
        problems = [
            f"there is no key {key!r}; known keys: devices, medium, scale_links"
            for key in data
            if key not in ("devices", "medium", "scale_links")
        ]
        devices = []
        for number, entry in enumerate(data["devices"]):
            try:
                if isinstance(entry, str):
                    devices.append(DeviceSpec.parse(entry))
                elif isinstance(entry, Mapping):
                    devices.append(DeviceSpec.from_mapping(entry, f"device {number}"))
                else:
                    problems.append(f"device {number} is {entry!r}, neither keys nor a text")
            except TestbedError as error:
                problems.append(str(error))
        medium: dict[str, Any] = {}
        try:
            medium = read_medium(data["medium"]) if data.get("medium") is not None else {}
        except (ValueError, TestbedError) as error:
            problems.append(f"medium: {error}")
        scale_links = data.get("scale_links", False)
        if not isinstance(scale_links, bool):
            problems.append(f"scale_links: {scale_links!r} is neither true nor false")
        raise_all(problems, f"the pool {path}")
        return cls(tuple(devices), scale_links=scale_links, **medium)


def check_specs(specs: Sequence[DeviceSpec], names: Sequence[str]) -> list[str]:
    """Return what is wrong with devices of these names, in sentences."""
    problems = [] if specs else ["there is no device; give at least one, --device cpu=60%"]
    if len(specs) > MOST_DEVICES:
        problems.append(f"{len(specs)} devices are more than the {MOST_DEVICES} of one testbed")
    for spec, name in zip(specs, names, strict=True):
        if not _NAME.fullmatch(name):
            problems.append(f"{name!r} is no host name: letters, digits and -, at most 63")
        elif names.count(name) > 1:
            problems.append(f"two devices are called {name!r}; give them a name=")
        if spec.cpu is not None and not spec.cpu > 0:
            problems.append(f"{name}: cpu={spec.cpu} is not above 0")
        if spec.memory_bytes is not None and spec.memory_bytes < 2**20:
            problems.append(f"{name}: memory={spec.memory_bytes} bytes is less than 1M")
        if spec.link_mbit is not None and not spec.link_mbit > 0:
            problems.append(f"{name}: link={spec.link_mbit}mbit is not above 0")
        if not 0 <= spec.loss < 1:
            problems.append(f"{name}: loss={spec.loss} is not in 0..1")
        if spec.power is not None and not 0 <= spec.power.idle_w <= spec.power.busy_w:
            problems.append(
                f"{name}: power={spec.power.idle_w}W-{spec.power.busy_w}W: idle comes first"
            )
    return list(dict.fromkeys(problems))


def raise_all(problems: Sequence[str], where: str) -> None:
    """Raise one error with all problems, or return if there are none."""
    if len(problems) == 1:
        raise TestbedError(f"{where}: {problems[0]}")
    if problems:
        lines = "".join(f"\n  {number}. {line}" for number, line in enumerate(problems, 1))
        raise TestbedError(f"{where} has {len(problems)} problems:{lines}")


def read_medium(value: object) -> dict[str, Any]:
    """Read a shared rate or a trace as the matching arguments of `PoolSpec`."""
    return {f"medium_{key.removeprefix('link_')}": found for key, found in _link(value).items()}


def _link(value: object) -> dict[str, Any]:
    if re.match(r"\s*\d[\d.]*\s*[kmg]?bit\s*$", str(value).lower()):
        return {"link_mbit": units.rate_mbit(value)}
    return {"trace": load_trace(str(value))}


def _power(value: object) -> dict[str, Any]:
    idle, dash, busy = str(value).partition("-")
    if not dash:
        raise ValueError(f"{value!r} is no power curve; write idle and busy watts as 2.5W-8W")
    return {"power": PowerCurve(units.watts(idle), units.watts(busy))}


_READERS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "name": lambda value: {"name": str(value)},
    "board": lambda value: {"board": str(value)},
    "cpu": lambda value: {"cpu": units.fraction(value)},
    "memory": lambda value: {"memory_bytes": units.memory_bytes(value)},
    "link": _link,
    "latency": lambda value: {"latency_s": units.seconds(value)},
    "loss": lambda value: {"loss": units.fraction(value)},
    "power": _power,
}

"""``record``: what this machine's sensors say, as a tarball that another machine can replay.

::

    energy-<board>.tar.gz
      meta.json       board, kernel, which sources were used and why
      tree/...        the files that sources read, as they were at the start
      frames.jsonl    {"t_s": .., "files": {path: new text}, "commands": {command: output}}
      readings.jsonl  {"t_s": .., "kind": "nvml", "energy_j": {..}, "power_w": {..}}

A recording of a board that nobody here owns is a test fixture. It holds no serial numbers, no host
name and no boot id; what is recorded is exactly what `FILES` lists.
"""

from __future__ import annotations

import io
import json
import platform
import subprocess
import tarfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning_edge.energy.host import HostEnv
from lightning_edge.energy.select import open_sources
from lightning_edge.energy.source import SourceError, SourceLost
from lightning_edge.energy.sources import hwmon, jetson_ina
from lightning_edge.energy.sources.raspberry_pi import COMMAND

FORMAT = 1
MAX_TEXT = 65_536
SETTINGS = (hwmon.TOTAL_VARIABLE, jetson_ina.TOTAL_VARIABLE)
"""Environment variables that say what the files mean."""

FILES = (
    "/proc/stat",
    "/proc/device-tree/model",
    "/proc/device-tree/compatible",
    "/etc/nv_tegra_release",
    "/etc/nvpmodel.conf",
    "/var/lib/nvpmodel/status",
    "/sys/bus/i2c/devices/*/name",
    "/sys/bus/i2c/devices/*/hwmon/hwmon*/*_label",
    "/sys/bus/i2c/devices/*/hwmon/hwmon*/*_input",
    "/sys/bus/i2c/devices/*/hwmon/hwmon*/in*_enable",
    "/sys/bus/i2c/devices/*/hwmon/hwmon*/update_interval",
    "/sys/bus/i2c/devices/*/hwmon/hwmon*/samples",
    "/sys/bus/i2c/devices/*/iio:device*/rail_name_*",
    "/sys/bus/i2c/devices/*/iio:device*/in_*_input",
    "/sys/class/powercap/intel-rapl*/name",
    "/sys/class/powercap/intel-rapl*/energy_uj",
    "/sys/class/powercap/intel-rapl*/max_energy_range_uj",
    "/sys/class/powercap/intel-rapl*/constraint_0_power_limit_uw",
    "/sys/class/powercap/intel-rapl*/intel-rapl*/name",
    "/sys/class/powercap/intel-rapl*/intel-rapl*/energy_uj",
    "/sys/class/powercap/intel-rapl*/intel-rapl*/max_energy_range_uj",
    *(
        f"/sys/class/power_supply/*/{name}"
        for name in (
            "type", "scope", "status", "present", "capacity", "energy_now", "charge_now",
            "power_now", "current_now", "voltage_now",
        )
    ),
    *(
        f"/sys/class/hwmon/hwmon*/{name}"
        for name in (
            "name", "in1_label", "power*_input", "power*_average", "power1_cap", "energy*_input",
        )
    ),
    "/sys/class/drm/card*/device/gpu_busy_percent",
    "/sys/class/thermal/thermal_zone*/type",
    "/sys/class/thermal/thermal_zone*/temp",
    "/sys/class/devfreq/*/device/load",
)  # fmt: skip


def record(host: HostEnv, path: Path, seconds: float, period_s: float = 0.1) -> int:
    """Record for `seconds` and write the tarball; returns the number of frames."""
    sources, choices = open_sources("auto", host)
    begin_s = host.clock()
    first, unreadable = _read(host)
    frames: list[dict[str, Any]] = []
    readings: list[dict[str, Any]] = []
    known = dict(first)
    try:
        while True:
            now_s = host.clock() - begin_s
            for source in sources:
                try:
                    reading = source.read()
                except (SourceError, SourceLost) as error:
                    readings.append({"t_s": now_s, "kind": source.kind, "error": str(error)})
                    continue
                readings.append(
                    {
                        "t_s": reading.t_s - begin_s,
                        "kind": source.kind,
                        "energy_j": dict(reading.energy_j),
                        "power_w": dict(reading.power_w),
                        "aux": dict(reading.aux),
                    }
                )
            now, _ = _read(host)
            changed = {name: text for name, text in now.items() if known.get(name) != text}
            known.update(changed)
            frames.append({"t_s": now_s, "files": changed, "commands": _commands(host)})
            if now_s >= seconds:
                break
            time.sleep(period_s)
    finally:
        for source in sources:
            source.close()
    meta = {
        "format": FORMAT,
        "board": host.board,
        "architecture": host.machine,
        "kernel": platform.release(),
        "choices": [asdict(choice) for choice in choices],
        "environ": {name: host.environ[name] for name in SETTINGS if name in host.environ},
        "domains": {s.kind: [d.to_mapping() for d in s.domains] for s in sources},
        "unreadable": unreadable,
    }
    _write(path, meta, first, frames, readings)
    return len(frames)


def _read(host: HostEnv) -> tuple[dict[str, str], dict[str, str]]:
    """Text of every file of `FILES` that is there, and the error of each that cannot be read."""
    found: dict[str, str] = {}
    unreadable: dict[str, str] = {}
    for path in _paths(host):
        name = "/" + path.relative_to(host.sysroot).as_posix()
        try:
            text = path.read_text(errors="replace")[:MAX_TEXT]
            # Only the sum over all cores is used of /proc/stat.
            found[name] = text.partition("\n")[0] + "\n" if name == "/proc/stat" else text
        except OSError as error:
            unreadable[name] = type(error).__name__
    return found, unreadable


def _paths(host: HostEnv) -> Iterator[Path]:
    for pattern in FILES:
        yield from sorted(host.sysroot.glob(pattern.lstrip("/")))


def _commands(host: HostEnv) -> dict[str, str]:
    if "Raspberry Pi" not in (host.board or ""):
        return {}
    try:
        return {" ".join(COMMAND): host.run(COMMAND, 2.0)}
    except (OSError, subprocess.SubprocessError):
        return {}


def _write(
    path: Path,
    meta: dict[str, Any],
    tree: dict[str, str],
    frames: list[dict[str, Any]],
    readings: list[dict[str, Any]],
) -> None:
    members = {"meta.json": json.dumps(meta, indent=1)}
    members |= {f"tree{name}": text for name, text in tree.items()}
    members["frames.jsonl"] = "".join(json.dumps(frame) + "\n" for frame in frames)
    members["readings.jsonl"] = "".join(json.dumps(reading) + "\n" for reading in readings)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        for name, text in members.items():
            content = text.encode()
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))

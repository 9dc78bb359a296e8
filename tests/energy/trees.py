"""Faked /sys and /proc trees of the machines that sources know, and a clock that the test turns."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from lightning_edge.energy import HostEnv


class Clock:
    """Monotonic seconds that move only when told to."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s

    def pass_s(self, seconds: float) -> None:
        self.now_s += seconds


def no_command(command: Sequence[str], timeout_s: float) -> str:
    raise FileNotFoundError(command[0])


def no_nvml() -> object:
    raise ImportError("no NVML in this test")


def no_jtop() -> object:
    raise ImportError("No module named 'jtop'")


def faked_host(
    root: Path,
    clock: Callable[[], float],
    *,
    environ: Mapping[str, str] | None = None,
    run: Callable[[Sequence[str], float], str] = no_command,
) -> HostEnv:
    return HostEnv(
        sysroot=root,
        environ=environ or {},
        run=run,
        clock=clock,
        nvml=no_nvml,
        jtop=no_jtop,
        machine="faked",
    )


def write(root: Path, files: Mapping[str, object]) -> None:
    for name, content in files.items():
        path = root / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")


# Board -> chip -> channel number -> (rail, mV, mA); as in EnergyMon tables and real dumps.
Chips = Mapping[str, Mapping[int, tuple[str, int, int]]]

HWMON_BOARDS: Mapping[str, Chips] = {
    "Orin Nano": {
        "1-0040": {
            1: ("VDD_IN", 5000, 1400),
            2: ("VDD_CPU_GPU_CV", 5000, 500),
            3: ("VDD_SOC", 5000, 300),
        }
    },
    "AGX Orin": {
        "1-0040": {
            1: ("VDD_GPU_SOC", 19000, 166),
            2: ("VDD_CPU_CV", 19000, 753),
            3: ("VIN_SYS_5V0", 4968, 1000),
        },
        "1-0041": {1: ("NC", 0, 0), 2: ("VDDQ_VDD2_1V8AO", 4968, 220), 3: ("NC", 0, 0)},
    },
    "IGX Orin": {
        "1-0040": {
            1: ("VDD_GPU_SOC", 19000, 166),
            2: ("VDD_CPU_CV", 19000, 753),
            3: ("VIN_SYS_5V0", 4968, 1000),
        },
        "2-0041": {
            1: ("CVB_ATX_12V", 12000, 3000),
            2: ("CVB_ATX_3V3", 3300, 100),
            3: ("CVB_ATX_5V", 5000, 200),
        },
    },
    "AGX Xavier": {
        "1-0040": {1: ("GPU", 19000, 60), 2: ("CPU", 19000, 20), 3: ("SOC", 19000, 130)},
        "1-0041": {1: ("CV", 19000, 0), 2: ("VDDRQ", 19000, 10), 3: ("SYS5V", 5000, 540)},
    },
    "Xavier NX": {
        "7-0040": {
            1: ("VDD_IN", 5000, 1000),
            2: ("VDD_CPU_GPU_CV", 5000, 200),
            3: ("VDD_SOC", 5000, 200),
        }
    },
    "Thor without VIN": {
        "1-0040": {
            1: ("VDD_GPU", 19000, 500),
            2: ("VDD_CPU_SOC_MSS", 19000, 400),
            3: ("VIN_SYS_5V0", 5000, 1000),
        }
    },
    "Orin NX": {
        "1-0040": {
            1: ("VDD_IN", 5000, 2200),
            2: ("VDD_CPU_GPU_CV", 5000, 900),
            3: ("VDD_SOC", 5000, 500),
        }
    },
    "TX2 NX": {
        "7-0040": {
            1: ("VDD_IN", 5000, 800),
            2: ("VDD_CPU_GPU", 5000, 150),
            3: ("VDD_SOC", 5000, 180),
        }
    },
    "TX1": {
        "1-0040": {
            1: ("VDD_IN", 19000, 180),
            2: ("VDD_SYS_GPU", 19000, 20),
            3: ("VDD_SYS_CPU", 19000, 40),
        },
        "1-0042": {1: ("VDD_MUX", 19000, 25), 2: ("VDD_5V0_IO_SYS", 5000, 30), 3: ("NC", 0, 0)},
    },
    "TX2": {
        "0-0041": {1: ("VDD_IN", 19000, 200), 2: ("VDD_SYS_CPU", 19000, 50), 3: ("NC", 0, 0)},
        "0-0042": {1: ("VDD_MUX", 19000, 30), 2: ("VDD_5V0_IO_SYS", 5000, 20), 3: ("NC", 0, 0)},
    },
}

HWMON_TOTALS_W = {
    "Orin Nano": 7.0,
    "AGX Orin": 22.429,
    "IGX Orin": 22.429,
    "AGX Xavier": 6.880,
    "Xavier NX": 5.0,
    "Thor without VIN": 22.1,
    "TX2": 4.37,
    "Orin NX": 11.0,
    "TX2 NX": 4.0,
    "TX1": 3.895,
}


def jetson(root: Path, chips: Chips) -> None:
    """An INA3221 tree as hwmon shows it (JetPack 5 and later)."""
    for number, (device, channels) in enumerate(chips.items()):
        base = f"/sys/bus/i2c/devices/{device}"
        files: dict[str, object] = {f"{base}/name": "ina3221"}
        folder = f"{base}/hwmon/hwmon{3 + 2 * number}"
        for channel, (rail, millivolt, milliampere) in channels.items():
            files |= {
                f"{folder}/in{channel}_label": rail,
                f"{folder}/in{channel}_input": millivolt,
                f"{folder}/curr{channel}_input": milliampere,
                f"{folder}/curr{channel}_max": 9999,
                f"{folder}/curr{channel}_crit": 9999,
            }
        files[f"{folder}/in7_label"] = "sum of shunt voltages"
        files[f"{folder}/in7_input"] = 12
        files[f"{folder}/update_interval"] = 36
        write(root, files)
    write(root, {"/sys/bus/i2c/devices/0-0050/name": "24c02"})  # an EEPROM on the same bus


def jetson_nano(root: Path) -> None:
    """The Nano's tree as iio shows it (JetPack 4)."""
    base = "/sys/bus/i2c/devices/6-0040"
    files: dict[str, object] = {f"{base}/name": "ina3221x"}
    rails = {0: ("POM_5V_IN", 190), 1: ("POM_5V_GPU", 10), 2: ("POM_5V_CPU", 17)}
    for number, (rail, milliampere) in rails.items():
        files |= {
            f"{base}/iio:device0/rail_name_{number}": rail,
            f"{base}/iio:device0/in_voltage{number}_input": 5000,
            f"{base}/iio:device0/in_current{number}_input": milliampere,
            f"{base}/iio:device0/in_power{number}_input": 5 * milliampere,
        }
    write(root, files)


def thor(root: Path) -> None:
    """Thor: an INA238 at the carrier's input beside the INA3221."""
    jetson(root, HWMON_BOARDS["Thor without VIN"])
    write(
        root,
        {
            "/sys/bus/i2c/devices/2-0044/name": "ina238",
            "/sys/bus/i2c/devices/2-0044/hwmon/hwmon9/power1_input": 31_500_000,
        },
    )


RAPL_RANGE_UJ = 262_143_328_850


def rapl(root: Path, *, psys: bool = True, dram: bool = True, sockets: int = 1) -> None:
    """An Intel machine; every counter starts close below its range."""
    base = "/sys/class/powercap"

    def zone(path: str, name: str) -> None:
        write(
            root,
            {
                f"{base}/{path}/name": name,
                f"{base}/{path}/energy_uj": RAPL_RANGE_UJ - 1_000_000,
                f"{base}/{path}/max_energy_range_uj": RAPL_RANGE_UJ,
            },
        )

    for socket in range(sockets):
        zone(f"intel-rapl:{socket}", f"package-{socket}")
        zone(f"intel-rapl:{socket}/intel-rapl:{socket}:0", "core")
        if dram:
            zone(f"intel-rapl:{socket}/intel-rapl:{socket}:1", "dram")
    if psys:
        zone(f"intel-rapl:{sockets}", "psys")
    zone("intel-rapl-mmio:0", "package-0")


def spend(root: Path, zone: str, joules: float) -> None:
    """Let a RAPL counter run on, around its range if need be."""
    path = root / "sys/class/powercap" / zone / "energy_uj"
    value = (int(path.read_text()) + round(joules * 1e6)) % (RAPL_RANGE_UJ + 1)
    path.write_text(f"{value}\n")


def laptop_battery(root: Path, *, status: str = "Discharging") -> None:
    base = "/sys/class/power_supply/BAT0"
    write(
        root,
        {
            f"{base}/type": "Battery",
            f"{base}/status": status,
            f"{base}/present": 1,
            f"{base}/capacity": 72,
            f"{base}/energy_now": 36_000_000,
            f"{base}/power_now": 12_500_000,
            "/sys/class/power_supply/AC/type": "Mains",
            "/sys/class/power_supply/hidpp_battery_0/type": "Battery",
            "/sys/class/power_supply/hidpp_battery_0/scope": "Device",
            "/sys/class/power_supply/hidpp_battery_0/status": "Discharging",
        },
    )


def cpu_stat(root: Path, busy_s: float, idle_s: float) -> None:
    write(root, {"/proc/stat": f"cpu  {round(100 * busy_s)} 0 0 {round(100 * idle_s)} 0 0 0 0 0 0"})


PMIC = """\
 3V7_WL_SW_A current(0)=0.10000000A
   3V3_SYS_A current(1)=0.20000000A
  VDD_CORE_A current(7)=2.00000000A
  EXT5V_V volt(24)=5.10000000V
 3V7_WL_SW_V volt(8)=3.70000000V
   3V3_SYS_V volt(9)=3.30000000V
  VDD_CORE_V volt(15)=0.80000000V
     BATT_V volt(25)=0.00000000V
"""


def pmic_command(command: Sequence[str], timeout_s: float) -> str:
    if tuple(command) != ("vcgencmd", "pmic_read_adc"):
        raise subprocess.CalledProcessError(1, list(command))
    return PMIC

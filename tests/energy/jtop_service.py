"""Run by test_jtop.py: jetson-stats' own service on a faked tree, its own client, our source.

Arguments: the faked tree's root, a scratch directory. Prints JSON. The service wants root and fixed
paths; it is made to run as anyone, with a socket, a group, a configuration and power rails of the
test's, and a fake `nvpmodel` on PATH.
"""

from __future__ import annotations

import grp
import json
import multiprocessing
import os
import sys
import time
import types
from pathlib import Path
from typing import Any
from unittest import mock

package = types.ModuleType("lightning_edge")
package.__path__ = [str(Path(__file__).parents[2] / "lightning_edge")]
sys.modules["lightning_edge"] = package

from lightning_edge.energy import EnergyMeter, HostEnv, SourceError, SourceLost, Unavailable  # noqa: E402
from lightning_edge.energy.domain import roots  # noqa: E402
from lightning_edge.energy.power_modes import JtopPowerControl  # noqa: E402
from lightning_edge.energy.sources import jtop as jtop_source  # noqa: E402
from lightning_edge.errors import EnergyError  # noqa: E402

tree, scratch = Path(sys.argv[1]), Path(sys.argv[2])
answers: dict[str, Any] = {}

# Before the service is there.
multiprocessing.set_start_method("spawn")
host = HostEnv()
try:
    jtop_source.JtopSource.probe(host)
except Unavailable as error:
    answers["no_service"] = str(error)
answers["start_method"] = multiprocessing.get_start_method()

nvpmodel = scratch / "nvpmodel"
nvpmodel.write_text(
    f"""#!/bin/sh
case "$1" in
  -p) echo "POWER_MODEL: ID=0 NAME=15W"; echo "POWER_MODEL: ID=1 NAME=25W"
      echo "POWER_MODEL: ID=2 NAME=MAXN_SUPER"; echo "PM_CONFIG: DEFAULT=25W(1)";;
  -q) set -- $(cat {scratch}/mode); echo "NV Power Mode: $2"; echo "$1";;
  -m) sleep 0.3
      case "$2" in 0) n=15W;; 1) n=25W;; 2) echo "NVPM ERROR: reboot required"; exit 0;; esac
      echo "$2 $n" > {scratch}/mode;;
esac
"""
)
nvpmodel.chmod(0o755)
(scratch / "mode").write_text("1 25W\n")
os.environ["PATH"] = f"{scratch}:{os.environ['PATH']}"

import jtop.core.config as config  # noqa: E402
import jtop.core.power as power  # noqa: E402
import jtop.service as service  # noqa: E402

multiprocessing.set_start_method("fork", force=True)  # what the service needs, and jtop asks for
service.JTOP_PIPE = str(scratch / "jtop.sock")
service.JTOP_USER = grp.getgrgid(os.getgid()).gr_name
service.get_hardware = lambda: {"Model": "faked"}
config.get_config_service = lambda data_folder="": str(scratch / "configuration")


class PowerService(power.PowerService):  # type: ignore[misc, name-defined]
    def __init__(self) -> None:
        self._power_sensor = power.find_all_i2c_power_monitor(str(tree / "sys/bus/i2c/devices"))
        self._power_avg = {}


service.PowerService = PowerService


def start() -> Any:
    with mock.patch("os.getuid", return_value=0):
        server = service.JtopServer(force=True)
    server.start()
    return server


server = start()
multiprocessing.set_start_method("spawn", force=True)
try:
    source = jtop_source.JtopSource.probe(host)
    answers["start_method_after_use"] = multiprocessing.get_start_method()
    answers["domains"] = {d.id: d.parent for d in source.domains}
    answers["total"] = [d.name for d in roots(source.domains)]
    answers["power_w"] = dict(source.read().power_w)

    total = tree / "sys/bus/i2c/devices/1-0040/hwmon/hwmon3/curr1_input"
    total.write_text("2000\n")
    deadline = time.monotonic() + 5.0
    while source.read().power_w.get("jtop:VDD_IN") != 10.0 and time.monotonic() < deadline:
        time.sleep(0.02)
    answers["power_w_changed"] = dict(source.read().power_w)

    with EnergyMeter([source], background=False) as meter, meter.window() as window:
        for _ in range(12):
            time.sleep(0.05)
            meter.read()
    answers["energy_j"], answers["duration_s"] = window.report.energy_j, window.report.duration_s
    # That closed the first source. The next one loses its total while it listens.
    source = jtop_source.JtopSource.probe(host)
    total.unlink()
    deadline = time.monotonic() + 5.0
    while "jtop:VDD_IN" in source.read().power_w and time.monotonic() < deadline:
        time.sleep(0.02)
    answers["without_total"] = dict(source.read().power_w)
    total.write_text("1400\n")

    with JtopPowerControl(host) as control:
        answers["modes"], answers["mode"] = control.modes(), control.current()
        control.set("15W", timeout_s=8.0)
        answers["mode_set"] = (scratch / "mode").read_text().split()
        for mode in ("MAXN_SUPER", "nonsense"):
            try:
                control.set(mode, timeout_s=1.5)
            except EnergyError as error:
                answers[f"refused {mode}"] = str(error)
    answers["mode_restored"] = (scratch / "mode").read_text().split()
finally:
    server.broadcaster.shutdown()
    server.terminate()
    server.join(5.0)

# The service is dead; jtop's client goes on giving its last value.
lost = ""
deadline = time.monotonic() + 10.0
while not lost and time.monotonic() < deadline:
    try:
        source.read()
        time.sleep(0.02)
    except SourceLost as error:
        lost = str(error)
    except SourceError:
        time.sleep(0.02)
answers["lost"] = lost
source.close()
json.dump(answers, sys.stdout)
sys.stdout.flush()
os._exit(0)  # jtop's own daemon threads may sit in a dead socket

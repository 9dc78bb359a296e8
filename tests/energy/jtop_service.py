"""Run by test_jtop.py: jetson-stats' own service on a faked tree, its own client, our source.

Arguments: the faked tree's root, a scratch directory. Prints JSON.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
import types
from pathlib import Path
from typing import Any

package = types.ModuleType("lightning_edge")
package.__path__ = [str(Path(__file__).parents[2] / "lightning_edge")]
package.__version__ = "0"  # type: ignore[attr-defined]
sys.modules["lightning_edge"] = package
sys.path.insert(0, str(Path(__file__).parents[2]))

from omegaconf import OmegaConf  # noqa: E402

from lightning_edge.app.failure import CommandError  # noqa: E402
from lightning_edge.app.power import in_power_mode  # noqa: E402
from lightning_edge.energy import EnergyMeter, HostEnv, SourceError, SourceLost, Unavailable  # noqa: E402
from lightning_edge.energy.domain import roots  # noqa: E402
from lightning_edge.energy.power_modes import JtopPowerControl  # noqa: E402
from lightning_edge.energy.sources import jtop as jtop_source  # noqa: E402
from lightning_edge.errors import EnergyError  # noqa: E402
from tests.energy.jtop_faked import start_service, stop_service  # noqa: E402

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

server = start_service(tree, scratch)
multiprocessing.set_start_method("spawn", force=True)
try:
    # Whoever is first at the service decides how often it looks: a slow one, then ours.
    slow = host.jtop().jtop(interval=1.0)
    slow.start()
    with EnergyMeter("jtop", host=host) as meter, meter.window() as window:
        time.sleep(3.2)
    slow.close()
    answers["slow_covered"], answers["slow_w"] = window.report.coverage, window.report.power_w
    deadline = time.monotonic() + 10.0
    while server.interval.value > 0 and time.monotonic() < deadline:
        time.sleep(0.05)  # until the service has noticed that both have gone

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

    config = OmegaConf.create({"device": {"power_mode": "15W"}})
    with in_power_mode(config, host):
        answers["mode_of_run"] = (scratch / "mode").read_text().split()
    answers["mode_after_run"] = (scratch / "mode").read_text().split()
    try:
        config.device.power_mode = "MAXN_SUPER"
        with in_power_mode(config, host):
            answers["run refused MAXN_SUPER"] = "it ran"
    except CommandError as error:
        answers["run refused MAXN_SUPER"] = str(error)
finally:
    stop_service(server)

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

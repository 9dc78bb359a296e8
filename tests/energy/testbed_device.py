"""Run by test_testbed.py on each emulated device: a busy and a quiet second, and what they cost."""

from __future__ import annotations

import json
import os
import sys
import time
import types
from pathlib import Path

package = types.ModuleType("lightning_edge")
package.__path__ = [str(Path(__file__).parents[2] / "lightning_edge")]
sys.modules["lightning_edge"] = package

from lightning_edge.energy import EnergyMeter  # noqa: E402
from lightning_edge.energy.pool import RankAccount  # noqa: E402

with EnergyMeter() as meter:
    with meter.window("busy") as busy:
        until_s = time.monotonic() + 1.0
        while time.monotonic() < until_s:
            pass
    with meter.window("quiet") as quiet:
        time.sleep(1.0)
    totals = meter.totals()
rank, name = int(os.environ["RANK"]), os.environ["LIGHTNING_EDGE_DEVICE"]
account = RankAccount(rank, name, meter.host.boot_id, totals)
print("ACCOUNT " + json.dumps(account.to_mapping()))
print("POWERS " + json.dumps([busy.report.power_w, quiet.report.power_w]))

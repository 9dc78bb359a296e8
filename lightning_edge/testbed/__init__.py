"""A testbed of unequal devices on one Linux machine.

    spec.py  boards.py  trace.py     what is asked for: devices, known boards, bandwidth over time
    machine.py  resolve.py           what this machine can do of it, and at which scale
    slots.py  network.py  cgroups.py what is built: namespaces, shaped links, quotas; and removed
    run.py  device_run.py  launch.py what runs on it: one rank per device
    faults.py  controls.py           what happens to it meanwhile
    sampler.py  meter.py  result.py  what is counted: CPU, bytes, memory, emulated joules

Linux and root only. Nothing in here needs torch.
"""

from __future__ import annotations

from lightning_edge.testbed.bed import Testbed
from lightning_edge.testbed.faults import Action, Fault
from lightning_edge.testbed.machine import missing_requirements
from lightning_edge.testbed.power import PowerCurve
from lightning_edge.testbed.result import DeviceResult, RunResult
from lightning_edge.testbed.spec import DeviceSpec, PoolSpec
from lightning_edge.testbed.trace import Trace, load_trace

__all__ = [
    "Action",
    "DeviceResult",
    "DeviceSpec",
    "Fault",
    "PoolSpec",
    "PowerCurve",
    "RunResult",
    "Testbed",
    "Trace",
    "load_trace",
    "missing_requirements",
]

"""What this machine can give: cores, memory, speed; and what it lacks to run a testbed at all."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil

from lightning_edge.errors import TestbedError
from lightning_edge.testbed.cgroup_mounts import find_cgroups

__all__: list[str] = []

# Bits of CapEff in /proc/self/status: root in a container may lack them.
_CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_SYS_ADMIN": 21}

# Best of many short runs: other work on the machine only ever makes a run slower.
_SGEMM = """
import time, numpy
a = numpy.ones((512, 512), dtype=numpy.float32)
best, end = 1e9, time.perf_counter() + 0.4
while time.perf_counter() < end:
    start = time.perf_counter(); a @ a; best = min(best, time.perf_counter() - start)
print(2 * 512 ** 3 / best / 1e9)
"""


@dataclass(frozen=True)
class Machine:
    """What there is.

    Args:
        cores: That this process may use.
        memory_bytes: All of it.
        core_gflops: GFLOP/s of one core in a product of FP32 matrices; None if not measured.
    """

    cores: int
    memory_bytes: int
    core_gflops: float | None


def this_machine(*, measure: bool = True) -> Machine:
    """Look at this machine; measuring its speed takes half a second the first time."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    gflops = _core_gflops() if measure else None
    return Machine(cores, psutil.virtual_memory().total, gflops)


@cache
def _core_gflops() -> float:
    single = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", _SGEMM],
        env={**os.environ, **single},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    try:
        return float(done.stdout)
    except ValueError:
        raise TestbedError(
            f"the speed of this machine could not be measured: {done.stderr.strip()[-500:]}"
        ) from None


def missing_requirements() -> tuple[str, ...]:
    """Return what is missing for a testbed on this machine, one sentence each; empty if nothing."""
    if sys.platform != "linux":
        return (f"the testbed needs Linux (network namespaces, cgroups); this is {sys.platform}",)
    missing = []
    if os.geteuid() != 0:
        missing.append(
            f"the testbed needs root; this is user {os.geteuid()}: "
            f"run it as `sudo {sys.executable} -m lightning_edge.testbed run ...`"
        )
    else:
        status = Path("/proc/self/status").read_text()
        held = int(status.partition("CapEff:")[2].split()[0], 16)
        missing += [
            f"root lacks {name} here; start the container with --privileged"
            for name, bit in _CAPABILITIES.items()
            if not held >> bit & 1
        ]
    missing += [
        f"the command `{tool}` is missing; `apt-get install iproute2` brings it"
        for tool in ("ip", "tc")
        if shutil.which(tool) is None
    ]
    if not missing:
        try:
            find_cgroups()
        except TestbedError as error:
            missing.append(str(error))
    return tuple(missing)

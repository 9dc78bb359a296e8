"""What a source costs: CPU time of the meter's thread on faked machines, one process per source.

    python -m benchmarks.energy_cost               # every source, about a minute and a half
    python -m benchmarks.energy_cost --seconds 3   # a quick look

Each source is read by the real sampler at the pace that the meter chooses. What is counted is the
process's CPU time (and that of the commands it runs), less that of the same process without a
meter. The library under `nvml` is a stub: a real driver takes longer, and the pace follows.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LIMIT = 0.005
SOURCES = (
    "jetson", "rapl", "nvml", "hwmon", "raspberry_pi", "battery", "model", "gpu_model", "emulated",
    "jtop",
)  # fmt: skip

CHILD = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location(
    "lightning_edge", "lightning_edge/__init__.py", submodule_search_locations=["lightning_edge"]
)
# Not executed: energy/ stands alone, without the seconds of torch.
sys.modules["lightning_edge"] = importlib.util.module_from_spec(spec)
sys.path.insert(0, "")
from benchmarks.energy_cost import measure
measure(sys.argv[1], sys.argv[2], float(sys.argv[3]))
"""


def measure(kind: str, folder: str, seconds: float) -> None:
    """In a process of its own: print what a source costs."""
    from lightning_edge.energy import EnergyMeter

    host = _machine(kind, Path(folder))
    server: Any = None
    if kind == "jtop":
        from tests.energy.jtop_faked import start_service, stop_service

        server = start_service(Path(folder), Path(tempfile.mkdtemp(dir=folder)))
    empty = _used(seconds / 2)
    with EnergyMeter(kind, host=host) as meter:
        time.sleep(1.0)  # files are opened and caches warmed
        used = _used(seconds)
        feed = meter.feeds[0]
        found = {
            "us": 1e6 * feed.cost_s,
            "period_s": feed.interval_s,
            "share": max(used - empty, 0.0),
        }
    print(json.dumps(found), flush=True)
    if server is not None:
        stop_service(server)
        os._exit(0)  # jtop's threads may sit in a dead socket


def _used(seconds: float) -> float:
    """CPU seconds of this process and its ended children per second."""
    before, begin_s = _cpu_s(), time.monotonic()
    time.sleep(seconds)
    return (_cpu_s() - before) / (time.monotonic() - begin_s)


def _cpu_s() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def _machine(kind: str, root: Path) -> Any:
    """A faked machine that has this source."""
    from lightning_edge.energy import HostEnv
    from tests.energy import trees

    environ: dict[str, str] = {}
    if kind in ("jetson", "jtop"):
        trees.jetson(root, trees.HWMON_BOARDS["AGX Orin"])
    elif kind == "rapl":
        trees.rapl(root, sockets=2)
    elif kind == "hwmon":
        trees.write(root, {"/sys/class/hwmon/hwmon0/name": "amdgpu"})
        trees.write(root, {"/sys/class/hwmon/hwmon0/power1_average": 35_000_000})
    elif kind == "raspberry_pi":
        trees.write(root, {"/proc/device-tree/model": "Raspberry Pi 5"})
        command = root / "vcgencmd"
        command.write_text(f"#!/bin/sh\ncat <<'END'\n{trees.PMIC}END\n")
        command.chmod(0o755)
        os.environ["PATH"] = f"{root}:{os.environ['PATH']}"
    elif kind == "battery":
        trees.laptop_battery(root)
    elif kind == "emulated":
        from lightning_edge.testbed.meter import Meter
        from lightning_edge.testbed.power import PowerCurve

        Meter(root, device="d", board=None, curve=PowerCurve(1, 2), update_period_s=0.05)
        (root / "time_s").write_text("1e12")  # nobody renews it here, and that is not to be noticed
        environ["LIGHTNING_EDGE_METER_DIR"] = str(root)
    return HostEnv(sysroot=Path("/") if kind in ("model", "jtop") else root, environ=environ)


def _stub(folder: Path) -> Path:
    library = folder / "libnvidia-ml.so.1"
    compiler = shutil.which("cc") or shutil.which("gcc") or "cc"
    source = str(ROOT / "tests/energy/stub_nvml.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(library), source], check=True)
    return folder


def _one(kind: str, seconds: float) -> dict[str, float] | None:
    with tempfile.TemporaryDirectory() as folder:
        environ = {**os.environ, "OMP_NUM_THREADS": "1"}
        environ.pop("CUDA_VISIBLE_DEVICES", None)
        if kind in ("nvml", "gpu_model"):
            environ["LD_LIBRARY_PATH"] = str(_stub(Path(folder)))
            environ["STUB_NVML"] = "laptop" if kind == "gpu_model" else "desktop"
        done = subprocess.run(
            [sys.executable, "-c", CHILD, kind, folder, str(seconds)],
            cwd=ROOT, env=environ, capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
    if done.returncode != 0:
        print(f"{kind}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        return None
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--only", nargs="*", default=SOURCES, choices=SOURCES)
    arguments = parser.parse_args()
    print("| source | us per reading | mean period | share of a core, measured |")
    print("|---|---|---|---|")
    worst = 0.0
    for kind in arguments.only:
        found = _one(kind, arguments.seconds)
        if found is not None:
            worst = max(worst, found["share"])
            print(
                f"| {kind} | {found['us']:.0f} | {found['period_s']:.2f} s "
                f"| {found['share']:.2%} |", flush=True,
            )  # fmt: skip
    print(f"\nlimit {LIMIT:.1%}: {'held' if worst < LIMIT else 'MISSED'}")
    return 0 if worst < LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())

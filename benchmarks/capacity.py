"""The largest GPT that trains on 1, 2, 3, 4 devices of 1 GB each, with real limits on their memory.

    python -m benchmarks.capacity                     all pools, bisecting the number of blocks
    python -m benchmarks.capacity --devices 1 2 --quick

A model counts as trained when three steps of AdamW end well on every device. It is built in
`configure_model`; alone that is plain Lightning, with DDP every device holds it whole, and ours
holds a part of it on each. A device that needs more than its limit is killed by the kernel.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.capacity_run import WIDTH, parameters
from benchmarks.sized import Sized, draw, show, write
from lightning_edge.testbed.bed import Testbed
from lightning_edge.testbed.result import RunResult
from lightning_edge.testbed.spec import DeviceSpec

MIB = 1 << 20
LIMIT_BYTES = 1 << 30
TARGETS = {2: 1.8, 3: 2.6, 4: 3.4}
RESULTS = Path(__file__).parent / "results"
TRIAL_S = 240.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--quick", action="store_true", help="to the nearest eighth only")
    parser.add_argument("--json", type=Path, default=RESULTS / "capacity.json")
    arguments = parser.parse_args()
    start_s = time.monotonic()
    sizes = []
    for devices in sorted({1, *arguments.devices}):
        guess = sizes[0].blocks * devices if sizes else 16
        with Testbed([DeviceSpec(memory_bytes=LIMIT_BYTES)] * devices) as bed:
            kind = "edge" if devices > 1 else "plain"
            sizes.append(_largest(bed, kind, devices, guess, arguments.quick))
    if len(sizes) > 1:
        with Testbed([DeviceSpec(memory_bytes=LIMIT_BYTES)] * 2) as bed:
            sizes.append(_largest(bed, "ddp", 2, sizes[0].blocks, arguments.quick))
    show(sizes, TARGETS)
    write(sizes, arguments.json, time.monotonic() - start_s)
    draw(sizes, arguments.json.with_suffix(".png"))
    return 0


def _largest(bed: Testbed, kind: str, devices: int, guess: int, quick: bool) -> Sized:
    peaks: dict[int, int] = {}

    def fits(blocks: int) -> bool:
        if kind == "edge" and blocks < devices:
            return True
        command = [sys.executable, "-m", "benchmarks.capacity_run", kind, str(blocks)]
        result = bed.run(command, timeout_s=TRIAL_S, grace_s=15.0, env={"OMP_NUM_THREADS": "1"})
        peaks[blocks] = max(device.anonymous_peak_bytes for device in result.devices.values())
        outcome = _outcome(result)
        print(
            f"{kind}, {devices} devices, {blocks} blocks: {outcome}, "
            f"most {peaks[blocks] / MIB:.0f} MiB",
            file=sys.stderr,
            flush=True,
        )
        return outcome == "ok"

    blocks = bisect(fits, guess, step=max(1, guess // (8 if quick else 20)))
    return Sized(kind, devices, blocks, parameters(blocks), WIDTH, peaks.get(blocks, 0))


def _outcome(result: RunResult) -> str:
    outcomes = [device.outcome for device in result.devices.values()]
    if all(outcome == "ok" for outcome in outcomes):
        return "ok"
    if "out of memory" in outcomes:
        return "out of memory"
    lines = [line for device in result.devices.values() for line in device.lines[-12:]]
    raise RuntimeError(f"it failed, and not for lack of memory: {outcomes}\n" + "\n".join(lines))


def bisect(fits: Callable[[int], bool], guess: int, step: int) -> int:
    """Return the largest number that fits, within ``step``; 0 if not even 1 does.

    guess 16, step 2       16 yes   24 yes   36 no   30 yes   33 no   32 ...
    """
    low, high = 0, None
    trial = max(1, guess)
    while high is None or high - low > step:
        if fits(trial):
            low = trial
            trial = max(low + 1, low * 3 // 2) if high is None else (low + high) // 2
        else:
            high = trial
            trial = (low + high) // 2
        if trial <= low:
            break
    return low


if __name__ == "__main__":
    sys.exit(main())

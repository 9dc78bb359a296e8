"""One process of a contestant: ``python -m benchmarks.worker FD MODULE:FUNCTION OPTIONS``."""

from __future__ import annotations

import ctypes
import importlib
import json
import logging
import signal
import sys
import traceback
import warnings
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from benchmarks.gate import Gate


def main(fd: str, target: str, options: str) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: never outlive the conductor
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    gate = Gate(Connection(int(fd)))
    module, _, function = target.partition(":")
    try:
        contestant = getattr(importlib.import_module(module), function)
        gate.imported()
        result = contestant(gate, **json.loads(options))
    except BaseException:  # whatever it was, the conductor has to know
        gate.finish({"failed": traceback.format_exc()})
        raise
    gate.finish({"result": result, "peak_bytes": peak_bytes()})


def peak_bytes() -> int:
    """Return the most memory that this process itself has had, not the one it was started from."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this kernel does not say how much memory a process has had (VmHWM)")


if __name__ == "__main__":
    main(*sys.argv[1:])

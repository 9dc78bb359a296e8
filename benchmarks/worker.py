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
        result = getattr(importlib.import_module(module), function)(gate, **json.loads(options))
    except BaseException:  # whatever it was, the conductor has to know
        gate.finish({"failed": traceback.format_exc()})
        raise
    gate.finish({"result": result})


if __name__ == "__main__":
    main(*sys.argv[1:])

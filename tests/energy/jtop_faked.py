"""jetson-stats' own service on a faked tree, for any user on any Linux machine.

The service wants root and fixed paths. It is made to run with a socket, a group, a configuration
and power rails of the caller's, and a fake `nvpmodel` on PATH. Import this before anything that may
not be forked: the service needs the start method "fork", and jtop asks for it.
"""

from __future__ import annotations

import grp
import multiprocessing
import os
from pathlib import Path
from typing import Any
from unittest import mock

NVPMODEL = """#!/bin/sh
case "$1" in
  -p) echo "POWER_MODEL: ID=0 NAME=15W"; echo "POWER_MODEL: ID=1 NAME=25W"
      echo "POWER_MODEL: ID=2 NAME=MAXN_SUPER"; echo "PM_CONFIG: DEFAULT=25W(1)";;
  -q) set -- $(cat {scratch}/mode); echo "NV Power Mode: $2"; echo "$1";;
  -m) sleep 0.3
      case "$2" in 0) n=15W;; 1) n=25W;; 2) echo "NVPM ERROR: reboot required"; exit 0;; esac
      echo "$2 $n" > {scratch}/mode;;
esac
"""


def start_service(tree: Path, scratch: Path) -> Any:
    """Start the service on the rails of `tree`, with its files in `scratch`; mode 25W is on."""
    nvpmodel = scratch / "nvpmodel"
    nvpmodel.write_text(NVPMODEL.format(scratch=scratch))
    nvpmodel.chmod(0o755)
    (scratch / "mode").write_text("1 25W\n")
    os.environ["PATH"] = f"{scratch}:{os.environ['PATH']}"

    import jtop.core.config as config
    import jtop.core.power as power
    import jtop.service as service

    multiprocessing.set_start_method("fork", force=True)
    service.JTOP_PIPE = str(scratch / "jtop.sock")
    service.JTOP_USER = grp.getgrgid(os.getgid()).gr_name
    service.get_hardware = lambda: {"Model": "faked"}
    config.get_config_service = lambda data_folder="": str(scratch / "configuration")

    class PowerService(power.PowerService):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            devices = str(tree / "sys/bus/i2c/devices")
            self._power_sensor = power.find_all_i2c_power_monitor(devices)
            self._power_avg = {}

    service.PowerService = PowerService
    with mock.patch("os.getuid", return_value=0):
        server = service.JtopServer(force=True)
    server.start()
    return server


def stop_service(server: Any) -> None:
    """End it as a crash would: its clients are not told."""
    server.broadcaster.shutdown()
    server.terminate()
    server.join(5.0)

"""Starting the command on every device, with torchrun's environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from lightning_edge.testbed import enter
from lightning_edge.testbed.cgroups import Group
from lightning_edge.testbed.network import INTERFACE
from lightning_edge.testbed.resolve import Pool
from lightning_edge.testbed.slots import Slot

__all__: list[str] = []

NOT_STARTED = enter.NOT_STARTED
_FIRST_PORT = 29500  # torchrun's; every port of a fresh namespace is free


def hosts_file(slot: Slot, pool: Pool) -> str:
    """Return the text of /etc/hosts on every device."""
    names = [f"{slot.address(rank)} {device.name}" for rank, device in enumerate(pool.devices)]
    return "\n".join(["127.0.0.1 localhost", "::1 localhost", *names, ""])


def environment(
    slot: Slot, pool: Pool, rank: int, *, run: int, files: Mapping[str, Path]
) -> dict[str, str]:
    """Return the variables that a process on this device finds, besides those of this process.

    Args:
        slot: Of this testbed.
        pool: Its devices.
        rank: The device.
        run: How many runs there were on this testbed before; each has a port of its own.
        files: Further variables that name files.
    """
    device, world = pool.devices[rank], len(pool.devices)
    return {
        # as torchrun sets them with one process per node
        "RANK": str(rank),
        "LOCAL_RANK": "0",
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": "1",
        "GROUP_RANK": str(rank),
        "GROUP_WORLD_SIZE": str(world),
        "ROLE_NAME": "default",
        "ROLE_RANK": str(rank),
        "ROLE_WORLD_SIZE": str(world),
        "MASTER_ADDR": slot.address(0),
        "MASTER_PORT": str(_FIRST_PORT + run % 1000),
        "TORCHELASTIC_RUN_ID": f"testbed-{slot.number}-{run}",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "TORCHELASTIC_MAX_RESTARTS": "0",
        "TORCHELASTIC_USE_AGENT_STORE": "False",  # rank 0 has the store, there is no agent
        # what is different on each device
        "GLOO_SOCKET_IFNAME": INTERFACE,
        "OMP_NUM_THREADS": str(device.threads),
        "CUDA_VISIBLE_DEVICES": "",  # its use could not be limited
        "PYTHONUNBUFFERED": "1",  # lines appear when they are printed
        # `python` is the one that runs the testbed, although sudo has its own list of programs
        "PATH": os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")]),
        "LIGHTNING_EDGE_TESTBED": str(slot.number),
        "LIGHTNING_EDGE_DEVICE": device.name,
        **{name: str(path) for name, path in files.items()},
    }


def start(
    slot: Slot,
    pool: Pool,
    rank: int,
    group: Group,
    command: Sequence[str],
    env: Mapping[str, str],
) -> subprocess.Popen[bytes]:
    """Start the command on one device; its output comes as one pipe.

    The process ends with this one, and with the thread that called this function.
    """
    settings = {
        "parent": os.getpid(),
        "namespace": f"/run/netns/{slot.namespace(rank)}",
        "hostname": pool.devices[rank].name,
        "hosts": str(slot.folder / "hosts"),
        "groups": [str(path) for path in group.procs_files],
    }
    return subprocess.Popen(
        [sys.executable, "-I", "-S", enter.__file__, json.dumps(settings), *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, **env},
        start_new_session=True,  # Ctrl-C is for the testbed, which then stops the devices
    )

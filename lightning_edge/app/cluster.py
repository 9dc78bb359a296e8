"""Who takes part, and where this device is among them: `cluster=local`, `static` or `lan`."""

from __future__ import annotations

import os

from omegaconf import DictConfig

from lightning_edge.app.agent import Place
from lightning_edge.app.failure import CommandError
from lightning_edge.app.folder import new_run_id

__all__: list[str] = []

DEVICE_NAME = "LIGHTNING_EDGE_DEVICE"
INTERFACE = "GLOO_SOCKET_IFNAME"


def join(config: DictConfig) -> Place:
    """Find the other devices and agree with them on who is who.

    Args:
        config: With the nodes `cluster`, `run` and `device`.

    Raises:
        CommandError: The node `cluster` cannot be used.
    """
    settings = config.cluster
    if settings.kind == "local":
        return Place(new_run_id(), processes=_count(settings.devices, "cluster.devices"))
    raise CommandError(f"cluster.kind={settings.kind} is none of local, static, lan", status=2)


def environment(config: DictConfig, place: Place) -> dict[str, str]:
    """What the processes of this device find in their environment.

    Args:
        config: As `join` has it.
        place: As `join` returns it.
    """
    device = config.device
    cores = os.cpu_count() or 1
    threads = device.threads or max(1, cores // place.processes)
    found = {"OMP_NUM_THREADS": str(threads), "LIGHTNING_EDGE_RUN": place.run_id}
    if device.name is not None:
        found[DEVICE_NAME] = str(device.name)
    if device.interface is not None:
        found[INTERFACE] = str(device.interface)
    elif place.host is None:
        found[INTERFACE] = "lo" if os.path.exists("/sys/class/net/lo") else ""
    return {name: value for name, value in found.items() if value}


def _count(value: object, key: str) -> int:
    if not isinstance(value, int) or value < 1:
        raise CommandError(f"{key}={value} is not a number of devices from 1 up", status=2)
    return value

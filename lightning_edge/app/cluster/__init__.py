"""Who takes part, and where this device is among them: `cluster=local`, `static` or `lan`.

Where torchrun or the like has set RANK and WORLD_SIZE, `local` takes these: the ranks are there.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_edge.app.agent import Place
from lightning_edge.app.cluster import addresses
from lightning_edge.app.cluster.meeting import Meeting, Settings
from lightning_edge.app.failure import CommandError
from lightning_edge.app.folder import new_run_id

if TYPE_CHECKING:
    from omegaconf import DictConfig

__all__: list[str] = []

DEVICE_NAME = "LIGHTNING_EDGE_DEVICE"
SECRET = "LIGHTNING_EDGE_SECRET"
INTERFACE = "GLOO_SOCKET_IFNAME"
THREADS = "OMP_NUM_THREADS"
PORT = 29610
KINDS = ("local", "static", "lan")


def join(config: DictConfig) -> Place:
    """Find the other devices and agree with them on who is who.

    Args:
        config: With the nodes `cluster`, `run` and `device`.

    Raises:
        CommandError: The node `cluster` cannot be used, or the others did not come.
    """
    cluster = config.cluster
    devices = _count(cluster.devices, "cluster.devices")
    if cluster.kind == "local" and "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        return _ranks_of(config, devices)
    if cluster.kind == "local":
        return Place(new_run_id(), processes=devices)
    if cluster.kind not in KINDS:
        text = f"cluster.kind={cluster.kind} is none of {', '.join(KINDS)}"
        raise CommandError(text, status=2)
    settings = Settings(
        run=str(config.run.name),
        name=str(config.device.name or device_name()),
        devices=devices,
        processes=_count(cluster.processes, "cluster.processes"),
        port=_count(cluster.port, "cluster.port", "port"),
        wait_s=_seconds(cluster.wait_s, "cluster.wait_s"),
        secret=secret_of(cluster.secret_file),
    )
    own = addresses.own(config.device.interface)
    if cluster.kind == "static":
        return Meeting(settings, own, host=str(cluster.host)).hold()
    from lightning_edge.app.cluster.lan import Announced

    with Meeting(settings, own) as meeting, Announced(meeting):
        return meeting.hold()


def _ranks_of(config: DictConfig, devices: int) -> Place:
    """Ranks that somebody else gave: only a run id has to be agreed on."""
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if devices != 1:
        raise CommandError(
            f"cluster.devices={devices}, and RANK={rank} of WORLD_SIZE={world_size} are set"
            " already: leave cluster.devices=1, or start it without torchrun",
            status=2,
        )
    if world_size == 1:
        return Place(new_run_id())
    settings = Settings(
        run=f"{config.run.name} {os.environ.get('TORCHELASTIC_RUN_ID', '')}",
        name=str(config.device.name or device_name()),
        devices=world_size,
        processes=1,
        port=PORT,
        wait_s=60.0,
        secret=secret_of(None),
        rank=rank,
    )
    host = os.environ.get("MASTER_ADDR", "127.0.0.1")
    return Meeting(settings, addresses.own(config.device.interface), host=host).hold()


def device_name() -> str:
    """What this device calls itself."""
    return os.environ.get(DEVICE_NAME, "").strip() or socket.gethostname() or "device"


def environment(config: DictConfig, place: Place) -> dict[str, str]:
    """What the processes of this device find in their environment.

    Args:
        config: As `join` has it.
        place: As `join` returns it.
    """
    device = config.device
    threads = device.threads or os.environ.get(THREADS) or _cores() // place.processes or 1
    found = {THREADS: str(threads), "LIGHTNING_EDGE_RUN": place.run_id}
    if "TORCH_CPP_LOG_LEVEL" not in os.environ:
        found["TORCH_CPP_LOG_LEVEL"] = "ERROR"  # it warns of hosts without a name
    if device.name is not None:
        found[DEVICE_NAME] = str(device.name)
    interface = device.interface or addresses.interface_of(place.own)
    if interface and INTERFACE not in os.environ:
        # gloo would take what the host's name resolves to, which often is the loopback interface
        found[INTERFACE] = str(interface)
    return found


def _cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def secret_of(file: str | None) -> str:
    """What devices of one pool share; empty if nothing is set."""
    if file is None:
        return os.environ.get(SECRET, "").strip()
    try:
        return Path(file).expanduser().read_text(encoding="utf-8").strip()
    except OSError as error:
        text = f"cluster.secret_file={file} cannot be read: {error.strerror}"
        raise CommandError(text, status=2) from None


def _count(value: object, key: str, what: str = "number of devices") -> int:
    if not isinstance(value, int) or not 1 <= value < 65536:
        raise CommandError(f"{key}={value} is not a {what} from 1 up", status=2)
    return value


def _seconds(value: object, key: str) -> float:
    if not isinstance(value, (int, float)) or not value > 0:
        raise CommandError(f"{key}={value} is not a number of seconds above 0", status=2)
    return float(value)

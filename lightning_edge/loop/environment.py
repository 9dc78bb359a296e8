"""Who is who: ranks from the environment, names of devices, and the wrong namespace.

    torchrun, or the local launcher      RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT
    a local worker process of a notebook LOCAL_RANK; the number of processes is Trainer(devices=N)
    nothing set                          rank 0 of Trainer(devices=N), which starts the others

There is no devices x num_nodes arithmetic: machines may run different numbers of processes, each
with Trainer(devices=1) or "auto".
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import sys
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, NoReturn

import lightning.fabric.utilities.rank_zero as fabric_rank_zero
import lightning.pytorch.utilities.rank_zero as pytorch_rank_zero
import torch
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment

from lightning_edge.errors import ConfigMismatchError, TransportError, UnsupportedError

__all__: list[str] = []

DEVICE_VARIABLE = "LIGHTNING_EDGE_DEVICE"
# Set by the local launcher in the processes it starts: the process id of the one that started them.
PARENT_VARIABLE = "LIGHTNING_EDGE_PARENT"
STARTING = timedelta(minutes=30)  # what torch.distributed grants as well


class EdgeEnvironment(ClusterEnvironment):
    """Ranks as torchrun or the local launcher set them, else those of N local processes."""

    def __init__(self) -> None:
        super().__init__()
        if PARENT_VARIABLE in os.environ and "LOCAL_RANK" in os.environ:
            os.environ.setdefault("RANK", os.environ["LOCAL_RANK"])
        self._processes = 1
        self._port: int | None = None

    @property
    def creates_processes_externally(self) -> bool:
        """Whether this process is one of several that were started already."""
        return self._started()

    @staticmethod
    def detect() -> bool:
        """Whether something started this process as one of several."""
        return "RANK" in os.environ and "WORLD_SIZE" in os.environ

    def _started(self) -> bool:
        given = [name for name in ("RANK", "WORLD_SIZE") if name in os.environ]
        if len(given) == 1:
            missing = "WORLD_SIZE" if given == ["RANK"] else "RANK"
            raise ConfigMismatchError(
                f"the environment sets {given[0]}={os.environ[given[0]]} but no {missing}: start"
                " the script with torchrun, or set RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT on"
                " every device, or none of them."
            )
        return bool(given)

    @property
    def main_address(self) -> str:
        """Where rank 0 can be reached."""
        return os.environ.get("MASTER_ADDR", "127.0.0.1")

    @property
    def main_port(self) -> int:
        """The port there; a free one if none is set."""
        if "MASTER_PORT" in os.environ:
            return _number("MASTER_PORT")
        if self._port is None:
            self._port = free_port()
        return self._port

    def world_size(self) -> int:
        """The number of processes on all devices."""
        return _number("WORLD_SIZE") if self._started() else self._processes

    def set_world_size(self, size: int) -> None:
        """How many local processes there are or will be, if nothing else started them."""
        self._processes = size

    def global_rank(self) -> int:
        """This process among all."""
        return _number("RANK") if self._started() else self.local_rank()

    def set_global_rank(self, rank: int) -> None:
        """Ignored: ranks come from the environment."""

    def local_rank(self) -> int:
        """This process among those of its machine."""
        return _number("LOCAL_RANK", 0)

    def node_rank(self) -> int:
        """This machine among all; torchrun calls it GROUP_RANK."""
        return _number("GROUP_RANK", _number("NODE_RANK", 0))

    def patience(self, timeout: timedelta) -> timedelta:
        """How long to wait for the other processes to appear.

        Processes that the local launcher started run the whole script up to here, importing and
        preparing what it prepares; if one of them dies, the launcher ends the wait.

        Args:
            timeout: The user's, for processes that somebody else started.
        """
        return max(timeout, STARTING) if PARENT_VARIABLE in os.environ else timeout

    def validate_settings(self, num_devices: int, num_nodes: int) -> None:
        """Refuse a second Trainer with another number of local processes than were started.

        Args:
            num_devices: Trainer(devices=...), counted.
            num_nodes: Not used.
        """
        if PARENT_VARIABLE in os.environ and num_devices != self.world_size():
            raise ConfigMismatchError(
                f"this script's first Trainer started {self.world_size()} local processes"
                f" (devices={self.world_size()}), which now run this Trainer with"
                f" devices={num_devices}: use the same number for all Trainers of a script."
            )


def free_port() -> int:
    """A port of this machine that nobody listens on.

    Not one of those that the system gives to outgoing connections (from 32768 on Linux): between
    here and its use, seconds later, such a one may be taken.
    """
    tried = random.Random().sample(range(20000, 32000), 100)  # not the user's stream of numbers
    for port in tried:
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("", port))
            return port
    raise TransportError(f"none of the ports {min(tried)} to {max(tried)} seems to be free")


def set_rank_zero(rank: int) -> None:
    """Tell Lightning which process prints, writes and warns.

    Args:
        rank: This process.
    """
    # One function in Lightning 2.6, but reachable, and replaceable, in three places.
    utilities: Any = fabric_rank_zero
    for module in (utilities.rank_zero_module, fabric_rank_zero, pytorch_rank_zero):
        module.rank_zero_only.rank = rank


def root_device(parallel_devices: Sequence[torch.device] | None, local_rank: int) -> torch.device:
    """Which of this machine's devices this process uses.

    Args:
        parallel_devices: The Trainer's.
        local_rank: This process among those of its machine.
    """
    devices = list(parallel_devices or [torch.device("cpu")])
    # With Trainer(devices=1) under `torchrun --nproc-per-node=2` there are fewer than processes.
    return devices[local_rank % len(devices)]


def device_name() -> str:
    """What to call this device: LIGHTNING_EDGE_DEVICE, or else its host's name."""
    return os.environ.get(DEVICE_VARIABLE, "").strip() or socket.gethostname() or "device"


def unique_names(names: Sequence[str]) -> tuple[str, ...]:
    """Number the names that occur more than once: ("a", "b", "a") -> ("a-0", "b", "a-1").

    Args:
        names: By rank.
    """
    count, used, result = Counter(names), set(names), list[str]()
    numbers: Counter[str] = Counter()
    for name in names:
        unique = name
        while count[name] > 1 and (unique == name or unique in used):
            unique = f"{name}-{numbers[name]}"
            numbers[name] += 1
        used.add(unique)
        result.append(unique)
    return tuple(result)


def refuse_pytorch_lightning() -> None:
    """Make ``Trainer(strategy="edge_collab")`` of the package pytorch_lightning say what to do.

    That package is a second copy of Lightning with classes and a registry of its own. It is not
    imported here if nobody has yet.
    """
    if "pytorch_lightning" not in sys.modules:
        return
    from pytorch_lightning.strategies import StrategyRegistry

    StrategyRegistry.register(
        "edge_collab", _wrong_namespace, description="Refused: import lightning", override=True
    )


def _wrong_namespace(**_: Any) -> NoReturn:
    raise UnsupportedError(
        'strategy="edge_collab" works with the package lightning, and this Trainer comes from'
        " pytorch_lightning: write `import lightning as L` (or `import lightning.pytorch as pl`)"
        " instead of `import pytorch_lightning as pl`, everywhere in the script."
    )


def _number(variable: str, default: int | None = None) -> int:
    text = os.environ.get(variable)
    if text is None and default is not None:
        return default
    try:
        return int(text or "")
    except ValueError:
        raise ConfigMismatchError(
            f"the environment variable {variable} should be a whole number, and is {text!r}."
        ) from None

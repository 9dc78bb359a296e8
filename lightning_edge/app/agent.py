"""Processes of one run on this device, started and watched by torchrun's own agent.

    this process                       the agent of torch.distributed.elastic
      `- process of rank r             `python -m lightning_edge.app.worker`, or the user's script

The agent sets RANK, WORLD_SIZE and so on, ends all processes when one fails, passes signals on, and
hands over what a failed process has left in its error file.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_edge.app.failure import Interrupted
from lightning_edge.errors import EdgeError, TransportError, UnsupportedError

__all__: list[str] = []

ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
NO_FILE = "<N/A>"  # torch's word for an error file that was not written
STOPPING_S = 20  # for processes to end by themselves after a signal
JOINING_S = 120  # for the agents of all devices, which have agreed to start now


@dataclass(frozen=True)
class Place:
    """Where this device is in a run.

    Attributes:
        run_id: The same on all devices.
        index: Of this device; 0 hosts the store in which ranks find each other.
        devices: Their number.
        processes: On this device.
        host: Address of device 0, as all reach it; None if it is the only one.
        port: There.
        own: This device's address, as the others reach it.
    """

    run_id: str
    index: int = 0
    devices: int = 1
    processes: int = 1
    host: str | None = None
    port: int = 0
    own: str = "127.0.0.1"


class RankError(EdgeError):
    """A process of this device failed.

    Args:
        rank: Its rank.
        text: Its own words, or how it ended.
    """

    def __init__(self, rank: int, text: str) -> None:
        super().__init__(text)
        self.rank = rank


def run_processes(command: Sequence[str], place: Place, environment: Mapping[str, str]) -> None:
    """Run a command as this device's processes, and return when all have ended well.

    Args:
        command: What to run.
        place: This device's.
        environment: Set for all processes.

    Raises:
        RankError: One failed; all have ended.
        Interrupted: By a signal; all have ended.
        UnsupportedError: This torch has no torch.distributed.
        TransportError: The other devices' agents did not come.
    """
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # read when torch is imported
    import torch

    if not torch.distributed.is_available():
        raise UnsupportedError(
            f"this torch ({torch.__version__}) was built without torch.distributed, so it cannot"
            " talk to other processes: install a wheel from PyPI or one with USE_DISTRIBUTED=1"
        )
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, launch_agent

    # Its warnings repeat what the last line says; a log level asked for is left alone.
    if "LOGLEVEL" not in os.environ:
        logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
        logging.getLogger("torch.distributed.run").setLevel(logging.CRITICAL)
    alone = place.host is None
    with tempfile.TemporaryDirectory(prefix="lightning-edge-") as folder, _set(environment):
        config = LaunchConfig(
            min_nodes=place.devices,
            max_nodes=place.devices,
            nproc_per_node=place.processes,
            run_id=place.run_id,
            role="rank",
            logs_specs=DefaultLogsSpecs(log_dir=folder),
            rdzv_backend="c10d" if alone else "static",
            rdzv_endpoint="127.0.0.1:0" if alone else f"{place.host}:{place.port}",
            rdzv_configs={"rank": place.index, "timeout": JOINING_S},
            local_addr=place.own,
            max_restarts=0,
            shutdown_timeout=STOPPING_S,
        )
        try:
            launch_agent(config, command[0], list(command[1:]))
        except SignalException as error:
            raise Interrupted(int(error.sigval)) from None
        except ChildFailedError as error:
            raise _worst(error.failures) from None
        except (RuntimeError, ValueError) as error:  # the store's
            raise TransportError(
                f"the {place.devices} devices had agreed to start, but could not meet at"
                f" {place.host}:{place.port} within {JOINING_S} s: {error}"
            ) from None


def _worst(failures: Mapping[int, Any]) -> RankError:
    """The failure that explains the others: not one that only tells of another's."""

    def rank_of(rank: int) -> tuple[bool, int]:
        failure = failures[rank]
        return failure.error_file_data.get("kind") == "PeerError", failure.timestamp

    rank = min(failures, key=rank_of)
    failure = failures[rank]
    text = failure.error_file_data.get("message")
    if failure.error_file == NO_FILE or not isinstance(text, str):
        killed = failure.exitcode < 0
        how = failure.signal_name() if killed else f"exit code {failure.exitcode}"
        text = f"rank {rank} ended with {how}"
        if killed and how == "SIGKILL":
            text += " (out of memory? `dmesg` says so)"
    return RankError(rank, text)


@contextlib.contextmanager
def _set(environment: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

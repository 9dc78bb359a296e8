"""`lightning-edge run cluster=lan -- python train.py`: any script, started as `train` is."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

from omegaconf import DictConfig

from lightning_edge.app import cluster
from lightning_edge.app.agent import run_processes
from lightning_edge.app.compose import with_config
from lightning_edge.app.failure import CommandError, guarded
from lightning_edge.app.power import in_power_mode

__all__: list[str] = []

_USAGE = "lightning-edge run cluster=lan cluster.devices=2 -- python train.py"


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit status."""
    return guarded("run", lambda: _run(list(arguments)))


def _run(arguments: list[str]) -> int:
    if "--" not in arguments:
        if not {"-h", "--help", "-c", "--cfg"}.intersection(arguments):
            raise CommandError(f"the script is missing: {_USAGE}", status=2)
        with_config("run", "run", arguments, lambda config: None)
        return 0
    middle = arguments.index("--")
    command = arguments[middle + 1 :]
    if not command or shutil.which(command[0]) is None:
        what = f"there is no program {command[0]}" if command else "nothing follows --"
        raise CommandError(f"{what}: {_USAGE}", status=2)

    def job(config: DictConfig) -> None:
        with in_power_mode(config):
            place = cluster.join(config)
            run_processes(command, place, cluster.environment(config, place))

    with_config("run", "run", arguments[:middle], job)
    return 0

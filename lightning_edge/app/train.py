"""`lightning-edge train`: one run, or several with `-m`, which end in one table."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lightning_edge.app import cluster, sweep
from lightning_edge.app.agent import run_processes
from lightning_edge.app.compose import is_sweep, job_overrides, with_config
from lightning_edge.app.failure import CommandError, ended, guarded
from lightning_edge.app.folder import make_folder
from lightning_edge.app.power import in_power_mode
from lightning_edge.errors import EdgeError

__all__: list[str] = []

Once = Callable[[DictConfig, Sequence[str]], Path]


@dataclass
class Runs:
    """What came of the runs of one command line.

    Args:
        command: Its name.
        once: Does one run and returns its folder.
    """

    command: str
    once: Once
    done: list[sweep.Row] = field(default_factory=list)

    def job(self, config: DictConfig) -> None:
        """Do one run; in a sweep, a failed one does not end the others."""
        overrides = job_overrides()
        try:
            folder = self.once(config, overrides)
        except EdgeError as error:
            if not is_sweep():
                raise
            ended(self.command, str(error), 1)
            self.done.append(sweep.Row(overrides, None, str(error)))
            return
        self.done.append(sweep.Row(overrides, folder, None))


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit status."""

    def once(config: DictConfig, overrides: Sequence[str]) -> Path:
        return one_run(config, overrides, "fit")

    return guarded("train", lambda: several("train", arguments, once))


def several(command: str, arguments: Sequence[str], once: Once) -> int:
    """Do all runs that the arguments ask for, and end in one table if they are several.

    Args:
        command: Its name.
        arguments: Overrides, and Hydra's flags.
        once: Does one run and returns its folder.

    Raises:
        EdgeError: A run failed.
    """
    runs = Runs(command, once)
    with_config(command, "train", arguments, runs.job)
    failed = [row for row in runs.done if row.error]
    if len(runs.done) > 1 or failed:
        print(sweep.table(runs.done))
    if failed:
        text = f"{len(failed)} of {len(runs.done)} runs failed; their reasons are above"
        raise CommandError(text)
    for row in runs.done[-1:]:
        print(f"lightning-edge {command}: done, all of it in {row.folder}")
    return 0


def one_run(config: DictConfig, overrides: Sequence[str], mode: str) -> Path:
    """Start this device's processes and wait for them; returns the run's folder.

    Raises:
        EdgeError: It failed.
    """
    with in_power_mode(config):
        return _one_run(config, overrides, mode)


def _one_run(config: DictConfig, overrides: Sequence[str], mode: str) -> Path:
    place = cluster.join(config)
    folder = make_folder(config, place.run_id, overrides)
    try:
        text = OmegaConf.to_yaml(config, resolve=True)
    except OmegaConfBaseException as error:
        raise CommandError(" ".join(str(error).split()), status=2) from None
    own = folder / f"config-{place.index}.yaml"
    own.write_text(text)
    command = [sys.executable, "-m", "lightning_edge.app.worker", mode, str(own.resolve())]
    try:
        run_processes(command, place, cluster.environment(config, place))
    finally:
        own.rename(folder / "config.yaml")
    return folder

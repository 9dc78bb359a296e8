"""`lightning-edge train`: one run, or several with `-m`, which end in one table."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lightning_edge.app import cluster, sweep
from lightning_edge.app.agent import RankError, run_processes
from lightning_edge.app.compose import is_sweep, job_overrides, with_config
from lightning_edge.app.failure import CommandError, ended, guarded
from lightning_edge.app.folder import make_folder
from lightning_edge.errors import EdgeError

__all__: list[str] = []


@dataclass
class Runs:
    """What came of the runs of one command line.

    Args:
        command: Its name.
        mode: What the processes do: "fit" or "profile".
    """

    command: str
    mode: str = "fit"
    done: list[sweep.Row] = field(default_factory=list)

    def job(self, config: DictConfig) -> None:
        """Do one run; in a sweep, a failed one does not end the others."""
        overrides = job_overrides()
        try:
            folder = one_run(config, overrides, self.mode)
        except EdgeError as error:
            if not is_sweep():
                raise _named(error) from None
            ended(self.command, str(_named(error)), 1)
            self.done.append(sweep.Row(overrides, None, str(error)))
            return
        self.done.append(sweep.Row(overrides, folder, None))


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit status."""
    return guarded("train", lambda: _train("train", arguments, "fit"))


def _train(command: str, arguments: Sequence[str], mode: str) -> int:
    runs = Runs(command, mode)
    with_config(command, "train", arguments, runs.job)
    if len(runs.done) > 1 or any(row.error for row in runs.done):
        print(sweep.table(runs.done))
        failed = [row for row in runs.done if row.error]
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


def result_of(folder: Path) -> dict[str, Any]:
    """What rank 0 has left of a run; empty on other devices."""
    file = folder / "metrics.json"
    return dict(json.loads(file.read_text())) if file.is_file() else {}


def _named(error: EdgeError) -> EdgeError:
    """A failed rank's own words may be those of any error; which rank it was goes first."""
    if isinstance(error, RankError) and not str(error).startswith("rank "):
        return CommandError(str(error))
    return error

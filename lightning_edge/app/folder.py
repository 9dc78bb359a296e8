"""A run's name and its folder: one id on all devices, one folder per run on each of them.

outputs/
20261125-131502-9f3a/       run.root / run.id
config.yaml               with all values, as all ranks have it
overrides.yaml            what was typed
plan.yaml report.json report.txt metrics.json   what was decided and measured
energy.json .csv .png     EnergyLogger
checkpoints/  logs/       of rank 0
log-0-orin.txt            of each rank
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from lightning_edge.app.failure import CommandError

__all__: list[str] = []


def new_run_id() -> str:
    """Sorts by time, and two runs started in one second do not collide."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def make_folder(config: DictConfig, run_id: str, overrides: Sequence[str]) -> Path:
    """Make the run's folder, with the configuration in it, and name both in the configuration.

    Several devices on one machine may make the same one.

    Args:
        config: Is changed: `run.id` and `run.folder` are set.
        run_id: The same on all devices.
        overrides: What the user typed.

    Raises:
        CommandError: It cannot be made.
    """
    folder = Path(config.run.root).expanduser() / run_id
    OmegaConf.set_readonly(config, False)
    config.run.id, config.run.folder = run_id, str(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "overrides.yaml").write_text(OmegaConf.to_yaml(list(overrides)))
    except OSError as error:
        raise CommandError(
            f"the run's folder {folder} cannot be made ({error.strerror}): set run.root"
        ) from None
    return folder

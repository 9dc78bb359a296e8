"""`lightning-edge plan`: what would happen, without training, and with or without the devices.

profile=saved profile.path=FILE   a complete profile: nothing runs, torch is not even imported
profile=nano_tx2_nx               a pool of boards: the model is measured here, and scaled
profile=auto                      the devices of cluster=...: measured together, or known already
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lightning_edge.app import train
from lightning_edge.app.chosen import plan_for, rows_of
from lightning_edge.app.compose import job_overrides
from lightning_edge.app.failure import guarded
from lightning_edge.app.folder import make_folder, new_run_id
from lightning_edge.plan.profile import Profile

__all__: list[str] = []


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit status."""
    return guarded("plan", lambda: train.several("plan", arguments, one_plan))


def one_plan(config: DictConfig, overrides: Sequence[str]) -> Path:
    """Plan as a configuration says; returns the folder with the plan.

    Raises:
        EdgeError: There is no such plan.
    """
    profile = complete(config)
    if profile is None:
        return train.one_run(config, overrides, "plan")
    settings = OmegaConf.to_container(config.strategy, resolve=True)
    assert isinstance(settings, dict)
    outcome = plan_for(profile, rows_of(config), {str(k): v for k, v in settings.items()})
    print(outcome)
    folder = make_folder(config, new_run_id(), job_overrides())
    outcome.save(folder)
    (folder / "metrics.json").write_text(json.dumps(outcome.metrics(), indent=1))
    return folder


def complete(config: DictConfig) -> Profile | None:
    """The profile that the configuration has in full; None if something has to be measured.

    Raises:
        ProfileError: It has problems.
    """
    node: Any = OmegaConf.to_container(config.get("profile") or OmegaConf.create(), resolve=True)
    if not isinstance(node, Mapping) or not node:
        return None
    if node.get("path") is not None:
        return Profile.from_yaml(str(node["path"]))
    if "model" in node:
        return Profile.from_mapping(node)
    return None

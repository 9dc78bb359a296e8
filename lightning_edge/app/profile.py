"""`lightning-edge profile`: measure the devices, their links and the model, and write it down."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from lightning_edge.app import train
from lightning_edge.app.failure import guarded

__all__: list[str] = []


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit status."""

    def once(config: DictConfig, overrides: Sequence[str]) -> Path:
        folder = train.one_run(config, overrides, "profile")
        if (folder / "profile.yaml").is_file():
            print(f"use it with profile=saved profile.path={folder / 'profile.yaml'}")
        return folder

    return guarded("profile", lambda: train.several("profile", arguments, once))

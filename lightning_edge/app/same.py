"""Do all ranks have the same configuration? Compared when they have connected."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig, OmegaConf
from typing_extensions import override

from lightning_edge.loop.agreement import agree
from lightning_edge.strategy import EdgeCollabStrategy

__all__: list[str] = []


def shared(config: DictConfig) -> dict[str, Any]:
    """The part of a configuration that has to be the same on all devices.

    Left out are the keys in its own list `device_local`, such as the name of a device, its threads
    and the place of its files.

    Args:
        config: Resolved.
    """
    tree = OmegaConf.to_container(config)
    assert isinstance(tree, dict)
    for key in tree.get("device_local") or ():
        *parents, last = str(key).split(".")
        node: Any = tree
        for parent in parents:
            node = node.get(parent) if isinstance(node, Mapping) else None
        if isinstance(node, dict):
            node.pop(last, None)
    return {str(key): value for key, value in tree.items()}


class SameConfig(Callback):
    """Refuses a run whose ranks have different configurations, and names the keys.

    Args:
        config: This rank's, resolved.
    """

    def __init__(self, config: DictConfig) -> None:
        super().__init__()
        self._facts = shared(config)

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        strategy = trainer.strategy
        assert isinstance(strategy, EdgeCollabStrategy)
        agree(strategy.transport, self._facts, strategy.device_names)

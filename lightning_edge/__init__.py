"""Train an unmodified LightningModule across unequal, trusted edge devices.

import lightning as L
import lightning_edge  # registers "edge_collab"

trainer = L.Trainer(strategy="edge_collab")
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_edge.callbacks import EdgeProfiler, EnergyLogger
    from lightning_edge.plan.plan import Pipeline, Plan, Stage
    from lightning_edge.strategy import EdgeCollabStrategy
    from lightning_edge.train.phases import find_cuts as cuts

__all__ = [
    "EdgeCollabStrategy",
    "EdgeProfiler",
    "EnergyLogger",
    "Pipeline",
    "Plan",
    "Stage",
    "__version__",
    "cuts",
]

__version__ = "0.1.0.dev0"

# Loaded when first asked for: EnergyLogger brings scipy along.
_PLACES = {
    "EdgeCollabStrategy": ("lightning_edge.strategy", "EdgeCollabStrategy"),
    "EdgeProfiler": ("lightning_edge.callbacks", "EdgeProfiler"),
    "EnergyLogger": ("lightning_edge.callbacks", "EnergyLogger"),
    "Pipeline": ("lightning_edge.plan.plan", "Pipeline"),
    "Plan": ("lightning_edge.plan.plan", "Plan"),
    "Stage": ("lightning_edge.plan.plan", "Stage"),
    "cuts": ("lightning_edge.train.phases", "find_cuts"),
}
_COMMANDS = ("lightning_edge.testbed", "lightning_edge.energy", "lightning_edge.app")


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _PLACES[name]
    value = getattr(importlib.import_module(module), attribute)
    globals()[name] = value
    return value


def _is_command() -> bool:
    """Whether this process is a command that needs neither torch nor Lightning: seconds less."""
    words = sys.orig_argv
    if any(os.path.basename(word) == "lightning-edge" for word in words[1:2]):
        return True
    return any(
        flag == "-m" and module.startswith(_COMMANDS)
        for flag, module in zip(words[:3], words[1:4], strict=False)
    )


def register() -> None:
    """Make `strategy="edge_collab"` known to Lightning; importing this package does it.

    Only the commands of this package, which start without Lightning, have to call it.
    """
    from lightning.pytorch.strategies import StrategyRegistry

    from lightning_edge.loop.environment import refuse_pytorch_lightning
    from lightning_edge.strategy import EdgeCollabStrategy

    StrategyRegistry.register(
        EdgeCollabStrategy.strategy_name,
        EdgeCollabStrategy,
        description="One model on a handful of unequal, trusted devices",
        override=True,
    )
    refuse_pytorch_lightning()


if not _is_command():
    register()

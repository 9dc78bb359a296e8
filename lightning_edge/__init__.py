"""Train an unmodified LightningModule across unequal, trusted edge devices.

import lightning as L
import lightning_edge  # registers "edge_collab"

trainer = L.Trainer(strategy="edge_collab")
"""

from __future__ import annotations

from lightning.pytorch.strategies import StrategyRegistry

from lightning_edge.callbacks import EnergyLogger
from lightning_edge.loop.environment import refuse_pytorch_lightning
from lightning_edge.plan.plan import Pipeline, Plan, Stage
from lightning_edge.strategy import EdgeCollabStrategy
from lightning_edge.train.phases import find_cuts as cuts

__all__ = ["EdgeCollabStrategy", "EnergyLogger", "Pipeline", "Plan", "Stage", "__version__", "cuts"]

__version__ = "0.1.0.dev0"

StrategyRegistry.register(
    EdgeCollabStrategy.strategy_name,
    EdgeCollabStrategy,
    description="One model on a handful of unequal, trusted devices",
    override=True,
)
refuse_pytorch_lightning()

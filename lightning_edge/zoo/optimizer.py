"""The optimizer that all models here share."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch

__all__: list[str] = []


def adamw(module: L.LightningModule, lr: float, warmup_steps: int, **options: Any) -> Any:
    """AdamW on what is trained; the rate rises over the warm-up, then falls evenly to zero.

    Args:
        module: Attached to its Trainer, which knows the number of steps.
        lr: The highest learning rate.
        warmup_steps: Optimizer steps until then.
        **options: For AdamW.
    """
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=lr, **options)
    steps = module.trainer.estimated_stepping_batches

    def factor(step: int) -> float:
        falling = (steps - step) / max(1, steps - warmup_steps)
        return float(min((step + 1) / max(1, warmup_steps), falling))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

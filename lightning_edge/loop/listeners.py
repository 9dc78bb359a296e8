"""Who looks at what a step returns.

Only the last stage has it. Sending it to all devices costs as much as it is large (logits of a
batch), so it is sent only where code of the user's asks for it: an ``on_..._batch_end`` hook of the
module or of a callback that did not come with Lightning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning.pytorch.utilities.model_helpers import is_overridden

from lightning_edge.loop.refusals import is_lightnings

if TYPE_CHECKING:
    import lightning.pytorch as pl

__all__: list[str] = []

_HOOKS = {
    "training_step": "on_train_batch_end",
    "validation_step": "on_validation_batch_end",
    "test_step": "on_test_batch_end",
}


def heard_steps(trainer: pl.Trainer, module: pl.LightningModule) -> frozenset[str]:
    """The steps whose outputs all devices need.

    Args:
        trainer: Has the callbacks.
        module: The user's.
    """
    every: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    own = [callback for callback in every if not is_lightnings(callback)]
    return frozenset(
        step
        for step, hook in _HOOKS.items()
        if is_overridden(hook, module) or any(is_overridden(hook, callback) for callback in own)
    )

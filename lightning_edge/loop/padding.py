"""Losses that average over tokens: what to say when rows count unequally many of them.

`CrossEntropyLoss` and transformers leave labels of -100 out and divide by those that are left. The
mean over a batch is then not the mean of its micro-batches' means:

    rows 0, 1    8 tokens count    mean 2.0
    rows 2, 3    2 tokens count    mean 4.0      one device (8 * 2 + 2 * 4) / 10 = 2.4, not 3.0
"""

from __future__ import annotations

from typing import Any

from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_edge.train.microbatch import batch_leaves

__all__: list[str] = []

IGNORED = -100  # the default of torch's losses, which transformers uses too
_BATCHES = 20  # that are looked at: a data set that pads does it early


class PaddingWatch:
    """Looks at the first training batches, and warns once.

    Args:
        divided: Whether a batch is computed in several parts, on this or on several devices.
        weighted: Whether `training_step` says how much its loss weighs.
    """

    def __init__(self, divided: bool, weighted: bool) -> None:
        self._left = _BATCHES if divided and not weighted else 0

    def look(self, batch: Any) -> None:
        """Warn if rows of this batch have different numbers of labels that count."""
        if not self._left:
            return
        self._left -= 1
        for path, leaf in batch_leaves(batch):
            if not isinstance(leaf, Tensor) or leaf.is_floating_point() or leaf.ndim < 2:
                continue
            counts = (leaf != IGNORED).flatten(1).sum(1)
            if len(counts) and int(counts.min()) != int(counts.max()):
                self._left = 0
                rank_zero_warn(
                    f"rows of {path} have between {int(counts.min())} and {int(counts.max())} "
                    f"labels that are not {IGNORED}, and training_step returns a loss without its "
                    f"weight. If that loss is a mean over tokens, a batch that is cut into parts "
                    f"gives another mean than on one device. Return the number of tokens with it: "
                    f'{{"loss": loss, "loss_weight": (labels != {IGNORED}).sum()}} '
                    f"(docs/models.md)"
                )
                return

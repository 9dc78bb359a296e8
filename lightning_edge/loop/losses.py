"""The loss of a batch, put together from those of micro-batches and devices as one device has it.

a mean over rows   sum(loss_i * rows_i) / rows     most losses
a sum over rows    sum(loss_i)                     reduction="sum": told from the step's trial
by loss_weight     sum(loss_i * w_i) / sum(w_i)    the step returns {"loss": ..., "loss_weight"}

What a trial on placeholders cannot tell is taken as a mean, with a warning.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.utils._pytree import tree_map_only

from lightning_edge.errors import UnsupportedError
from lightning_edge.plan.plan import Plan
from lightning_edge.replicate.probe import Probe
from lightning_edge.train.replay import MicroBatch

__all__: list[str] = []

_INSTEAD = (
    'return {"loss": mean, "loss_weight": rows} to say that it is a mean over so many rows (or'
    " tokens), or use a plan with micro_batches=1 and one device on the last stage, which is given"
    " whole batches"
)


def look_at_loss(probe: Probe, plan: Plan) -> None:
    """Say how losses of parts of a batch will be put together, where it is not as their mean.

    Raises:
        UnsupportedError: A part of the loss adds up over rows and another does not.
    """
    divided = plan.micro_batches != 1 or len(plan.ranks(len(plan.stages) - 1)) > 1
    if probe.weighted or not divided:
        return
    if probe.loss == "sum":
        rank_zero_info(
            "The loss of training_step adds up over the rows of a batch: so do those of its parts."
        )
    elif probe.loss == "weighed":
        rank_zero_warn(
            "The loss of training_step is a mean by something that is counted in the batch (class"
            " weights, a mask). A batch is cut into parts, whose means are put together by their"
            ' rows unless the step returns {"loss": loss, "loss_weight": weight} with what it has'
            " divided by, such as mask.sum() or class_weights[labels].sum()."
        )
    elif probe.loss == "mixed":
        raise UnsupportedError(
            "edge_collab cannot put together the loss of training_step: a term of it adds up over"
            ' the rows of a batch (reduction="sum") and another does not (a mean, a penalty on'
            f" weights), and a batch is cut into parts. Write both as means; or {_INSTEAD}."
        )
    elif probe.loss == "unknown":
        rank_zero_warn(
            "It could not be told whether the loss of training_step is a mean over the rows of a"
            " batch: it is taken as one. If it compares rows with each other (contrastive losses)"
            f" or adds up over them, the result is not that of one device: then {_INSTEAD}."
        )


class BatchLoss:
    """Adds up a device's losses of one batch, and scales each so that gradients are plain sums.

    Args:
        rows: Of the whole batch.
        accumulate: Batches the loop accumulates over.
        weighted: The step returns a loss weight.
        heard: Keep what else the step returns.
        adds: Tells whether the loss adds up over rows, once the step's structure is known.
    """

    def __init__(
        self, rows: int, accumulate: int, weighted: bool, heard: bool, adds: Callable[[], bool]
    ) -> None:
        self._rows, self._accumulate, self._weighted = rows, accumulate, weighted
        self._heard, self._asked, self._adds = heard, adds, False
        self._losses: list[tuple[Tensor, float]] = []
        self._extras: list[tuple[int, int, dict[str, Any]]] = []

    def add(self, micro_batch: MicroBatch, output: Any) -> None:
        """Take what the step returned for a micro-batch, and set what is run backwards."""
        loss, weight = self._parts(output, micro_batch.rows)
        if self._heard and isinstance(output, Mapping):
            rest = {k: v for k, v in output.items() if k not in ("loss", "loss_weight")}
            rest = tree_map_only(Tensor, Tensor.detach, rest)
            self._extras.append((micro_batch.first_row, micro_batch.rows, rest))
        self._losses.append((loss.detach(), weight))
        self._adds = self._asked() and not self._weighted
        part = 1.0 if self._adds else weight / self._rows
        micro_batch.loss = loss * (part / self._accumulate)

    def _parts(self, output: Any, rows: int) -> tuple[Tensor, float]:
        loss, given = output, None
        if isinstance(output, Mapping):
            loss, given = output.get("loss"), output.get("loss_weight")
        if not isinstance(loss, Tensor):
            raise UnsupportedError(
                f"training_step returned {type(loss).__name__} instead of a loss; return a tensor, "
                f"or a dict with 'loss', for every batch (a batch cannot be skipped on one device "
                f"only)"
            )
        if (given is not None) != self._weighted:
            raise UnsupportedError(
                "training_step returned 'loss_weight' for some batches and not for others; return "
                "it always or never"
            )
        return loss, float(rows if given is None else given)

    def share(self) -> dict[str, Any]:
        """This device's part of the batch's loss, and what else the step returned."""
        dtype = self._losses[0][0].dtype if self._losses else None
        return {
            "loss": sum(float(loss) * (1 if self._adds else w) for loss, w in self._losses),
            "weight": sum(weight for _, weight in self._losses),
            "adds": self._adds,
            "dtype": dtype,
            "extras": self._extras,
        }

"""One run of a Trainer (fit, validate, test, predict) on this device, after set-up.

The strategy hands every step over to it; it knows the module's stage, the rows of the batch in the
step, the logs that have to reach all ranks, and what was measured.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_edge.loop.losses import BatchLoss
from lightning_edge.loop.pace import Pace
from lightning_edge.loop.padding import PaddingWatch
from lightning_edge.loop.records import Recorder
from lightning_edge.loop.transfer import BatchTransfer
from lightning_edge.replicate.randomness import mix
from lightning_edge.report import Measured
from lightning_edge.train.executor import StepTimes
from lightning_edge.train.job import Batch, Job
from lightning_edge.train.microbatch import cut, whole_rows
from lightning_edge.train.outputs import merge_outputs
from lightning_edge.train.replay import MicroBatch
from lightning_edge.train.stage import Stage

if TYPE_CHECKING:
    import lightning.pytorch as pl

__all__: list[str] = []

Context = Callable[[], AbstractContextManager[Any]]


class Run:
    """Takes batches through this device's stage.

    Args:
        module: The user's module.
        stage: This device's part of the plan.
        recorder: Logs of the last stage, for all ranks.
        transfer: Knows the rows of the batch that is in the step.
        weighted: The training step returns a loss weight.
        heard: Steps whose outputs all devices need.
    """

    def __init__(
        self,
        module: pl.LightningModule,
        stage: Stage,
        recorder: Recorder,
        transfer: BatchTransfer,
        weighted: bool,
        heard: Collection[str] = (),
    ) -> None:
        self.module, self.stage = module, stage
        self.recorder, self.transfer = recorder, transfer
        self.measured = Measured()
        self.pace = Pace()
        self.last = StepTimes()
        self.rows, self.own_and_all_rows = 0, (0, 0)
        self._weighted, self._heard = weighted, heard
        self._number = 0
        divided = stage.plan.micro_batches != 1 or len(stage.plan.ranks(stage.last)) > 1
        self._padding = PaddingWatch(divided, weighted)

    def train(
        self,
        args: tuple[Any, ...],
        context: Context,
        *,
        accumulate: int,
        fresh: bool,
        own_zero_grad: bool,
        synchronise: bool,
    ) -> Tensor | dict[str, Any]:
        """Forward and backward of one batch; gradients wait in the stage until they are published.

        Returns:
            The loss of the whole batch, the same on every rank; with what else the step returned,
            if someone wants to hear of it.
        """
        self.pace.begin()
        batch = self._batch(args[0], training=True)
        self._padding.look(batch.data)
        loss = BatchLoss(
            batch.rows,
            accumulate,
            self._weighted,
            "training_step" in self._heard,
            lambda: self.stage.probe.loss == "sum",
        )
        shares: dict[int, Mapping[str, Any]] = {}

        def factor() -> float:
            if not self._weighted:
                return 1.0
            shares.update(self.recorder.collect())
            return float(batch.rows / sum(share["weight"] for share in shares.values()))

        job = Job(
            "training_step",
            self._bound("training_step", args[1:]),
            context,
            self.recorder.micro_batch,
            loss.add,
            lambda: self._send(None, loss.share()),
            training=True,
            accumulate=accumulate,
            fresh=fresh,
            keep_earlier=self._weighted and not fresh,
            own_zero_grad=own_zero_grad,
            synchronise=synchronise,
            weighted=self._weighted,
            factor=factor,
        )
        with self.recorder.step("training_step"):
            self._send_if_idle(batch, loss.share())
            times = self.stage.run(batch, job)
            if not shares:
                shares.update(self.recorder.collect())
        self.measured.add(times, batch)
        self.last = times
        total = sum(share["loss"] for share in shares.values())
        weight = sum(share["weight"] for share in shares.values())
        dtype = next((s["dtype"] for s in shares.values() if s["dtype"] is not None), None)
        divisor = 1.0 if any(share["adds"] for share in shares.values()) else weight
        whole = torch.tensor(total / divisor, device=self.stage.device, dtype=dtype)
        extras = [piece for share in shares.values() for piece in share.get("extras", ())]
        if not extras:
            return whole
        together = _together(extras, shares)
        if self._weighted:
            together["loss_weight"] = weight
        return {"loss": whole, **together}

    def evaluate(self, kind: str, args: tuple[Any, ...], context: Context) -> Any:
        """Forward of one batch in validation or test.

        Returns:
            The step's output for the whole batch where someone wants to hear of it, else that for
            the rows of this device, None if it is not on the last stage.
        """
        self.pace.interrupt()
        batch = self._batch(args[0], training=False)
        outputs: list[tuple[int, int, Any]] = []
        heard = kind in self._heard
        job = Job(
            kind,
            self._bound(kind, args[1:]),
            context,
            self.recorder.micro_batch,
            _keep_in(outputs),
            lambda: self._send(outputs if heard else None),
        )
        with self.recorder.step(kind):
            self._send_if_idle(batch, {"outputs": []} if heard else None)
            self.stage.run(batch, job)
            shares = self.recorder.collect()
        if heard:
            outputs = [piece for share in shares.values() for piece in share["outputs"]]
        return _together(outputs, shares)

    def predict(self, args: tuple[Any, ...], context: Context) -> Any:
        """Forward of one batch in prediction; the whole batch's output on every rank."""
        self.pace.interrupt()
        batch = self._batch(args[0], training=False)
        outputs: list[tuple[int, int, Any]] = []
        job = Job(
            "predict_step",
            self._bound("predict_step", args[1:]),
            context,
            self.recorder.micro_batch,
            _keep_in(outputs),
            lambda: self._send(outputs),
        )
        with self.recorder.step("predict_step"):
            self._send_if_idle(batch, {"outputs": []})
            self.stage.run(batch, job)
            shares = self.recorder.collect()
        pieces = [piece for share in shares.values() for piece in share["outputs"]]
        return _together(pieces, shares)

    def _send(self, outputs: Any, share: Mapping[str, Any] | None = None) -> None:
        """Tell the others what this last-stage device has found out in a step."""
        found = {} if outputs is None else {"outputs": outputs}
        self.recorder.send({**found, **(share or {}), "results": [*self.stage.probe.results]})

    def _send_if_idle(self, batch: Batch, extra: Mapping[str, Any] | None) -> None:
        """A last-stage device none of whose rows are in this batch still answers the others."""
        if batch.own == 0:
            self.recorder.send(extra)

    def _batch(self, data: Any, training: bool) -> Batch:
        tree = self.transfer.rows
        rows = whole_rows(tree)
        self._number += 1
        own = sum(
            stop - start
            for start, stop in self.stage.intervals(self.stage.transport.rank, rows, training)
        )
        self.rows, self.own_and_all_rows = rows, (own, rows)
        seed = mix(*self.transfer.position())

        def part(intervals: Sequence[tuple[int, int]]) -> Any:
            return cut(data, tree, intervals)

        return Batch(data, part, own, rows, self._number, seed)

    def _bound(self, name: str, rest: tuple[Any, ...]) -> Callable[[Any], Any]:
        step = getattr(self.module, name)

        def call(batch: Any) -> Any:
            return step(batch, *rest)

        return call


def _keep_in(outputs: list[tuple[int, int, Any]]) -> Callable[[MicroBatch, Any], None]:
    def keep(micro_batch: MicroBatch, output: Any) -> None:
        outputs.append((micro_batch.first_row, micro_batch.rows, output))

    return keep


def _together(pieces: list[tuple[int, int, Any]], shares: Mapping[int, Mapping[str, Any]]) -> Any:
    """Outputs of micro-batches and replicas, in the order of rows."""
    adding = {path for share in shares.values() for path in share.get("results", ())}
    if not pieces:
        return None
    ordered = sorted(pieces, key=lambda piece: piece[0])
    if len(ordered) == 1:
        return ordered[0][2]
    return merge_outputs(
        [output for _, _, output in ordered], [rows for _, rows, _ in ordered], adding
    )

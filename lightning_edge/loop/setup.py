"""Set-up of a run: connect, take a sample batch, probe, agree on a plan, place the model."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor

from lightning_edge.errors import UnsupportedError
from lightning_edge.loop import agreement, averages, batch_weights, clip, clock, throughput
from lightning_edge.loop.announce import announce
from lightning_edge.loop.drift import DRIFT, Drift
from lightning_edge.loop.epoch_end import EpochEndHooks
from lightning_edge.loop.listeners import heard_steps
from lightning_edge.loop.loader import Feed
from lightning_edge.loop.losses import look_at_loss
from lightning_edge.loop.memory import TrainingMemory
from lightning_edge.loop.options import Options
from lightning_edge.loop.planning import Case, decide, profiler_callback
from lightning_edge.loop.records import Recorder
from lightning_edge.loop.refusals import refuse, warn_of_partial_norms
from lightning_edge.loop.run import Run
from lightning_edge.loop.statistics import warn_of_statistics
from lightning_edge.loop.transfer import BatchTransfer
from lightning_edge.plan.profile import Profile
from lightning_edge.profile.refine import Paces, refined
from lightning_edge.replicate.placeholder import is_fake
from lightning_edge.replicate.probe import Probe
from lightning_edge.replicate.randomness import kept
from lightning_edge.report import DeviceReport, Report, peak_memory_bytes
from lightning_edge.train.microbatch import RowsTree, cut, whole_rows
from lightning_edge.train.phases import probe_batch, trailing_arguments
from lightning_edge.train.stage import Stage

if TYPE_CHECKING:
    import lightning.pytorch as pl

    from lightning_edge.strategy import EdgeCollabStrategy

__all__: list[str] = []

_STEPS = {
    TrainerFn.FITTING: ("training_step", "fit_loop"),
    TrainerFn.VALIDATING: ("validation_step", "validate_loop"),
    TrainerFn.TESTING: ("test_step", "test_loop"),
    TrainerFn.PREDICTING: ("predict_step", "predict_loop"),
}


def set_up(strategy: EdgeCollabStrategy, trainer: pl.Trainer, options: Options) -> RunParts:
    """Place the module on this device according to the plan.

    Raises:
        EdgeError: When the model, the plan, the data or the Trainer do not fit together.
    """
    module, transport = strategy.lightning_module, strategy.transport
    assert module is not None
    assert trainer.state.fn is not None
    refuse(trainer, module, transport.world_size)
    warn_of_partial_norms(trainer, module)
    kind, loop = _STEPS[trainer.state.fn]
    feed = Feed(transport, options.data, row_dims=getattr(module, "edge_row_dims", None))
    source = getattr(trainer, loop)._data_source
    sample, rows = feed.sample(source, sequential=trainer.state.fn != TrainerFn.FITTING)
    with kept():
        sample = strategy.precision_plugin.convert_input(sample)
        sample = module._on_before_batch_transfer(sample)
        sample = module._apply_batch_transfer_handler(sample, device=strategy.root_device)
    _ = trainer.log_dir  # asked while all ranks listen, so that it is known inside steps
    context = _context(strategy, kind)
    probe = _probe(module, kind, sample, rows, context)
    step = getattr(module, kind)
    arguments = _arguments(step)
    decision = decide(
        Case(
            trainer,
            transport,
            strategy.device_names,
            options,
            probe,
            lambda batch: step(batch, *arguments),
            sample,
            rows,
            strategy.root_device,
            context,
            None if options.data == "every" else feed.owner,
            trainer.state.fn == TrainerFn.FITTING,
            strategy.decision,
        )
    )
    strategy.decision, plan = decision, decision.plan
    if trainer.state.fn == TrainerFn.FITTING:
        look_at_loss(probe, plan)
    agreement.agree(
        transport,
        {
            "software": agreement.facts_of_software(),
            "trainer": agreement.facts_of_trainer(trainer),
            "model": agreement.facts_of_module(module),
            "plan": plan.to_json(),
            "save_on_failure": options.save_on_failure is not False,
        },
        strategy.device_names,
    )
    rank_zero_info(decision.text)
    seed = transport.broadcast(torch.initial_seed() % (1 << 31))
    stage = Stage(
        module,
        plan,
        probe,
        transport,
        strategy.root_device,
        seed,
        options.wire_dtype,
        options.eval_micro_batches,
        strategy.building.origin,
    )
    strategy.building.placed()
    warn_of_statistics(probe, stage)
    return RunParts(strategy, trainer, options, stage, feed, seed, probe.weighted)


def _context(strategy: EdgeCollabStrategy, kind: str) -> Callable[[], Any]:
    plugin = strategy.precision_plugin
    contexts = {
        "training_step": plugin.train_step_context,
        "validation_step": plugin.val_step_context,
        "test_step": plugin.test_step_context,
        "predict_step": plugin.predict_step_context,
    }

    @contextmanager
    def context() -> Iterator[None]:
        # trials of a step too are made by some devices only, or by each at its own time
        with strategy.inside(kind), contexts[kind]():
            yield

    return context


def _probe(
    module: pl.LightningModule,
    kind: str,
    sample: Any,
    rows: RowsTree,
    context: Callable[[], Any],
) -> Probe:
    step = getattr(module, kind)
    arguments = _arguments(step)
    training = kind == "training_step"
    modes = [(child, child.training) for child in module.modules()]
    if not training:
        module.eval()
    try:
        with ExitStack() as stack:
            if not training:
                stack.enter_context(torch.no_grad())
            return probe_batch(
                module,
                lambda batch: step(batch, *arguments),
                lambda parts: cut(sample, rows, parts),
                whole_rows(rows),
                context,
            )
    finally:
        for child, mode in modes:
            child.training = mode


def _arguments(step: Callable[..., Any]) -> tuple[int, ...]:
    """What Lightning passes behind the batch: batch_idx and dataloader_idx, where asked for."""
    names = list(inspect.signature(step).parameters)
    if names and names[0] == "dataloader_iter":
        raise UnsupportedError(
            "training_step(dataloader_iter) takes its batches itself; edge_collab has to cut them. "
            "Use training_step(batch, batch_idx)"
        )
    return trailing_arguments(step)


class RunParts:
    """Everything of one run, put together; see the modules of `loop/` for each part."""

    def __init__(
        self,
        strategy: EdgeCollabStrategy,
        trainer: pl.Trainer,
        options: Options,
        stage: Stage,
        feed: Feed,
        seed: int,
        weighted: bool,
    ) -> None:
        module, transport = strategy.lightning_module, strategy.transport
        assert module is not None
        self._strategy, self._trainer, self._feed = strategy, trainer, feed
        self.stage, self.module = stage, module
        self.recorder = Recorder(
            module,
            transport if transport.world_size > 1 else None,
            rank=transport.rank,
            last_ranks=stage.plan.ranks(stage.last),
            world_size=transport.world_size,
            inside=strategy.inside,
        )
        self.recorder.received = stage.replay.received
        self.recorder.adding = lambda: stage.probe.adding
        self.epoch_end = EpochEndHooks(module, self.recorder)
        self.transfer = BatchTransfer(
            feed, trainer, strategy.root_device, seed=seed, aligned=self._aligned
        )
        heard = heard_steps(trainer, module)
        decision, self._epoch = strategy.decision, trainer.current_epoch
        self._drift = None
        if decision is not None and decision.prediction is not None:
            self._drift = Drift(
                decision,
                transport,
                strategy.device_names,
                options,
                decision.prediction.rows,
                None if options.data == "every" else feed.owner,
            )
        self._run = Run(module, stage, self.recorder, self.transfer, weighted, heard)
        self._copies = list(averages.copies(module, trainer.callbacks))  # type: ignore[attr-defined]
        self._undo: list[Callable[[], None]] = []
        self._own_zero_grad = is_overridden("optimizer_zero_grad", module)

    def install(self) -> None:
        """Hook into the module and the precision plugin; the last step of set-up."""
        for copy in self._copies:
            self.stage.place_copy(copy)
        self.recorder.open()
        self.stage.transport.reset_counters()  # set-up has talked as well
        self._memory = TrainingMemory(self.module.parameters(), self._strategy.root_device)
        self.epoch_end.install()
        self.transfer.install()
        undo = clip.install(self._strategy.precision_plugin, self._owned, self._sum)
        self._undo = [undo, self.transfer.remove, self.epoch_end.remove, self.recorder.close]
        if self.stage.transport.world_size > 1:
            self._undo.append(batch_weights.install(self._trainer, lambda: self.transfer.rows))
            self._undo.append(clock.install(self._trainer, self.stage.transport))
            self._undo.append(throughput.install(self._trainer, lambda: self._run.own_and_all_rows))

    def wrap(self, loader: Any) -> Any:
        """A loader that gives this device its rows."""
        return self._feed.wrap(loader, self._rows_for, what=self._what())

    def train(self, args: tuple[Any, ...], synchronise: bool) -> Any:
        """One training batch."""
        self._look_at_epoch()
        accumulate = self._trainer.accumulate_grad_batches
        fresh = self._trainer.fit_loop.batch_idx % accumulate == 0
        return self._run.train(
            args,
            _context(self._strategy, "training_step"),
            accumulate=accumulate,
            fresh=fresh,
            own_zero_grad=self._own_zero_grad,
            synchronise=synchronise,
        )

    def evaluate(self, kind: str, args: tuple[Any, ...]) -> Any:
        """One batch of validation or test."""
        return self._run.evaluate(kind, args, _context(self._strategy, kind))

    def predict(self, args: tuple[Any, ...]) -> Any:
        """One batch of prediction."""
        return self._run.predict(args, _context(self._strategy, "predict_step"))

    def announce_step(self) -> None:
        """Tell a testbed, if one is watching, that an optimizer step is done."""
        announce(f"{self._trainer.global_step} {time.monotonic()}")

    @property
    def batch_rows(self) -> int:
        """Rows of the whole batch that was last in a step."""
        return self._run.rows

    @property
    def step_phases(self) -> list[tuple[float, float, dict[str, float]]]:
        """How this device spent the last training batch, instruction by instruction.

        Each is a start, an end (`time.perf_counter`) and seconds per phase in their order; what is
        left over was compute.
        """
        return [
            (s.start_s, s.stop_s, {"waiting": s.wait_s, "communication": s.communication_s})
            for s in self._run.last.spans
        ]

    def report(self) -> Report:
        """What every device did; collective."""
        self.paces()
        transport, stage = self.stage.transport, self.stage
        own = DeviceReport(
            rank=transport.rank,
            name=self._strategy.device_names[transport.rank],
            stage=stage.index,
            start=stage.plan.stages[stage.index].start if stage.index is not None else None,
            parameters=sum(p.numel() for p in self.module.parameters() if not is_fake(p)),
            share=float(stage.plan.stages[stage.index].devices[transport.rank])
            if stage.index is not None
            else 0.0,
            measured=self._run.measured,
            sent_bytes={peer: c.bytes_sent for peer, c in transport.counters.peers.items()},
            reduced_bytes=transport.counters.reduced_bytes,
            peak_memory_bytes=peak_memory_bytes(),
            step_s=self._run.pace.median_s,
            training_bytes=self._memory.peak_bytes(),
            energy_j=self._energy_j(),
        )
        parts = Report([own]).to_dict()["devices"]
        gathered = transport.all_gather(parts[0]) if transport.world_size > 1 else parts
        decision = self._strategy.decision
        prediction = decision.prediction if decision is not None else None
        return Report.from_parts(gathered, None if prediction is None else prediction.to_dict())

    def _look_at_epoch(self) -> None:
        """At the first batch of an epoch, hold the one before against the prediction."""
        epoch = self._trainer.current_epoch
        if self._drift is not None:
            self._drift.begin(self._run.measured)
        if epoch != self._epoch:
            self._epoch = epoch
            self.paces()
            self._run.pace.interrupt()

    def paces(self) -> Mapping[int, Paces]:
        """How fast devices were against what was predicted; collective."""
        measured, pace = self._run.measured, self._run.pace.median_s
        if self._drift is None or not measured.batches or pace is None:
            return {}
        callback = profiler_callback(self._trainer)
        limit = callback.settings["drift"] if callback is not None else DRIFT
        return self._drift.look(measured, pace, limit, self._memory.peak_bytes())

    def refined_profile(self) -> Profile | None:
        """The profile with what training measured; collective."""
        found, decision = self.paces(), self._strategy.decision
        if decision is None or decision.profile is None:
            return None
        return refined(decision.profile, found)

    def _energy_j(self) -> float | None:
        """Joules of training on this device, if an `EnergyLogger` has counted them."""
        callbacks: list[Any] = self._trainer.callbacks  # type: ignore[attr-defined]
        asked = [c.owned_energy_j for c in callbacks if hasattr(c, "owned_energy_j")]
        joules: float | None = asked[0]() if asked else None
        return joules

    def close(self, hand_back: bool) -> None:
        """Undo everything; give every rank the whole module when nothing failed."""
        for undo in self._undo:
            undo()
        self._undo = []
        self.stage.close()
        self._feed.close()
        if hand_back:
            for module in (self.module, *self._copies):
                self.stage.make_whole(module)

    def _rows_for(self, rank: int, rows: int) -> list[tuple[int, int]]:
        return self.stage.intervals(rank, rows, self._trainer.training)

    def _what(self) -> str:
        stage = self._trainer.state.stage
        return stage.value if stage is not None else "training"

    def _aligned(self, rows: int) -> bool:
        """Whether all stages cut a batch in the same places."""
        layout = self.stage.layout(rows, self._trainer.training)
        plan = self.stage.plan
        cut = [
            sorted(layout.rows_of(rank) for rank in plan.ranks(i)) for i in range(len(plan.stages))
        ]
        return all(other == cut[0] for other in cut)

    def _owned(self) -> list[tuple[torch.nn.Parameter, bool]]:
        rank, holders = self.stage.transport.rank, self.stage.holders
        return [
            (parameter, holders[name][0] == rank)
            for name, parameter in self.module.named_parameters()
            if rank in holders[name]
        ]

    def _sum(self, value: Tensor) -> Tensor:
        transport = self.stage.transport
        if transport.world_size == 1:
            return value
        total: Tensor = torch.stack(transport.all_gather(value)).sum(0)
        return total

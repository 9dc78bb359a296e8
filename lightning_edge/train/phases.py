"""What each kind of step does at this stage's ends, found out when it is first met.

Training, validation and prediction go different ways through the model, and so may batches of
another structure. Each such kind is probed once, on placeholders, on two and three of the batch's
own rows; shapes may change from batch to batch without a new probe.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor, nn

from lightning_edge.errors import SplitError
from lightning_edge.replicate.cut_table import Cuts
from lightning_edge.replicate.placeholder import is_fake
from lightning_edge.replicate.probe import Probe, Value, probe_step
from lightning_edge.replicate.split import (
    carried,
    check_replicas,
    check_starts,
    crossing,
    cuts,
    owners,
    reused,
)
from lightning_edge.train.job import Batch
from lightning_edge.train.microbatch import batch_leaves, batch_rows, take_rows
from lightning_edge.train.replay import Phase

__all__: list[str] = []

PROBE_ROWS = (2, 3)


def probe_batch(
    module: nn.Module,
    step: Callable[[Any], Any],
    cut: Callable[[Sequence[tuple[int, int]]], Any],
    rows: int,
    context: Callable[[], AbstractContextManager[Any]],
) -> Probe:
    """Probe a step on the first of a batch's `rows` rows, given by `cut` (repeated if too few)."""
    small, larger = (cut([(i % rows, i % rows + 1) for i in range(n)]) for n in PROBE_ROWS)
    return probe_step(module, step, (small, larger), PROBE_ROWS, context)


def find_cuts(module: nn.Module, batch: Any, *, step: str = "training_step") -> Cuts:
    """The modules at which a stage of a plan may begin, in the order they run.

    Printing the result gives a table of those between blocks, from which `split_points="auto"`
    chooses; iterating over it gives all.

    Args:
        module: A LightningModule, or any module with a step; it is left as it was.
        batch: As its DataLoader yields it.
        step: Name of the step; called with the batch, and 0 for what else it asks for.

    Returns:
        Each with its name, the tensors that cross there, and the parameters and floating-point
        operations up to the next cut.

    Raises:
        SplitError: When the step cannot be run on placeholders.
    """
    call = getattr(module, step)
    rest = trailing_arguments(call)
    row_dims = getattr(module, "edge_row_dims", None)
    rows = batch_rows(batch, row_dims=row_dims)
    probe = probe_batch(
        module,
        lambda part: call(part, *rest),
        lambda parts: take_rows(batch, rows, parts, row_dims=row_dims),
        rows,
        nullcontext,
    )
    found = cuts(probe, module)
    if not found and probe.failure is not None:
        raise SplitError(f"{step} cannot be tried without data: {probe.failure}")
    return Cuts(found, cuts(probe, module, blocks_only=True))


def trailing_arguments(step: Callable[..., Any]) -> tuple[int, ...]:
    """What is passed behind the batch in a trial: zeros for batch_idx and what else it needs."""
    parameters = list(inspect.signature(step).parameters.values())
    needed = [p for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
    return (0,) * (max(len(needed), min(len(parameters), 2)) - 1)


def structure(module: nn.Module, kind: str, batch: Any) -> Any:
    """What makes a step go its way, as far as one can tell from outside: a key for its probe."""
    leaves = tuple(
        (path, leaf.dtype, leaf.ndim) if isinstance(leaf, Tensor) else (path, type(leaf))
        for path, leaf in batch_leaves(batch)
    )
    trained = tuple(parameter.requires_grad for parameter in module.parameters())
    return kind, module.training, leaves, trained


def phase_between(probe: Probe, enter: str | None, leave: str | None) -> Phase:
    """What a step does at the ends of a stage.

    Args:
        probe: Of the step.
        enter: The module the stage begins with; None on the first stage.
        leave: The module the next stage begins with; None on the last stage.
    """
    leaves, sent, again = None, {}, False
    values: list[Value] = []
    if leave is not None:
        leaves = {leaf.path: leaf for leaf in crossing(probe, leave)}
        sent = {value.leaf.path: value.leaf for value in carried(probe, leave)}
        values += carried(probe, leave)
    if enter is not None:
        again = reused(probe, enter) or bool(carried(probe, enter))
        values += carried(probe, enter)
    sites = {site.name: value.leaf.path for value in values for site in value.sites}
    return Phase(leaves, again, sent, sites)


class Phases:
    """The probes of one stage, by kind of step.

    Args:
        module: With placeholders.
        starts: The modules at which stages 1, 2, ... begin.
        stage: This device's.
        devices: Numbers of devices of all stages.
    """

    def __init__(
        self, module: nn.Module, starts: Sequence[str], stage: int, devices: Sequence[int]
    ) -> None:
        self._module, self._starts, self._stage = module, tuple(starts), stage
        self._devices = tuple(devices)
        self._probes: dict[Any, Probe] = {}
        self._phases: dict[Any, Phase] = {}

    def add(self, kind: str, batch: Any, probe: Probe) -> None:
        """Use a probe made before the placeholders were."""
        self._know(structure(self._module, kind, batch), probe)

    def of(
        self,
        kind: str,
        step: Callable[[Any], Any],
        batch: Batch,
        context: Callable[[], AbstractContextManager[Any]],
    ) -> tuple[Phase, Probe]:
        """The phase of a step on a batch, probed if it is new.

        Raises:
            SplitError: When this kind of step cannot be run with the plan's cuts.
        """
        key = structure(self._module, kind, batch.data)
        if key not in self._phases:
            probe = probe_batch(self._module, step, batch.cut, batch.own, context)
            check_starts(probe, self._module, self._starts)
            check_replicas(probe, self._starts, self._devices)
            self._check_held(kind, probe)
            self._know(key, probe)
        return self._phases[key], self._probes[key]

    def _know(self, key: Any, probe: Probe) -> None:
        enter = self._starts[self._stage - 1] if self._stage > 0 else None
        leave = self._starts[self._stage] if self._stage < len(self._starts) else None
        self._probes[key], self._phases[key] = probe, phase_between(probe, enter, leave)

    def _check_held(self, kind: str, probe: Probe) -> None:
        parameters = dict(self._module.named_parameters())
        missing = [
            name
            for name, stages in owners(probe, self._module, self._starts).items()
            if self._stage in stages
            and name in probe.touches
            and name in parameters
            and is_fake(parameters[name])
        ]
        if missing:
            raise SplitError(
                f"{kind} uses {', '.join(missing[:3])} behind the cut "
                f"{self._starts[self._stage - 1]!r}, where the training step does not: the stage "
                f"does not hold it. Use it in the same place in all steps, or choose another cut."
            )

    @property
    def probes(self) -> Sequence[Probe]:
        """All probes made so far."""
        return tuple(self._probes.values())

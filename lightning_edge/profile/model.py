"""The model, block by block: seconds by rows, what is kept, what crosses; measured by running it.

    rows        1     4    16    64          as far as time and memory allow
    h.3      .002  .006  .021     -          forward seconds; planning interpolates
             .004  .011  .043     -          backward

A device with room for everything runs the whole step, with moments taken between the blocks. One
without runs one block after the other on what the block in front gave, each of equal ones once.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from lightning_edge.errors import EdgeError, ProfileError
from lightning_edge.plan.workload import Block, Model, Timing
from lightning_edge.profile.clock import Clock, clock_for
from lightning_edge.profile.marks import Seconds
from lightning_edge.profile.measured import Measured
from lightning_edge.profile.optimizer import OptimizerCost
from lightning_edge.profile.rehearsal import Rehearsal, Subject, rehearse
from lightning_edge.profile.sizes import (
    alike,
    crossing_bytes,
    least_rows,
    own_bytes,
    row_bytes,
    shared_parameters,
    signature,
)
from lightning_edge.profile.steady import Effort, repeat
from lightning_edge.train.phases import PROBE_ROWS
from lightning_edge.train.values import Value

__all__ = ["measure_model"]

POINTS = 5
ROOM = 0.8  # of the memory that training may use; the rest is for what is not counted
PREFIX_S = 0.3
Progress = Callable[[str], None]
Inputs = dict[int, "list[Value] | None"]


def ladder(rows: int) -> list[int]:
    """Return numbers of rows to measure at, evenly spaced on a logarithmic scale."""
    steps = POINTS - 1
    return sorted({max(1, round(float(rows ** (i / steps)))) for i in range(POINTS)})


def measure_model(
    subject: Subject,
    *,
    memory_bytes: int | None = None,
    effort: Effort | None = None,
    progress: Progress = lambda _: None,
) -> Measured:
    """Measure a model on this device; nothing of it is changed.

    Args:
        subject: The model with a batch and a way to run it.
        memory_bytes: What training may use; a model that does not fit runs block by block.
        effort: How long to measure.
        progress: Told what is being measured.

    Raises:
        ProfileError: If the model cannot be run alone; says why.
    """
    points = ladder(subject.rows)
    try:
        try:
            return _Measurement(subject, effort or Effort(), points, memory_bytes, progress).run()
        except ValueError:
            if points[0] > 1 or len(points) == 1:
                raise
            # A single row is too few for batch normalisation.
            return _Measurement(
                subject, effort or Effort(), points[1:], memory_bytes, progress
            ).run()
    except EdgeError as error:
        raise ProfileError(f"the model cannot be run here to be measured: {error}") from error
    except Exception as error:  # the user's code, on rows of its own data
        text = f"{type(error).__name__}: {error}"
        raise ProfileError(f"the model cannot be run here to be measured: {text}") from error


class _Measurement:
    """One measurement of a model; `run` once."""

    def __init__(
        self,
        subject: Subject,
        effort: Effort,
        points: list[int],
        memory_bytes: int | None,
        progress: Progress,
    ) -> None:
        self._subject, self._effort, self._progress = subject, effort, progress
        self._blocks = len(subject.sites.blocks)
        self._alike = alike(subject.sites, subject.module, subject.probe)
        sizes = own_bytes(subject.sites, subject.module)
        shared = shared_parameters(subject.sites, subject.module, 0.0)
        self._gradient_bytes = sum(g for _, g in sizes) + sum(s.gradient_bytes for s in shared)
        self._memory_bytes = memory_bytes
        self._clock: Clock = clock_for(subject.device)
        self._ladder = points
        self._measured = Measured(self._blocks)

    def run(self) -> Measured:
        whole = self._room(2 * self._gradient_bytes)
        pieces = [(0, self._blocks)] if whole else [(i, i + 1) for i in range(self._blocks)]
        distinct = 1 if whole else len(set(self._alike))
        inputs: Inputs = dict.fromkeys(self._ladder)
        for first, stop in pieces:
            twin = self._alike[first]
            if not whole and twin != first:
                self._measured.copy(twin, first)
                continue  # its outputs look like its inputs
            with rehearse(self._subject, first, stop, self._clock) as rehearsal:
                inputs = self._piece(rehearsal, first, stop, inputs, distinct)
        self._measured.average(self._alike)
        self._measured.instruction_s = self._prefix() / 2  # only forwards have a prefix
        return self._measured

    def _piece(
        self, rehearsal: Rehearsal, first: int, stop: int, inputs: Inputs, pieces: int
    ) -> Inputs:
        """Measure some blocks at several numbers of rows; return what they give at each."""
        clock, effort = self._clock, self._effort
        name = self._subject.sites.blocks[first].name if stop - first == 1 else "the whole step"
        deadline_s = time.perf_counter() + effort.seconds / pieces
        gradient_bytes = self._gradient_bytes * (stop - first) / self._blocks
        outputs: Inputs = {}
        few, more = self._ladder[0], self._ladder[min(2, len(self._ladder) - 1)]
        self._keep(rehearsal, first, stop, {r: inputs[r] for r in {few, more} if r in inputs})
        rate_s = 0.0
        for rows in sorted(inputs):
            left_s = deadline_s - time.perf_counter()
            kept_bytes = self._measured.kept_bytes(first, stop, rows)
            if outputs and (rate_s * rows > left_s or not self._room(gradient_bytes + kept_bytes)):
                break
            self._progress(f"measuring {name} with {rows} rows")
            given = inputs[rows]
            result = rehearsal.run(clock, rows, given)  # a little slower: memory is new
            seconds, left_s = result.seconds, deadline_s - time.perf_counter()
            if seconds.total_s < left_s:

                def once(rows: int = rows, given: list[Value] | None = given) -> Seconds:
                    return rehearsal.run(clock, rows, given).seconds

                # More for more rows: there, a wrong number does most harm.
                weights = {r: r**0.5 for r in inputs if r >= rows}
                seconds = repeat(once, effort, left_s * weights[rows] / sum(weights.values()))
            self._measured.add(first, rows, seconds)
            rate_s, outputs[rows] = seconds.total_s / rows, result.outputs
        return outputs

    def _keep(self, rehearsal: Rehearsal, first: int, stop: int, inputs: Inputs) -> None:
        """Find out what is kept per row, from two numbers of rows if there are."""
        at: dict[int, tuple[list[int], list[int]]] = {}
        for rows in sorted(inputs):
            kept = rehearsal.run(self._clock, rows, inputs[rows], keep=True).kept
            assert kept is not None
            at[rows] = kept.bytes, kept.largest
        low, high = min(at), max(at)
        for offset in range(stop - first):
            rates = []
            for column in (0, 1):
                few, many = at[low][column][offset], at[high][column][offset]
                rates.append((many - few) / (high - low) if high > low else few / low)
            self._measured.keep(first + offset, max(rates[0], 0.0), max(rates[1], 0.0))

    def _room(self, needed_bytes: float) -> bool:
        return self._memory_bytes is None or needed_bytes <= ROOM * self._memory_bytes

    def _prefix(self) -> float:
        """Seconds of a forward in front of a stage in the middle of the model."""
        middle = self._blocks // 2
        if middle == 0:
            return 0.0
        self._progress("measuring what comes in front of a stage")
        rows = self._ladder[0]
        inputs: list[Value] | None = None
        pieces = [(0, middle)] if self._room(2 * self._gradient_bytes) else []
        pieces = pieces or [(i, i + 1) for i in range(middle)]
        for first, stop in pieces:
            with rehearse(self._subject, first, stop, self._clock) as rehearsal:
                inputs = rehearsal.run(self._clock, rows, inputs).outputs
        with rehearse(self._subject, middle, middle + 1, self._clock) as rehearsal:
            rehearsal.run(self._clock, rows, inputs)
            short = Effort(self._effort.seconds, 0.05, (2, 4))
            run = repeat(lambda: rehearsal.run(self._clock, rows, inputs).seconds, short, PREFIX_S)
        return run.prefix_s


def model_of(
    subject: Subject,
    measured: Measured,
    optimizer: OptimizerCost,
    *,
    name: str,
    timing: str,
    wire_dtype: torch.dtype | None = None,
) -> Model:
    """Return the model as planning sees it.

    Args:
        subject: The model.
        measured: Its seconds and bytes; without rows, the model has no timings (as `present`).
        optimizer: What its optimizer costs.
        name: Of the model.
        timing: Key of this device's timings.
        wire_dtype: What floating tensors are cast to between devices.
    """
    sites, module, probe = subject.sites, subject.module, subject.probe
    shared = shared_parameters(sites, module, optimizer.state_ratio)
    by_first: dict[str, int] = {}
    for part in shared:
        by_first[part.blocks[0]] = by_first.get(part.blocks[0], 0) + part.gradient_bytes
    blocks = []
    for index, (site, (size, trained)) in enumerate(
        zip(sites.blocks, own_bytes(sites, module), strict=True)
    ):
        forward, backward = crossing_bytes(probe, site, PROBE_ROWS[0], subject.rows, wire_dtype)
        kept, largest = measured.kept[index]
        step_s = (trained + by_first.get(site.name, 0)) * optimizer.seconds_per_byte
        rows = sorted(measured.tables[index])
        timings = {}
        if rows:
            table = [measured.tables[index][r] for r in rows]
            timings[timing] = Timing(
                tuple(rows),
                tuple(round(f, 7) for f, _ in table),
                tuple(round(b, 7) for _, b in table),
                round(step_s, 7),
                provenance={"all": "measured"} | ({"step_s": "prior"} if optimizer.why_not else {}),
            )
        blocks.append(
            Block(
                site.name,
                timings,
                parameter_bytes=size,
                gradient_bytes=trained,
                optimizer_bytes=round(trained * optimizer.state_ratio),
                activation_bytes=round(kept, 1),
                # while it computes, a gradient of the largest tensor it keeps, and one more
                workspace_bytes=round(2 * largest, 1),
                forward_bytes=forward,
                backward_bytes=backward,
                provenance={"all": "measured", "workspace_bytes": "prior"}
                | ({"optimizer_bytes": "prior"} if optimizer.why_not else {}),
            )
        )
    batch = subject.batch(subject.rows)
    return Model(
        name,
        tuple(blocks),
        shared,
        batch_bytes=row_bytes(batch, subject.rows),
        least_rows=least_rows(module),
        signature=signature(module, probe, sites, batch),
        provenance={"all": "measured"},
    )

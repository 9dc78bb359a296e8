"""One plan for all ranks: the given one, or the best for what was measured.

    plan=...       checked against the model, used
    plan="auto"    profile -> rank 0 searches -> its plan goes to all -> shown with its prediction

Only where the model cannot be measured are stages balanced by parameters, as if all devices were
equal; a sentence says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.utilities import rank_zero_info

from lightning_edge.errors import PlanError, ProfileError, SplitError
from lightning_edge.loop.options import Options
from lightning_edge.loop.power import check_mode
from lightning_edge.loop.profiling import PATIENCE, Profiler, Settings, subject_for
from lightning_edge.plan.groups import plan_from_groups
from lightning_edge.plan.objective import Objective
from lightning_edge.plan.plan import Plan
from lightning_edge.plan.prediction import Prediction
from lightning_edge.plan.profile import Profile
from lightning_edge.plan.search import search
from lightning_edge.plan.simulate import simulate
from lightning_edge.plan.table import table
from lightning_edge.profile.cache import ProfileCache
from lightning_edge.replicate.probe import Probe
from lightning_edge.replicate.split import Cut, check_starts, cuts, parameters_in_front, parted
from lightning_edge.train.microbatch import RowsTree, cut, whole_rows

if TYPE_CHECKING:
    import lightning.pytorch as pl

    from lightning_edge.train.transport import Transport

__all__: list[str] = []


@dataclass(frozen=True)
class Decision:
    """What was decided, the same on all ranks.

    Attributes:
        plan: With ranks and numbers.
        text: What to tell the user.
        profile: What it was decided on; None if nothing was measured.
        prediction: Of a step; None without a profile.
    """

    plan: Plan
    text: str
    profile: Profile | None = None
    prediction: Prediction | None = None


@dataclass(frozen=True)
class Case:
    """What a plan is needed for.

    Attributes:
        trainer: Of the run.
        transport: Connects the ranks.
        names: Of the devices, by rank.
        options: What the user set.
        probe: Of the step.
        step: The step, with everything but the batch bound.
        sample: A whole batch, where this rank computes.
        rows: Its rows.
        device: Where this rank computes.
        context: Entered around each call (autocast).
        owner: Rank that loads the data; None if all do.
        fitting: Whether it is to train.
        earlier: What an earlier run of the same strategy decided.
    """

    trainer: pl.Trainer
    transport: Transport
    names: tuple[str, ...]
    options: Options
    probe: Probe
    step: Callable[[Any], Any]
    sample: Any
    rows: RowsTree
    device: torch.device
    context: Callable[[], Any]
    owner: int | None
    fitting: bool
    earlier: Decision | None = None

    @property
    def module(self) -> pl.LightningModule:
        """What is trained."""
        return self.trainer.lightning_module


def decide(case: Case) -> Decision:
    """Return the plan of a run; collective.

    Raises:
        PlanError: If the plan, or what it was to be made from, does not fit.
        ProfileError: If the user gave a profile that does not fit.
        SplitError: If the model cannot be cut as the plan says.
    """
    options = case.options
    legal = cuts(case.probe, case.module)
    profile = _profile(case)
    if options.plan is not None:
        plan = _resolved(case, options.plan, legal)
        check_mode(plan.power_modes.get(case.transport.rank), case.names[case.transport.rank])
        prediction = _predicted(case, plan, profile)
        return Decision(plan, _text(case, plan, prediction), profile, prediction)
    if isinstance(profile, Profile):
        return _searched(case, profile, legal)
    earlier = case.earlier
    starts = {stage.start for stage in earlier.plan.stages[1:]} if earlier else set()
    if earlier is not None and not case.fitting and starts <= {cut.name for cut in legal}:
        return Decision(earlier.plan, table(earlier.plan, case.names), earlier.profile)
    return _balanced(case, legal)


def _profile(case: Case) -> Profile | None:
    """The profile to plan or to predict with, if there is to be one."""
    options = case.options
    asked = options.profile != "auto" or profiler_callback(case.trainer) is not None
    wanted = asked or (options.plan is None and len(case.names) > 1)
    if not case.fitting or not wanted:
        return None
    try:
        return profiler_of(case).obtain()
    except ProfileError as error:
        if isinstance(options.profile, Profile):
            raise
        rank_zero_info(f"edge_collab: {error}")
        return None


def profiler_of(case: Case) -> Profiler:
    """What profiles the participants of a run."""
    options, callback = case.options, profiler_callback(case.trainer)
    given: tuple[str, ...] = ()
    if isinstance(options.profile, Profile):
        given = options.profile.model.cuts
    if options.split_points != "auto":
        given = (*given, *options.split_points)
    rows = whole_rows(case.rows)

    def batch(count: int) -> Any:
        return cut(case.sample, case.rows, [(i % rows, i % rows + 1) for i in range(count)])

    subject = subject_for(
        case.module, case.probe, case.step, batch, rows, case.device, case.context, given
    )
    settings: dict[str, Any] = {"cache": ProfileCache(), "given": options.profile}
    if callback is not None:
        settings |= callback.settings
    if isinstance(options.profile, Profile):
        settings["given"] = options.profile
    settings |= {"keep": given, "wire_dtype": options.wire_dtype}
    return Profiler(case.transport, case.names, case.trainer, subject, Settings(**settings))


def profiler_callback(trainer: Any) -> Any:
    """The user's `EdgeProfiler`, if there is one."""
    found = [c for c in trainer.callbacks if hasattr(c, "edge_profiler_settings")]
    return found[0].edge_profiler_settings if found else None


def objective_of(options: Options) -> Objective:
    """What to plan for, with everything else that the user fixed."""
    return Objective.parse(
        options.objective,
        groups=options.groups,
        across=options.across,
        split_points=options.split_points,
        micro_batches=options.micro_batches,
        power_modes="keep",
    )


def _searched(case: Case, profile: Profile, legal: Sequence[Cut]) -> Decision:
    """Rank 0 searches; what it found, or its error, is everybody's."""
    rows = whole_rows(case.rows)
    found: list[Any] = [None, "", []]
    if case.transport.rank == 0:
        try:
            choice = search(
                profile, rows=rows, objective=objective_of(case.options), owner=case.owner
            )
            found = [choice.plan.to_json(), str(choice), []]
        except (PlanError, ProfileError) as error:
            found[2] = list(error.problems)
    case.transport.barrier("the search for a plan", timeout=PATIENCE)
    plan_text, text, problems = case.transport.broadcast(found)
    if problems:
        raise PlanError(problems, source='plan="auto"')
    plan = _resolved(case, Plan.from_json(plan_text), legal)
    return Decision(plan, text, profile, _predicted(case, plan, profile))


def _predicted(case: Case, plan: Plan, profile: Profile | None) -> Prediction | None:
    if profile is None:
        return None
    return simulate(plan, profile, rows=whole_rows(case.rows), owner=case.owner)


def _text(case: Case, plan: Plan, prediction: Prediction | None) -> str:
    parts = [table(plan, case.names)]
    return "\n\n".join(parts + ([] if prediction is None else [f"Predicted: {prediction}"]))


def _balanced(case: Case, legal: Sequence[Cut]) -> Decision:
    """The plan that groups ask for, with stages of about equal numbers of parameters."""
    options, module = case.options, case.module
    blocks = cuts(case.probe, module, blocks_only=True)
    points = blocks if options.split_points == "auto" else legal
    plan, reasons = plan_from_groups(
        options.groups,
        options.across,
        case.names,
        [point.name for point in points],
        [parameters_in_front(case.probe, module, points), *(p.parameters for p in points)],
        options.micro_batches,
        options.split_points,
    )
    plan = _resolved(case, plan, legal)
    told = [f"edge_collab: {reason}" for reason in reasons]
    return Decision(plan, "\n".join([*told, table(plan, case.names)]))


def _resolved(case: Case, plan: Plan, legal: Sequence[Cut]) -> Plan:
    names = [point.name for point in legal]
    starts = [stage.start for stage in plan.stages if stage.start is not None]
    if case.probe.failure is not None and not set(names).issuperset(starts):
        raise SplitError(
            f"the step did not get as far as {starts[-1]!r} on a trial without data, so it "
            f"cannot be cut there: {case.probe.failure}"
        )
    if any(parted(case.probe, start) for start in starts if start in case.probe.once()):
        check_starts(case.probe, case.module, starts)
    return plan.resolve(case.names, names)

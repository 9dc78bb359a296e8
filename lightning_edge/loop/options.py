"""What a user set on the strategy, checked at once and all together."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch

from lightning_edge.errors import PlanError
from lightning_edge.plan.objective import Objective
from lightning_edge.plan.plan import Plan
from lightning_edge.plan.profile import Profile

__all__: list[str] = []

_WIRE = {"bfloat16": torch.bfloat16, "bf16": torch.bfloat16, "float16": torch.float16}
DEFAULT_MARGIN = 0.1
"""How much better another plan must be to be told of at an epoch's end."""


@dataclass(frozen=True)
class Options:
    """The strategy's arguments; see `EdgeCollabStrategy`.

    `plan` is None for "auto"; `profile` is "auto", "measure" or the profile itself; `replan` is a
    margin, 0 for never.
    """

    plan: Plan | None
    groups: Mapping[str, Mapping[str, Any]] | None
    across: str
    objective: str | Mapping[str, Any]
    micro_batches: Any
    split_points: Any
    profile: str | Profile
    replan: float
    data: Any
    eval_micro_batches: int
    wire_dtype: torch.dtype | None
    timeout: timedelta
    save_on_failure: bool | str = False

    @staticmethod
    def checked(
        *,
        plan: Any,
        groups: Any,
        across: str,
        objective: Any,
        micro_batches: Any,
        split_points: Any,
        profile: Any,
        data: Any,
        eval_micro_batches: Any,
        replan: Any,
        wire_dtype: Any,
        power_modes: Any,
        timeout: Any,
        save_on_failure: Any = False,
    ) -> Options:
        """Check the arguments.

        Raises:
            PlanError: Naming everything that is wrong.
        """
        problems: list[str] = []
        if plan != "auto":
            given = {
                "groups": groups is not None,
                "across": across != "auto",
                "micro_batches": micro_batches != "auto",
                "split_points": split_points != "auto",
            }
            problems += [
                f"{name}= was set together with plan=: a plan says it already; set it in the plan, "
                f"or leave plan='auto'"
                for name, is_set in given.items()
                if is_set
            ]
        try:
            Objective.parse(objective)
        except PlanError as error:
            problems += error.problems
        if isinstance(profile, str) and profile in ("auto", "measure"):
            pass
        elif not isinstance(profile, (Profile, Mapping, str, os.PathLike)):
            problems.append(
                f"profile={profile!r} is not 'auto', 'measure', a Profile, a mapping, or the path "
                f"of a YAML or JSON profile"
            )
        if not isinstance(data, str | Mapping) or (
            isinstance(data, str) and data not in ("owner", "every")
        ):
            problems.append(f'data={data!r} is not "owner", {{"owner": rank}} or "every"')
        if not isinstance(eval_micro_batches, int) or eval_micro_batches < 1:
            problems.append(f"eval_micro_batches={eval_micro_batches!r} is not a number from 1 up")
        margin = DEFAULT_MARGIN if replan is None else replan
        if isinstance(margin, bool) and margin:
            problems.append("replan=True: plans do not change while training yet; give a margin")
        elif not isinstance(margin, (int, float)) or not 0 <= margin < 1:
            problems.append(
                f"replan={replan!r} is not None, False, or how much better another plan must be to "
                f"be told of, such as 0.1 for 10 %"
            )
        if power_modes != "keep":
            problems.append(f'power_modes={power_modes!r}: only "keep" is supported yet')
        if isinstance(wire_dtype, str):
            wire_dtype = _WIRE.get(wire_dtype.removeprefix("torch."), wire_dtype)
        if wire_dtype is not None and wire_dtype not in _WIRE.values():
            problems.append(f"wire_dtype={wire_dtype!r} is not None, bfloat16 or float16")
        if not isinstance(timeout, timedelta) or timeout <= timedelta(0):
            problems.append(f"timeout={timeout!r} is not a positive datetime.timedelta")
        if not isinstance(save_on_failure, (bool, str, os.PathLike)) or save_on_failure == "":
            problems.append(f"save_on_failure={save_on_failure!r} is not True, False or a folder")
        if problems:
            raise PlanError(problems, source="EdgeCollabStrategy")
        where = save_on_failure if isinstance(save_on_failure, bool) else os.fspath(save_on_failure)
        return Options(
            plan=_plan(plan),
            groups=groups,
            across=across,
            objective=objective,
            micro_batches=micro_batches,
            split_points=split_points,
            profile=_profile(profile),
            replan=float(margin),
            data=data,
            eval_micro_batches=eval_micro_batches,
            wire_dtype=wire_dtype,
            timeout=timeout,
            save_on_failure=where,
        )


def _profile(given: Any) -> str | Profile:
    if isinstance(given, Profile) or given in ("auto", "measure"):
        return given  # type: ignore[no-any-return]
    return Profile.from_mapping(given) if isinstance(given, Mapping) else Profile.from_yaml(given)


def _plan(given: Any) -> Plan | None:
    if isinstance(given, Plan):
        return given
    if isinstance(given, Mapping):
        return Plan.from_mapping(given)
    if given == "auto":
        return None
    if isinstance(given, str | os.PathLike):
        return Plan.from_yaml(given)
    kind = type(given).__name__
    raise PlanError(
        [f"plan= is a {kind}; give 'auto', a Plan, a mapping, or the path of a YAML or JSON plan"],
        source="EdgeCollabStrategy",
    )

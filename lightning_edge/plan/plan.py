"""A plan: who works on which part of the model, on which share of the rows.

    Plan                       micro_batches, power_modes
    +- Pipeline                share of the batch's rows
       +- Stage                start, devices with their shares, parallelism, in_flight, checkpoint

Everything is a special case. Three devices, from left to right: data parallelism, a pipeline, and
a hybrid of the two:

      rows   one stage            three stages         two stages
        |    +---------------+    +---------------+    +---------------+
        v    | 0 |  1  |  2  |    | 0             |    | 0 |     1     |   <- shares 0.3, 0.7
             |   |     |     |    +---------------+    +---------------+
             |   |     |     |    | 1             |    | 2             |
             |   |     |     |    +---------------+    |               |
             |   |     |     |    | 2             |    |               |
             +---------------+    +---------------+    +---------------+

Plans are values: frozen, equal when they say the same, and the same in Python, YAML and JSON. The
order of a stage's devices says who has the first rows, so plans that differ in it are not equal.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any, Literal, TypeVar

import yaml

from lightning_edge.errors import UnsupportedError
from lightning_edge.plan import checks, parsing, values
from lightning_edge.plan.depth import auto_micro_batches, resolve_depths
from lightning_edge.plan.examine import STAGE_KEYS, device_shares, examine
from lightning_edge.plan.frozen import FrozenMap
from lightning_edge.plan.problems import Origin, Problem, refuse
from lightning_edge.plan.table import table

__all__ = ["Pipeline", "Plan", "Stage"]

Device = int | str
"""A rank, or the name of a device. A name made of digits is a rank."""
AnyDevices = Mapping[Device, float] | Mapping[int, float] | Mapping[str, float] | Sequence[Device]
T = TypeVar("T")
_NO_MODES: Mapping[Device, str] = FrozenMap()


@dataclass(frozen=True, init=False)
class Stage:
    """A segment of the model and the devices that share its rows.

    Args:
        devices: Rank or device name -> share of this stage's rows, a number from 0 to 1; the shares
            add up to 1. A list means equal shares. The order is the order of the rows.
        start: Name of the sub-module at which the stage begins; `None` for the first stage only.
        parallelism: How the devices work together: "data", "tensor" or "sequence".
        in_flight: Most micro-batches kept between forward and backward, or "auto". Any number from
            1 runs, as long as it is not greater than that of the stage before.
        checkpoint: Whether activations are kept at the blocks' inputs only and computed again in
            the backward: less memory for about a third more computing.

    Nothing is checked before the stage is part of a `Plan`, which then reports every problem.
    """

    devices: Mapping[Device, float]
    start: str | None
    parallelism: str
    in_flight: int | Literal["auto"]
    checkpoint: bool

    def __init__(
        self,
        devices: AnyDevices,
        start: str | None = None,
        parallelism: str = "data",
        in_flight: int | Literal["auto"] = "auto",
        checkpoint: bool = False,
    ) -> None:
        shares, problems = device_shares((), devices)
        _set(self, devices=devices if problems else FrozenMap(shares), start=start)
        _set(self, parallelism=parallelism, in_flight=_count(in_flight), checkpoint=checkpoint)


@dataclass(frozen=True, init=False)
class Pipeline:
    """An ordered list of stages that together hold the whole model.

    Args:
        stages: At least one stage, in the order of execution.
        share: Share of the batch's rows; `None` for an equal share of all pipelines.
    """

    stages: tuple[Stage, ...]
    share: float | None

    def __init__(self, stages: Sequence[Stage], share: float | None = None) -> None:
        number = None if share is None else values.share((), share)
        _set(self, stages=tuple(stages) if values.is_list(stages) else stages)
        _set(self, share=share if isinstance(number, Problem) else number)


@dataclass(frozen=True, init=False)
class Plan:
    """Who works on what.

    Args:
        pipelines: Usually one.
        micro_batches: Number of micro-batches a batch is divided into, or "auto".
        power_modes: Rank or device name -> power mode that the device is to be in, such as "15W".

    Raises:
        PlanError: With every problem, if the plan contradicts itself.
    """

    pipelines: tuple[Pipeline, ...]
    micro_batches: int | Literal["auto"]
    power_modes: Mapping[Device, str]
    # Not part of the value: where the plan was read, so that later problems can name the line.
    _origin: Origin | None = field(init=False, compare=False, repr=False)

    def __init__(
        self,
        pipelines: Sequence[Pipeline],
        micro_batches: int | Literal["auto"] = "auto",
        power_modes: Mapping[int, str] | Mapping[str, str] | Mapping[Device, str] = _NO_MODES,
        *,
        _origin: Origin | None = None,
    ) -> None:
        tree = {
            "pipelines": _plain(pipelines),
            "micro_batches": micro_batches,
            "power_modes": power_modes,
        }
        refuse(examine(tree), _origin)
        _set(self, pipelines=tuple(_pipeline(pipeline) for pipeline in pipelines))
        _set(self, micro_batches=_count(micro_batches), _origin=_origin)
        modes = {
            values.device((), key): values.power_mode((), mode) for key, mode in power_modes.items()
        }
        # Sorted, as their order means nothing.
        _set(self, power_modes=FrozenMap(sorted(modes.items(), key=lambda item: str(item[0]))))

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> Plan:
        """Return the plan that a mapping in the form of `to_mapping` describes.

        Raises:
            PlanError: With every problem of the mapping.
        """
        refuse(examine(mapping))
        return cls(**mapping)

    @classmethod
    def from_yaml(cls, path: str | os.PathLike[str]) -> Plan:
        """Return the plan in a YAML file, or in a JSON file if its name ends in `.json`.

        Raises:
            PlanError: With every problem of the file and its line, also if it cannot be read.
        """
        file = FilePath(path)
        source = parsing.shown_path(file)
        text = parsing.read_file(file)
        if file.suffix.lower() == ".json":
            return cls.from_json(text, source)
        tree, origin, problems = parsing.parse_yaml(text, source)
        refuse([*problems, *examine(tree)], origin)
        return cls(**tree, _origin=origin)

    @classmethod
    def from_json(cls, text: str, source: str = "JSON text") -> Plan:
        """Return the plan in a JSON text; `source` says in messages where the text came from.

        Raises:
            PlanError: With every problem of the text.
        """
        tree, problems = parsing.parse_json(text, source)
        origin = Origin(source, {})
        refuse([*problems, *examine(tree)], origin)
        return cls(**tree, _origin=origin)

    def to_mapping(self) -> dict[str, Any]:
        """Return the plan as mappings, lists and scalars, without what has its default."""
        mapping: dict[str, Any] = {
            "pipelines": [_pipeline_mapping(pipeline) for pipeline in self.pipelines],
            "micro_batches": self.micro_batches,
        }
        if self.power_modes:
            mapping["power_modes"] = dict(self.power_modes)
        return mapping

    def to_yaml(self, path: str | os.PathLike[str] | None = None) -> str:
        """Return the plan as YAML, and write it to `path` if one is given."""
        text = yaml.safe_dump(
            self.to_mapping(), sort_keys=False, default_flow_style=None, allow_unicode=True
        )
        if path is not None:
            FilePath(path).write_text(text, encoding="utf-8")
        return text

    def to_json(self) -> str:
        """Return the plan as JSON text; ranks become texts, as JSON has no other keys."""
        return json.dumps(self.to_mapping(), indent=2)

    def __str__(self) -> str:
        return table(self)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages of the only pipeline."""
        if len(self.pipelines) > 1:
            count = len(self.pipelines)
            raise UnsupportedError(f"{count} pipelines side by side are not supported yet")
        return self.pipelines[0].stages

    def stage_of(self, rank: Device) -> int | None:
        """Return the index of the stage that a rank works in, or `None` if it has no work."""
        for index, stage in enumerate(self.stages):
            if rank in stage.devices:
                return index
        return None

    def ranks(self, stage: int) -> tuple[int, ...]:
        """Return the ranks of a stage in the order of their rows. The plan must be resolved."""
        return tuple(rank for rank in self.stages[stage].devices if isinstance(rank, int))

    def check(self, modules: Sequence[str] | None = None, world_size: int | None = None) -> None:
        """Refuse the plan if it does not fit a model, the devices present, or this version.

        Args:
            modules: Names of the model's legal cut points in the order of execution, if known.
            world_size: Number of devices that take part, if known.

        Raises:
            PlanError: With every problem.
        """
        absent = [] if world_size is None else checks.absent(self, world_size)
        refuse(checks.unsupported(self) + checks.cut_points(self, modules) + absent, self._origin)

    def resolve(self, names: Sequence[str], modules: Sequence[str] | None = None) -> Plan:
        """Return the plan with ranks for device names and numbers for every "auto".

        Args:
            names: The name of each rank's device. The plan may give a device by its rank as well.
            modules: The model's legal cut points; with them, all that `check` finds is refused too.

        Raises:
            PlanError: With every device that is not there, ambiguous, or there twice.
        """
        ranks, problems = checks.to_ranks(self, names)
        if modules is not None:
            problems = checks.unsupported(self) + checks.cut_points(self, modules) + problems
        refuse(problems, self._origin)
        micro_batches = self.micro_batches
        if micro_batches == "auto":
            micro_batches = auto_micro_batches(max(len(p.stages) for p in self.pipelines))
        pipelines = []
        for pipeline in self.pipelines:
            depths = resolve_depths([stage.in_flight for stage in pipeline.stages], micro_batches)
            stages = [
                _resolved(stage, _renamed(stage.devices, ranks), depth)
                for stage, depth in zip(pipeline.stages, depths, strict=True)
            ]
            pipelines.append(Pipeline(stages, pipeline.share))
        modes = _renamed(self.power_modes, ranks)
        return Plan(pipelines, micro_batches, modes, _origin=self._origin)


def _set(target: object, **fields: object) -> None:
    """Set fields of a frozen dataclass while it is being made."""
    for name, value in fields.items():
        object.__setattr__(target, name, value)


def _count(given: object) -> object:
    """Return a number of micro-batches as an int; "auto" and what is wrong stay as they are."""
    number = values.count((), given, "")
    return number if isinstance(number, int) else given


def _renamed(mapping: Mapping[Device, T], ranks: Mapping[Device, int]) -> dict[Device, T]:
    return {ranks[device]: value for device, value in mapping.items()}


def _resolved(stage: Stage, devices: Mapping[Device, float], depth: int) -> Stage:
    return Stage(devices, stage.start, stage.parallelism, depth, stage.checkpoint)


def _plain(pipelines: object) -> object:
    """Return pipelines in their mapping form, so that `examine` sees what was given."""
    if not values.is_list(pipelines):
        return pipelines
    trees: list[object] = []
    for given in pipelines:
        if isinstance(given, Pipeline):
            stages: object = given.stages
            if values.is_list(stages):
                stages = [_fields(stage) for stage in stages]
            trees.append({"share": given.share, "stages": stages})
        else:
            trees.append(given)
    return trees


def _fields(stage: object) -> object:
    return {key: getattr(stage, key) for key in STAGE_KEYS} if isinstance(stage, Stage) else stage


def _pipeline(given: Pipeline | Mapping[str, Any]) -> Pipeline:
    """Return a pipeline for one that was given as such or as a (sound) mapping."""
    if isinstance(given, Pipeline):
        return Pipeline([_stage(stage) for stage in given.stages], given.share)
    return Pipeline([_stage(stage) for stage in given["stages"]], given.get("share"))


def _stage(given: Stage | Mapping[str, Any]) -> Stage:
    return given if isinstance(given, Stage) else Stage(**given)


def _pipeline_mapping(pipeline: Pipeline) -> dict[str, Any]:
    stages = []
    for stage in pipeline.stages:
        mapping: dict[str, Any] = {} if stage.start is None else {"start": stage.start}
        mapping["devices"] = dict(stage.devices)
        if stage.parallelism != "data":
            mapping["parallelism"] = stage.parallelism
        if stage.in_flight != "auto":
            mapping["in_flight"] = stage.in_flight
        if stage.checkpoint:
            mapping["checkpoint"] = True
        stages.append(mapping)
    return (
        {"stages": stages}
        if pipeline.share is None
        else {"share": pipeline.share, "stages": stages}
    )

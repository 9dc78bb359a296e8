"""Which sources to use on this machine.

Each is probed by a real reading, and every refusal keeps its reason.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points

from lightning_edge.energy.domain import Provenance, Scope
from lightning_edge.energy.host import HostEnv
from lightning_edge.energy.source import PowerSource, Unavailable
from lightning_edge.energy.sources import BUILT_IN, model
from lightning_edge.errors import EnergyError

log = logging.getLogger(__name__)

ENTRY_POINTS = "lightning_edge.energy_sources"

Wanted = str | PowerSource | type[PowerSource]


@dataclass(frozen=True)
class Choice:
    """What became of one kind of source.

    Args:
        kind: The source's kind.
        used: Whether it is read.
        reason: Why, or why not.
        remedy: What would make it usable; empty if nothing would.
    """

    kind: str
    used: bool
    reason: str
    remedy: str = ""


@cache
def plugins() -> Mapping[str, type[PowerSource]]:
    """Sources that other packages offer; a broken one is logged and left out."""
    found: dict[str, type[PowerSource]] = {}
    for point in entry_points(group=ENTRY_POINTS):
        try:
            found[point.name] = point.load()
        except Exception as error:
            log.warning(
                "Energy source %r of %s cannot be loaded: %s", point.name, point.value, error
            )
    return found


def open_sources(
    wanted: str | Sequence[Wanted],
    host: HostEnv,
    *,
    strict: bool = False,
    power_model: object = None,
) -> tuple[list[PowerSource], list[Choice]]:
    """Probe and return the sources, with the fate of each that was considered.

    Args:
        wanted: ``"auto"``, or kinds, classes or ready sources. What is named must be there; of
            ``"auto"`` the best combination that covers each part of the machine once is taken.
        host: The machine.
        strict: Refuse estimates.
        power_model: A `sources.model.PowerModel` for the estimate, instead of the one from the
            table of boards.

    Raises:
        EnergyError: If a named source is not available, or `strict` and nothing can be measured.
    """
    if wanted == "auto":
        sources, choices = _automatic(host, power_model)
    else:
        listed = [wanted] if isinstance(wanted, str) else list(wanted)
        sources, choices = _named(listed, host, power_model)
    estimated = [
        s.kind for s in sources if any(d.provenance is Provenance.MODEL for d in s.domains)
    ]
    if strict and (estimated or not sources):
        for source in sources:
            source.close()
        raise EnergyError(
            "strict=True takes measurements only, and this machine has "
            + (
                f"only an estimate for a part of it ({', '.join(estimated)})"
                if estimated
                else "none"
            )
            + _list(choice for choice in choices if not choice.used)
        )
    return sources, choices


def _named(
    listed: Sequence[Wanted], host: HostEnv, power_model: object
) -> tuple[list[PowerSource], list[Choice]]:
    known = {**BUILT_IN, **plugins()}
    sources: list[PowerSource] = []
    choices: list[Choice] = []
    for item in listed:
        if isinstance(item, str) and item not in known:
            choices.append(Choice(item, False, "no such source", f"known: {', '.join(known)}"))
        elif isinstance(item, str):
            _try(item, _prober(known[item], host, power_model), sources, choices)
        elif isinstance(item, type):
            _try(item.kind, _prober(item, host, power_model), sources, choices)
        else:
            sources.append(item)
            choices.append(Choice(item.kind, True, "given"))
    refused = [choice for choice in choices if not choice.used]
    if refused:
        for source in sources:
            source.close()
        raise EnergyError(f"energy sources={listed!r} cannot be used here" + _list(refused))
    return sources, choices


def _automatic(host: HostEnv, power_model: object) -> tuple[list[PowerSource], list[Choice]]:
    sources: list[PowerSource] = []
    choices: list[Choice] = []

    def attempt(kind: str, kind_class: type[PowerSource]) -> bool:
        return _try(kind, _prober(kind_class, host, power_model), sources, choices)

    if attempt("emulated", BUILT_IN["emulated"]):
        return sources, choices  # the testbed's device, not the machine that pretends to be it
    for kind, plugin in plugins().items():
        attempt(kind, plugin)
    for kind in ("jetson", "rapl", "nvml", "hwmon", "raspberry_pi"):
        attempt(kind, BUILT_IN[kind])
    for kind in ("battery", "model"):
        if _covers_cpu(sources):
            choices.append(Choice(kind, False, "not needed: something better covers this machine"))
        else:
            attempt(kind, BUILT_IN[kind])
    if _covers_all(sources):
        choices.append(Choice("gpu_model", False, "not needed: the whole machine is covered"))
    else:
        attempt("gpu_model", BUILT_IN["gpu_model"])
    choices.append(Choice("jtop", False, "used only when asked for by name", 'sources=["jtop"]'))
    return sources, choices


def _covers_cpu(sources: Iterable[PowerSource]) -> bool:
    return _covers_all(sources) or Scope.PACKAGE in _scopes(sources)


def _covers_all(sources: Iterable[PowerSource]) -> bool:
    return bool(_scopes(sources) & {Scope.PLATFORM, Scope.MODULE})


def _scopes(sources: Iterable[PowerSource]) -> set[Scope]:
    return {domain.scope for source in sources for domain in source.domains}


def _prober(
    kind_class: type[PowerSource], host: HostEnv, power_model: object
) -> Callable[[], PowerSource]:
    if kind_class is model.ModelSource and power_model is not None:
        return lambda: model.ModelSource.probe(host, power_model)  # type: ignore[arg-type]
    return lambda: kind_class.probe(host)


def _try(
    kind: str,
    probe: Callable[[], PowerSource],
    sources: list[PowerSource],
    choices: list[Choice],
) -> bool:
    try:
        source = probe()
    except Unavailable as error:
        choices.append(Choice(kind, False, error.reason, error.remedy))
        return False
    except Exception as error:  # a plug-in or a vendor's library may raise anything
        choices.append(Choice(kind, False, f"{type(error).__name__}: {error}"))
        return False
    sources.append(source)
    names = ", ".join(domain.name for domain in source.domains)
    choices.append(Choice(kind, True, f"reads {names}"))
    return True


def _list(choices: Iterable[Choice]) -> str:
    lines = [f"\n  {c.kind}: {c.reason}" + (f"; {c.remedy}" if c.remedy else "") for c in choices]
    return ":" + "".join(lines) if lines else ""

"""`device.power_mode`: this device's power mode for the time of a run, and the old one afterwards.

    null      leave it as it is
    15W       a mode by its name
    plan      the mode that strategy.plan gives to this device under `power_modes`

Switching goes through jtop's service, which needs no root, and never reboots. What a killed process
(SIGKILL, a loss of power) leaves behind is the new mode: `nvpmodel -m` sets it back.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lightning_edge.app.cluster import device_name
from lightning_edge.app.failure import CommandError
from lightning_edge.energy.host import HostEnv
from lightning_edge.energy.power_modes import JtopPowerControl, current_mode, listed_modes
from lightning_edge.energy.source import Unavailable
from lightning_edge.errors import EnergyError, PlanError
from lightning_edge.plan.plan import Plan

__all__: list[str] = []

KEY = "device.power_mode"
BY_PLAN = "plan"


@contextlib.contextmanager
def in_power_mode(config: DictConfig, host: HostEnv | None = None) -> Iterator[None]:
    """Put this device into the power mode that the configuration asks for, inside the block.

    Args:
        config: With the nodes `device`, and `strategy` if the plan is to say it.
        host: The machine.

    Raises:
        CommandError: This device has no such mode, or cannot change to it now.
    """
    wanted = wanted_mode(config)
    host = host or HostEnv()
    if wanted is None or wanted == current_mode(host):
        yield
        return
    before = _switch(host, wanted)
    print(f"power mode {wanted}; {before} comes back at the end", flush=True)
    try:
        yield
    finally:
        try:
            _switch(host, before)
        except CommandError as error:  # what happened in the block is more important
            print(f"the power mode is still {wanted}: {error}", file=sys.stderr, flush=True)


def wanted_mode(config: DictConfig) -> str | None:
    """Name of the mode; None to leave it as it is.

    Raises:
        CommandError: The plan was to say it, and does not.
    """
    said = config.device.get("power_mode")
    if said != BY_PLAN:
        return None if said is None else str(said)
    modes = _modes_of_plan(config)
    name = str(config.device.get("name") or device_name())
    if name in modes:
        return modes[name]
    if config.cluster.kind == "local" and len(set(modes.values())) == 1:
        return next(iter(modes.values()))  # all ranks are this device
    given = ", ".join(f"{device}: {mode}" for device, mode in modes.items()) or "nothing"
    raise CommandError(
        f"{KEY}=plan: strategy.plan gives this device, {name}, no power mode (power_modes has"
        f" {given}): name devices there, not ranks, or set {KEY} to a mode",
        status=2,
    )


def _modes_of_plan(config: DictConfig) -> dict[str, str]:
    """Power modes of the plan by device, as the plan calls it."""
    strategy = OmegaConf.to_container(config.get("strategy") or OmegaConf.create(), resolve=True)
    plan: Any = strategy.get("plan", "auto") if isinstance(strategy, dict) else "auto"
    if plan == "auto":
        raise CommandError(
            f"{KEY}=plan: there is no plan yet when devices start (strategy.plan=auto); let"
            " `lightning-edge plan +objective.power_modes=auto` write one and give"
            " strategy.plan=FILE, or set a mode by its name",
            status=2,
        )
    try:
        found = Plan.from_mapping(plan) if isinstance(plan, Mapping) else Plan.from_yaml(plan)
    except PlanError as error:
        raise CommandError(str(error), status=2) from None
    return {str(device): mode for device, mode in found.power_modes.items()}


def _switch(host: HostEnv, mode: str) -> str:
    """Switch, and return the name of the mode before."""
    try:
        control = JtopPowerControl(host)
    except Unavailable as error:
        modes = list(listed_modes(host).values())
        there = f"there are {', '.join(modes)}" if modes else "this device seems to have none"
        remedy = error.remedy or f"Leave out {KEY}, or set it yourself: sudo nvpmodel -m NUMBER"
        text = f"{KEY}={mode}: no way to set power modes ({error.reason}); {there}. {remedy}"
        raise CommandError(text) from None
    try:
        before = control.current()
        if before != mode:
            control.set(mode)
    except EnergyError as error:
        raise CommandError(f"{KEY}={mode}: {error}") from None
    finally:
        control.close()
    return before

"""The profile of a run: given, stored, or measured now by all devices together.

present    every rank says what it is and what the model is, without running anything
given      profile=...: refused with the difference if it is of something else
stored     rank 0's cache has one of exactly this
measured   watts at rest | links, pair by pair | the model, all at once | merged, stored
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from lightning.pytorch.utilities import rank_zero_info

from lightning_edge.errors import ProfileError
from lightning_edge.loop import agreement
from lightning_edge.loop.announce import announce
from lightning_edge.loop.power import Watts, ranks_at, with_mode
from lightning_edge.plan.participants import Device
from lightning_edge.plan.profile import Profile
from lightning_edge.profile.blocks import find_sites
from lightning_edge.profile.cache import ProfileCache, refuse_foreign
from lightning_edge.profile.device import describe_device
from lightning_edge.profile.link import LinkEffort, measure_links
from lightning_edge.profile.measured import Measured
from lightning_edge.profile.model import measure_model, model_of
from lightning_edge.profile.optimizer import OptimizerCost, measure_optimizer
from lightning_edge.profile.pace import loop_seconds
from lightning_edge.profile.rehearsal import Subject
from lightning_edge.profile.steady import Effort
from lightning_edge.replicate.randomness import kept
from lightning_edge.replicate.snapshot import untouched

if TYPE_CHECKING:
    import lightning.pytorch as pl

    from lightning_edge.replicate.probe import Probe
    from lightning_edge.train.transport import Transport

__all__: list[str] = []

PATIENCE = timedelta(minutes=15)  # the slowest device may need that long for its blocks
T = TypeVar("T")


@dataclass(frozen=True)
class Settings:
    """How to come by a profile.

    Attributes:
        given: What the user gave: "auto" (stored, else measured), "measure", or a profile.
        effort: Of measuring the model on one device.
        links: Of measuring the links.
        cache: Where profiles are stored; None stores nothing.
        keep: Blocks that a stage may have to begin at.
        wire_dtype: What floating tensors are cast to between devices.
        drift: How much slower or faster than profiled a device computes before it is told of.
    """

    given: str | Profile = "auto"
    effort: Effort = Effort()
    links: LinkEffort = LinkEffort()
    cache: ProfileCache | None = None
    keep: tuple[str, ...] = ()
    wire_dtype: torch.dtype | None = None
    drift: float = 0.15


class Profiler:
    """This rank's part in profiling; all ranks make one and do the same with it.

    Args:
        transport: Connects the ranks.
        names: Of the devices, by rank.
        trainer: Whose module is profiled.
        subject: The module with a batch; its blocks are found here.
        settings: What to do.
    """

    def __init__(
        self,
        transport: Transport,
        names: tuple[str, ...],
        trainer: pl.Trainer,
        subject: Subject,
        settings: Settings,
    ) -> None:
        self._transport, self._names, self._settings = transport, names, settings
        self._trainer, self._subject = trainer, subject
        self._module: Any = subject.module
        self._name = names[transport.rank]

    def obtain(self) -> Profile:
        """Return the profile: the given one, the stored one, or one measured now.

        Raises:
            ProfileError: On all ranks alike, if there can be none.
        """
        with self._aside():
            optimizer = measure_optimizer(self._configure, self._module, self._subject.device)
        held = sum(p.numel() * p.element_size() for p in self._module.parameters())
        device = describe_device(self._name, self._subject.device, held_bytes=held)
        nothing = Measured(len(self._subject.sites.blocks))
        present = self._merge(self._part(device, nothing, optimizer))
        given = self._settings.given
        if isinstance(given, Profile):
            text = self._transport.broadcast(given.to_json())
            chosen = Profile.from_json(text)
            refuse_foreign(chosen, present, "the setting profile=")
            return chosen
        if given == "auto":
            stored = self._stored(present)
            if stored is not None:
                return stored
        return self.measure(device, optimizer)

    def measure(self, device: Device, optimizer: OptimizerCost) -> Profile:
        """Measure everything, on all ranks at the same time."""
        transport, settings = self._transport, self._settings
        self._say("measuring the devices, their links and the model; this takes some seconds")
        announce("ready")  # from here on a testbed's devices are as slow as they are meant to be
        watts = Watts()
        try:
            transport.barrier("measuring the power at rest", timeout=PATIENCE)
            watts.idle()
            with watts.during("communication_w"):
                links = measure_links(transport, self._names, settings.links)
            transport.barrier("measuring the model", timeout=PATIENCE)
            loop_s = loop_seconds()

            def model() -> Measured:
                with watts.during("compute_w"), self._aside():
                    return measure_model(
                        self._subject,
                        memory_bytes=device.memory_bytes,
                        effort=settings.effort,
                        progress=self._say,
                    )

            measured = self._all(model)
        finally:
            watts.close()
        meters = transport.all_gather(watts.meters)
        busy = min(1.0, 2 / max(transport.world_size, 1))
        here = ranks_at(watts.meters, meters)
        mode = watts.mode(device.power_mode(), ranks_here=here, busy_links=busy)
        device = replace(
            with_mode(device, mode),
            instruction_s=round(measured.instruction_s, 7),
            step_s=round(loop_s, 6),
            copy_s_per_byte=float(f"{links.copy_s_per_byte:.4g}"),
            provenance={**device.provenance, "step_s": "prior"},
        )
        profile = self._merge(self._part(device, measured, optimizer))
        profile = replace(profile, links=links.links)
        self._store(profile)
        return profile

    def _part(self, device: Device, measured: Measured, optimizer: OptimizerCost) -> Profile:
        model = model_of(
            self._subject,
            measured,
            optimizer,
            name=type(self._module).__name__,
            timing=device.timing,
            wire_dtype=self._settings.wire_dtype,
        )
        software = {key: str(value) for key, value in agreement.facts_of_software().items()}
        software["precision"] = str(self._trainer.precision)
        return Profile((device,), model, software=software)

    def _merge(self, part: Profile) -> Profile:
        texts = self._transport.all_gather(part.to_json())
        parts = [Profile.from_json(text) for text in texts]
        # What a forward keeps depends on the kernels of a device; rank 0's numbers stand for all.
        return Profile.merge(parts)

    def _stored(self, present: Profile) -> Profile | None:
        """What rank 0 has stored, if it is of what is present."""
        cache = self._settings.cache
        text, why = None, ""
        if self._transport.rank == 0 and cache is not None:
            found, why = cache.load(present)
            text = found.to_json() if found is not None else None
        text, why = self._transport.broadcast([text, why])
        if why:
            self._say(why)
        if text is None:
            return None
        self._say("using the stored profile; profile='measure' measures again")
        found = Profile.from_json(text)
        devices = tuple(
            replace(old, memory_bytes=now.memory_bytes, battery_j=now.battery_j)
            for old, now in zip(found.devices, present.devices, strict=True)
        )
        return replace(found, devices=devices)

    def _store(self, profile: Profile) -> None:
        cache = self._settings.cache
        if self._transport.rank == 0 and cache is not None:
            path = cache.save(profile)
            self._say(f"stored the profile in {path}" if path else "the profile cannot be stored")

    def _all(self, make: Callable[[], T]) -> T:
        """Do something that may fail on one rank, and fail on all then.

        Raises:
            ProfileError: Naming each device with its problem.
        """
        value, problem = None, ""
        try:
            value = make()
        except ProfileError as error:
            problem = "; ".join(error.problems)
        self._transport.barrier("the end of measuring", timeout=PATIENCE)
        problems = self._transport.all_gather(problem)
        found = [f"{n}: {p}" for n, p in zip(self._names, problems, strict=True) if p]
        if found:
            raise ProfileError(found)
        assert value is not None
        return value

    def _configure(self) -> Any:
        """Make the optimizer without a Trainer: asking it how long it trains would begin to."""
        self._module._trainer = None  # put back with all other attributes
        return self._module.configure_optimizers()

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """Keep loggers and the progress of the Trainer out of what is tried."""
        trainer: Any = self._trainer
        loggers = list(trainer.loggers)
        with ExitStack() as stack:
            stack.enter_context(untouched(self._module))
            stack.enter_context(kept())
            trainer.loggers = []
            stack.callback(setattr, trainer, "loggers", loggers)
            yield

    def _say(self, text: str) -> None:
        rank_zero_info(f"edge_collab: {text}")


def subject_for(
    module: torch.nn.Module,
    probe: Probe,
    step: Callable[[Any], Any],
    batch: Callable[[int], Any],
    rows: int,
    device: torch.device,
    context: Callable[[], Any],
    keep: tuple[str, ...],
) -> Subject:
    """Return what is to be profiled; see `Subject`."""
    return Subject(
        module, probe, step, batch, rows, find_sites(probe, module, keep), device, context
    )

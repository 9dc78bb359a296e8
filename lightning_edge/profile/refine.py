"""A profile made better by what training measured on its devices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from lightning_edge.plan.costs import Costs
from lightning_edge.plan.plan import Plan
from lightning_edge.plan.prediction import Prediction
from lightning_edge.plan.profile import Profile
from lightning_edge.plan.simulate import simulate
from lightning_edge.plan.workload import Timing

__all__: list[str] = []


@dataclass(frozen=True)
class Paces:
    """How a device did in training.

    Attributes:
        slower: Measured seconds of forwards and backwards over the predicted ones.
        loop_s: Seconds of each step besides those, the optimizer and waiting.
        holes: Measured memory besides tensors over the predicted one; None if either is unknown.
    """

    slower: float
    loop_s: float
    holes: float | None = None


def paces(
    profile: Profile,
    plan: Plan,
    prediction: Prediction,
    measured: Mapping[int, tuple[float, float]],
    peaks: Mapping[int, int | None] | None = None,
) -> dict[int, Paces]:
    """Hold what devices measured against a prediction.

    Args:
        profile: What was predicted from.
        plan: What ran, with ranks and numbers.
        prediction: Of it.
        measured: Rank -> seconds per step in forwards and backwards, and between two steps.
        peaks: Rank -> the most bytes that training took.
    """
    costs = Costs(profile)
    tight = tuple(replace(d, holes_bytes=0.0, holes_ratio=0.0) for d in profile.devices)
    tensors = simulate(plan, replace(profile, devices=tight), rows=prediction.rows, owner=None)
    starts = [0, *(profile.model.index(str(stage.start)) for stage in plan.stages[1:])]
    starts.append(len(profile.model.blocks))
    found = {}
    for rank, (compute_s, between_s) in measured.items():
        forecast = prediction.devices.get(rank)
        if forecast is None or not compute_s:
            continue
        mode = costs.mode_index(rank, forecast.mode)
        stretch = starts[forecast.stage], starts[forecast.stage + 1]
        step_s = costs.step_s(rank, mode, *stretch)
        optimizer_s = step_s - profile.devices[rank].step_s
        expected_s = forecast.compute_s - step_s
        if expected_s > 0:
            least = tensors.devices[rank].peak_bytes
            found[rank] = Paces(
                compute_s / expected_s,
                max(between_s - optimizer_s, 0.0),
                _holes((peaks or {}).get(rank), least, forecast.peak_bytes - least),
            )
    return found


def _holes(peak: int | None, tensors: int, expected: int) -> float | None:
    """How many times as many holes there were as expected; one training shows only so much."""
    if peak is None or expected <= 0:
        return None
    return min(max((peak - tensors) / expected, 0.25), 4.0)


def refined(profile: Profile, found: Mapping[int, Paces]) -> Profile:
    """Return a profile whose devices are as fast as training found them.

    Args:
        profile: With timings of each device under a key of its own, as measured.
        found: By rank, of the devices that took part.
    """
    devices = list(profile.devices)
    factors = {}
    for rank, pace in found.items():
        device = devices[rank]
        factors[device.timing] = pace.slower
        times = 1.0 if pace.holes is None else pace.holes
        seen = ["step_s", *(["holes_bytes", "holes_ratio"] if pace.holes is not None else [])]
        devices[rank] = replace(
            device,
            step_s=round(pace.loop_s, 6),
            holes_bytes=round(device.holes_bytes * times),
            holes_ratio=round(device.holes_ratio * times, 3),
            provenance={**device.provenance, **dict.fromkeys(seen, "measured")},
        )
    blocks = tuple(
        replace(
            block,
            timings={
                key: _scaled(timing, factors.get(key, 1.0)) for key, timing in block.timings.items()
            },
        )
        for block in profile.model.blocks
    )
    model = replace(profile.model, blocks=blocks)
    return replace(profile, devices=tuple(devices), model=model)


def _scaled(timing: Timing, factor: float) -> Timing:
    def times(seconds: Sequence[float]) -> tuple[float, ...]:
        return tuple(float(f"{s * factor:.5g}") for s in seconds)

    return replace(timing, forward_s=times(timing.forward_s), backward_s=times(timing.backward_s))

"""What was logged in the micro-batches of a step, put together as if logged once for the batch.

    device 3   micro-batch 0   log("loss", .6, batch_size=4)  -.
    device 3   micro-batch 1   log("loss", .4, batch_size=4)  -+->  log("loss", .45, batch_size=12)
    device 4   micro-batch 1   log("loss", .35, batch_size=4) -'

A value that adds up over rows, such as a number of hits, is added up here as well: `log` would have
been given the sum in one process, whatever it does with it over batches.

Pure: values in, values out, the same on every device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__: list[str] = []


@dataclass(frozen=True)
class Logged:
    """One call of `self.log`, in the form in which Lightning's own `log` hands it on.

    Attributes:
        name: The key that was logged.
        nth: How many times this micro-batch had logged that key before.
        value: 0-dim, without a graph; None if a torchmetrics object was logged.
        weight: `batch_size`, or this device's rows of the micro-batch.
        metric: Path of the torchmetrics object in the module, None for a value.
        reduce_fx: "mean", "sum", "max" or "min".
        options: The other keyword arguments of `self.log`, plain values only.
        adds: The value adds up over rows.
    """

    name: str
    nth: int
    value: Tensor | None
    weight: float
    metric: str | None
    reduce_fx: str
    options: Mapping[str, Any]
    adds: bool = False

    @property
    def key(self) -> tuple[object, ...]:
        """Calls with equal keys are one call in a single process."""
        return (self.name, self.nth, self.metric, self.reduce_fx, str(sorted(self.options.items())))


def pack(calls: Sequence[Logged]) -> dict[str, Any]:
    """Plain types and one tensor, on the device of the values (so that no copy waits for it)."""
    values = [call.value for call in calls if call.value is not None]
    # float64 holds every float16, bfloat16, float32 and integer up to 2**53 exactly; MPS has none.
    wide = torch.float32 if any(v.device.type == "mps" for v in values) else torch.float64
    # Numbers go to where the tensors are: the other way round, each tensor would be waited for.
    place = next((v.device for v in values if v.device.type != "cpu"), torch.device("cpu"))
    return {
        "calls": [
            [c.name, c.nth, c.weight, c.metric, c.reduce_fx, dict(c.options), c.adds] for c in calls
        ],
        "dtypes": [v.dtype for v in values],
        "values": torch.stack([v.to(place, wide) for v in values]) if values else None,
    }


def unpack(data: Mapping[str, Any]) -> list[Logged]:
    """The calls that `pack` got; values are on the CPU."""
    values: Iterable[Tensor] = () if data["values"] is None else data["values"].cpu()
    found = iter([v.to(dtype) for v, dtype in zip(values, data["dtypes"], strict=True)])
    return [
        Logged(name, nth, next(found) if metric is None else None, weight, metric, fx, *rest)
        for name, nth, weight, metric, fx, *rest in data["calls"]
    ]


def merge(parts: Sequence[Sequence[Logged]]) -> list[Logged]:
    """One call for all micro-batches and devices, in the order in which keys first appear.

    Means are weighted by `weight`; the merged weight is the sum.

    Args:
        parts: The calls of each device, each in the order of its micro-batches.
    """
    together: dict[tuple[object, ...], list[Logged]] = {}
    for part in parts:
        for call in part:
            together.setdefault(call.key, []).append(call)
    return [_one(calls) for calls in together.values()]


def _one(calls: list[Logged]) -> Logged:
    first = calls[0]
    values = [call.value for call in calls if call.value is not None]
    value = None
    if values:
        weights = [call.weight for call in calls]
        how = "sum" if first.adds and first.reduce_fx == "mean" else first.reduce_fx
        value = values[0] if len(values) == 1 else _reduce(how, values, weights)
    weight = sum(call.weight for call in calls)
    return Logged(
        first.name, first.nth, value, weight, first.metric, first.reduce_fx, first.options
    )


def _reduce(how: str, values: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    stacked = torch.stack([v.double() for v in values])
    whole: dict[str, Callable[[], Tensor]]
    whole = {"sum": stacked.sum, "max": stacked.amax, "min": stacked.amin}
    if how == "mean":
        weight = torch.tensor(weights, dtype=torch.float64)
        if not weight.sum():
            weight = torch.ones_like(weight)
        merged = (stacked * weight).sum() / weight.sum()
    else:
        merged = whole[how]()
    dtype = values[0].dtype
    # A mean of integers is no integer; low precision would lose what the sum has gained.
    narrow = not dtype.is_floating_point or dtype.itemsize < 4
    return merged.to(torch.get_default_dtype() if how == "mean" and narrow else dtype)

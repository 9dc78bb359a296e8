"""Gradients of what several devices hold: summed over them, in buckets, behind the last backward.

Replicas of a stage and tied weights are the same thing: a parameter with more than one holder. All
parameters with the same holders lie in flat buckets, in the order their gradients become ready:

    holders (0, 1)   bucket 0: h.1.*  head.*  | used?   <- ready first, sent while h.0 computes
                     bucket 1: wte    h.0.*   | used?
    holders (2,)     nothing to do: the gradients stay where autograd puts them

`p.grad` is a view of the bucket, so that a gradient exists once. Behind it one number per parameter
counts the holders that used it: what nobody used ends as None and is not touched by weight decay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lightning_edge.errors import UnsupportedError

__all__: list[str] = []

BUCKET_BYTES = 4 << 20


class Reduction(Protocol):
    """A sum over holders that is under way."""

    def wait(self) -> None:
        """Block until the flat tensor holds the sum."""


AllReduce = Callable[[tuple[int, ...], Tensor], Reduction]


@dataclass
class _Bucket:
    """Parameters whose gradients travel together."""

    holders: tuple[int, ...]
    parameters: list[nn.Parameter]
    names: list[str]
    flat: Tensor | None = None
    views: list[Tensor] = field(default_factory=list)
    waiting: set[int] = field(default_factory=set)
    work: Reduction | None = None

    def attach(self) -> None:
        """Zero the bucket and let autograd add into it."""
        if self.flat is None:
            sizes = [parameter.numel() for parameter in self.parameters]
            first = self.parameters[0]
            self.flat = torch.zeros(sum(sizes) + len(sizes), dtype=first.dtype, device=first.device)
            pieces = torch.split(self.flat[: sum(sizes)], sizes)
            self.views = [
                piece.view(p.shape) for piece, p in zip(pieces, self.parameters, strict=True)
            ]
        else:
            self.flat.zero_()
        for parameter, view in zip(self.parameters, self.views, strict=True):
            parameter.grad = view

    @property
    def used(self) -> Tensor:
        assert self.flat is not None
        return self.flat[-len(self.parameters) :]


class Gradients:
    """The gradients of this device, from an accumulation's first micro-batch to the optimizer.

    Args:
        parameters: What this device holds, by name, in the order the step uses it.
        holders: By name, the ranks that hold it.
        all_reduce: Starts a sum over some ranks, in place.
        bucket_bytes: Size of a bucket.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        holders: Mapping[str, tuple[int, ...]],
        all_reduce: AllReduce,
        bucket_bytes: int = BUCKET_BYTES,
    ) -> None:
        self._all_reduce = all_reduce
        self._parameters = [p for p in parameters.values() if p.requires_grad]
        shared = {n: p for n, p in parameters.items() if p.requires_grad and len(holders[n]) > 1}
        self._buckets = _fill_buckets(shared, holders, bucket_bytes)
        self._place = {
            id(p): (bucket, i) for bucket in self._buckets for i, p in enumerate(bucket.parameters)
        }
        self._hooks: list[Any] = [
            p.register_post_accumulate_grad_hook(self._ready)  # type: ignore[no-untyped-call]
            for p in shared.values()
        ]
        self._armed = self._summed = False
        self._earlier: dict[int, Tensor] = {}
        self._left: dict[int, Tensor] = {}
        self._parked: dict[int, Tensor] = {}

    def still_trains(self, parameters: Mapping[str, nn.Parameter]) -> bool:
        """Whether it is still these parameters of a device whose gradients are wanted."""
        trained = {id(p) for p in parameters.values() if p.requires_grad}
        return trained == {id(p) for p in self._parameters}

    def start(self, fresh: bool, keep_earlier: bool = False, own_zero_grad: bool = False) -> None:
        """Get ready for the backwards of one batch.

        Args:
            fresh: What is in `p.grad` will be zeroed by the loop; else this batch adds to it.
            keep_earlier: Lay what is there aside and add it again in `finish`, because this batch
                is scaled at its end.
            own_zero_grad: The user zeroes, or does not: put back in `finish` what an earlier
                optimizer step has left, for the user to see before `publish`.
        """
        self._armed = False
        self._earlier, self._left = {}, {}
        if keep_earlier or (fresh and own_zero_grad):
            there = {id(p): p.grad.clone() for p in self._parameters if p.grad is not None}
            self._earlier, self._left = (there, {}) if keep_earlier else ({}, there)
        if fresh or keep_earlier:
            for parameter in self._parameters:
                parameter.grad = None
            for bucket in self._buckets:
                bucket.attach()
            return
        for bucket in self._buckets:
            for parameter, view in zip(bucket.parameters, bucket.views, strict=True):
                if parameter.grad is not view:
                    view.zero_() if parameter.grad is None else view.copy_(parameter.grad)
                    parameter.grad = view

    def arm(self) -> None:
        """From here on a gradient is final when it is ready: reduce full buckets in order."""
        self._armed = True
        for bucket in self._buckets:
            bucket.waiting = {id(parameter) for parameter in bucket.parameters}

    def _ready(self, parameter: nn.Parameter) -> None:
        bucket, i = self._place[id(parameter)]
        if bucket.work is not None:
            name = bucket.names[i]
            raise UnsupportedError(
                f"the gradient of {name!r} changed after it was sent to the other holders: it is "
                f"used in several "
                f"activation checkpoints of one step. Use torch.utils.checkpoint with "
                f"use_reentrant=False, or checkpoint it "
                f"only once."
            )
        bucket.used[i] = 1.0
        if self._armed:
            bucket.waiting.discard(id(parameter))
            self._launch_ready()

    def _launch_ready(self) -> None:
        blocked: set[tuple[int, ...]] = set()
        for bucket in self._buckets:
            if bucket.work is not None or bucket.holders in blocked:
                continue
            if bucket.waiting:
                blocked.add(bucket.holders)  # one order on all holders
            else:
                self._launch(bucket)

    def _launch(self, bucket: _Bucket) -> None:
        assert bucket.flat is not None
        bucket.work = self._all_reduce(bucket.holders, bucket.flat)

    def finish(self, synchronise: bool, factor: float = 1.0) -> None:
        """Sum over the holders, unless the accumulation goes on; `publish` hands out the result.

        Args:
            synchronise: Whether an optimizer step follows.
            factor: This batch's gradients are multiplied by it, what was accumulated earlier is
                not.
        """
        if factor != 1.0:
            self._scale(factor)
        for parameter in self._parameters:
            earlier = self._earlier.pop(id(parameter), None)
            if earlier is not None:
                parameter.grad = earlier if parameter.grad is None else parameter.grad.add_(earlier)
        if synchronise:
            for bucket in self._buckets:
                if bucket.work is None:
                    self._launch(bucket)
            for bucket in self._buckets:
                assert bucket.work is not None
                bucket.work.wait()
                bucket.work = None
        self._armed, self._summed = False, synchronise
        for parameter in self._parameters:
            if parameter.grad is not None and not self._unused(parameter, synchronise):
                self._parked[id(parameter)] = parameter.grad
            parameter.grad = self._left.pop(id(parameter), None)

    def _scale(self, factor: float) -> None:
        own = [p.grad for p in self._parameters if p.grad is not None and id(p) not in self._place]
        torch._foreach_mul_(own, factor) if own else None
        for bucket in self._buckets:
            for view in bucket.views:
                view.mul_(factor)

    def _unused(self, parameter: nn.Parameter, synchronised: bool) -> bool:
        place = self._place.get(id(parameter))
        return synchronised and place is not None and not bool(place[0].used[place[1]])

    def publish(self) -> None:
        """Give the gradients to `p.grad`; added to what the user has not zeroed there."""
        for parameter in self._parameters:
            new, left = self._parked.pop(id(parameter), None), parameter.grad
            if left is not None and not self._summed and id(parameter) in self._place:
                left.div_(len(self._place[id(parameter)][0].holders))  # it will be summed again
            if new is not None:
                parameter.grad = new if left is None else left.add_(new)

    def discard(self) -> None:
        """Forget everything under way, after a failure."""
        self._parked, self._earlier = {}, {}
        for bucket in self._buckets:
            bucket.work = None

    def close(self) -> None:
        """Take the hooks off the parameters."""
        for handle in self._hooks:
            handle.remove()
        self._hooks = []

    @property
    def shared_bytes(self) -> int:
        """Bytes of one full reduction."""
        return sum(
            p.numel() * p.element_size() for bucket in self._buckets for p in bucket.parameters
        )


def _fill_buckets(
    parameters: Mapping[str, nn.Parameter],
    holders: Mapping[str, tuple[int, ...]],
    bucket_bytes: int,
) -> list[_Bucket]:
    """Backward order, split by holders, dtype and size; it follows from the probe."""
    done: list[_Bucket] = []
    open_ones: dict[Any, tuple[_Bucket, int]] = {}
    for name, parameter in _backwards(parameters.items()):
        key = (holders[name], parameter.dtype)
        size = parameter.numel() * parameter.element_size()
        bucket, filled = open_ones.get(key, (None, 0))
        if bucket is None or filled + size > bucket_bytes:
            bucket, filled = _Bucket(holders[name], [], []), 0
            done.append(bucket)
        bucket.parameters.append(parameter)
        bucket.names.append(name)
        open_ones[key] = (bucket, filled + size)
    return done


def _backwards(
    items: Iterable[tuple[str, nn.Parameter]],
) -> Sequence[tuple[str, nn.Parameter]]:
    return list(items)[::-1]

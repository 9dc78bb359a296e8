"""Models whose computing takes seconds of a clock that only they advance: exact to measure."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from lightning_edge.profile.blocks import find_sites
from lightning_edge.profile.rehearsal import Subject
from lightning_edge.train.microbatch import take_rows
from lightning_edge.train.phases import probe_batch


class TickingClock:
    """Stands still but for what the blocks compute."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def mark(self) -> float:
        return self.now_s

    def settle(self) -> None: ...

    def seconds(self, start: float, stop: float) -> float:
        return stop - start


class _Tick(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, block: Any) -> Tensor:
        ctx.block, ctx.rows = block, x.shape[0]
        block.spend(block.forward_s, x.shape[0], x)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        ctx.block.spend(ctx.block.backward_s, ctx.rows, grad)
        return grad, None


class Ticking(nn.Module):
    """A layer that takes `fixed + per row x rows` seconds of the clock each way."""

    def __init__(
        self,
        clock: TickingClock,
        forward_s: tuple[float, float],
        backward_s: tuple[float, float],
        width: int = 8,
    ) -> None:
        super().__init__()
        self.forward_s, self.backward_s = forward_s, backward_s
        object.__setattr__(self, "clock", clock)
        self.layer = nn.Linear(width, width)
        self.norm = nn.BatchNorm1d(width)
        self.drop = nn.Dropout(0.1)
        self.calls: list[int] = []

    def spend(self, seconds: tuple[float, float], rows: int, tensor: Tensor) -> None:
        if type(tensor) is not torch.Tensor:
            return  # a placeholder
        self.clock.now_s += seconds[0] + seconds[1] * rows

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(x.shape[0])
        return self.drop(torch.relu(self.norm(self.layer(_Tick.apply(x, self)))))

    def extra_repr(self) -> str:
        return f"{self.forward_s} {self.backward_s}"


class Net(nn.Module):
    """`blocks` in a row, a step around them that costs nothing, a frozen stem if asked for."""

    def __init__(self, blocks: list[nn.Module], frozen: int = 0, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Linear(width, width)
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Linear(width, 1)
        for part in [self.stem, *self.blocks][: frozen + 1 if frozen else 0]:
            part.requires_grad_(False)

    def training_step(self, batch: dict[str, Tensor]) -> Tensor:
        x = self.stem(batch["x"])
        for block in self.blocks:
            x = block(x)
        return (self.head(x)[:, 0] - batch["y"]).square().mean()


def subject_of(module: nn.Module, rows: int, width: int = 8) -> Subject:
    generator = torch.Generator().manual_seed(0)
    batch = {
        "x": torch.randn(rows, width, generator=generator),
        "y": torch.randn(rows, generator=generator),
    }

    def some(count: int) -> Any:
        return take_rows(batch, rows, [(i % rows, i % rows + 1) for i in range(count)])

    step: Callable[[Any], Any] = module.training_step  # type: ignore[assignment]
    probe = probe_batch(module, step, lambda p: take_rows(batch, rows, p), rows, nullcontext)
    sites = find_sites(probe, module)
    return Subject(module, probe, step, some, rows, sites, torch.device("cpu"), nullcontext)

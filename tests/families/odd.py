"""Little models that do what is easily forgotten, each cut at `b` and at `c`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from tests.models import MODELS, VOCAB, Batch, _tokens

W = 8


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(VOCAB, W)
        self.a = nn.Linear(W, W)
        self.b = nn.Linear(W, W)
        self.c = nn.Linear(W, W)
        self.d = nn.Linear(W, W)
        self.head = nn.Linear(W, VOCAB)

    def loss(self, x: Tensor, batch: Batch) -> Tensor:
        return F.cross_entropy(self.head(x).flatten(0, 1), batch["labels"].flatten())

    def training_step(self, batch: Batch) -> Tensor:
        x = self.emb(batch["ids"])
        for block in (self.a, self.b, self.c, self.d):
            x = torch.tanh(block(x))
        return self.loss(x, batch)


class SharedNorm(Base):
    """One module called in all stages, frozen; and one that is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(W)
        self.frozen = nn.Linear(W, W).requires_grad_(False)

    def training_step(self, batch: Batch) -> Tensor:
        x = self.emb(batch["ids"])
        for block in (self.a, self.b, self.c, self.d):
            x = x + torch.tanh(block(self.frozen(self.norm(x))))
        return self.loss(x, batch)


class FrozenBetween(Base):
    def __init__(self) -> None:
        super().__init__()
        self.b.requires_grad_(False)


class NoGradPrefix(Base):
    def training_step(self, batch: Batch) -> Tensor:
        with torch.no_grad():
            x = self.a(self.emb(batch["ids"]))
        x = torch.tanh(self.b(x))
        x = torch.tanh(self.c(x))
        return self.loss(self.d(x), batch)


class Counters(Base):
    """Each block counts and averages in buffers of its own."""

    def __init__(self) -> None:
        super().__init__()
        for name in "abcd":
            setattr(self, name, _Counting())


class _Counting(nn.Linear):
    def __init__(self) -> None:
        super().__init__(W, W)
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        self.register_buffer("mean", torch.zeros(W))

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        self.mean.mul_(0.9).add_(0.1 * x.detach().mean((0, 1)))
        self.last = self.mean * 2
        return super().forward(x)


class EarlyCounter(Base):
    """The same in front of the model, where all stages come by."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def training_step(self, batch: Batch) -> Tensor:
        self.seen += 1
        x = self.emb(batch["ids"]) * (1 + self.seen)
        x = torch.tanh(self.b(torch.tanh(self.a(x))))
        x = torch.tanh(self.d(torch.tanh(self.c(x))))
        return self.loss(x, batch) / self.seen


class Replaced(Base):
    """A buffer that is replaced, not changed."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(W))

    def training_step(self, batch: Batch) -> Tensor:
        x = self.emb(batch["ids"])
        x = torch.tanh(self.a(x))
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean((0, 1))
        x = torch.tanh(self.c(torch.tanh(self.b(x - self.mean))))
        return self.loss(self.d(x), batch)


class Twice(Base):
    """One block called in the first and in the last stage."""

    def training_step(self, batch: Batch) -> Tensor:
        x = torch.tanh(self.a(self.emb(batch["ids"])))
        x = torch.tanh(self.b(x))
        x = torch.tanh(self.a(x))
        x = torch.tanh(self.d(self.c(x)))
        return self.loss(self.a(x), batch)


class InPlace(Base):
    """What is carried is changed in place on its way, in front of cuts and behind them."""

    def training_step(self, batch: Batch) -> Tensor:
        h = self.emb(batch["ids"])
        skip = self.a(h).add_(1)
        skip *= 0.5
        x = torch.tanh(self.b(skip.clone()))
        skip[:, 0] = 0.0
        skip.add_(x.detach())
        x = torch.tanh(self.c(x))
        skip.mul_(2)
        skip[:, :1] += 1
        return self.loss(self.d(x) + skip, batch)


@dataclass
class State:
    x: Tensor
    first: Tensor
    names: tuple[str, ...] = ("x",)


class Objects(Base):
    """Blocks that are given and give an object that torch knows nothing of."""

    def __init__(self) -> None:
        super().__init__()
        for name in "abcd":
            setattr(self, name, _OnState())

    def training_step(self, batch: Batch) -> Tensor:
        x = self.emb(batch["ids"])
        state = State(x, x.mean(1, keepdim=True))
        for block in (self.a, self.b, self.c, self.d):
            state = block(state)
        assert state.names == ("x", "y", "y", "y", "y")
        return self.loss(state.x + state.first, batch)


class _OnState(nn.Linear):
    def __init__(self) -> None:
        super().__init__(W, W)

    def forward(self, state: State) -> State:  # type: ignore[override]
        x = state.x + torch.tanh(super().forward(state.x))
        return State(x, state.first * 0.5, (*state.names, "y"))


class Hooked(Base):
    """A user's hooks: one changes what a block gives, one is given what goes in, one looks."""

    def __init__(self) -> None:
        super().__init__()
        self.looked: dict[str, Tensor] = {}
        self.a.register_forward_hook(lambda m, args, out: out * 1.5)
        self.b.register_forward_pre_hook(lambda m, args: (args[0] + 0.1,))
        self.c.register_forward_pre_hook(lambda m, args: (args[0] * 0.9,))
        self.a.register_forward_hook(self._look)

    def _look(self, module: Any, args: Any, out: Tensor) -> None:
        self.looked["a"] = out

    def training_step(self, batch: Batch) -> Tensor:
        loss = super().training_step(batch)
        return loss + self.looked["a"].square().mean((1, 2)).mean()


class Auxiliary(Base):
    """Blocks leave a loss of their own behind in an attribute, as mixtures of experts do."""

    def __init__(self) -> None:
        super().__init__()
        for name in "abcd":
            setattr(self, name, _WithLoss())

    def training_step(self, batch: Batch) -> Tensor:
        loss = super().training_step(batch)
        return loss + 0.1 * sum(block.aux for block in (self.a, self.b, self.c, self.d))


class _WithLoss(nn.Linear):
    def __init__(self) -> None:
        super().__init__(W, W)
        self.aux: Any = 0.0

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        self.aux = out.square().mean()
        return out


class Routed(Base):
    """Whole numbers that depend on parameters, and a detached value, cross."""

    def training_step(self, batch: Batch) -> Tensor:
        x = self.emb(batch["ids"])
        route = self.a(x).argmax(-1, keepdim=True)
        target = x.detach()
        big = x > 0
        x = torch.tanh(self.b(x))
        x = torch.tanh(self.c(x)) * torch.gather(x, -1, route)
        return self.loss(self.d(x) + target * big, batch)


class Lists(Base):
    """Blocks with lists, keywords and the same tensor twice."""

    def __init__(self) -> None:
        super().__init__()
        for name in "abcd":
            setattr(self, name, _OnLists())

    def training_step(self, batch: Batch) -> Tensor:
        x = self.emb(batch["ids"])
        history = [x]
        for i, block in enumerate((self.a, self.b, self.c, self.d)):
            history = block(history=history, extra={"i": i, "x": [x, x, None]}, mask=batch["ids"])
        return self.loss(torch.stack(history).sum(0), batch)


class _OnLists(nn.Linear):
    def __init__(self) -> None:
        super().__init__(W, W)

    def forward(self, *, history: list[Tensor], extra: Any, mask: Tensor) -> list[Tensor]:  # type: ignore[override]
        first, second, nothing = extra["x"]
        assert nothing is None
        x = torch.tanh(super().forward(history[-1]) + first * second) * (mask % 2)[..., None]
        return [*history, x + extra["i"]]


class _Spectral(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(W // 2 + 1, dtype=torch.cfloat))

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.irfft(torch.fft.rfft(x) * self.weight, n=W)


class Collections(Base):
    """Weights in ParameterList and ParameterDict."""

    def __init__(self) -> None:
        super().__init__()
        self.ws = nn.ParameterList([torch.randn(W, W) / 3 for _ in range(4)])
        self.bs = nn.ParameterDict({k: torch.zeros(W) for k in "abcd"})
        for name in "abcd":
            setattr(self, name, nn.Identity())

    def training_step(self, batch: Batch) -> Tensor:
        x = self.emb(batch["ids"])
        for i, name in enumerate("abcd"):
            x = torch.tanh(getattr(self, name)(x) @ self.ws[i] + self.bs[name])
        return self.loss(x, batch)


class Sparse(Base):
    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(VOCAB, W, sparse=True)


class Aliased(Base):
    """The same block under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([self.a, self.b, self.c, self.d])


class ParameterHooks(Base):
    """Gradients are changed by hooks on parameters."""

    def __init__(self) -> None:
        super().__init__()
        for block in (self.a, self.c, self.d):
            block.weight.register_hook(lambda gradient: gradient * 0.5)


class Tied3(Base):
    """One matrix is used in all three stages, by a buffer's side that is read there."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(W, VOCAB, bias=False)
        self.head.weight = self.emb.weight
        self.register_buffer("ramp", torch.linspace(0.5, 1, W))

    def training_step(self, batch: Batch) -> Tensor:
        x = self.emb(batch["ids"]) * self.ramp
        x = torch.tanh(self.b(torch.tanh(self.a(x))))
        x = F.linear(F.linear(x, self.emb.weight), self.emb.weight.t()) * self.ramp
        x = torch.tanh(self.d(torch.tanh(self.c(x))))
        return self.loss(x * self.ramp, batch)


class Transposed(Base):
    """[time, rows, width] between the blocks."""

    def training_step(self, batch: Batch) -> Tensor:
        x = self.emb(batch["ids"].t())
        pair = torch.cat([x, -x], 1)
        x = torch.tanh(self.b(torch.tanh(self.a(pair))))
        x = torch.tanh(self.d(torch.tanh(self.c(x))))
        one, other = x.chunk(2, 1)
        return self.loss((one - other).transpose(0, 1), batch)


class Alternating(Base):
    """Another block every second time."""

    def __init__(self) -> None:
        super().__init__()
        self.times = 0
        self.other = nn.Linear(W, W)

    def training_step(self, batch: Batch) -> Tensor:
        self.times += 1
        block = self.a if self.times < 3 else self.other
        x = torch.tanh(block(self.emb(batch["ids"])))
        x = torch.tanh(self.c(torch.tanh(self.b(x))))
        return self.loss(self.d(x), batch)


def _normed(norm: Callable[[nn.Module], nn.Module]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        model = Base()
        for name in "abcd":
            setattr(model, name, norm(nn.Linear(W, W)))
        return model

    return make


ODD: dict[str, Callable[[], nn.Module]] = {
    "shared-norm": SharedNorm,
    "frozen-between": FrozenBetween,
    "no-grad-prefix": NoGradPrefix,
    "counters": Counters,
    "early-counter": EarlyCounter,
    "replaced-buffer": Replaced,
    "called-twice": Twice,
    "in-place": InPlace,
    "objects": Objects,
    "hooked": Hooked,
    "auxiliary": Auxiliary,
    "weight-norm": _normed(parametrizations.weight_norm),
    "old-weight-norm": _normed(nn.utils.weight_norm),
    "spectral-norm": _normed(parametrizations.spectral_norm),
    "old-spectral-norm": _normed(nn.utils.spectral_norm),
    "orthogonal": _normed(parametrizations.orthogonal),
    "routed": Routed,
    "lists": Lists,
    "complex-weights": _normed(lambda _: _Spectral()),
    "collections": Collections,
    "sparse": Sparse,
    "aliased": Aliased,
    "parameter-hooks": ParameterHooks,
    "tied-in-three": Tied3,
    "transposed": Transposed,
}
MODELS["odd-alternating"] = (Alternating, _tokens, ("b", "c"))
MODELS.update({f"odd-{name}": (make, _tokens, ("b", "c")) for name, make in ODD.items()})

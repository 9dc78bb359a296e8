"""What adds up over rows and what is a mean, told from a step that never saw data."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_edge.replicate.probe import Probe, probe_step

Loss = Callable[[Tensor, Tensor, "Net"], Any]
CLASSES = 4


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(5, 6), nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.layer(x)))


def probed(loss: Loss) -> Probe:
    module = Net()
    x, y = torch.randn(3, 5), torch.tensor([0, 3, 1])

    def step(batch: Any) -> Any:
        return loss(module(batch[0]), batch[1], module)

    return probe_step(module, step, ((x[:2], y[:2]), (x, y)), (2, 3))


def loop(logits: Tensor, y: Tensor, _: Net) -> Any:
    total = torch.zeros(())
    for weight in (1.0, 0.5):
        total += weight * F.cross_entropy(logits, y, reduction="sum")
    return {"loss": total}


def token_mean(logits: Tensor, y: Tensor, _: Net) -> Tensor:
    mask = (y > 0).float()
    return (F.cross_entropy(logits, y, reduction="none") * mask).sum() / mask.sum().clamp(min=1)


def counted_mean(logits: Tensor, y: Tensor, _: Net) -> Tensor:
    """The third row has nothing to count, so that the number is the same in both trials."""
    mask = torch.arange(len(y)) < 2
    return (F.cross_entropy(logits, y, reduction="none") * mask).sum() / int(mask.sum())


def variational(logits: Tensor, y: Tensor, _: Net) -> Tensor:
    mu, logvar = logits.chunk(2, -1)
    kl = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())
    return F.mse_loss(mu, torch.zeros_like(mu), reduction="sum") + 0.1 * kl


def contrastive(logits: Tensor, y: Tensor, _: Net) -> Tensor:
    return F.cross_entropy(logits @ logits.T, torch.arange(len(y)))


def looked_at(logits: Tensor, y: Tensor, _: Net) -> Tensor:
    loss = F.cross_entropy(logits, y)
    print(loss.item())
    return loss


def penalty(module: Net) -> Tensor:
    return 1e-3 * sum(p.square().sum() for p in module.parameters())


LOSSES: dict[str, tuple[Loss, str]] = {
    "mean": (lambda x, y, m: F.cross_entropy(x, y), "mean"),
    "smoothed": (lambda x, y, m: F.cross_entropy(x, y, label_smoothing=0.1), "mean"),
    "sum": (lambda x, y, m: F.cross_entropy(x, y, reduction="sum"), "sum"),
    "sum over classes, mean over rows": (lambda x, y, m: (x**2).sum(1).mean(), "mean"),
    "mean over classes, sum over rows": (lambda x, y, m: (x**2).mean(1).sum(), "sum"),
    "sum by rows": (lambda x, y, m: F.cross_entropy(x, y, reduction="sum") / len(y), "mean"),
    "sum times 1/rows": (lambda x, y, m: (x**2).sum() * (1 / len(y)), "mean"),
    "scaled rows": (lambda x, y, m: (F.softmax(x, 1)[:, 0] / x.shape[0]).sum(), "mean"),
    "half a sum": (lambda x, y, m: 0.5 * F.mse_loss(x, x * 0, reduction="sum") / 2, "sum"),
    "mean times rows": (lambda x, y, m: F.cross_entropy(x, y) * len(y), "sum"),
    "squared norm": (lambda x, y, m: torch.dot(x.flatten(), x.flatten()), "sum"),
    "divergence": (
        lambda x, y, m: F.kl_div(F.log_softmax(x, 1), F.softmax(x, 1), reduction="batchmean"),
        "mean",
    ),
    "a loop": (loop, "sum"),
    "by tokens": (token_mean, "weighed"),
    "by a number of tokens": (counted_mean, "weighed"),
    "class weights": (
        lambda x, y, m: 2 * F.cross_entropy(x, y, weight=torch.ones(CLASSES)) + penalty(m),
        "weighed",
    ),
    "means over positions that count": (
        lambda x, y, m: ((x * (x > 0)).sum(1) / (x > 0).sum(1).clamp(min=1)).mean(),
        "mean",
    ),
    "variational": (variational, "sum"),
    "a number was asked for": (looked_at, "mean"),
    "mean and a penalty": (lambda x, y, m: F.cross_entropy(x, y) + penalty(m), "mean"),
    "sum and a penalty": (
        lambda x, y, m: F.cross_entropy(x, y, reduction="sum") + penalty(m),
        "mixed",
    ),
    "sum and a mean": (lambda x, y, m: F.cross_entropy(x, y, reduction="sum") + x.mean(), "mixed"),
    "rows against rows": (contrastive, "unknown"),
    "logarithm of a sum": (lambda x, y, m: x.exp().sum().log(), "unknown"),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses(name: str) -> None:
    loss, kind = LOSSES[name]
    assert probed(loss).loss == kind


def test_logs_that_add_up() -> None:
    def step(logits: Tensor, y: Tensor, module: Any) -> Tensor:
        loss = F.cross_entropy(logits, y)
        hits = logits.argmax(1) == y
        module.log("loss", loss)
        module.log("hits", hits.sum())
        module.log("seconds", time.perf_counter())
        module.log("tokens", int((y > 0).sum()))
        module.log_dict({"accuracy": hits.float().mean(), "rows": len(y), "rate": 0.1})
        return loss

    assert probed(step).adding == {"hits", "rows", "tokens"}

"""One small training run, on one device or on ranks that are threads, and what it logged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import Logger
from torch.utils.data import DataLoader, TensorDataset

from tests.loop.fakes import SlicingStrategy, Stop, run_ranks

ROWS, BATCH = 22, 8  # the last batch has 6 rows
CLASSES = 3


class MemoryLogger(Logger):
    name, version, save_dir = "memory", 0, "logs"

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[int | None, dict[str, float]]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.lines.append((step, dict(metrics)))

    def log_hyperparams(self, *_: Any, **__: Any) -> None: ...


class Net(L.LightningModule):
    """Predicts with fixed weights; ranks in front of the last stage stop in the model."""

    def __init__(self, reaches_end: bool = True) -> None:
        super().__init__()
        self.reaches_end = reaches_end
        self.weight = torch.nn.Parameter(torch.linspace(-1, 1, 4 * CLASSES).reshape(4, CLASSES))

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        if not self.reaches_end:
            raise Stop
        return x @ self.weight

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def data() -> TensorDataset:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(ROWS, 4, generator=generator)
    return TensorDataset(x, torch.arange(ROWS) % CLASSES)


def trainer(strategy: Any, **options: Any) -> L.Trainer:
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "max_epochs": 2,
        "logger": MemoryLogger(),
        "log_every_n_steps": 1,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    return L.Trainer(strategy=strategy, **{**settings, **options})


def fit(module: L.LightningModule, strategy: Any = "auto", **options: Any) -> L.Trainer:
    run = trainer(strategy, **options)
    run.fit(module, DataLoader(data(), batch_size=BATCH), DataLoader(data(), batch_size=BATCH))
    return run


def even(
    last_ranks: Sequence[int], micro_batches: int
) -> Callable[[int, int, int], tuple[int, int]]:
    """Cuts each micro-batch as evenly as it goes among the last ranks."""

    def rows(rank: int, m: int, total: int) -> tuple[int, int]:
        start, stop = m * total // micro_batches, (m + 1) * total // micro_batches
        if rank not in last_ranks:
            return start, stop
        n, i = len(last_ranks), list(last_ranks).index(rank)
        return start + (stop - start) * i // n, start + (stop - start) * (i + 1) // n

    return rows


LAYOUTS = {  # world size, last ranks, micro-batches, rows
    "one device": (1, (0,), 3, even((0,), 3)),
    "pipeline": (2, (1,), 3, even((1,), 3)),
    "last stage first": (2, (0,), 1, even((0,), 1)),
    "two replicas": (3, (1, 2), 3, even((1, 2), 3)),
    "a replica without rows": (
        3,
        (0, 2),
        2,
        lambda r, m, n: ((m * n // 2, m * n // 2 if r == 0 else (m + 1) * n // 2)),
    ),
    "uneven": (
        2,
        (0, 1),
        4,
        lambda r, m, n: (
            (m * n // 4, m * n // 4 + (m % 2))
            if r == 0
            else (m * n // 4 + (m % 2), (m + 1) * n // 4)
        ),
    ),
}


def fit_ranks(
    layout: str, make: Callable[..., L.LightningModule], look: Callable[..., Any], **options: Any
) -> list[Any]:
    """Fit ``make(reaches_end)`` on each rank of a layout; return ``look(trainer)`` of each."""
    world_size, last_ranks, micro_batches, rows = LAYOUTS[layout]

    def main(rank: int, transport: Any) -> Any:
        torch.set_grad_enabled(True)
        made = {name: value() for name, value in options.items()}
        strategy = SlicingStrategy(rank, transport, rows, micro_batches, last_ranks)
        return look(fit(make(rank in last_ranks), strategy, **made))

    return run_ranks(world_size, main)

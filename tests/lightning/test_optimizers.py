"""All of torch.optim that works parameter by parameter, and every scheduler."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler as schedulers

from tests.lightning.both import PLANS, TWO, Run, both
from tests.lightning.nets import Losses, Net, loaders, train_loader, val_loader, weights

pytestmark = [pytest.mark.thorough, pytest.mark.multiproc]


def every(kind: Any, **options: Any) -> Callable[[Net], Any]:
    """All parameters in one group."""
    return lambda module: kind(module.parameters(), **options)


def named(module: Net) -> Any:
    """Groups of named parameters with settings of their own."""
    decayed = [(n, p) for n, p in module.named_parameters() if p.dim() > 1]
    plain = [(n, p) for n, p in module.named_parameters() if p.dim() == 1]
    groups = [
        {"params": decayed, "weight_decay": 0.1, "lr": 0.02},
        {"params": plain, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=0.01)


def muon(module: Net) -> Any:
    """Orthogonalises whole matrices, which are whole on their stage."""
    for name, parameter in module.named_parameters():
        parameter.requires_grad = name.endswith("weight") and parameter.dim() == 2
    matrices = [p for p in module.parameters() if p.requires_grad]
    return torch.optim.Muon(matrices, lr=0.02)


OPTIMIZERS: dict[str, Callable[[Net], Any]] = {
    "SGD nesterov": every(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "SGD foreach": every(torch.optim.SGD, lr=0.1, momentum=0.9, foreach=True),
    "SGD fused": every(torch.optim.SGD, lr=0.1, momentum=0.9, fused=True),
    "Adam amsgrad": every(torch.optim.Adam, lr=0.01, amsgrad=True),
    "Adam maximize": every(torch.optim.Adam, lr=0.01, maximize=True),
    "AdamW fused": every(torch.optim.AdamW, lr=0.01, fused=True),
    "AdamW foreach": every(torch.optim.AdamW, lr=0.01, foreach=True),
    "Adamax": every(torch.optim.Adamax, lr=0.01),
    "NAdam": every(torch.optim.NAdam, lr=0.01),
    "RAdam": every(torch.optim.RAdam, lr=0.01),
    "Adagrad": every(torch.optim.Adagrad, lr=0.05, initial_accumulator_value=0.1),
    "Adadelta": every(torch.optim.Adadelta, lr=1.0),
    "Adafactor": every(torch.optim.Adafactor, lr=0.01),
    "ASGD": every(torch.optim.ASGD, lr=0.05),
    "RMSprop": every(torch.optim.RMSprop, lr=0.005, momentum=0.5, centered=True),
    "Rprop": every(torch.optim.Rprop, lr=0.001),
    "Muon": muon,
    "named groups": named,
}


def optimized(run: Run, names: list[str]) -> Any:
    """Each: two epochs, a checkpoint after them, and one more epoch from it."""
    found = {}
    for name in names:
        seen = Losses()
        trainer = run.trainer(callbacks=[seen], gradient_clip_val=0.5, limit_val_batches=0)
        module = Net(optimizer=OPTIMIZERS[name])
        trainer.fit(module, *loaders())
        path = run.folder / f"{name}.ckpt"
        trainer.save_checkpoint(path)
        run.end()
        again = run.trainer(max_epochs=3, limit_val_batches=0)
        other = Net(optimizer=OPTIMIZERS[name])
        again.fit(other, *loaders(), ckpt_path=str(path))
        state = torch.load(path, weights_only=True)["optimizer_states"]
        found[name] = [seen.train, weights(module), state, weights(other)]
        run.end()
    return found


FEW = ("SGD nesterov", "AdamW foreach", "Muon", "named groups")


def test_optimizers(pool, tmp_path):
    both(pool, tmp_path, optimized, list(FEW), plan=TWO, tolerance=2e-5)


@pytest.mark.slow
def test_all_other_optimizers(pool, tmp_path):
    # signs of gradients (Rprop) and their roots make rounding visible
    names = [name for name in OPTIMIZERS if name not in FEW]
    both(pool, tmp_path, optimized, names, plan=TWO, tolerance=2e-5)


def parameter_sets() -> list[str]:
    """Optimizers of torch.optim that are in no scenario above."""
    tried = {name.partition(" ")[0] for name in OPTIMIZERS}
    elsewhere = {"Optimizer", "LBFGS", "SparseAdam"}
    return [
        name
        for name, kind in vars(torch.optim).items()
        if isinstance(kind, type)
        and issubclass(kind, torch.optim.Optimizer)
        and name not in tried | elsewhere
    ]


def test_no_optimizer_of_torch_is_forgotten():
    assert parameter_sets() == []


class Sparse(Net):
    """An embedding with sparse gradients in front."""

    def __init__(self) -> None:
        super().__init__(optimizer=every(torch.optim.SparseAdam, lr=0.02))
        self.embedding = torch.nn.Embedding(40, 6, sparse=True)
        torch.nn.init.constant_(self.embedding.weight, 0.1)
        for part in (self.blocks, self.head):
            part.requires_grad_(False)
        self._optimizer = lambda m: torch.optim.SparseAdam(m.embedding.parameters(), lr=0.02)

    def forward(self, x: Any) -> Any:
        return super().forward(x + self.embedding((x[:, 0] * 10).long().clamp(-20, 19) + 20))


def sparse(run: Run) -> Any:
    trainer = run.trainer(limit_val_batches=0)
    module = Sparse()
    trainer.fit(module, *loaders())
    return weights(module)


def test_sparse_gradients(pool, tmp_path):
    both(pool, tmp_path, sparse, plan=TWO)


PER_STEP: list[Callable[[Any], Any]] = [
    partial(schedulers.LambdaLR, lr_lambda=lambda step: 0.99**step),
    partial(schedulers.MultiplicativeLR, lr_lambda=lambda step: 0.98),
    partial(schedulers.StepLR, step_size=2, gamma=0.9),
    partial(schedulers.MultiStepLR, milestones=[2, 4], gamma=0.8),
    partial(schedulers.ConstantLR, factor=0.7, total_iters=3),
    partial(schedulers.LinearLR, start_factor=0.5, total_iters=4),
    partial(schedulers.ExponentialLR, gamma=0.97),
    partial(schedulers.PolynomialLR, total_iters=20),
    partial(schedulers.CosineAnnealingLR, T_max=9),
    partial(schedulers.CosineAnnealingWarmRestarts, T_0=3),
    partial(schedulers.CyclicLR, base_lr=0.01, max_lr=0.1, step_size_up=2),
    partial(torch.optim.swa_utils.SWALR, swa_lr=0.05, anneal_epochs=3),
]


class Scheduled(Net):
    """One scheduler by number; OneCycle asks the Trainer how many steps there are."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number
        self.rates: list[float] = []

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        if self.number < len(PER_STEP):
            made = PER_STEP[self.number](optimizer)
        elif self.number == len(PER_STEP):
            steps = int(self.trainer.estimated_stepping_batches)
            made = schedulers.OneCycleLR(optimizer, 0.2, total_steps=steps)
        else:
            first = schedulers.LinearLR(optimizer, 0.1, total_iters=2)
            rest = schedulers.ExponentialLR(optimizer, 0.9)
            made = schedulers.SequentialLR(optimizer, [first, rest], milestones=[2])
        return [optimizer], [{"scheduler": made, "interval": "step", "frequency": 1}]

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.rates.append(optimizer.param_groups[0]["lr"])


def scheduled(run: Run) -> Any:
    found = []
    for number in range(len(PER_STEP) + 2):
        trainer = run.trainer(limit_val_batches=0, max_epochs=2)
        module = Scheduled(number)
        trainer.fit(module, train_loader())
        found.append([module.rates, weights(module)])
        run.end()
    return found


@pytest.mark.slow
def test_schedulers_per_step(pool, tmp_path):
    one, _ = both(pool, tmp_path, scheduled, plan=TWO)
    assert all(len(set(rates)) > 1 for rates, _ in one)


class PerEpoch(Net):
    """A plateau that looks at a validation loss, and a chain, both on two groups."""

    def __init__(self, plateau: bool) -> None:
        super().__init__()
        self.plateau = plateau
        self.rates: list[list[float]] = []

    def configure_optimizers(self) -> Any:
        groups = [{"params": self.blocks.parameters()}, {"params": self.head.parameters(), "lr": 1}]
        optimizer = torch.optim.SGD(groups, lr=0.5)
        if not self.plateau:
            parts = [schedulers.ExponentialLR(optimizer, 0.9), schedulers.StepLR(optimizer, 2)]
            return [optimizer], [schedulers.ChainedScheduler(parts)]
        plateau = schedulers.ReduceLROnPlateau(optimizer, patience=0, factor=0.5, threshold=0.1)
        config = {"scheduler": plateau, "monitor": "val_loss", "frequency": 1, "strict": True}
        return {"optimizer": optimizer, "lr_scheduler": config}

    def on_train_epoch_start(self) -> None:
        optimizer: Any = self.optimizers()
        self.rates.append([group["lr"] for group in optimizer.param_groups])


def per_epoch(run: Run) -> Any:
    found = []
    for plateau in (True, False):
        trainer = run.trainer(max_epochs=5)
        module = PerEpoch(plateau)
        trainer.fit(module, train_loader(), val_loader())
        found.append([module.rates, weights(module)])
        run.end()
    return found


@pytest.mark.parametrize("plan", PLANS)
def test_schedulers_per_epoch(pool, tmp_path, plan):
    one, _ = both(pool, tmp_path, per_epoch, plan=plan, tolerance=2e-5)
    assert all(len(set(map(tuple, rates))) > 2 for rates, _ in one)

"""What cannot work is refused before the first step, with what to do instead."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import (
    Callback,
    ModelCheckpoint,
    ModelPruning,
    OnExceptionCheckpoint,
)
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.tuner import Tuner
from lightning.pytorch.utilities import grad_norm

from lightning_edge.errors import PeerError, UnsupportedError
from tests.lightning.both import TWO, Run
from tests.lightning.nets import Net, loaders, train_loader, val_loader

pytestmark = pytest.mark.multiproc


class Manual(Net):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


class OwnBackward(Net):
    def backward(self, loss: Any, *args: Any, **kwargs: Any) -> None:
        loss.backward()


class Mixed(Net):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = torch.nn.functional.cross_entropy(self(batch[0]), batch[1], reduction="sum")
        return loss + 0.01 * self.head.weight.square().sum()


class SAM(torch.optim.SGD):
    """Steps twice, once to the worst place nearby."""


class Sized(Net):
    batch_size = 2

    def train_dataloader(self) -> Any:
        return train_loader()


def optimizer(kind: Any) -> Any:
    return Net(optimizer=lambda module: kind(module.parameters(), lr=0.1))


def _scaled() -> dict[str, Any]:
    scaler = torch.amp.GradScaler("cpu")
    return {"plugins": [MixedPrecision("16-mixed", "cpu", scaler)]}


CASES: dict[str, tuple[Any, Any, str]] = {  # the module, the Trainer's options, the text
    "manual": (Manual, lambda _: {}, "manual optimization.*Remove self.automatic_optimization"),
    "backward": (OwnBackward, lambda _: {}, "own LightningModule.backward.*on_after_backward"),
    "mixed": (Mixed, lambda _: {}, "adds up over the rows.*a penalty.*Write both as means"),
    "scaler": (Net, lambda _: _scaled(), "precision='16-mixed'.*Use 'bf16-mixed' or '32-true'"),
    "lbfgs": (lambda: optimizer(torch.optim.LBFGS), lambda _: {}, "LBFGS.*parameter by parameter"),
    "sam": (lambda: optimizer(SAM), lambda _: {}, "SAM.*parameter by parameter"),
    "sync_batchnorm": (Net, lambda _: {"sync_batchnorm": True}, "sync_batchnorm=True.*GroupNorm"),
    "graph": (
        Net,
        lambda folder: {"logger": TensorBoardLogger(folder, log_graph=True)},
        "log_graph=True.*before the fit",
    ),
    "pruning": (Net, lambda _: {"callbacks": [ModelPruning("l1_unstructured")]}, "ModelPruning"),
    "on exception": (
        Net,
        lambda folder: {"callbacks": [OnExceptionCheckpoint(folder)], "enable_checkpointing": True},
        "OnExceptionCheckpoint.*every_n_train_steps",
    ),
    "save_on_exception": (
        Net,
        lambda folder: {
            "callbacks": [ModelCheckpoint(folder, save_on_exception=True)],
            "enable_checkpointing": True,
        },
        r"save_on_exception=True\).*every_n_train_steps",
    ),
}


class Steps(Callback):
    count = 0

    def on_train_batch_start(self, *_: Any) -> None:
        Steps.count += 1


def refused_rank(rank: int, world_size: int, names: list[str], folder: str) -> dict[str, str]:
    warnings.simplefilter("ignore")
    found = {}
    for name in names:
        make, options, _ = CASES[name]
        run = Run(TWO, Path(folder), rank)
        given = options(folder)
        Steps.count = 0
        given["callbacks"] = [*given.get("callbacks", []), Steps()]
        trainer = run.trainer(**given)
        # under way to the optimizer, a device may hear of it from another that is faster
        with pytest.raises((UnsupportedError, PeerError)) as caught:
            trainer.fit(make(), *loaders())
        found[name] = f"{caught.value} after {Steps.count} steps"
    return found


def test_refused_before_the_first_step(pool, tmp_path):
    for found in pool.run(refused_rank, 2, list(CASES), str(tmp_path)):
        for name, (_, _, text) in CASES.items():
            assert re.search(text, found[name]), (name, found[name])
            assert found[name].endswith("after 0 steps")


def batch_size_rank(rank: int, world_size: int, folder: str) -> str:
    warnings.simplefilter("ignore")
    trainer = Run(TWO, Path(folder), rank).trainer()
    with pytest.raises(UnsupportedError) as caught:
        Tuner(trainer).scale_batch_size(Sized())
    return str(caught.value)


def test_the_batch_size_finder_is_refused(pool, tmp_path):
    for text in pool.run(batch_size_rank, 2, str(tmp_path)):
        assert "BatchSizeFinder" in text
        assert "Set batch_size by hand" in text


def compiled_rank(rank: int, world_size: int, folder: str) -> str:
    warnings.simplefilter("ignore")
    trainer = Run(TWO, Path(folder), rank).trainer()
    with pytest.raises(RuntimeError, match="avoid passing in compiled model") as caught:
        trainer.fit(torch.compile(Net()), *loaders())
    return str(caught.value)


def test_compiled_modules_are_refused(pool, tmp_path):
    first, second = pool.run(compiled_rank, 2, str(tmp_path))
    assert first == second


def test_all_problems_are_named_at_once(tmp_path):
    given = _scaled() | {"max_epochs": 1}
    run = Run({"pipelines": [{"stages": [{"devices": [0]}]}]}, tmp_path)
    trainer = run.trainer(**given)
    with pytest.raises(UnsupportedError, match="manual optimization.*; nor precision"):
        trainer.fit(Manual(), *loaders())


class Norms(Net):
    """Looks at the norm of what may be a part of the gradients."""

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.log_dict(grad_norm(self, 2))

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        torch.nn.utils.clip_grad_norm_(self.parameters(), 1.0)


def warned_rank(rank: int, world_size: int, folder: str) -> list[str]:
    run = Run(TWO, Path(folder), rank)
    trainer = run.trainer(max_epochs=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(Norms(), train_loader(), val_loader())
    run.end()
    said = [str(warning.message) for warning in caught]
    return [text for text in said if "Each device sees" in text]


def test_own_norms_over_all_gradients_are_warned_of(pool, tmp_path):
    first, second = pool.run(warned_rank, 2, str(tmp_path))
    assert len(first) == 1
    assert "Norms.on_before_optimizer_step calls grad_norm" in first[0]
    assert "Norms.configure_gradient_clipping calls clip_grad_norm_" in first[0]
    assert second == []  # said once, on rank 0


class Copies(Callback):
    """Keeps a list of copies, and adds parameters of others to its own."""

    def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
        self.total = torch.zeros(1)

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, *_: Any) -> None:
        for parameter in module.parameters():
            self.total += parameter.detach().sum()


class Numbers(Callback):
    def on_train_batch_end(self, trainer: L.Trainer, module: Any, *_: Any) -> None:
        for parameter in module.parameters():
            float(parameter.norm())


class Saved(Callback):
    """Writes the weights at the end of an epoch, as scripts for one device do."""

    def on_train_epoch_end(self, trainer: L.Trainer, module: Any) -> None:
        if trainer.is_global_zero:
            torch.save(module.state_dict(), Path(trainer.default_root_dir) / "weights.pt")


def mixing_rank(rank: int, world_size: int, which: str, folder: str) -> str:
    warnings.simplefilter("ignore")
    callbacks = {"copies": [Copies()], "numbers": [Numbers()], "saved": [Saved()]}[which]
    trainer = Run(TWO, Path(folder), rank).trainer(callbacks=callbacks)
    try:
        trainer.fit(Net(), train_loader(), val_loader())
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing said"


@pytest.mark.parametrize(
    ("which", "text"),
    [
        ("copies", "which is not here"),
        ("numbers", "another device holds"),
        ("saved", "trainer.save_checkpoint(path, weights_only=True), called on all devices"),
    ],
)
def test_parameters_of_others_are_never_used_silently(pool, tmp_path, which, text):
    found = pool.run(mixing_rank, 2, which, str(tmp_path))
    assert any(text in said for said in found), found
    assert "nothing said" not in found

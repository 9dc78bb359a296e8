"""Hooks of modules, callbacks and data modules: called in order and as often as in one process."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.core.hooks import CheckpointHooks, DataHooks, ModelHooks

from tests.lightning.both import PLANS, Run, both
from tests.lightning.nets import Net, metrics, train_loader, val_loader, weights

pytestmark = pytest.mark.multiproc

# A step runs once for each micro-batch, and so does `forward` in it.
STAGES = ("train", "val", "test", "predict")
PER_MICRO_BATCH = {"training_step", "validation_step", "test_step", "predict_step", "forward"}
# The set-up takes a sample batch, before the optimizer is made.
SAMPLING = {
    "on_before_batch_transfer",
    "transfer_batch_to_device",
    "on_after_batch_transfer",
    *(f"{stage}_dataloader" for stage in STAGES),
}


def hooks_of(*kinds: type) -> list[str]:
    return [
        name
        for kind in kinds
        for name, _ in inspect.getmembers(kind, inspect.isfunction)
        if not name.startswith("_")
    ]


def noted(owner: type, names: list[str], prefix: str) -> type:
    """A class whose methods of these names note that they were called."""

    def note(name: str) -> Any:
        original = getattr(owner, name)

        @functools.wraps(original)
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            self.journal.append(prefix + name)
            return original(self, *args, **kwargs)

        return method

    return type(owner.__name__, (owner,), {name: note(name) for name in names})


CALLBACK_HOOKS = [n for n in hooks_of(Callback) if n not in ("state_dict", "load_state_dict")]
MODULE_HOOKS = [
    *(n for n in hooks_of(ModelHooks, DataHooks, CheckpointHooks)),
    "configure_optimizers",
    "configure_callbacks",
    "configure_gradient_clipping",
    "lr_scheduler_step",
    "optimizer_step",
    "optimizer_zero_grad",
    "training_step",
    "validation_step",
    "test_step",
    "predict_step",
]
DATA_HOOKS = [*hooks_of(DataHooks), "state_dict", "load_state_dict", "on_exception"]


class Data(L.LightningDataModule):
    journal: list[str]

    def train_dataloader(self) -> Any:
        return train_loader()

    def val_dataloader(self) -> Any:
        return val_loader()

    def test_dataloader(self) -> Any:
        return val_loader(9, 7)

    def predict_dataloader(self) -> Any:
        return val_loader(9, 8)

    def state_dict(self) -> dict[str, Any]:
        return {"place": 7}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        assert state_dict == {"place": 7}


class Hooked(Net):
    journal: list[str]

    def configure_callbacks(self) -> Any:
        return [EarlyStopping("val_loss", patience=9)]

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


def journal(run: Run) -> Any:
    """Everything that is called in fit, validate, test and predict, in order."""
    calls: list[str] = []
    module_class = noted(Hooked, MODULE_HOOKS, "module.")
    data_class = noted(Data, DATA_HOOKS, "data.")
    callback_class = noted(Callback, CALLBACK_HOOKS, "callback.")
    module, data, callback = module_class(), data_class(), callback_class()
    module.journal = data.journal = callback.journal = calls
    keep = ModelCheckpoint(run.folder, filename="{epoch}")
    trainer = run.trainer(
        callbacks=[callback, keep],
        enable_checkpointing=True,
        accumulate_grad_batches=2,
        gradient_clip_val=0.5,
    )
    found: dict[str, Any] = {}
    for stage in ("fit", "validate", "test", "predict"):
        calls.clear()
        getattr(trainer, stage)(module, datamodule=data)
        names = {call: call.partition(".")[2] for call in calls}
        plain = [c for c in calls if names[c] not in PER_MICRO_BATCH | SAMPLING]
        found[stage] = {
            "in order": plain,
            "loaders made": [calls.count(f"data.{s}_dataloader") for s in STAGES],
            "metrics": metrics(trainer),
        }
    calls.clear()
    run.end()
    again = run.trainer(callbacks=[callback], max_epochs=3)
    again.fit(module, datamodule=data, ckpt_path=str(run.folder / "epoch=1.ckpt"))
    found["resumed"] = [c for c in calls if c.partition(".")[2] not in PER_MICRO_BATCH | SAMPLING]
    found["weights"] = weights(module)
    return found


@pytest.mark.parametrize("plan", PLANS)
def test_hooks_run_in_order_and_as_often_as_in_one_process(pool, tmp_path, plan):
    one, _ = both(pool, tmp_path, journal, plan=plan)
    called = {call for stage in one.values() if "in order" in stage for call in stage["in order"]}
    called |= set(one["resumed"])
    for name in CALLBACK_HOOKS:
        if name != "on_exception":
            assert f"callback.{name}" in called, f"{name} was never called"


class Listener(Callback):
    """Looks at what steps return, on every device."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *_: Any) -> None:
        self.seen.append(dict(outputs))

    def on_validation_batch_end(self, trainer: Any, module: Any, outputs: Any, *_: Any) -> None:
        self.seen.append(outputs)

    def on_test_batch_end(self, trainer: Any, module: Any, outputs: Any, *_: Any) -> None:
        self.seen.append(outputs)


class Returns(Net):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        logits = self(batch[0])
        loss = F.cross_entropy(logits, batch[1])
        return {"loss": loss, "logits": logits, "names": [str(int(y)) for y in batch[1]]}

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        return {"logits": self(batch[0]), "kind": "val"}

    def test_step(self, batch: Any, batch_idx: int) -> Any:
        return self(batch[0]).argmax(1)


def listened(run: Run) -> Any:
    listener = Listener()
    trainer = run.trainer(callbacks=[listener], max_epochs=1)
    module = Returns()
    trainer.fit(module, train_loader(), val_loader())
    trainer.test(module, val_loader(), verbose=False)
    return [_detached(seen) for seen in listener.seen]


def _detached(seen: Any) -> Any:
    if isinstance(seen, dict):
        return {name: _detached(value) for name, value in seen.items()}
    return seen.detach() if isinstance(seen, torch.Tensor) else seen


@pytest.mark.parametrize("plan", PLANS)
def test_callbacks_get_the_outputs_of_steps_whole_on_every_device(pool, tmp_path, plan):
    one, _ = both(pool, tmp_path, listened, plan=plan)
    assert [len(seen["logits"]) for seen in one[2:5]] == [8, 8, 6]

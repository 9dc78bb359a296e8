"""When checkpoints are written, what is in them, and how a run goes on from each."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.plugins.io import AsyncCheckpointIO
from omegaconf import DictConfig, OmegaConf
from torch import nn

from tests.lightning.both import PIPELINE, TWO, Run, both, run_one
from tests.lightning.nets import Losses, Net, loaders, metrics, train_loader, val_loader, weights

pytestmark = [pytest.mark.thorough, pytest.mark.multiproc]


def files(folder: Path) -> dict[str, Any]:
    """The checkpoints of a folder, without paths and versions."""
    return {path.name: plain(path) for path in sorted(folder.glob("*.ckpt"))}


def plain(path: Path | str) -> dict[str, Any]:
    """A checkpoint without what depends on the folder or the time."""
    content: dict[str, Any] = torch.load(path, weights_only=True)
    callbacks = {}
    for name, state in content.pop("callbacks", {}).items():
        left = {k: v for k, v in state.items() if "path" not in k and k != "kth_value"}
        left["best_k_models"] = [float(v) for v in state.get("best_k_models", {}).values()]
        callbacks[name.partition("{")[0]] = left
    return {**content, "callbacks": callbacks}


KINDS: dict[str, dict[str, Any]] = {
    "top-k": {"monitor": "val_loss", "save_top_k": 2, "filename": "{epoch}-{step}"},
    "worst": {"monitor": "train_loss", "mode": "max", "save_top_k": 1, "filename": "{epoch}"},
    "steps": {"every_n_train_steps": 2, "save_top_k": -1, "filename": "{step}"},
    "last": {"save_last": True, "save_top_k": 0, "every_n_epochs": 2},
    "link": {"save_last": "link", "filename": "{epoch}"},
    "weights": {"save_weights_only": True, "filename": "{epoch}", "every_n_epochs": 3},
    "at the epoch's end": {
        "save_on_train_epoch_end": True,
        "monitor": "train_loss",
        "filename": "{epoch}",
    },
}


def kept(run: Run, names: list[str]) -> Any:
    """All kinds of ModelCheckpoint on one Trainer, each in its folder."""
    callbacks = [ModelCheckpoint(run.folder / name, **KINDS[name]) for name in names]
    trainer = run.trainer(
        callbacks=callbacks, enable_checkpointing=True, max_epochs=3, val_check_interval=2
    )
    module = Net()
    trainer.fit(module, *loaders())
    found = {name: files(run.folder / name) for name in names}
    links = [p.name for p in run.folder.glob("*/*") if p.is_symlink()]
    parts = [p.name for p in run.folder.rglob("*.part")]
    scores = [[c.best_model_score, c.kth_value, len(c.best_k_models)] for c in callbacks]
    return found, links, parts, scores, Path(callbacks[0].best_model_path).name


def test_every_kind_of_model_checkpoint(pool, tmp_path):
    one, _ = both(pool, tmp_path, kept, list(KINDS), plan=TWO)
    assert [len(found) for found in one[0].values()] == [2, 1, 4, 1, 2, 1, 1]
    assert not one[2]


class Slow(Callback):
    """A training step takes a while."""

    def on_train_batch_end(self, *_: Any) -> None:
        time.sleep(0.05)


def by_time(run: Run) -> Any:
    from datetime import timedelta

    every = timedelta(seconds=0.12)
    keep = ModelCheckpoint(run.folder, train_time_interval=every, save_top_k=-1, filename="{step}")
    trainer = run.trainer(callbacks=[Slow(), keep], enable_checkpointing=True, max_epochs=4)
    trainer.fit(Net(), *loaders())
    return sorted(keep.best_k_models), keep.best_model_path


@pytest.mark.slow
def test_checkpoints_by_time_are_written_by_all_at_the_same_steps(pool, tmp_path):
    many = pool.run(run_one, 3, by_time, PIPELINE, str(tmp_path), ())
    assert len(list(tmp_path.glob("*.ckpt"))) > 1
    assert many[0] == many[1] == many[2]


def named(run: Run) -> Any:
    """`best`, `last`, `hpc`, a path, and the weights of a finished run."""
    keep = ModelCheckpoint(
        run.folder, monitor="val_loss", filename="{epoch}", save_last=True, save_top_k=1
    )
    # in float32 rounding grows to 1e-5 at this rate, in 18 steps
    options = {"enable_checkpointing": True, "max_epochs": 2, "precision": "64-true"}
    options["callbacks"] = [keep]
    module, val = Net(lr=0.2), val_loader()
    trainer = run.trainer(**options)
    trainer.fit(module, train_loader(), val)
    found: dict[str, Any] = {"best": Path(keep.best_model_path).name}
    for path in ("best", "last", str(run.folder / "last.ckpt")):
        found[Path(path).name] = trainer.validate(module, val, ckpt_path=path, verbose=False)
    found["predict"] = trainer.predict(module, val, ckpt_path="best", return_predictions=True)
    trainer.save_checkpoint(run.folder / "hpc_ckpt_3.ckpt")
    found["saved after the fit"] = plain(run.folder / "hpc_ckpt_3.ckpt")
    run.end()
    for path in ("last", "hpc"):
        again = run.trainer(**{**options, "callbacks": [_last(run)], "max_epochs": 3})
        other = Net(lr=0.2)
        again.fit(other, train_loader(), val, ckpt_path=path)
        found[f"from {path}"] = [weights(other), metrics(again), again.global_step]
        run.end()
    return found


def _last(run: Run) -> ModelCheckpoint:
    return ModelCheckpoint(run.folder, filename="again-{epoch}", save_last=True)


def test_checkpoints_by_name(pool, tmp_path):
    one, _ = both(pool, tmp_path, named, tolerance=1e-9)
    assert one["from last"][2] == 9


def middle(run: Run) -> Any:
    """Save in the middle of an epoch and of an accumulation; go on from there."""
    keep = ModelCheckpoint(run.folder, every_n_train_steps=2, save_top_k=-1, filename="{step}")
    options = {"enable_checkpointing": True, "accumulate_grad_batches": 2, "max_epochs": 3}
    trainer = run.trainer(callbacks=[keep], **options)
    module = Net()
    trainer.fit(module, train_loader(shuffle=False, rows=38), val_loader())
    found = {"saved": files(run.folder)}
    run.end()
    seen = Losses()
    again = run.trainer(**{**options, "callbacks": [seen], "enable_checkpointing": False})
    other = Net()
    path = str(run.folder / "step=4.ckpt")
    again.fit(other, train_loader(shuffle=False, rows=38), val_loader(), ckpt_path=path)
    found["again"] = [seen.train, seen.steps, weights(other), again.global_step]
    return found


def test_going_on_from_the_middle_of_an_epoch(pool, tmp_path):
    both(pool, tmp_path, middle)


class Dropping(Net):
    """What it loses depends on its masks only: the weights stay as they are."""

    def __init__(self) -> None:
        super().__init__(lr=0.0)
        self.blocks[1] = nn.Sequential(self.blocks[1], nn.Dropout(0.5))


def dropped(run: Run) -> Any:
    """The losses of a whole run, and of one that goes on from the middle of its second epoch."""
    keep = ModelCheckpoint(run.folder, every_n_train_steps=1, save_top_k=-1, filename="{step}")
    found = []
    for path in (None, str(run.folder / "step=4.ckpt")):
        seen = Losses()
        callbacks = [seen] if path else [seen, keep]
        trainer = run.trainer(callbacks=callbacks, enable_checkpointing=not path, max_epochs=3)
        trainer.fit(Dropping(), train_loader(shuffle=False), ckpt_path=path)
        found.append(seen.train)
        run.end()
    return found


def test_dropout_goes_on_where_it_was(pool, tmp_path):
    for whole, again in pool.run(run_one, 3, dropped, PIPELINE, str(tmp_path), ()):
        assert len(set(whole)) == 9  # no mask comes twice
        # a loader without a state begins its epoch anew, in plain Lightning too
        assert again[-3:] == whole[-3:]


class Configured(Net):
    """Takes a DictConfig and keeps it."""

    def __init__(self, config: DictConfig, scale: float = 2.0) -> None:
        super().__init__(lr=config.optimizer.lr)
        self.save_hyperparameters()


def config() -> DictConfig:
    text = "{optimizer: {lr: 0.2, warmup: '${steps}'}, steps: 7, data: '???', layers: [1, 2]}"
    return OmegaConf.create(text)


def configured(run: Run) -> Any:
    keep = ModelCheckpoint(run.folder, filename="{epoch}")
    trainer = run.trainer(callbacks=[keep], enable_checkpointing=True, max_epochs=1)
    module = Configured(config())
    trainer.fit(module, *loaders())
    path = str(run.folder / "epoch=0.ckpt")
    saved = torch.load(path, weights_only=False)
    kept = OmegaConf.to_yaml(saved["hyper_parameters"]["config"])
    run.end()
    again = run.trainer(max_epochs=2)
    other = Configured(config())
    again.fit(other, *loaders(), ckpt_path=path, weights_only=False)
    loaded = Configured.load_from_checkpoint(path, weights_only=False)
    return kept, loaded.hparams.config.optimizer.warmup, loaded.lr, weights(loaded), weights(other)


def test_hyperparameters_of_omegaconf(pool, tmp_path):
    one, _ = both(pool, tmp_path, configured)
    assert "${steps}" in one[0]
    assert "???" in one[0]


def loaded(run: Run) -> Any:
    """A checkpoint of ours in plain Lightning, weights only and whole."""
    keep = ModelCheckpoint(run.folder, filename="{epoch}")
    trainer = run.trainer(callbacks=[keep], enable_checkpointing=True, max_epochs=1)
    trainer.fit(Net(), *loaders())
    path = str(run.folder / "epoch=0.ckpt")
    module = Net.load_from_checkpoint(path)
    content = torch.load(path, weights_only=True)
    again = run.trainer(max_epochs=2)
    again.fit(module, *loaders(), ckpt_path=path, weights_only=True)
    metadata = content["state_dict"]._metadata
    return weights(module), list(content), sorted(metadata), again.global_step


def test_checkpoints_open_in_plain_lightning(pool, tmp_path):
    both(pool, tmp_path, loaded)


class Watching(TorchCheckpointIO):
    """A user's own way to write."""

    def __init__(self) -> None:
        self.paths: list[str] = []

    def save_checkpoint(self, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
        self.paths.append(Path(path).name)
        super().save_checkpoint(checkpoint, path, storage_options)


def written(run: Run) -> Any:
    """In a thread, and by a plugin of the user's."""
    found = {}
    for name, plugin in {"thread": AsyncCheckpointIO(), "own": Watching()}.items():
        folder = run.folder / name
        keep = ModelCheckpoint(folder, every_n_train_steps=1, save_top_k=-1, filename="{step}")
        trainer = run.trainer(callbacks=[keep], enable_checkpointing=True, plugins=[plugin])
        trainer.fit(Net(), *loaders())
        found[name] = files(folder)
        if run.rank == 0 and name == "own":
            assert plugin.paths == [f"step={step}.ckpt" for step in range(1, 7)]
        run.end()
    return found


def test_asynchronous_writing_and_plugins(pool, tmp_path):
    one, _ = both(pool, tmp_path, written, plan=TWO)
    assert [len(found) for found in one.values()] == [6, 6]

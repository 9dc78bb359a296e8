"""What a rank does: from a configuration to Lightning's objects, and to a run's results."""

from __future__ import annotations

import logging
import os
import time
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig, OmegaConf

import lightning_edge
from lightning_edge.app import results
from lightning_edge.app.same import SameConfig
from lightning_edge.app.targets import problems
from lightning_edge.errors import ConfigMismatchError
from lightning_edge.strategy import EdgeCollabStrategy

__all__: list[str] = []

OURS = "lightning_edge.EdgeCollabStrategy"


def run(mode: str, path: Path) -> None:
    """Train as the configuration says.

    Args:
        mode: "fit"; "plan" and "profile" stop before the first step.
        path: A resolved configuration.

    Raises:
        EdgeError: Whatever is wrong with it, or happens.
    """
    lightning_edge.register()
    config = OmegaConf.load(path)
    assert isinstance(config, DictConfig)
    rank = int(os.environ.get("RANK", "0"))
    folder = Path(config.run.folder)
    _log_to(folder, rank)
    _leave_out_noise()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    found = problems(config)
    if found:
        raise ConfigMismatchError("; ".join(found))
    L.seed_everything(config.run.seed, verbose=False)
    decided = results.Decided(folder, only=mode != "fit")
    model, data, trainer = objects(config, mode, decided)
    begin_s = time.monotonic()
    trainer.fit(model, datamodule=data, ckpt_path=config.run.resume)
    seconds = time.monotonic() - begin_s
    if not trainer.is_global_zero:
        return
    if mode == "fit":
        results.write(trainer, folder, seconds, decided.batch_rows)
    else:
        results.show(mode, config, decided.profile, folder)


def objects(
    config: DictConfig, mode: str, *more: Callback
) -> tuple[L.LightningModule, Any, L.Trainer]:
    """Make the model, the data and the Trainer.

    Args:
        config: Resolved.
        mode: As in `run`.
        *more: Callbacks besides those of the configuration.
    """
    model, data = _made(config.model), _made(config.data)
    callbacks: list[Callback] = [*_listed(config.get("callbacks")), *more]
    strategy = instantiate(_strategy(config, mode))
    if isinstance(strategy, EdgeCollabStrategy):
        callbacks.append(SameConfig(config))
    loggers = _listed(config.get("logger"))
    trainer: L.Trainer = instantiate(
        config.trainer,
        strategy=strategy,
        callbacks=callbacks,
        logger=loggers or False,
        default_root_dir=config.run.folder,
    )
    return model, data, trainer


def _strategy(config: DictConfig, mode: str) -> DictConfig:
    """The node `strategy`, with the groups and the profile that the configuration means."""
    node: DictConfig = config.strategy.copy()
    if node.get("_target_") != OURS:
        return node
    if not node.get("groups"):
        node.groups = None
    profile: Any = config.get("profile") or {}
    if profile.get("path") is not None:
        node.profile = profile.path
    elif "model" in profile:
        node.profile = profile
    elif mode == "profile" or (mode == "plan" and "devices" in profile):
        node.profile = "measure"
    return node


def _listed(node: DictConfig | None) -> list[Any]:
    """Instantiate what a node names, in order; an entry set to null is left out."""
    return [_made(entry) for entry in (node or {}).values() if entry]


def _made(node: DictConfig) -> Any:
    """Instantiate a node, with plain mappings and lists for its arguments.

    They end in checkpoints, from which nothing but plain values is unpickled.
    """
    return instantiate(node, _convert_=node.get("_convert_", "all"))


def _leave_out_noise() -> None:
    """Lines of Lightning that nobody who runs it can do anything about, several times each."""
    warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\)")
    noise = ("Tip: For seamless cloud logging", "TPU available: False")
    for handler in logging.getLogger("lightning.pytorch").handlers:
        handler.addFilter(lambda record: not any(part in record.getMessage() for part in noise))


def _log_to(folder: Path, rank: int) -> None:
    """Keep what modules log in a file of this rank."""
    name = os.environ.get("LIGHTNING_EDGE_DEVICE") or "device"
    handler = logging.FileHandler(folder / f"log-{rank}-{name}.txt", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
    for logger in ("lightning", "lightning_edge"):
        logging.getLogger(logger).addHandler(handler)

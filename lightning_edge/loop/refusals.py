"""What cannot work over several devices, said before the first step with what to do instead."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    Callback,
    ModelCheckpoint,
    ModelPruning,
    OnExceptionCheckpoint,
)
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.optim import LBFGS, Optimizer

from lightning_edge.errors import UnsupportedError

__all__: list[str] = []

# Optimizers whose step depends on all parameters together, or that evaluate the loss several times.
_TOGETHER = ("SAM", "Prodigy", "DAdapt", "LBFGS", "KFAC", "Shampoo")
_NORMS = {"clip_grad_norm_", "clip_grads_with_norm_", "get_total_norm", "grad_norm"}
_PLACES_OF_NORMS = (
    "on_after_backward",
    "on_before_optimizer_step",
    "configure_gradient_clipping",
    "optimizer_step",
    "on_train_batch_end",
)


def refuse_before_data(trainer: pl.Trainer, world_size: int) -> None:
    """Refuse callbacks that act before the module is placed.

    Raises:
        UnsupportedError: Naming all of them.
    """
    if world_size > 1:
        _raise(_callbacks(trainer.callbacks))  # type: ignore[attr-defined]


def refuse(trainer: pl.Trainer, module: pl.LightningModule, world_size: int) -> None:
    """Refuse what a module or a Trainer asks for and no plan can give.

    Raises:
        UnsupportedError: Naming all of it.
    """
    problems = list(_always(trainer, module))
    if world_size > 1:
        problems += _among_several(trainer)
    _raise(problems)


def refuse_optimizers(optimizers: Iterable[Optimizer], world_size: int) -> None:
    """Refuse optimizers that need all parameters in one place.

    Raises:
        UnsupportedError: Naming them.
    """
    if world_size == 1:
        return
    problems = []
    for optimizer in optimizers:
        name = type(optimizer).__name__
        if isinstance(optimizer, LBFGS) or any(part in name for part in _TOGETHER):
            problems.append(
                f"{name}: its step needs the gradients of all parameters in one place, or the loss"
                f" several times, and each device has a part of the model. Use an optimizer that"
                f" works parameter by parameter (SGD, Adam, AdamW, Muon, Adafactor)"
            )
    _raise(problems)


def warn_of_partial_norms(trainer: pl.Trainer, module: pl.LightningModule) -> None:
    """Warn where user code takes a norm over gradients, of which each device has a part."""
    own = [c for c in trainer.callbacks if not is_lightnings(c)]  # type: ignore[attr-defined]
    found = [
        f"{type(owner).__name__}.{place} calls {name}"
        for owner in (module, *own)
        for place in _PLACES_OF_NORMS
        for name in sorted(_NORMS & names_in(getattr(type(owner), place, None)))
    ]
    if found:
        rank_zero_warn(
            f"{'; '.join(found)}. Each device sees the gradients of its part of the model only, so"
            " that this is not the norm over the whole model. Clip with"
            " Trainer(gradient_clip_val=...) or self.clip_gradients(...), which add up over devices"
            " (in configure_gradient_clipping, too)."
        )


def is_lightnings(callback: Any) -> bool:
    """Whether a callback came with Lightning or with this package."""
    return type(callback).__module__.partition(".")[0] in ("lightning", "lightning_edge")


def names_in(function: Any) -> set[str]:
    """All names that a function uses, those of functions inside it included."""
    code = getattr(inspect.unwrap(function), "__code__", None) if function is not None else None
    names, todo = set[str](), [code] if code is not None else []
    while todo:
        code = todo.pop()
        names.update(code.co_names)
        todo += [const for const in code.co_consts if inspect.iscode(const)]
    return names


def _raise(problems: list[str]) -> None:
    if problems:
        raise UnsupportedError("edge_collab does not support " + "; nor ".join(problems))


def _always(trainer: pl.Trainer, module: pl.LightningModule) -> Iterator[str]:
    if trainer.state.fn == TrainerFn.FITTING and not module.automatic_optimization:
        yield (
            "manual optimization: training_step calls backward itself, which a pipeline cannot "
            "interleave. Remove self.automatic_optimization = False"
        )
    elif trainer.state.fn == TrainerFn.FITTING and is_overridden("backward", module):
        yield (
            "an own LightningModule.backward: each stage computes its part backwards as soon as it"
            " can. Change the loss in training_step, or gradients in on_after_backward"
        )
    if getattr(trainer.precision_plugin, "scaler", None) is not None:
        yield (
            f"precision={trainer.precision!r}, which scales the loss, as only the last stage has"
            f" it. Use 'bf16-mixed' or '32-true'"
        )


def _among_several(trainer: pl.Trainer) -> Iterator[str]:
    if any(getattr(logger, "_log_graph", False) for logger in trainer.loggers):
        yield (
            "log_graph=True of a logger: no device has the whole model to trace. Write the graph"
            " of the module by hand, before the fit"
        )
    if trainer._accelerator_connector._layer_sync is not None:
        yield (
            "sync_batchnorm=True: BatchNorm takes its statistics from micro-batches. Remove it, or"
            " use GroupNorm or LayerNorm, which do not depend on the batch"
        )


def _callbacks(callbacks: Iterable[Callback]) -> list[str]:
    problems = []
    for callback in callbacks:
        name = type(callback).__name__
        if isinstance(callback, BatchSizeFinder):
            problems.append(
                f"{name} (Tuner.scale_batch_size): it tries until a device runs out of memory, and"
                f" the others would wait for that device. Set batch_size by hand; it is the whole"
                f" batch of all devices"
            )
        elif isinstance(callback, OnExceptionCheckpoint):
            problems.append(f"{name}: {_AFTER_FAILURE}")
        elif isinstance(callback, ModelCheckpoint) and callback.save_on_exception:
            problems.append(f"{name}(save_on_exception=True): {_AFTER_FAILURE}")
        elif isinstance(callback, ModelPruning):
            problems.append(
                f"{name}: it compares weights of the whole model, of which each device has a part."
                f" Prune the trained checkpoint on one device"
            )
    return problems


_AFTER_FAILURE = (
    "when one device fails, the parts of the model on the others are of other steps or gone. Use"
    " EdgeCollabStrategy(save_on_failure=True), which keeps them as they are, or"
    " ModelCheckpoint(every_n_train_steps=N, save_last=True), and go on with ckpt_path='last'"
)

"""Do all devices run the same thing? Compared before the first step, all at once.

A device with another batch size, precision or model would train something else, or wait for ever
for a message that never comes. Each device states its facts; where they differ, every device stops
with the same text:

    The devices of this run were started with different settings:
      trainer.accumulate_grad_batches:  2 on orin;  1 on laptop, nano
"""

from __future__ import annotations

import hashlib
import os.path
import platform
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import lightning
import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelSummary, ProgressBar

from lightning_edge.errors import ConfigMismatchError
from lightning_edge.train.transport import Transport

__all__: list[str] = []

LONGEST = 60  # characters of a value that are shown

# What decides how many steps there are, and what each does.
_TRAINER = (
    "accumulate_grad_batches",
    "gradient_clip_val",
    "gradient_clip_algorithm",
    "max_epochs",
    "min_epochs",
    "max_steps",
    "min_steps",
    "limit_train_batches",
    "limit_val_batches",
    "limit_test_batches",
    "limit_predict_batches",
    "num_sanity_val_steps",
    "val_check_interval",
    "check_val_every_n_epoch",
    "reload_dataloaders_every_n_epochs",
    "overfit_batches",
    "fast_dev_run",
    "log_every_n_steps",
    "barebones",
)


def agree(
    transport: Transport, facts: Mapping[str, Any], names: Sequence[str] | None = None
) -> None:
    """Compare the facts of all devices; every device calls it.

    Args:
        transport: Connects the devices.
        facts: Nested mappings of plain values.
        names: What the devices are called, by rank.

    Raises:
        ConfigMismatchError: Some differ. It shows each, with its value per device, and is the same
            on every device.
    """
    of_ranks = transport.all_gather(dict(facts))
    text = differences(of_ranks, names or [f"rank {rank}" for rank in range(len(of_ranks))])
    if text is not None:
        raise ConfigMismatchError(text)


def differences(facts: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str | None:
    """What differs, as a text for the user; None if nothing does.

    Args:
        facts: By rank.
        names: By rank.
    """
    flat = [dict(_flatten(one)) for one in facts]
    lines = []
    for key in dict.fromkeys(key for one in flat for key in one):
        devices: dict[str, list[str]] = {}
        for one, name in zip(flat, names, strict=True):
            devices.setdefault(repr(one[key]) if key in one else "not set", []).append(name)
        if len(devices) > 1:
            values = [f"{_short(v, devices)} on {', '.join(n)}" for v, n in devices.items()]
            lines.append(f"\n  {key}:  {';  '.join(values)}")
    if not lines:
        return None
    return (
        "the devices of this run were started with different settings; use the same script,"
        f" configuration and versions on all of them:{''.join(lines)}"
    )


def _flatten(facts: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in facts.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _short(value: str, others: Mapping[str, Any]) -> str:
    """A long value, cut to a part that shows where it differs from the others."""
    if len(value) <= LONGEST:
        return value
    first = min((len(os.path.commonprefix([value, o])) for o in others if o != value), default=0)
    start = max(0, min(first - LONGEST // 3, len(value) - LONGEST))
    before, after = "..." if start else "", "..." if start + LONGEST < len(value) else ""
    return before + value[start : start + LONGEST] + after


def facts_of_software() -> dict[str, Any]:
    """Versions that have to be alike; torch's patch level and build tag (+cu126) need not be."""
    from lightning_edge import __version__

    return {
        "lightning_edge": __version__,
        "lightning": lightning.__version__,
        "torch": ".".join(torch.__version__.split("+")[0].split(".")[:2]),
    }


def facts_of_python() -> dict[str, Any]:
    """Python's version; another one is allowed, as boards often come with one."""
    return {"python": ".".join(platform.python_version_tuple()[:2])}


def facts_of_trainer(trainer: pl.Trainer) -> dict[str, Any]:
    """The settings of a Trainer that decide what a step is and how many there are.

    Args:
        trainer: As the user made it.
    """
    facts = {name: _plain(getattr(trainer, name, None)) for name in _TRAINER}
    facts["precision"] = trainer.precision
    assert trainer.state.fn is not None
    facts["runs"] = trainer.state.fn.value
    # Lightning's own stop training, write checkpoints or change the optimizer. Progress bars and
    # summaries may be only where someone looks at them, and so may callbacks of the user's.
    made: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    facts["callbacks"] = [
        type(callback).__name__
        for callback in made
        if type(callback).__module__.startswith("lightning.")
        and not isinstance(callback, (ProgressBar, ModelSummary))
    ]
    return facts


def facts_of_module(module: pl.LightningModule) -> dict[str, Any]:
    """The module's class and the names, shapes and dtypes of its parameters and buffers.

    Args:
        module: Before its parameters are placed.
    """
    tensors = [
        (name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        for kind in (module.named_parameters, module.named_buffers)
        for name, tensor in kind()
    ]
    trained = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
    return {
        "class": f"{type(module).__module__}.{type(module).__qualname__}",
        "parameters": sum(p.numel() for p in module.parameters()),
        "tensors": len(tensors),
        "names, shapes and dtypes": hashlib.sha256(repr(tensors).encode()).hexdigest()[:12],
        "trained parameters": hashlib.sha256(repr(trained).encode()).hexdigest()[:12],
    }


def facts_of_data(dataloader: Any) -> dict[str, Any]:
    """The size of the data and how it is cut into batches.

    Args:
        dataloader: A DataLoader or any other iterable.
    """
    dataset = getattr(dataloader, "dataset", None)
    return {
        "loader": type(dataloader).__name__,
        "batch_size": _plain(getattr(dataloader, "batch_size", None)),
        "drop_last": _plain(getattr(dataloader, "drop_last", None)),
        "batches": _length(dataloader),
        "dataset": None if dataset is None else type(dataset).__name__,
        "samples": _length(dataset),
    }


def _length(sized: Any) -> int | None:
    try:
        return len(sized)
    except (TypeError, NotImplementedError):
        return None


def _plain(value: Any) -> Any:
    return value if isinstance(value, (bool, int, float, str, type(None))) else str(value)

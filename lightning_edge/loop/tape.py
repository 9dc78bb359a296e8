"""`self.log` of a step, recorded instead of carried out.

Lightning's own `log` (and any override of it by the user) runs unchanged, with all its checks, but
sees a trainer whose result collection is a tape::

    self.log(...) -> [instance attribute] -> type(module).log -> trainer view -> Tape.log
                                             checks, defaults    _results        remembers

So bad arguments raise where the user wrote them, with Lightning's words. A call that differs from
an earlier one in its value only is not checked again: there are many per step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.trainer.connectors.logger_connector.result import (
    _get_default_dtype,
    _ResultCollection,
)
from torch import Tensor
from torchmetrics import Metric

from lightning_edge.loop.merge import Logged

__all__: list[str] = []

Key = tuple[object, ...]
# What happens to the values of different devices is settled here, before Lightning sees them.
_NOT_KEPT = ("sync_dist", "sync_dist_fn", "sync_dist_group", "enable_graph")


class Tape:
    """Calls of `log`, in order.

    Args:
        module: Whose `log` is recorded.
        path_of: Gives the path of a torchmetrics object in the module.
    """

    def __init__(self, module: LightningModule, path_of: Callable[[Metric], str]) -> None:
        self._module, self._path_of = module, path_of
        self._rehearsed: set[tuple[object, ...]] = set()
        self._scratch: dict[bool, _ResultCollection] = {}
        self._known: dict[Key, tuple[str, dict[str, Any]]] = {}  # reduce_fx and options of calls
        self.adding: frozenset[str] = frozenset()  # names of values that add up over rows
        self._overridden = type(module).log is not LightningModule.log
        self.start()

    def start(self) -> None:
        """Forget all calls; a new step (or hook) begins."""
        self.calls: list[Logged] = []
        trainer = self._module._trainer
        results = None if trainer is None else trainer._results
        self._place = (self._module._current_fx_name, getattr(results, "dataloader_idx", None))
        self._key: Key | None = None
        self.micro_batch(0)

    def micro_batch(self, rows: int) -> None:
        """A new micro-batch of `rows` rows begins."""
        self._rows = rows
        self._seen: dict[str, int] = {}

    def record(self, *args: Any, **kwargs: Any) -> None:
        """Stand in for `module.log`."""
        if not self._overridden and self._record_known(*args, **kwargs):
            return
        module = self._module
        trainer = module._trainer
        if trainer is None:  # a module used without a Trainer: Lightning has a word for that
            type(module).log(module, *args, **kwargs)
            return
        module._trainer = _TrainerView(trainer, self)  # type: ignore[assignment]
        try:
            type(module).log(module, *args, **kwargs)
        finally:
            module._trainer = trainer

    def _record_known(self, name: Any = None, value: Any = None, *more: Any, **kwargs: Any) -> bool:
        rows = kwargs.pop("batch_size", None)
        try:
            self._key = None if more else (*self._place, name, *sorted(kwargs.items()))
            known = None if self._key is None else self._known.get(self._key)
        except TypeError:  # an argument without a hash
            self._key = known = None
        if known is None:
            return False
        if isinstance(value, Tensor) and value.numel() == 1:
            value = value.detach().clone().squeeze()
        elif isinstance(value, (int, float)):
            value = torch.tensor(value, dtype=_get_default_dtype())
        else:
            return False
        self._append(name, value, rows, None, *known)
        return True

    def take(self, real: Any, fx: str, name: str, value: Any, kwargs: dict[str, Any]) -> None:
        """Keep what Lightning's `log` hands to the results `real`."""
        self._rehearse(real, fx, name, value, kwargs)
        rows = kwargs.pop("batch_size", None)
        kwargs.pop("metric_attribute", None)
        reduce_fx = _reduction(kwargs.pop("reduce_fx", torch.mean))
        for option in _NOT_KEPT:
            kwargs.pop(option, None)
        if isinstance(value, Metric):
            self._append(name, None, rows, self._path_of(value), reduce_fx, kwargs)
            return
        self._append(name, value.detach(), rows, None, reduce_fx, kwargs)
        if self._key is not None:
            self._known[self._key] = reduce_fx, kwargs

    def _append(
        self,
        name: str,
        value: Tensor | None,
        rows: Any,
        metric: str | None,
        reduce_fx: str,
        options: dict[str, Any],
    ) -> None:
        nth = self._seen.get(name, 0)
        self._seen[name] = nth + 1
        weight = float(self._rows if rows is None else rows)
        adds = name in self.adding
        self.calls.append(Logged(name, nth, value, weight, metric, reduce_fx, options, adds))

    def _rehearse(self, real: Any, fx: str, name: str, value: Any, kwargs: dict[str, Any]) -> None:
        """Let Lightning check each new combination of arguments, on a collection of its own."""
        kept = {k: v for k, v in kwargs.items() if k not in (*_NOT_KEPT, "batch_size")}
        combination = (fx, name, real.dataloader_idx, type(value), *map(str, kept.values()))
        if combination in self._rehearsed and isinstance(value, (Tensor, Metric)):
            return
        scratch = self._scratch.setdefault(real.training, _ResultCollection(real.training))
        scratch.dataloader_idx = real.dataloader_idx
        scratch.log(fx, name, value, **{**kwargs, "batch_size": 1})
        self._rehearsed.add(combination)


def _reduction(reduce_fx: Any) -> str:
    name = reduce_fx if isinstance(reduce_fx, str) else reduce_fx.__name__
    return {"avg": "mean"}.get(name.lower(), name.lower())


class _TrainerView:
    """The trainer as `log` sees it: all of it, but for where the values go."""

    def __init__(self, trainer: Any, tape: Tape) -> None:
        self.__dict__.update(_trainer=trainer, _tape=tape, _logger_connector=_Connector())

    @property
    def _results(self) -> Any:
        real = self._trainer._results
        return None if real is None else _Results(self._tape, real)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trainer, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._trainer, name, value)


class _Results:
    """Passes what is logged to the tape, and answers questions as the real collection would."""

    def __init__(self, tape: Tape, real: Any) -> None:
        self._tape, self._real = tape, real

    def log(self, fx: str, name: str, value: Any, **kwargs: Any) -> None:
        self._tape.take(self._real, fx, name, value, kwargs)

    def reset(self, *_: Any, **__: Any) -> None:
        """The real collection is reset when the merged values arrive."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


class _Connector:
    """Keeps `log` from noting that this hook has already logged in this epoch."""

    _current_fx: str | None = None

    def should_reset_tensors(self, _: str) -> bool:
        return False

"""EdgeProfiler: how participants are profiled, and the profile that training refines."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from typing_extensions import override

from lightning_edge.profile.cache import ProfileCache
from lightning_edge.profile.link import LinkEffort
from lightning_edge.profile.steady import Effort

__all__ = ["EdgeProfiler"]


class EdgeProfiler(Callback):
    """Says how the participants of an ``edge_collab`` run are profiled, and keeps the result.

    Without it a run with ``plan="auto"`` profiles as well, with the defaults below. With it, runs
    of a plan of your own are profiled too, so that their report predicts.

    Args:
        seconds: For measuring the model on one device, about.
        link_seconds: Of one burst over a link, each way.
        refresh: Measure again although a fitting profile is stored.
        path: Where to write the profile at the end, as YAML or JSON: refined by what training
            measured, as the stored one is.
        cache: Folder of stored profiles; False stores none.
        drift: How much slower or faster than profiled a device computes before it is told of.

    Example::

        trainer = L.Trainer(strategy="edge_collab", callbacks=[EdgeProfiler(path="pool.yaml")])
    """

    def __init__(
        self,
        *,
        seconds: float = 10.0,
        link_seconds: float = 0.25,
        refresh: bool = False,
        path: str | os.PathLike[str] | None = None,
        cache: str | os.PathLike[str] | bool = True,
        drift: float = 0.15,
    ) -> None:
        super().__init__()
        self._cache = None if cache is False else ProfileCache()
        if not isinstance(cache, bool):
            self._cache = ProfileCache(Path(cache))
        settings: dict[str, Any] = {
            "effort": Effort(seconds=seconds),
            "links": LinkEffort(seconds=link_seconds),
            "cache": self._cache,
            "drift": drift,
        }
        if refresh:
            settings["given"] = "measure"
        #: Read by the strategy's set-up.
        self.edge_profiler_settings = SimpleNamespace(settings=settings)
        self._path = None if path is None else Path(path)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        refine = getattr(trainer.strategy, "refined_profile", None)
        profile = refine() if refine is not None else None  # by all ranks together
        if profile is None or trainer.global_rank != 0:
            return
        if self._cache is not None:
            self._cache.save(profile)
        if self._path is not None:
            write = profile.to_json if self._path.suffix == ".json" else profile.to_yaml
            write(self._path)
            rank_zero_info(f"edge_collab: wrote the profile to {self._path}")

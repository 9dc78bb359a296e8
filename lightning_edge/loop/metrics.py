"""torchmetrics objects: updated on the last stage only, with one value everywhere.

Their states are where the predictions are, on the last stage. So `compute` of each metric of the
module is replaced on the instance (on every device):

    in a step                       as it is: what this device has seen
    in an epoch-end hook's body     states of the last stage's devices put together
    anywhere else (all devices)     the same on the last stage, and the value sent to the others

A metric that is only updated in hooks which every device runs has its states everywhere and is left
alone. Each metric has a version, which all devices advance alike: with each step that updated it
(the step's record says so) and with each reset. A value is computed and sent once per version.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor
from torch.utils._pytree import tree_map_only
from torchmetrics import Metric

from lightning_edge.errors import UnsupportedError
from lightning_edge.loop.batch_values import BatchValues
from lightning_edge.loop.mailbox import Mailbox
from lightning_edge.loop.merge import Logged
from lightning_edge.loop.metric_states import merged, states_of
from lightning_edge.loop.watched import Watched

__all__: list[str] = []


class MetricWatch:
    """Keeps the metrics of one module equal on all devices.

    Args:
        module: Whose metrics.
        mailbox: Carries states and values.
        rank: This device.
        last_ranks: The devices of the last stage, ascending.
        everyone: All devices.
    """

    def __init__(
        self,
        module: LightningModule,
        mailbox: Mailbox,
        rank: int,
        last_ranks: Sequence[int],
        everyone: Sequence[int],
    ) -> None:
        self._module, self._mailbox, self._rank = module, mailbox, rank
        self._last_ranks, self._everyone = tuple(last_ranks), tuple(everyone)
        self._is_last = rank in self._last_ranks
        self._watched: dict[str, Watched] = {}
        self._section: str | None = None  # "step" or "body": only some devices are here
        self._peers: tuple[int, ...] = ()  # last-stage devices that run the body
        self._busy = 0  # inside a forward or an evaluation of ours: leave nested calls alone
        self._epoch: int | None = None
        self._logged: dict[str, dict[str, None]] = {}  # by hook, in order
        self._batch = BatchValues(self._mailbox, rank, self._last_ranks, self._everyone)

    def refresh(self) -> None:
        """Look for metrics again, and watch new ones."""
        found = {
            path: part for path, part in self._module.named_modules() if isinstance(part, Metric)
        }
        for path, watched in [*self._watched.items()]:
            if found.get(path) is not watched.metric:
                self._watched.pop(path).release()
        for path, metric in found.items():
            if path not in self._watched:
                self._watched[path] = Watched(
                    metric, path, compute=self._compute, reset=self._reset, forward=self._forward
                )
        for watched in self._watched.values():
            watched.find_parts()

    def close(self) -> None:
        """Give every metric its own methods back."""
        for watched in self._watched.values():
            watched.release()
        self._watched.clear()

    def path_of(self, metric: Metric) -> str:
        """The path under which all devices know a metric.

        Raises:
            UnsupportedError: It is not part of the module.
        """
        for _ in range(2):
            for path, watched in self._watched.items():
                if watched.metric is metric:
                    return path
            self.refresh()
        raise UnsupportedError(
            f"a {type(metric).__name__} was logged that is not part of the module, so the other"
            " devices cannot know it: set it as an attribute of the LightningModule in __init__."
        )

    def at(self, path: str) -> Metric:
        """The metric under a path; see `path_of`."""
        if path not in self._watched:
            self.refresh()
        if path not in self._watched:
            raise UnsupportedError(
                f"the metric {path!r} exists on the last stage's devices only: create all metrics"
                " in __init__, setup or configure_model, which every device runs to their end."
            )
        return self._watched[path].metric

    # -- sections: user code that only some devices run ------------------------------------------

    def begin_step(self) -> None:
        """A step begins; look for new metrics once an epoch."""
        epoch = self._module.trainer.current_epoch
        if epoch != self._epoch:
            self._epoch = epoch
            self.refresh()
        self.begin_section()
        self._section = "step"

    def begin_section(self) -> None:
        """User code that only some devices run begins (every device says so)."""
        self._batch.start()
        self._busy = 0
        for watched in self._watched.values():
            watched.catch_up()
            watched.was_reset = False

    @contextmanager
    def micro_batch(self, calls: Sequence[Logged]) -> Iterator[None]:
        """Round the user's step for one micro-batch; `calls` grows with what it logs."""
        before = len(calls)
        self._batch.begin_micro_batch()
        try:
            yield
        finally:
            if not self._is_last:  # what was computed in front of the model is not a state
                for watched in self._watched.values():
                    watched.undo_updates()
        self._batch.end_micro_batch(calls[before:])

    @contextmanager
    def body(self, peers: Sequence[int]) -> Iterator[None]:
        """Round the body of an epoch-end hook, which the last-stage devices `peers` run."""
        self._section, self._peers = "body", tuple(peers)
        try:
            yield
        finally:
            self._section = None

    def report(self) -> dict[str, Any]:
        """What the other devices must know of this section's metrics (from the last stage)."""
        return {
            "touched": {
                path: watched.touched()
                for path, watched in self._watched.items()
                if watched.touched() is not None
            },
            "batch": self._batch.report(self._watched),
        }

    def settle_section(self, reports: Mapping[int, Mapping[str, Any]], serial: int) -> None:
        """Take over what the last stage's devices report; every device does so alike.

        Args:
            reports: By rank, what `report` gave there.
            serial: Number of the section.
        """
        touched: dict[str, list[bool]] = {}
        for report in reports.values():
            for path, updated in report["touched"].items():
                touched.setdefault(path, []).append(updated)
        for path, updated in touched.items():
            self.at(path)
            watched = self._watched[path]
            watched.version += 1
            watched.sharded = any(updated)
        self.end_section()
        batch = {rank: report["batch"] for rank, report in reports.items()}
        for path, value in self._batch.settle(batch, serial, self._watched).items():
            metric = self.at(path)
            metric._forward_cache = _on(metric, value)

    def end_section(self) -> None:
        """Updates up to here belong to the section; later ones are made on all devices."""
        self._section = None
        for watched in self._watched.values():
            watched.seen = watched.updates()

    # -- values ----------------------------------------------------------------------------------

    def logged(self, path: str, where: str) -> None:
        """A metric was logged in the hook `where`, so its value is wanted when that loop ends."""
        self._logged.setdefault(where, {})[path] = None

    def settle(self, where: str) -> None:
        """Compute the metrics that were logged in `where` now, while all devices are here.

        In the order in which Lightning asks for them: a progress bar may have begun to.
        """
        for path in self._logged.pop(where, ()):
            watched = self._watched.get(path)
            if watched is not None and watched.sharded:
                self._everywhere(watched)

    def _compute(self, watched: Watched, *args: Any, **kwargs: Any) -> Any:
        in_body = self._section == "body"
        touched = in_body and watched.touched() is not None
        if self._busy or self._section == "step" or not (watched.sharded or touched):
            return watched.compute(*args, **kwargs)
        if in_body and (touched or watched.known() is None):
            return self._together(watched, self._peers, *args, **kwargs)
        return self._everywhere(watched, *args, **kwargs)

    def _everywhere(self, watched: Watched, *args: Any, **kwargs: Any) -> Any:
        watched.catch_up()
        if watched.known() is None:
            first, key = self._last_ranks[0], (watched.path, watched.version)
            what = f"the value of the metric {watched.path!r}"
            value = None
            if self._is_last:
                value = self._together(watched, self._last_ranks, *args, **kwargs)
            if self._rank == first:
                value = _detached(value)
                self._mailbox.post(self._everyone, "value", key, value, what)
            else:
                value = _on(watched.metric, self._mailbox.take(first, "value", key, what))
                self._mailbox.drop("value", older_than=key)
            watched.value = (watched.version, value)
        return watched.known()

    def _together(self, watched: Watched, peers: Sequence[int], *args: Any, **kwargs: Any) -> Any:
        """Compute on the states of all `peers`, which all call this; on each of them."""
        with self._alone():
            if len(peers) == 1:
                return watched.compute(*args, **kwargs)
            watched.gathers += 1
            key, what = (watched.path, watched.gathers), f"the states of {watched.path!r}"
            own = states_of(watched.metric)
            self._mailbox.post(peers, "states", key, own, what)
            parts = [
                own if peer == self._rank else self._mailbox.take(peer, "states", key, what)
                for peer in peers
            ]
            with merged(watched.metric, parts):
                return watched.compute(*args, **kwargs)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        self._busy += 1
        try:
            yield
        finally:
            self._busy -= 1

    # -- what the replaced methods of a metric report --------------------------------------------

    def _forward(self, watched: Watched, inputs: Any) -> None:
        """A forward begins (with its inputs), or ends (None)."""
        self._busy += 1 if inputs is not None else -1
        if inputs is not None and self._section == "step":
            self._batch.forward(watched.path, inputs)

    def _reset(self, watched: Watched) -> None:
        watched.reset()
        if self._busy:  # a part of forward
            return
        watched.was_reset = True
        watched.value = None
        if self._section is None:
            watched.version += 1
            watched.sharded = False
            watched.seen = watched.updates()


def _detached(value: Any) -> Any:
    return tree_map_only(Tensor, Tensor.detach, value)


def _on(metric: Metric, value: Any) -> Any:
    return tree_map_only(Tensor, lambda tensor: tensor.detach().to(metric.device), value)

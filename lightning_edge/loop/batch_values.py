"""Values of torchmetrics objects for one batch (``on_step=True``), as one device would have them.

A metric called with predictions gives its value for them, but here each call sees a micro-batch on
one device, and an AUROC of 16 rows is not the mean of the AUROCs of 4 times 4. So the inputs of the
step's calls are kept to its end and a copy of the metric is updated with all of them. With several
devices on the last stage, the copies' states meet on the first of these, which tells all others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_map_only
from torchmetrics import Metric

from lightning_edge.loop.mailbox import Mailbox
from lightning_edge.loop.merge import Logged
from lightning_edge.loop.metric_states import blank_copy, merged, states_of
from lightning_edge.loop.watched import Watched

__all__: list[str] = []

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


class BatchValues:
    """The inputs of this step's metric calls, and the values made of them.

    Args:
        mailbox: Carries the values.
        rank: This device.
        last_ranks: The devices of the last stage, ascending.
        everyone: All devices.
    """

    def __init__(
        self, mailbox: Mailbox, rank: int, last_ranks: Sequence[int], everyone: Sequence[int]
    ) -> None:
        self._mailbox, self._rank = mailbox, rank
        self._last_ranks, self._everyone = last_ranks, everyone
        self._copies: dict[str, tuple[Metric, Metric]] = {}  # path: (original, copy)
        self.start()

    def start(self) -> None:
        """A step begins."""
        self._latest: dict[str, Inputs] = {}  # of this micro-batch
        self._inputs: dict[str, list[Inputs]] = {}  # of this step, of metrics wanted per step

    def forward(self, path: str, inputs: Inputs) -> None:
        """A metric is called; the last call of a micro-batch counts, as it does in one process."""
        self._latest[path] = inputs

    def begin_micro_batch(self) -> None:
        """Forget calls that were not part of one."""
        self._latest.clear()

    def end_micro_batch(self, calls: Sequence[Logged]) -> None:
        """A micro-batch, which logged `calls`, is over."""
        for path in dict.fromkeys(c.metric for c in calls if c.metric and c.options["on_step"]):
            wanted = self._inputs.setdefault(path, [])
            if path in self._latest:
                wanted.append(tree_map_only(Tensor, Tensor.detach, self._latest[path]))
        self._latest.clear()

    def report(self, watched: Mapping[str, Watched]) -> dict[str, Any]:
        """By path of each metric wanted per step: its value, or with several devices its states."""
        found: dict[str, Any] = {}
        wanted, self._inputs = self._inputs, {}
        for path, inputs in wanted.items():
            metric = watched[path].metric
            if len(self._last_ranks) == 1 and len(inputs) == 1:
                found[path] = tree_map_only(Tensor, Tensor.detach, metric._forward_cache)
                continue
            copy = self._copy(path, metric)
            for args, kwargs in inputs:
                copy.update(*args, **kwargs)
            if len(self._last_ranks) > 1:
                found[path] = states_of(copy) if inputs else None
            else:
                found[path] = copy.compute() if inputs else None
        return found

    def settle(
        self, reports: Mapping[int, Mapping[str, Any]], serial: int, watched: Mapping[str, Watched]
    ) -> dict[str, Any]:
        """Make one value of what the devices report; all devices get the same.

        Args:
            reports: By rank, what `report` gave there.
            serial: Number of the step.
            watched: The metrics of this device, by path.

        Returns:
            Values by path; None where a metric was logged without having been called.
        """
        if len(reports) == 1:
            return dict(next(iter(reports.values())))
        paths = list(dict.fromkeys(path for report in reports.values() for path in report))
        if not paths:
            return {}
        first, what = self._last_ranks[0], "the batch values of the metrics " + ", ".join(paths)
        if self._rank != first:
            values: dict[str, Any] = self._mailbox.take(first, "batch", serial, what)
            return values
        values = {}
        for path in paths:
            parts = [report[path] for report in reports.values() if report.get(path) is not None]
            copy = self._copy(path, watched[path].metric)
            with merged(copy, parts):
                values[path] = copy.compute() if parts else None
        self._mailbox.post(self._everyone, "batch", serial, values, what)
        return values

    def _copy(self, path: str, metric: Metric) -> Metric:
        """A copy without states."""
        if path not in self._copies or self._copies[path][0] is not metric:
            self._copies[path] = (metric, blank_copy(metric))
        copy = self._copies[path][1].to(metric.device)
        copy.reset()
        return copy

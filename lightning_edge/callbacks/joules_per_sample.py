"""Joules per sample as a torchmetrics Metric, to be logged, plotted or monitored like any other."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torchmetrics import Metric


class JoulesPerSample(Metric):
    """Joules over samples, summed over all processes.

    An update takes the joules since the update before it; those until the first one since the
    metric was made. Under DDP each process must hand in joules that no other one hands in:
    `EnergyLogger.owned_energy_j` counts a shared GPU or board on one rank only. The value is NaN
    while no joules are known or no samples were seen: unknown is not 0.

    Args:
        energy_j: Returns the cumulative joules that this process accounts for; None if unknown.

    Example:
        >>> joules = iter([0.0, 6.0])
        >>> metric = JoulesPerSample(lambda: next(joules))
        >>> metric.update(4)
        >>> metric.compute()
        tensor(1.5000)
    """

    higher_is_better = False
    is_differentiable = False
    full_state_update = False

    energy_mj: Tensor
    samples: Tensor

    def __init__(self, energy_j: Callable[[], float | None]) -> None:
        super().__init__()
        self._read = energy_j
        self._last_j = energy_j()
        # Millijoules as integers: a float32 sum loses a small update on top of a long run.
        for name in ("energy_mj", "samples"):
            state = torch.zeros((), dtype=torch.int64)
            self.add_state(name, state, dist_reduce_fx="sum")

    def update(self, samples: int) -> None:
        """Count `samples` more, and the joules since the last update."""
        self.samples += samples
        self.energy_mj += round(1000.0 * self._grown_j())

    def skip(self) -> None:
        """Leave out the joules since the last update, such as those of a validation run."""
        self._grown_j()

    def compute(self) -> Tensor:
        """Joules per sample; NaN if unknown."""
        if self.samples <= 0 or self.energy_mj <= 0:
            return torch.full((), float("nan"))
        return self.energy_mj / (1000.0 * self.samples)

    def _grown_j(self) -> float:
        before_j, self._last_j = self._last_j, self._read()
        if before_j is None or self._last_j is None:
            return 0.0
        return max(self._last_j - before_j, 0.0)

from __future__ import annotations

import pytest
import torch

from lightning_edge.callbacks import JoulesPerSample
from lightning_edge.callbacks.batch_size import batch_samples, batch_tokens


class TestMetric:
    def test_joules_since_the_update_before(self) -> None:
        joules = iter([100.0, 106.0, 109.0, 200.0, 201.0])
        metric = JoulesPerSample(lambda: next(joules))
        metric.update(4)
        metric.update(2)
        assert metric.compute().item() == pytest.approx(9.0 / 6)
        metric.skip()  # a validation run
        metric.reset()
        metric.update(1)
        assert metric.compute().item() == pytest.approx(1.0)

    def test_unknown_is_nan(self) -> None:
        metric = JoulesPerSample(lambda: None)
        metric.update(3)
        assert torch.isnan(metric.compute())

    def test_forward_counts_once(self) -> None:
        joules = iter([0.0, 6.0, 9.0])
        metric = JoulesPerSample(lambda: next(joules))
        assert metric(2).item() == pytest.approx(3.0)
        assert metric(1).item() == pytest.approx(3.0)
        assert metric.compute().item() == pytest.approx(3.0)

    def test_small_updates_on_top_of_a_long_run(self) -> None:
        joules = iter([0.0, 1e9, *(1e9 + 0.5 * i for i in range(1, 101))])
        metric = JoulesPerSample(lambda: next(joules))
        metric.update(0)
        for _ in range(100):
            metric.update(1)
        assert metric.energy_mj.item() == 1_000_000_050_000


def test_batch_sizes() -> None:
    class Encoding:  # as transformers' BatchEncoding: its tensors are in `data`
        data = {"input_ids": torch.zeros(3, 7), "attention_mask": torch.ones(3, 7)}

    assert batch_samples((torch.tensor(1.0), torch.zeros(5, 2))) == 5
    assert batch_samples({"a": ["x"], "b": torch.zeros(4)}) == 4
    assert batch_samples(["a", "b", "c"]) == 3
    assert batch_samples("text") == 1
    assert batch_samples(None) == 0
    assert batch_samples(Encoding()) == 3
    assert batch_tokens(Encoding()).item() == 21
    assert batch_tokens({"input_ids": torch.zeros(2, 5)}) == 10
    assert batch_tokens(torch.zeros(2, 5)) is None

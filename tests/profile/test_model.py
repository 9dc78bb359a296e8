"""A model is measured block by block, exactly and without a trace."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lightning_edge.errors import ProfileError
from lightning_edge.profile import model as measuring
from lightning_edge.profile.measured import Measured
from lightning_edge.profile.model import ladder, measure_model, model_of
from lightning_edge.profile.optimizer import OptimizerCost
from lightning_edge.profile.steady import Effort
from tests.profile.ticking import Net, Ticking, TickingClock, subject_of

QUICK = Effort(
    seconds=1000, stretches=(1, 1), stretch_s=0
)  # the clock says seconds that do not pass
ADAM = OptimizerCost(1e-9, 2.0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> TickingClock:
    ticking = TickingClock()
    monkeypatch.setattr(measuring, "clock_for", lambda device: ticking)
    return ticking


def net(clock: TickingClock, **options: Any) -> Net:
    return Net(
        [
            Ticking(clock, (0.01, 0.002), (0.02, 0.004)),
            Ticking(clock, (0.03, 0.001), (0.05, 0.006)),
            Ticking(clock, (0.03, 0.001), (0.05, 0.006)),
            Ticking(clock, (0.04, 0.0), (0.01, 0.0)),
        ],
        **options,
    )


def measure(module: nn.Module, rows: int = 16, **options: Any) -> Measured:
    torch.manual_seed(1)
    return measure_model(subject_of(module, rows), effort=QUICK, **options)


def expected(rows: int) -> list[tuple[float, float]]:
    return [
        (0.0, 0.0),
        (0.01 + 0.002 * rows, 0.02 + 0.004 * rows),
        (0.03 + 0.001 * rows, 0.05 + 0.006 * rows),
        (0.03 + 0.001 * rows, 0.05 + 0.006 * rows),
        (0.04, 0.01),
    ]


def test_blocks_are_timed_one_by_one_at_several_numbers_of_rows(clock: TickingClock) -> None:
    found = measure(net(clock))
    assert sorted(found.tables[0]) == [2, 4, 8, 16]  # batch normalisation refuses one row
    for rows in found.tables[0]:
        for block, pair in enumerate(expected(rows)):
            assert found.tables[block][rows] == pytest.approx(pair, abs=1e-9)


def test_a_device_without_room_for_the_model_runs_it_block_by_block(clock: TickingClock) -> None:
    module = net(clock)
    subject = subject_of(module, 16)
    size = sum(p.numel() * 4 for p in module.parameters())
    whole = measure(net(clock))
    found = measure_model(subject, effort=QUICK, memory_bytes=2 * size)
    assert sum(len(table) for table in found.tables) > len(found.tables)
    for block, table in enumerate(found.tables):
        for rows, pair in table.items():
            assert pair == pytest.approx(whole.tables[block][rows], abs=1e-9)
    assert found.kept == whole.kept


def test_equal_blocks_are_measured_once_if_each_is_run_alone(
    clock: TickingClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces = []
    original = measuring._Measurement._piece

    def watched(self: Any, rehearsal: Any, first: int, *rest: Any) -> Any:
        pieces.append(first)
        return original(self, rehearsal, first, *rest)

    monkeypatch.setattr(measuring._Measurement, "_piece", watched)
    measure(net(clock), memory_bytes=1000)
    assert pieces[-4:] == [0, 1, 2, 4]


def test_frozen_blocks_have_no_backward(clock: TickingClock) -> None:
    found = measure(net(clock, frozen=1))
    assert [found.tables[block][4][1] for block in range(5)] == pytest.approx(
        [0.0, 0.0, 0.0, 0.05 + 0.024, 0.01], abs=1e-9
    )


def test_nothing_of_the_module_is_changed(clock: TickingClock) -> None:
    module = net(clock)
    subject = subject_of(module, 8)
    module.blocks[1].eval()
    parameters = dict(module.named_parameters())
    first = next(iter(parameters.values()))
    first.grad = torch.ones_like(first)
    state = {name: value.clone() for name, value in module.state_dict().items()}
    calls = [list(block.calls) for block in module.blocks]
    modes = [child.training for child in module.modules()]
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    streams = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    for memory_bytes in (None, 1000):
        measure_model(subject, effort=QUICK, memory_bytes=memory_bytes)
        assert all(parameters[name] is p for name, p in module.named_parameters())
        for name, value in module.state_dict().items():
            assert torch.equal(value, state[name]), name
        assert [p for p in module.parameters() if p.grad is not None] == [first]
        assert torch.equal(first.grad, torch.ones_like(first))
        assert [list(block.calls) for block in module.blocks] == calls
        assert [child.training for child in module.modules()] == modes
        assert torch.equal(torch.get_rng_state(), streams[0])
        assert random.getstate() == streams[1]
        assert np.random.get_state()[1].tolist() == streams[2]
        assert not any(child._forward_pre_hooks for child in module.modules())
        assert not any("forward" in child.__dict__ for child in module.modules())


class Plain(nn.Module):
    """Linear keeps its input; so does the ReLU its output; nothing else keeps anything."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(*[nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(3)])

    def training_step(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.net(batch["x"]).sum()


def test_what_is_kept_is_counted_once_and_by_row() -> None:
    subject = subject_of(Plain(), 8)
    found = measure_model(subject, effort=QUICK)
    assert [site.name for site in subject.sites.blocks] == ["(start)", "net.1", "net.2"]
    # the batch itself is there anyway; each ReLU's output is also the next Linear's input
    assert [kept for kept, _ in found.kept] == [32.0, 32.0, 32.0]


def test_the_model_that_planning_sees(clock: TickingClock) -> None:
    module = net(clock)
    subject = subject_of(module, 16)
    found = measure_model(subject, effort=QUICK)
    model = model_of(subject, found, ADAM, name="Net", timing="here")
    assert model.cuts == ("blocks.0", "blocks.1", "blocks.2", "blocks.3")
    total = sum(block.parameter_bytes for block in model.blocks)
    assert total == sum(p.numel() * 4 for p in module.parameters())
    middle = model.blocks[2]
    assert middle.optimizer_bytes == 2 * middle.gradient_bytes == 2 * middle.parameter_bytes
    assert middle.forward_bytes == middle.backward_bytes == 32.0
    timing = middle.timings["here"]
    assert timing.rows == (2, 4, 8, 16)
    assert timing.forward(4) == pytest.approx(0.034)
    assert timing.step_s == pytest.approx(middle.gradient_bytes * 1e-9, abs=1e-7)
    assert timing.provenance_of("forward_s") == "measured"
    assert model.batch_bytes == 9 * 4
    assert model.least_rows == 8  # there is batch normalisation
    module.eval()
    assert model_of(subject, found, ADAM, name="Net", timing="here").least_rows == 1


def test_a_model_that_cannot_run_says_so(clock: TickingClock) -> None:
    class Failing(Plain):
        def training_step(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            loss = super().training_step(batch)
            if type(loss) is torch.Tensor:  # not in the probe
                raise KeyError("only in training")
            return loss

    with pytest.raises(ProfileError, match=r"cannot be run here .*only in training"):
        measure(Failing())


def test_the_ladder_has_no_more_rows_than_the_batch() -> None:
    assert ladder(1) == [1]
    assert ladder(3) == [1, 2, 3]
    assert ladder(32) == [1, 2, 6, 13, 32]

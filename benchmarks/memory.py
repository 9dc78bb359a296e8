"""Peak memory of each rank against what its part of the plan has to hold.

    own parameters + one gradient copy + two moments of AdamW     4 x parameters
    activations of the micro-batches in flight                    what autograd keeps, counted
    messages: what may be under way on each stream                (window + 1) x one message

What imports cost is measured by the same run with a model of almost no size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks import models, ours
from benchmarks.contest import Contest, Contestant
from benchmarks.peers import stage_of
from benchmarks.table import Row

BLOCKS, MICRO_BATCHES = 12, 8
IN_FLIGHT = [3, 1]
MIB = 1 << 20


def run(quick: bool) -> list[Row]:
    plan = ours.pipeline([1 + BLOCKS // 2], IN_FLIGHT)
    tiny = ours.pipeline([2], IN_FLIGHT)
    sizes = {"micro_batches": MICRO_BATCHES}
    contestants = [
        Contestant("GPT", "benchmarks.ours:edge", {**sizes, "plan": plan, "size": BLOCKS}),
        Contestant(
            "imports", "benchmarks.ours:edge", {**sizes, "plan": tiny, "model": "tiny", "size": 2}
        ),
    ]
    with Contest(contestants) as contest:
        for team in contest.teams.values():
            team.step(4 if quick else 20, limit_s=120)
            team.finish()
        peaks = {name: team.peaks_bytes for name, team in contest.teams.items()}
    rows = []
    for stage, (peak, base) in enumerate(zip(peaks["GPT"], peaks["imports"], strict=True)):
        needed = expected_bytes(stage)
        taken = peak - base
        setting = f"stage {stage}, in flight {IN_FLIGHT[stage]}"
        rows += [
            Row("peak memory", setting, "expected", needed / MIB, "MiB"),
            Row(
                "peak memory",
                setting,
                "lightning-edge",
                taken / MIB,
                "MiB",
                "it / expected",
                [taken / needed],
                "<= 1.15",
            ),
        ]
    return rows


def expected_bytes(stage: int) -> int:
    """Return what a stage has to hold at its fullest moment."""
    module, inputs, output = stage_of("gpt", BLOCKS, stage, 2)
    parameters = sum(p.numel() * p.element_size() for p in module.parameters())
    kept = IN_FLIGHT[stage] * activation_bytes(module, inputs)
    message = models.ROWS * models.LENGTH * models.WIDTH * 4
    window = IN_FLIGHT[0] + 1  # of the stream in front of stage 1
    return 4 * parameters + kept + 2 * (window + 1) * message


def activation_bytes(module: nn.Module, inputs: Tensor) -> int:
    """Count what autograd keeps of one micro-batch, each storage once and no parameters."""
    own = {p.untyped_storage().data_ptr() for p in module.parameters()}
    storages: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = module(inputs)
        if output.shape[-1] == models.VOCABULARY:
            output = models.loss_of(output, models.text(models.ROWS)[1])
    storages[output.untyped_storage().data_ptr()] = output.untyped_storage().nbytes()
    return sum(storages.values())

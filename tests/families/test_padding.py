"""Fine-tuning on padded rows: the two lines of docs/models.md give one device's loss."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from tests.families.zoo import llama
from tests.lightning.both import Run, both, run_one
from tests.lightning.nets import Losses, metrics, weights
from tests.pool import Pool

pytestmark = pytest.mark.multiproc
LENGTHS = (9, 2, 3, 9, 4, 1, 8, 2, 2, 9, 3, 5)
PLAN = {
    "pipelines": [
        {
            "stages": [
                {"devices": {0: 0.625, 1: 0.375}},
                {"start": "model.model.layers.2", "devices": [2]},
            ]
        }
    ],
    "micro_batches": 2,
}


def rows(seed: int) -> list[dict[str, Tensor]]:
    """Rows of one length, as a tokenizer pads them; padding does not count."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for length in LENGTHS:
        ids = torch.randint(1, 61, (10,), generator=generator)
        mask = (torch.arange(10) <= length).long()
        labels = torch.where(mask.bool(), ids, -100)
        found.append({"input_ids": ids * mask, "attention_mask": mask, "labels": labels})
    return found


class CausalLM(L.LightningModule):
    def __init__(self, weighted: bool = True) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.model: Any = llama().train()
        self.weighted = weighted

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.model(**batch).loss
        if not self.weighted:
            return loss
        tokens = (batch["labels"][:, 1:] != -100).sum()
        return {"loss": loss, "loss_weight": tokens}

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.2, momentum=0.9)


def fine_tune(run: Run, accumulate: int) -> Any:
    seen, module = Losses(), CausalLM()
    trainer = run.trainer(callbacks=[seen], accumulate_grad_batches=accumulate)
    trainer.fit(module, DataLoader(rows(1), 5))
    return seen.train, weights(module), metrics(trainer)


def test_two_lines_make_padded_batches_those_of_one_device(pool: Pool, tmp_path: Path) -> None:
    both(pool, tmp_path, fine_tune, 1, plan=PLAN, tolerance=2e-6)


def without(rank: int, world_size: int, plan: Any, folder: str) -> tuple[list[str], float]:
    """The warnings, and the first loss, when the two lines are missing."""

    def scenario(run: Run) -> Any:
        seen = Losses()
        trainer = run.trainer(callbacks=[seen], max_steps=2)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trainer.fit(CausalLM(weighted=False), DataLoader(rows(1), 5))
        return [str(w.message) for w in caught], seen.train[0]

    return run_one(rank, world_size, scenario, plan, folder, ())


def test_without_them_a_warning_says_what_to_add(pool: Pool, tmp_path: Path) -> None:
    _, alone = without(0, 1, None, str(tmp_path))
    results = pool.run(without, 3, PLAN, str(tmp_path))
    assert results[2][1] != pytest.approx(alone, rel=1e-5)  # another mean: what the warning is of
    said = [text for text, _ in results if any("labels that are not -100" in t for t in text)]
    assert said, "no rank warned"
    assert any('"loss_weight": (labels != -100).sum()' in t for t in said[0])

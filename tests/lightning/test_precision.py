"""Precisions, each held against plain Lightning in the same precision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint

from tests.lightning.both import PIPELINE, REPLICAS, Run, both
from tests.lightning.nets import Losses, Net, loaders, metrics, weights

pytestmark = [pytest.mark.thorough, pytest.mark.multiproc]

# how far two orders of adding up may lie apart: digits of the type, not of the strategy
TOLERANCE = {
    "32-true": 3e-6,
    "64-true": 1e-12,
    "bf16-mixed": 2e-2,
    "bf16-true": 5e-2,
    "16-true": 1e-2,
}


class Double(Net):
    """Its metrics are logged in full precision."""

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(float(outputs["loss"]))


def precise(run: Run, precision: str) -> Any:
    seen = Losses()
    keep = ModelCheckpoint(run.folder, filename="{epoch}")
    trainer = run.trainer(
        precision=precision,
        callbacks=[seen, keep, EMAWeightAveraging(decay=0.5)],
        gradient_clip_val=0.5,
        enable_checkpointing=True,
    )
    module = Double(lr=0.02)
    trainer.fit(module, *loaders())
    found: dict[str, Any] = {
        "losses": module.losses,
        "metrics": metrics(trainer),
        "weights": weights(module),
        "dtypes": sorted({str(p.dtype) for p in module.parameters()}),
        "saved": torch.load(run.folder / "epoch=1.ckpt", weights_only=True)["state_dict"],
    }
    found["test"] = trainer.test(module, loaders()[1], verbose=False)
    found["predict"] = trainer.predict(module, loaders()[1])
    run.end()
    average = EMAWeightAveraging(decay=0.5)
    again = run.trainer(precision=precision, callbacks=[average], max_epochs=3)
    other = Double(lr=0.02)
    again.fit(other, *loaders(), ckpt_path=str(run.folder / "epoch=1.ckpt"))
    found["again"] = weights(other)
    return found


FEW = ("64-true", "bf16-true")


@pytest.mark.parametrize(
    "precision",
    [pytest.param(name, marks=[] if name in FEW else [pytest.mark.slow]) for name in TOLERANCE],
)
def test_precision(pool, tmp_path, precision):
    plan = REPLICAS if precision == "bf16-true" else PIPELINE
    both(pool, tmp_path, precise, precision, plan=plan, tolerance=TOLERANCE[precision])

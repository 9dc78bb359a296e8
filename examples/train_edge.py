"""Train the byte-level GPT on the source of Python's standard library, and say how well it went."""

from __future__ import annotations

from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint

import lightning_edge
from lightning_edge.zoo import ByteGPT, StandardLibrary

HERE = Path(__file__).parent


def main() -> L.Trainer:
    L.seed_everything(1)
    model, data = ByteGPT(), StandardLibrary()
    trainer = L.Trainer(
        accelerator="cpu",
        devices=3,
        strategy=lightning_edge.EdgeCollabStrategy(plan=HERE / "three_devices.yaml"),
        max_epochs=1,
        gradient_clip_val=1.0,
        logger=False,
        callbacks=ModelCheckpoint(HERE / "outputs", "byte_gpt", enable_version_counter=False),
    )
    (before,) = trainer.validate(model, datamodule=data, verbose=False)
    trainer.fit(model, datamodule=data)
    after = trainer.callback_metrics
    trainer.print(f"bits per byte: {before['bits_per_byte']:.2f} -> {after['bits_per_byte']:.2f}")
    return trainer


if __name__ == "__main__":
    main()

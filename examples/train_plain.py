"""Train the byte-level GPT on one device, as any Lightning script does."""

from __future__ import annotations

import lightning as L
from byte_gpt import ByteGPT, StandardLibrary


def main() -> None:
    L.seed_everything(1)
    model, data = ByteGPT(), StandardLibrary()
    trainer = L.Trainer(
        max_steps=model.hparams["steps"],
        val_check_interval=100,
        logger=False,
        accelerator="cpu",
        devices=1,
    )
    trainer.validate(model, datamodule=data)
    trainer.fit(model, datamodule=data)


if __name__ == "__main__":
    main()

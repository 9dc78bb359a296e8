"""The whole way on one machine: train as three devices, open the checkpoint, let it write.

`make demo` runs this.
"""

from __future__ import annotations

import train_edge
from lightning_edge.zoo import ByteGPT


def main() -> None:
    trainer = train_edge.main()
    trainer.print(trainer.strategy.report())
    if trainer.is_global_zero:
        # An ordinary checkpoint: nothing below knows that it was trained in parts.
        model = ByteGPT.load_from_checkpoint(train_edge.HERE / "outputs" / "byte_gpt.ckpt")
        for seed, start in enumerate(("import ", "def ", "class ")):
            print("-" * 80, model.eval().generate(start, count=120, seed=seed), sep="\n")


if __name__ == "__main__":
    main()

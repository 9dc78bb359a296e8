"""The example is right before it is distributed: causal, tied, reproducible, and it learns."""

import difflib
import math
from pathlib import Path

import lightning as L
import pytest
import torch

from lightning_edge.plan.plan import Plan
from lightning_edge.zoo import ByteGPT, StandardLibrary

EXAMPLES = Path(__file__).parents[2] / "examples"


def small() -> ByteGPT:
    return ByteGPT(width=32, heads=2, blocks=2, context=32, warmup_steps=5)


def data(**changes: int) -> StandardLibrary:
    sizes = {"context": 32, "batch_rows": 8, "train_bytes": 16_000, "val_bytes": 2_000}
    module = StandardLibrary(**{**sizes, **changes})
    module.setup("fit")
    return module


def trainer(folder: Path) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def test_the_edge_script_is_at_most_three_lines_from_the_plain_one():
    plain, edge = (
        (EXAMPLES / f"train_{name}.py").read_text().splitlines() for name in ("plain", "edge")
    )
    changed = [line for line in difflib.ndiff(plain, edge) if line[0] in "+-"]
    assert any("EdgeCollabStrategy" in line for line in changed)
    assert len(changed) <= 3, changed


def test_the_plan_fits_the_model():
    plan = Plan.from_yaml(EXAMPLES / "three_devices.yaml").resolve(["0", "1", "2"])
    names = [name for name, _ in ByteGPT().named_modules()]
    plan.check(names, world_size=3)
    shares = plan.stages[0].devices.values()
    assert len(shares) == 2
    assert len(set(shares)) == 2


def test_the_model_has_two_to_three_million_parameters_one_matrix_shared():
    model = ByteGPT()
    assert 2e6 < sum(p.numel() for p in model.parameters()) < 3e6
    assert model.model.head.weight is model.model.embed.weight


def test_no_position_sees_what_follows():
    model = small().eval()
    text = torch.randint(256, (2, 32))
    changed = text.clone()
    changed[:, 20:] = (changed[:, 20:] + 1) % 256
    before, after = model.model(text), model.model(changed)
    assert torch.equal(before[:, :20], after[:, :20])
    assert not torch.allclose(before[:, 20:], after[:, 20:])


def test_scores_depend_on_distances_not_on_places():
    attention = small().model.blocks[0].attention
    x = torch.randn(1, 8, 32)
    shifted = torch.cat([torch.zeros(1, 5, 32), x], dim=1)
    q, k = (
        attention.rotate(x.view(1, -1, 2, 16).transpose(1, 2)) for x in (shifted, shifted.flip(0))
    )
    products = q @ k.transpose(-1, -2)
    unshifted = attention.rotate(x.view(1, 8, 2, 16).transpose(1, 2))
    torch.testing.assert_close(products[..., 5:, 5:], unshifted @ unshifted.transpose(-1, -2))


def test_files_are_split_by_name_and_rows_overlap_by_one_byte():
    first, again = data(), data()
    (rows,), (same,) = first.train_rows.tensors, again.train_rows.tensors
    assert torch.equal(rows, same)
    assert rows.shape[1] == 33
    assert torch.equal(rows[:-1, -1], rows[1:, 0])
    assert 14_000 < rows.shape[0] * 32 <= 16_000
    held_out = first.val_rows.tensors[0]
    assert not (held_out[:, None] == rows[None]).all(-1).any(-1).float().mean() > 0.2


def test_bits_per_byte_of_a_model_that_knows_nothing_are_eight():
    rows = next(iter(data().val_dataloader()))
    assert small().bits_per_byte(rows).item() == pytest.approx(8, abs=0.5)
    assert math.log2(256) == 8


def test_it_learns_and_its_checkpoint_writes(tmp_path):
    L.seed_everything(1)
    model, source = small(), data()
    run = trainer(tmp_path)
    (before,) = run.validate(model, datamodule=source, verbose=False)
    run.fit(model, datamodule=source)
    assert run.callback_metrics["bits_per_byte"] < before["bits_per_byte"] - 2
    (path,) = tmp_path.rglob("*.ckpt")
    opened = ByteGPT.load_from_checkpoint(path).eval()
    written = opened.generate("def ", count=20, seed=3)
    assert written.startswith("def ")
    assert written == model.eval().generate("def ", count=20, seed=3)


def test_the_learning_rate_warms_up_and_falls_to_zero(tmp_path):
    model = small()
    run = trainer(tmp_path)
    rates = []

    class Watch(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    run.callbacks.append(Watch())
    run.fit(model, datamodule=data())
    top = model.hparams["lr"]
    assert rates[:5] == pytest.approx([top / 5 * (i + 1) for i in range(5)])
    assert max(rates) == pytest.approx(top)
    assert rates[-1] == pytest.approx(top / (len(rates) - 5))

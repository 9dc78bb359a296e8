"""Texts with a label each: from a CSV file of the user's, or from wherever a subclass has them."""

from __future__ import annotations

import csv
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_edge.errors import DataError
from lightning_edge.zoo.checks import check_sizes
from lightning_edge.zoo.tokens import local_tokenizer

__all__ = ["LabelledText"]

Row = tuple[str, str]


class Labelled(L.LightningDataModule):
    """Texts as `input_ids` and `attention_mask`, padded to the longest of a batch, and `labels`.

    About every tenth text is held out, chosen by a checksum of itself.

    Attributes:
        labels: The kinds of text, in the order of their numbers.
    """

    def __init__(self, tokenizer: str, max_tokens: int, batch_rows: int) -> None:
        super().__init__()
        check_sizes("data", max_tokens=max_tokens, batch_rows=batch_rows)
        self.tokenizer, self.max_tokens, self.batch_rows = tokenizer, max_tokens, batch_rows
        self.labels: list[str] = []

    def rows(self) -> Sequence[Row]:
        """All texts with their labels, for both sides."""
        raise NotImplementedError

    def setup(self, stage: str) -> None:
        """Read the texts."""
        self._encode = local_tokenizer(self.tokenizer)
        rows = self.rows()
        self.labels = sorted({label for _, label in rows})
        numbered = [(text, self.labels.index(label)) for text, label in rows]
        sides = [zlib.crc32(text.encode()) % 10 == 0 for text, _ in numbered]
        self.train_rows = [row for row, out in zip(numbered, sides, strict=True) if not out]
        self.val_rows = [row for row, out in zip(numbered, sides, strict=True) if out]
        if not self.train_rows or not self.val_rows:
            raise DataError(f"{len(rows)} labelled texts are too few to hold some of them out")

    def train_dataloader(self) -> DataLoader[Any]:
        """Texts in a new order each epoch."""
        return self._loader(self.train_rows, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """The texts that are held out."""
        return self._loader(self.val_rows, shuffle=False)

    def _loader(self, rows: list[tuple[str, int]], shuffle: bool) -> DataLoader[Any]:
        return DataLoader(
            rows,  # type: ignore[arg-type]  # a list is all that DataLoader needs
            batch_size=self.batch_rows,
            shuffle=shuffle,
            collate_fn=self._collate,
        )

    def _collate(self, rows: list[tuple[str, int]]) -> dict[str, Tensor]:
        texts = self._encode(
            [text for text, _ in rows],
            padding=True,
            truncation=True,
            max_length=self.max_tokens,
            return_tensors="pt",
        )
        numbers = torch.tensor([number for _, number in rows])
        return {
            "input_ids": texts["input_ids"],
            "attention_mask": texts["attention_mask"],
            "labels": numbers,
        }


class LabelledText(Labelled):
    """Texts and labels from a CSV file with a line of titles.

    Args:
        file: The file; only the device that loads the data (rank 0) needs it.
        tokenizer: A local directory with a tokenizer, such as that of the model.
        text: Title of the column with the texts.
        label: Title of the column with the labels, of any kind.
        max_tokens: Longer texts are cut.
        batch_rows: Rows of a batch.

    Raises:
        DataError: The file has no such columns.
    """

    def __init__(
        self,
        file: str,
        tokenizer: str,
        text: str = "text",
        label: str = "label",
        max_tokens: int = 128,
        batch_rows: int = 16,
    ) -> None:
        super().__init__(tokenizer, max_tokens, batch_rows)
        self.file, self.text, self.label = file, text, label

    def rows(self) -> list[Row]:
        """The lines of the file."""
        path = Path(self.file).expanduser()
        if not path.is_file():
            raise DataError(f"there is no file {self.file}: set data.file to a CSV file")
        with path.open(newline="", encoding="utf-8") as lines:
            reader = csv.DictReader(lines)
            titles = list(reader.fieldnames or ())
            missing = [title for title in (self.text, self.label) if title not in titles]
            if missing:
                raise DataError(
                    f"{self.file} has the columns {', '.join(titles)} and no"
                    f" {' nor '.join(missing)}: set data.text and data.label"
                )
            return [(line[self.text], line[self.label]) for line in reader]

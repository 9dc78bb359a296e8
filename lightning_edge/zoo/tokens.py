"""Local text files as tokens of a local tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_edge.errors import DataError, UnsupportedError
from lightning_edge.zoo.checks import check_sizes

__all__ = ["TokenFiles"]


class TokenFiles(L.LightningDataModule):
    """Rows of `context` tokens from local text files, as mappings with `input_ids`.

    Args:
        tokenizer: A local directory with a tokenizer, such as that of the model.
        folder: Where the files are; only the device that loads the data (rank 0) needs it.
        pattern: Which of them.
        context: Tokens that are seen at once.
        batch_rows: Rows of a batch.
        train_bytes: The most bytes of text to learn from.

    Raises:
        DataError: There is too little text.
        UnsupportedError: transformers is missing, or the directory has no tokenizer.
    """

    def __init__(
        self,
        tokenizer: str,
        folder: str,
        pattern: str = "**/*.txt",
        context: int = 128,
        batch_rows: int = 8,
        train_bytes: int = 16_000_000,
    ) -> None:
        super().__init__()
        check_sizes("data", context=context, batch_rows=batch_rows)
        self.tokenizer, self.folder, self.pattern = tokenizer, folder, pattern
        self.context, self.batch_rows, self.train_bytes = context, batch_rows, train_bytes

    def setup(self, stage: str) -> None:
        """Read and cut; the last tenth is held out."""
        encode = local_tokenizer(self.tokenizer)
        tokens: list[int] = []
        left = self.train_bytes
        for path in sorted(Path(self.folder).expanduser().glob(self.pattern)):
            if path.is_file() and left > 0:
                text = path.read_text(encoding="utf-8", errors="replace")[:left]
                tokens += encode(text, add_special_tokens=False, verbose=False)["input_ids"]
                left -= len(text)
        rows = torch.tensor(tokens)[: len(tokens) // self.context * self.context]
        rows = rows.view(-1, self.context)
        if len(rows) < 10:
            raise DataError(
                f"{self.folder}/{self.pattern} holds {len(rows)} rows of {self.context} tokens, and"
                " at least 10 are needed: add text or set a smaller data.context"
            )
        held_out = len(rows) // 10
        self.train_rows = [{"input_ids": row} for row in rows[:-held_out]]
        self.val_rows = [{"input_ids": row} for row in rows[-held_out:]]

    def train_dataloader(self) -> DataLoader[Any]:
        """Rows in a new order each epoch."""
        return DataLoader(_Rows(self.train_rows), batch_size=self.batch_rows, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """The rows that are held out."""
        return DataLoader(_Rows(self.val_rows), batch_size=self.batch_rows)


class _Rows(torch.utils.data.Dataset[dict[str, Tensor]]):
    def __init__(self, rows: Sequence[dict[str, Tensor]]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self._rows[index]


def local_tokenizer(path: str) -> Any:
    """The tokenizer in a local directory.

    Raises:
        UnsupportedError: transformers is missing, or there is none.
    """
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise UnsupportedError(
            'this data needs transformers: install it with `pip install "lightning-edge[hf]"`'
        ) from None
    place = Path(path).expanduser()
    if not place.is_dir():
        raise UnsupportedError(
            f"data.tokenizer={path} is not a directory; tokenizers are not downloaded: fetch it"
            " before, and give the directory"
        )
    try:
        return AutoTokenizer.from_pretrained(str(place), local_files_only=True)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UnsupportedError(f"{path} (data.tokenizer) has no tokenizer: {reason}") from None

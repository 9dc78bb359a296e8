"""Text at hand as training data: Python's own source, or files of the user's.

text   a b c d e f g h i j k l m ...
rows  [a b c d e]                        context + 1 bytes each; neighbours overlap by the one
              [e f g h i]                byte that the first predicts and the second starts with
"""

from __future__ import annotations

import sysconfig
import zlib
from collections.abc import Sequence
from pathlib import Path

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_edge.errors import DataError
from lightning_edge.zoo.checks import check_sizes

__all__ = ["StandardLibrary", "TextFiles"]

Loader = DataLoader[tuple[Tensor, ...]]


class ByteRows(L.LightningDataModule):
    """Rows of ``context + 1`` bytes from a list of files.

    About every tenth file is kept for validation, chosen by a checksum of its name, so that a file
    is on the same side on every machine and however many others there are.
    """

    def __init__(self, context: int, batch_rows: int, train_bytes: int, val_bytes: int) -> None:
        super().__init__()
        check_sizes("data", context=context, batch_rows=batch_rows)
        self.context, self.batch_rows = context, batch_rows
        self.train_bytes, self.val_bytes = train_bytes, val_bytes

    def paths(self) -> list[Path]:
        """All files, for both sides."""
        raise NotImplementedError

    def setup(self, stage: str) -> None:
        """Read the files."""
        names = sorted(self.paths(), key=lambda path: zlib.crc32(path.name.encode()))
        held_out = [path for path in names if zlib.crc32(path.name.encode()) % 10 == 0]
        learnt = [path for path in names if path not in held_out]
        self.train_rows = read_rows(learnt, self.context, self.train_bytes)
        self.val_rows = read_rows(held_out, self.context, self.val_bytes)

    def train_dataloader(self) -> Loader:
        """Rows in a new order each epoch."""
        return DataLoader(self.train_rows, batch_size=self.batch_rows, shuffle=True)

    def val_dataloader(self) -> Loader:
        """Rows of the files that are held out."""
        return DataLoader(self.val_rows, batch_size=self.batch_rows)


class StandardLibrary(ByteRows):
    """The modules of Python's standard library, which every machine has.

    Args:
        context: Bytes that are seen at once.
        batch_rows: Rows of a batch.
        train_bytes: The most bytes to learn from.
        val_bytes: The most bytes to validate with.
    """

    def __init__(
        self,
        context: int = 128,
        batch_rows: int = 16,
        train_bytes: int = 640_000,
        val_bytes: int = 64_000,
    ) -> None:
        super().__init__(context, batch_rows, train_bytes, val_bytes)

    def paths(self) -> list[Path]:
        """The top-level modules: the packages below hold tests and long tables of characters."""
        return list(Path(sysconfig.get_path("stdlib")).glob("*.py"))


class TextFiles(ByteRows):
    """Local text files of any kind, as bytes.

    Args:
        folder: Where they are; only the device that loads the data (rank 0) needs it.
        pattern: Which of them, for instance ``**/*.md``.
        context: Bytes that are seen at once.
        batch_rows: Rows of a batch.
        train_bytes: The most bytes to learn from.
        val_bytes: The most bytes to validate with.

    Raises:
        DataError: There is too little text.
    """

    def __init__(
        self,
        folder: str,
        pattern: str = "**/*.txt",
        context: int = 128,
        batch_rows: int = 16,
        train_bytes: int = 64_000_000,
        val_bytes: int = 1_000_000,
    ) -> None:
        super().__init__(context, batch_rows, train_bytes, val_bytes)
        self.folder, self.pattern = folder, pattern

    def paths(self) -> list[Path]:
        """The files that match."""
        found = list(Path(self.folder).expanduser().glob(self.pattern))
        files = [path for path in found if path.is_file()]
        if not files:
            raise DataError(
                f"no file in {self.folder} matches {self.pattern}: set data.folder and data.pattern"
            )
        return files

    def setup(self, stage: str) -> None:
        """Read the files; one single file is divided 9 : 1."""
        files = self.paths()
        sides = {zlib.crc32(path.name.encode()) % 10 == 0 for path in files}
        if len(sides) == 2:
            super().setup(stage)
            return
        rows = read_rows(files, self.context, self.train_bytes + self.val_bytes).tensors[0]
        count = min(len(rows) // 10, self.val_bytes // self.context)
        if count < 1:
            raise DataError(
                f"the {len(files)} files in {self.folder} hold {len(rows)} rows of {self.context}"
                " bytes, and at least 10 are needed: add text or set a smaller data.context"
            )
        self.train_rows, self.val_rows = TensorDataset(rows[:-count]), TensorDataset(rows[-count:])


def read_rows(paths: Sequence[Path], context: int, limit_bytes: int) -> TensorDataset:
    """Read files up to a limit; rows overlap by the one byte that is predicted."""
    text = bytearray()
    for path in paths:
        if len(text) < limit_bytes:
            text += path.read_bytes()
    if len(text) <= context:
        return TensorDataset(torch.empty(0, context + 1, dtype=torch.uint8))
    data = torch.frombuffer(text, dtype=torch.uint8)[:limit_bytes]
    return TensorDataset(data.unfold(0, context + 1, context))

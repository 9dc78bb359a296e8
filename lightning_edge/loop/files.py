"""Checkpoint files for writers that are given a whole checkpoint, such as a thread's.

Lightning writes through a temporary folder, which is often on another disk: moving from there is
copying, and a copy that is cut short has destroyed what it was to replace.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from typing_extensions import override

from lightning_edge.replicate.disk import part_of, publish

__all__: list[str] = []


class WholeFileIO(TorchCheckpointIO):
    """Reads and writes checkpoints as Lightning does; local files are replaced in one step."""

    @override
    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Write a checkpoint.

        Args:
            checkpoint: What `torch.save` accepts.
            path: A local path, or a URL that fsspec knows.
            storage_options: Not used; refused by Lightning if given.
        """
        if storage_options is not None or "://" in str(path) or os.path.isdir(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        part = part_of(Path(path))
        try:
            torch.save(checkpoint, part)
            publish(part, Path(path))
        except BaseException:
            with suppress(OSError):
                part.unlink()
            raise

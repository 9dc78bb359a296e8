"""Write a checkpoint that is larger than this device's memory: the file first, then its tensors.

    file   [ pickle | state_dict/a ....... | state_dict/b ....... | optimizer ... ]
    1.     written with room for every tensor, none of them in memory
    2.     mapped, and filled tensor by tensor as they arrive

The result is an ordinary `torch.save` file.
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Iterable, Iterator
from pathlib import Path as FilePath
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from lightning_edge.replicate.disk import part_of, publish, reserve
from lightning_edge.replicate.placeholder import is_fake
from lightning_edge.replicate.state import Path, filled, tensor_paths

__all__: list[str] = []


class StreamedFile:
    """A checkpoint under way.

    Args:
        tree: What is saved; placeholders stand for tensors that are given later.
        path: Where; the file appears there when it is complete.
    """

    def __init__(self, tree: Any, path: FilePath) -> None:
        self._path, self._part = path, part_of(path)
        self._own = dict(tensor_paths(tree))
        try:
            with torch.serialization.skip_data(materialize_fake_tensors=True):
                torch.save(_on_cpu(tree, self._own), self._part)
            reserve(self._part)
        except BaseException:
            self.give_up()
            raise

    def fill(self, arriving: Iterable[tuple[Path, Tensor]]) -> None:
        """Write the tensors at hand, and those that arrive by path; then publish the file."""
        with _mapped(self._part) as tree:
            places = dict(tensor_paths(tree))
            for path, tensor in self._own.items():
                if not is_fake(tensor):
                    places[path].copy_(tensor.detach())
            for path, tensor in arriving:
                places[path].copy_(tensor)
            del places, tree
        publish(self._part, self._path)

    def give_up(self) -> None:
        """Remove what is there of the file."""
        with contextlib.suppress(OSError):
            self._part.unlink()


def _on_cpu(tree: Any, own: dict[Path, Tensor]) -> Any:
    """The tree with placeholders on the CPU for tensors on accelerators."""
    mode = FakeTensorMode()
    moved: dict[Path, Tensor] = {}
    shared: dict[tuple[int, ...], Tensor] = {}
    for path, tensor in own.items():
        if tensor.device.type != "cpu":
            storage = tensor.untyped_storage()._cdata
            key = (storage, tensor.storage_offset(), *tensor.shape)
            if key not in shared:
                with mode:
                    shared[key] = torch.empty(tuple(tensor.shape), dtype=tensor.dtype)
            moved[path] = shared[key]
    return filled(tree, moved) if moved else tree


@contextlib.contextmanager
def _mapped(path: FilePath) -> Iterator[Any]:
    with torch.serialization.set_default_mmap_options(mmap.MAP_SHARED):
        # our own file of a moment ago: whatever the user's hooks have put in may be read
        yield torch.load(path, mmap=True, weights_only=False, map_location="cpu")

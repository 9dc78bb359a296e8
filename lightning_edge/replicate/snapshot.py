"""Run a step without leaving a trace in the module: attributes, lists, states, buffers."""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__: list[str] = []

_DEPTH = 3  # containers inside containers that are followed: lists of lists of tensors and the like


def version(tensor: Tensor) -> int:
    """How often a tensor was changed in place; inference tensors do not count: 0."""
    return 0 if tensor.is_inference() else tensor._version


def checksum(tensor: Tensor) -> int:
    """A number that changes with the tensor's; `version` misses what torch's kernels update."""
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return zlib.crc32(flat.numpy().tobytes())


class _Saved:
    """What one module tree looked like."""

    def __init__(self, module: nn.Module) -> None:
        self._attributes: list[tuple[nn.Module, dict[str, Any]]] = []
        self._containers: dict[int, tuple[Any, Any]] = {}
        self._tensors: dict[int, tuple[Tensor, Tensor, int]] = {}
        for child in module.modules():
            self._attributes.append((child, dict(child.__dict__)))
            for value in child.__dict__.values():
                self._keep(value, _DEPTH)

    def _keep(self, value: Any, depth: int) -> None:
        if isinstance(value, Tensor):
            # parameters are replaced by placeholders, never written; everything else may be updated
            # in place
            if not isinstance(value, nn.Parameter) and id(value) not in self._tensors:
                self._tensors[id(value)] = (value, value.detach().clone(), version(value))
            return
        if depth == 0 or id(value) in self._containers:
            return
        if isinstance(value, (list, set, deque, dict)):
            self._containers[id(value)] = (value, value.copy())
            for item in value.values() if isinstance(value, dict) else value:
                self._keep(item, depth - 1)
        elif isinstance(value, tuple):
            for item in value:
                self._keep(item, depth - 1)

    def restore(self) -> None:
        for module, attributes in self._attributes:
            module.__dict__.clear()
            module.__dict__.update(attributes)
        for value, content in self._containers.values():
            value.clear()
            value.extend(content) if isinstance(value, (list, deque)) else value.update(content)
        for tensor, content, seen in self._tensors.values():
            if version(tensor) != seen or tensor.is_inference() or _differs(tensor, content):
                tensor.data.copy_(content)


def _differs(tensor: Tensor, content: Tensor) -> bool:
    """Whether the numbers changed unnoticed: batch normalisation updates its statistics like so."""
    plain = tensor.is_floating_point() and tensor.layout == torch.strided
    return plain and type(tensor) is Tensor and not torch.equal(tensor, content)


@contextmanager
def untouched(module: nn.Module) -> Iterator[None]:
    """Run the body and put every attribute, container and buffer of the modules back."""
    saved = _Saved(module)
    try:
        yield
    finally:
        saved.restore()

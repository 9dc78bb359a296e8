"""One message between devices: JSON and tensors in one run of bytes that describes itself.

    0        32            32+h   64-byte aligned        total
    +--------+-------------+-----+----------+-----+-----+
    | prefix | JSON header | pad | tensor 0 | pad | ... |
    +--------+-------------+-----+----------+-----+-----+

    prefix   magic, version, kind, window, header bytes h, total bytes, time sent (little endian)
    header   {"m": meta, "t": [[name, dtype, dtype on the wire, shape, offset], ...]}
             offsets count from the end of the header's padding

A receiver needs to know nothing in advance but an upper bound of the size. What arrives is only
ever read as numbers and JSON and every field is checked: bad bytes give a `TransportError`, never
code that runs and never memory that is not the message's own.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from lightning_edge.errors import TransportError

__all__ = ["Message", "Prefix", "pack", "read_prefix", "unpack", "why_not"]

MAGIC = b"LEdg"
VERSION = 1
ALIGN_BYTES = 64  # a cache line; more than any dtype needs
MAX_HEADER_BYTES = 64 << 20  # a header lists names and small values; more than this is damage

KIND_MESSAGE = 0
KIND_GROW = 1  # "the message itself, of `total_bytes`, follows outside the posted buffer"

_PREFIX = struct.Struct("<4sHHIIQQ")
PREFIX_BYTES = _PREFIX.size

DTYPES: Mapping[str, torch.dtype] = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.bool,
        torch.uint8,
        torch.int8,
        torch.int16,
        torch.int32,
        torch.int64,
        torch.uint16,
        torch.uint32,
        torch.uint64,
        torch.float16,
        torch.bfloat16,
        torch.float32,
        torch.float64,
        torch.complex64,
        torch.complex128,
        torch.float8_e4m3fn,
        torch.float8_e5m2,
    )
}
_JSON = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False)
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass
class Message:
    """What one device tells another.

    Attributes:
        meta: JSON: None, bool, int, float, str, list, and dict with text keys.
        tensors: Dense tensors of any shape, by name.
    """

    meta: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)


class Prefix(NamedTuple):
    """The fixed first bytes of a message.

    ``window`` and ``sent_ns`` belong to the transport: receives that the sender believes posted,
    and the monotonic clock at sending (0: not recorded).
    """

    kind: int
    window: int
    header_bytes: int
    total_bytes: int
    sent_ns: int


def _fresh(size: int) -> Tensor:
    return torch.empty(size, dtype=torch.uint8)


def pack(
    message: Message,
    *,
    wire_dtype: torch.dtype | None = None,
    get_buffer: Callable[[int], Tensor] = _fresh,
    window: int = 0,
    sent_ns: int = 0,
) -> Tensor:
    """Copy a message, once, into a flat buffer.

    Args:
        message: What to send; tensors may lie on any device and have any strides.
        wire_dtype: Floating tensors wider than this travel as this, and get their dtype back on
            arrival.
        get_buffer: Makes a uint8 tensor of a size. If it is page-locked, copies from accelerators
            are only queued on the current stream: the message is complete when they are done.
        window: See `Prefix`.
        sent_ns: See `Prefix`.

    Returns:
        uint8 tensor of exactly the message's size, on the CPU.

    Raises:
        TransportError: Something in the message cannot travel.
    """
    rows, copies, payload = [], [], 0
    for name, tensor in message.tensors.items():
        problem = why_not(tensor)
        if problem is not None:
            raise TransportError(f"tensor {name!r} {problem}")
        source = tensor.detach()
        wire = _on_wire(source.dtype, wire_dtype)
        rows.append([name, _NAMES[source.dtype], _NAMES[wire], list(source.shape), payload])
        copies.append((source, wire, payload))
        payload = _align(payload + source.numel() * wire.itemsize)
    header = _encode_header(message.meta, rows)
    start = _align(PREFIX_BYTES + len(header))
    last = copies[-1][2] + copies[-1][0].numel() * copies[-1][1].itemsize if copies else 0
    total = start + last
    prefix = _PREFIX.pack(MAGIC, VERSION, KIND_MESSAGE, window, len(header), total, sent_ns)
    with ordinary_tensors():
        buffer = get_buffer(total)
        _raw(buffer)[:start] = (prefix + header).ljust(start, b"\0")
        for source, wire, offset in copies:
            if source.numel():
                target = _alias(buffer, start + offset, wire, source.shape)
                if source.device.type == "cpu":
                    target.copy_(source)
                else:  # cast there, so that fewer bytes come over
                    target.copy_(source.to(wire), non_blocking=buffer.is_pinned())
    return buffer


def unpack(buffer: Tensor, prefix: Prefix | None = None) -> Message:
    """Read a message without copying it.

    Args:
        buffer: uint8 CPU tensor that starts with a message; what follows the message is ignored.
        prefix: Its prefix, if `read_prefix` has been called.

    Returns:
        The message. Its tensors are aliases of the buffer's memory that autograd does not regard
        as views: they can be leaves, and be modified in place. A tensor that travelled in another
        dtype is a copy of its own.

    Raises:
        TransportError: The bytes are not a message.
    """
    if buffer.storage_offset() % ALIGN_BYTES:
        buffer = buffer.clone()
    prefix = read_prefix(buffer) if prefix is None else prefix
    if prefix.kind != KIND_MESSAGE:
        raise TransportError(f"received a note of kind {prefix.kind} where a message was expected")
    end = PREFIX_BYTES + prefix.header_bytes
    if not end <= prefix.total_bytes <= buffer.numel():
        raise TransportError(
            f"a received message says that it has {prefix.header_bytes} bytes of header and"
            f" {prefix.total_bytes} in all, but {buffer.numel()} bytes arrived"
        )
    meta, rows = _decode_header(bytes(_raw(buffer)[PREFIX_BYTES:end]))
    tensors: dict[str, Tensor] = {}
    position = _align(end)  # each tensor must start after the one before it: no overlaps
    start = position
    with ordinary_tensors():
        for row in rows:
            name, dtype, wire, shape, offset = _check_row(row)
            size = math.prod(shape) * wire.itemsize
            first = start + offset
            bad = name in tensors or first < position or first % ALIGN_BYTES
            if bad or size and first + size > prefix.total_bytes:
                raise TransportError(
                    f"a received message says that tensor {name!r} of {size} bytes lies at {first},"
                    f" which is taken or outside its {prefix.total_bytes} bytes"
                )
            position = first + size
            tensor = _alias(buffer, first if size else 0, wire, shape)
            tensors[name] = tensor if wire == dtype else tensor.to(dtype)
    return Message(meta, tensors)


def read_prefix(buffer: Tensor) -> Prefix:
    """Read and check the first bytes of a received buffer; raises `TransportError` on bad ones."""
    if buffer.numel() < PREFIX_BYTES:
        raise TransportError(f"received {buffer.numel()} bytes, fewer than a message's prefix")
    magic, version, kind, window, header, total, sent = _PREFIX.unpack_from(_raw(buffer))
    if magic != MAGIC:
        raise TransportError(f"received bytes that are not a message (they start with {magic!r})")
    if version != VERSION:
        raise TransportError(
            f"received a message of version {version}, but this device speaks version {VERSION}:"
            " install the same lightning-edge on all devices"
        )
    if kind not in (KIND_MESSAGE, KIND_GROW) or header > MAX_HEADER_BYTES:
        raise TransportError(f"received a prefix of kind {kind} with {header} bytes of header")
    return Prefix(kind, window, header, total, sent)


def grow_note(total_bytes: int, *, window: int = 0) -> Tensor:
    """Return the note that a message of ``total_bytes`` follows outside the posted buffer."""
    note = _fresh(PREFIX_BYTES)
    _raw(note)[:] = _PREFIX.pack(MAGIC, VERSION, KIND_GROW, window, 0, total_bytes, 0)
    return note


def ordinary_tensors() -> AbstractContextManager[object]:
    """Make tensors that autograd can use later, also when the caller is in inference mode."""
    return torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext()


def _raw(buffer: Tensor) -> memoryview:
    return buffer.numpy().data


def _align(position: int) -> int:
    return -(-position // ALIGN_BYTES) * ALIGN_BYTES


def why_not(tensor: Tensor) -> str | None:
    """Return why a tensor cannot travel, to be read after its name, or None if it can."""
    if isinstance(tensor, FakeTensor):
        return "is a placeholder without values: another device holds what it is computed from"
    if tensor.layout != torch.strided or tensor.is_quantized:
        return f"is {tensor.layout} {tensor.dtype}: only dense tensors can be sent"
    if tensor.dtype not in _NAMES:
        return f"has dtype {tensor.dtype}, which cannot be sent"
    if tensor.device.type == "meta":
        return "is on the meta device and has no values"
    return None


def _on_wire(dtype: torch.dtype, wire_dtype: torch.dtype | None) -> torch.dtype:
    if wire_dtype is None or not dtype.is_floating_point or dtype.itemsize <= wire_dtype.itemsize:
        return dtype
    return wire_dtype


def _alias(buffer: Tensor, start: int, dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
    # `set_` rather than `view`: autograd must not see that the tensors of a message share memory.
    strides, step = [0] * len(shape), 1
    for axis in range(len(shape) - 1, -1, -1):
        strides[axis], step = step, step * max(1, shape[axis])
    tensor = torch.empty(0, dtype=dtype)
    first = buffer.storage_offset() + start
    return tensor.set_(buffer.untyped_storage(), first // dtype.itemsize, tuple(shape), strides)


def _encode_header(meta: dict[str, Any], rows: list[list[Any]]) -> bytes:
    try:
        header = _JSON.encode({"m": meta, "t": rows}).encode("utf-8", "surrogatepass")
    except (TypeError, ValueError, RecursionError) as error:
        raise TransportError(f"the message's meta is not JSON: {error}") from None
    if len(header) > MAX_HEADER_BYTES:
        raise TransportError(f"a header of {len(header)} bytes is over {MAX_HEADER_BYTES}")
    return header


def _decode_header(data: bytes) -> tuple[dict[str, Any], list[Any]]:
    try:
        header = json.loads(data.decode("utf-8", "surrogatepass"))
        meta, rows = header["m"], header["t"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise TransportError(f"a received message's header is damaged: {error!r}") from None
    if not isinstance(meta, dict) or not isinstance(rows, list):
        raise TransportError("a received message's header is not an object and a list")
    return meta, rows


def _check_row(row: Any) -> tuple[str, torch.dtype, torch.dtype, list[int], int]:
    if isinstance(row, list) and len(row) == 5:
        name, dtype, wire, shape, offset = row
        if (
            isinstance(name, str)
            and isinstance(dtype, str)
            and isinstance(wire, str)
            and dtype in DTYPES
            and wire in DTYPES
            and isinstance(shape, list)
            and len(shape) <= 64
            and all(type(n) is int and n >= 0 for n in [*shape, offset])
            and math.prod(max(1, n) for n in shape) < 1 << 50  # strides must not overflow
            and (
                wire == dtype or DTYPES[wire].is_floating_point and DTYPES[dtype].is_floating_point
            )
        ):
            return name, DTYPES[dtype], DTYPES[wire], shape, offset
    raise TransportError(f"a received message describes a tensor as {str(row)[:200]}")

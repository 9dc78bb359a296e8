"""Objects of plain types and tensors to messages and back: what pickle would do, without pickle.

    {"x": tensor, 7: (1, 2)}  ->  meta     {"tree": ["dict", ["x", ["T", 0]], [7, ["tuple", 1, 2]]]}
                                  tensors  {"0": tensor}

None, bool, int, float and str stand for themselves, all else is a list that starts with a tag.
Nothing received is executed: `decode` only fills containers, and objects of classes that are
already imported (`train.known`).
"""

from __future__ import annotations

import datetime as dt
import math
import pathlib
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_edge.errors import DataError, EdgeError, TransportError
from lightning_edge.train import known
from lightning_edge.train.message import DTYPES, Message, why_not

__all__ = ["decode", "encode"]

JSON_INT_BITS = 63  # longer integers are slow, or refused, as decimal digits
LONG_TEXT = 1 << 16  # characters; longer texts travel as bytes beside the header
_NUMPY_KINDS = "biufcmMSU"
_FACTORIES: dict[str, Any] = {t.__name__: t for t in (list, dict, set, tuple, int, float, str)}
_FACTORY_NAMES = {None: None, **{t: name for name, t in _FACTORIES.items()}}


def encode(obj: Any, what: str = "the object") -> Message:
    """Turn an object into a message.

    Args:
        obj: None, bool, int, float, complex, str, bytes, list, tuple, set, frozenset, dict with any
            such keys, OrderedDict, defaultdict, torch.Size, torch.dtype, torch.device, tensors,
            numpy arrays and scalars, paths, dates and times, Namespace, and enums, named tuples,
            dataclasses and dictionary classes that the receiver has imported too; nested at will.
            A tensor that occurs several times travels once and stays one.
        what: How to call it in errors.

    Raises:
        DataError: Something in it is of another type; the text says where and what it is.
    """
    encoder = _Encoder()
    try:
        return Message({"tree": encoder.node(obj)}, encoder.tensors)
    except _RefusedError as refused:
        raise DataError(f"{what}{''.join(reversed(refused.path))} {refused.reason}") from None
    except RecursionError:
        raise DataError(f"{what} is nested too deeply to be sent") from None


def decode(message: Message, *, copy: bool = False) -> Any:
    """Turn a message made by `encode` back into the object.

    Args:
        message: As received.
        copy: Give each tensor memory of its own, instead of a part of the message's buffer that
            lives as long as any of its tensors.

    Raises:
        TransportError: The message was not made by `encode`, or needs a class that is not here.
    """
    tensors = {k: t.clone() for k, t in message.tensors.items()} if copy else message.tensors
    try:
        return _Decoder(tensors).value(message.meta["tree"])
    except EdgeError:
        raise
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise TransportError(f"a received object is damaged: {error!r}") from None
    except RuntimeError as error:  # too deep, or torch's for a device that cannot be
        raise TransportError(f"a received object is damaged: {error}") from None


class _RefusedError(Exception):
    """Something cannot be sent; the path to it is completed on the way out."""

    def __init__(self, reason: str) -> None:
        self.reason, self.path = reason, list[str]()


class _Encoder:
    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._numbers: dict[int, int] = {}  # by id of the tensor
        self._around: set[int] = set()  # ids of the containers around the current place

    def node(self, obj: Any) -> Any:
        kind = type(obj)
        if kind in _ENCODERS:
            return _ENCODERS[kind](self, obj)
        if isinstance(obj, Tensor):
            return ["T", self._tensor(obj)]
        if isinstance(obj, np.generic | np.ndarray):
            return self._array(obj)
        if isinstance(obj, pathlib.PurePath):
            return ["path", obj.as_posix()]
        family = known.kind_of(obj)
        if family is None:
            raise _RefusedError(
                f"is a {known.describe(obj)}, which cannot be sent: use plain types, tensors, numpy"
                " arrays, named tuples or dataclasses"
            )
        name = known.name_of(kind)
        if name is None:
            raise _RefusedError(
                f"is a {known.describe(obj)}, a class that other processes cannot find by its name:"
                " define it at the top level of a module"
            )
        parts = known.parts_of(obj, family).items()
        return ["class", family, name, *self.inside(obj, self._pairs(parts, ".{}"))]

    def inside(self, obj: Any, nodes: Iterable[Any]) -> list[Any]:
        if id(obj) in self._around:
            raise _RefusedError("contains itself and cannot be sent")
        self._around.add(id(obj))
        result = list(nodes)
        self._around.discard(id(obj))
        return result

    def sequence(self, obj: Iterable[Any]) -> list[Any]:
        return self.inside(obj, self._elements(obj))

    def mapping(self, obj: Any) -> list[Any]:
        return self.inside(obj, self._pairs(obj.items(), "[{!r}]"))

    def blob(self, data: bytes) -> int:
        return self._add(torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else _NOTHING)

    def _elements(self, obj: Iterable[Any]) -> Iterable[Any]:
        for index, element in enumerate(obj):
            try:
                yield self.node(element)
            except _RefusedError as refused:
                refused.path.append(f"[{index}]")
                raise

    def _pairs(self, items: Iterable[tuple[Any, Any]], form: str) -> Iterable[Any]:
        for key, value in items:
            try:
                yield [self.node(key), self.node(value)]
            except _RefusedError as refused:
                refused.path.append(form.format(key))
                raise

    def _tensor(self, tensor: Tensor) -> int:
        problem = why_not(tensor)
        if problem is None and type(tensor) not in _PLAIN_TENSORS:
            problem = f"is a {known.describe(tensor)}: send it as a plain tensor"
        if problem is not None:
            raise _RefusedError(problem)
        return self._add(tensor)

    def _add(self, tensor: Tensor) -> int:
        number = self._numbers.setdefault(id(tensor), len(self.tensors))
        self.tensors[str(number)] = tensor  # kept alive, so that its id stays its own
        return number

    def _array(self, array: Any) -> list[Any]:
        if array.dtype.kind not in _NUMPY_KINDS:
            raise _RefusedError(f"is a numpy array of dtype {array.dtype}, which cannot be sent")
        tag = "array" if isinstance(array, np.ndarray) else "scalar"
        data = np.ascontiguousarray(array).tobytes()
        return [tag, array.dtype.str, list(array.shape), self.blob(data)]


def _int(encoder: _Encoder, obj: int) -> Any:
    return obj if obj.bit_length() <= JSON_INT_BITS else ["int", format(obj, "x")]


def _float(encoder: _Encoder, obj: float) -> Any:
    return obj if math.isfinite(obj) else ["float", repr(obj)]


def _text(encoder: _Encoder, obj: str) -> Any:
    if len(obj) <= LONG_TEXT:
        return obj
    return ["text", encoder.blob(obj.encode("utf-8", "surrogatepass"))]


def _default_dict(encoder: _Encoder, obj: defaultdict[Any, Any]) -> list[Any]:
    if obj.default_factory not in _FACTORY_NAMES:
        raise _RefusedError(
            f"is a defaultdict of {obj.default_factory!r}: only those of"
            f" {', '.join(_FACTORIES)} can be sent"
        )
    return ["defaultdict", _FACTORY_NAMES[obj.default_factory], *encoder.mapping(obj)]


def _time(encoder: _Encoder, obj: Any) -> list[Any]:
    zone = getattr(obj, "tzinfo", None)
    if zone is not None and not isinstance(zone, dt.timezone):
        raise _RefusedError(f"has the time zone {zone!r}: only fixed offsets can be sent")
    return [type(obj).__name__, obj.isoformat()]


_NOTHING = torch.empty(0, dtype=torch.uint8)
_PLAIN_TENSORS = (Tensor, torch.nn.Parameter, torch.nn.Buffer)
_ENCODERS: dict[type, Callable[[_Encoder, Any], Any]] = {
    type(None): lambda encoder, obj: obj,
    bool: lambda encoder, obj: obj,
    int: _int,
    float: _float,
    str: _text,
    complex: lambda encoder, obj: ["complex", _float(encoder, obj.real), _float(encoder, obj.imag)],
    bytes: lambda encoder, obj: ["bytes", encoder.blob(obj)],
    bytearray: lambda encoder, obj: ["bytearray", encoder.blob(bytes(obj))],
    list: lambda encoder, obj: ["list", *encoder.sequence(obj)],
    tuple: lambda encoder, obj: ["tuple", *encoder.sequence(obj)],
    set: lambda encoder, obj: ["set", *encoder.sequence(obj)],
    frozenset: lambda encoder, obj: ["frozenset", *encoder.sequence(obj)],
    torch.Size: lambda encoder, obj: ["size", *obj],
    dict: lambda encoder, obj: ["dict", *encoder.mapping(obj)],
    OrderedDict: lambda encoder, obj: ["OrderedDict", *encoder.mapping(obj)],
    defaultdict: _default_dict,
    torch.dtype: lambda encoder, obj: ["dtype", str(obj).removeprefix("torch.")],
    torch.device: lambda encoder, obj: ["device", str(obj)],
    dt.datetime: _time,
    dt.date: _time,
    dt.time: _time,
    dt.timedelta: lambda encoder, obj: ["timedelta", obj.days, obj.seconds, obj.microseconds],
}


class _Decoder:
    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self._tensors = tensors

    def value(self, node: Any) -> Any:
        if not isinstance(node, list):
            if isinstance(node, dict):
                raise TransportError("a received object is damaged: it has a bare mapping")
            return node
        return _DECODERS[node[0]](self, node[1:])

    def values(self, nodes: list[Any]) -> list[Any]:
        return [self.value(node) for node in nodes]

    def items(self, nodes: list[Any]) -> dict[Any, Any]:
        return {self.value(key): self.value(value) for key, value in nodes}

    def tensor(self, nodes: list[Any]) -> Tensor:
        return self._tensors[str(nodes[0])]

    def blob(self, nodes: list[Any]) -> bytes:
        tensor = self._tensors[str(nodes[-1])]
        if tensor.dtype != torch.uint8:
            raise TransportError(f"a received object is damaged: bytes of dtype {tensor.dtype}")
        return tensor.numpy().tobytes()

    def array(self, nodes: list[Any]) -> Any:
        dtype = np.dtype(nodes[0])
        if dtype.kind not in _NUMPY_KINDS or dtype.hasobject:
            raise TransportError(f"a received object is damaged: array of dtype {dtype}")
        return np.frombuffer(bytearray(self.blob(nodes)), dtype).reshape(nodes[1])


_DECODERS: dict[str, Callable[[_Decoder, list[Any]], Any]] = {
    "T": _Decoder.tensor,
    "int": lambda decoder, nodes: int(nodes[0], 16),
    "float": lambda decoder, nodes: float(nodes[0]),
    "text": lambda decoder, nodes: decoder.blob(nodes).decode("utf-8", "surrogatepass"),
    "complex": lambda decoder, nodes: complex(*decoder.values(nodes)),
    "bytes": _Decoder.blob,
    "bytearray": lambda decoder, nodes: bytearray(decoder.blob(nodes)),
    "list": _Decoder.values,
    "tuple": lambda decoder, nodes: tuple(decoder.values(nodes)),
    "set": lambda decoder, nodes: set(decoder.values(nodes)),
    "frozenset": lambda decoder, nodes: frozenset(decoder.values(nodes)),
    "size": lambda decoder, nodes: torch.Size(nodes),
    "dict": _Decoder.items,
    "OrderedDict": lambda decoder, nodes: OrderedDict(decoder.items(nodes)),
    "defaultdict": lambda decoder, nodes: defaultdict(
        None if nodes[0] is None else _FACTORIES[nodes[0]], decoder.items(nodes[1:])
    ),
    "dtype": lambda decoder, nodes: DTYPES[nodes[0]],
    "device": lambda decoder, nodes: torch.device(nodes[0]),
    "path": lambda decoder, nodes: pathlib.Path(nodes[0]),
    "timedelta": lambda decoder, nodes: dt.timedelta(*nodes),
    "array": _Decoder.array,
    "scalar": lambda decoder, nodes: decoder.array(nodes)[()],
    "class": lambda decoder, nodes: known.put_together(
        nodes[1], nodes[0], decoder.items(nodes[2:])
    ),
    "datetime": lambda decoder, nodes: dt.datetime.fromisoformat(nodes[0]),
    "date": lambda decoder, nodes: dt.date.fromisoformat(nodes[0]),
    "time": lambda decoder, nodes: dt.time.fromisoformat(nodes[0]),
}

"""Objects of named classes as plain parts, and back without running any of their code.

Four kinds of class need nothing but their parts: named tuples, dataclasses, dictionaries (also
those around a dictionary, like the batches of transformers) and enums. The receiver finds the class
by name among the modules that are *already imported*, and fills in the parts without calling its
constructor.
"""

from __future__ import annotations

import dataclasses
import sys
from argparse import Namespace
from collections import OrderedDict, UserDict
from collections.abc import Callable
from enum import Enum
from typing import Any

from lightning_edge.errors import TransportError

__all__ = ["describe", "kind_of", "name_of", "parts_of", "put_together"]

# Attributes of the tokenizers library's own, which cannot travel and which no model reads.
_LEFT_AT_HOME = {"_encodings": None}


def describe(obj: Any) -> str:
    """Return the full name of an object's class."""
    return f"{type(obj).__module__}.{type(obj).__qualname__}"


def kind_of(obj: Any) -> str | None:
    """Return which of the kinds an object's class is, or None."""
    return _kind(type(obj))


def name_of(cls: type) -> str | None:
    """Return the name under which another process can find a class, or None."""
    name = f"{cls.__module__}:{cls.__qualname__}"
    return name if _find(name) is cls else None


def parts_of(obj: Any, kind: str) -> dict[str, Any]:
    """Take an object apart; `put_together` is the reverse."""
    return _APART[kind](obj)


def put_together(name: str, kind: str, parts: dict[str, Any]) -> Any:
    """Make an object of a class that this process has imported.

    Raises:
        TransportError: The class is not known here, or is of another kind or with other parts.
    """
    cls = _find(name)
    if cls is None:
        raise TransportError(
            f"received an object of class {name.replace(':', '.')}, which is not imported on this"
            " device: import it before training starts, on every device"
        )
    if _kind(cls) != kind:
        raise TransportError(f"received a {kind} of class {name.replace(':', '.')}, which is none")
    try:
        return _TOGETHER[kind](cls, parts)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise TransportError(
            f"received a {kind} of class {name.replace(':', '.')} whose parts do not fit the class"
            f" of this device (another version?): {error!r}"
        ) from None


def _kind(cls: type) -> str | None:
    if issubclass(cls, tuple) and isinstance(getattr(cls, "_fields", None), tuple):
        return "named tuple"
    if issubclass(cls, Enum):
        return "enum"
    if issubclass(cls, dict):  # before dataclass: transformers' ModelOutput is both
        return "dictionary"
    if issubclass(cls, UserDict):
        return "wrapped dictionary"
    if dataclasses.is_dataclass(cls):
        return "dataclass"
    if cls is Namespace:
        return "namespace"
    return None


def _find(name: str) -> type | None:
    module, _, path = name.partition(":")
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        found = vars(found).get(part) if isinstance(found, type) else getattr(found, part, None)
    return found if isinstance(found, type) else None


def _fields(cls: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(cls)]


def _dictionary_parts(obj: Any) -> dict[str, Any]:
    # A dataclass that is also a dictionary keeps its items in both, and None in the fields alone.
    return {"items": dict(obj.items()), "attributes": dict(vars(obj))}


def _make_dictionary(cls: Any, parts: dict[str, Any]) -> Any:
    base = OrderedDict if issubclass(cls, OrderedDict) else dict
    obj = base.__new__(cls)
    for key, value in parts["items"].items():
        base.__setitem__(obj, key, value)
    vars(obj).update(parts["attributes"])
    return obj


def _make_wrapped(cls: Any, parts: dict[str, Any]) -> Any:
    obj = object.__new__(cls)
    if not isinstance(parts["data"], dict):
        raise TypeError("its data is not a dictionary")
    vars(obj).update({**parts, **_LEFT_AT_HOME} if hasattr(cls, "encodings") else parts)
    return obj


def _make_dataclass(cls: Any, parts: dict[str, Any]) -> Any:
    obj = object.__new__(cls)
    for name in _fields(cls):
        object.__setattr__(obj, name, parts[name])
    return obj


def _make_named_tuple(cls: Any, parts: dict[str, Any]) -> Any:
    if list(parts) != list(cls._fields):
        raise TypeError(f"{list(parts)} instead of {list(cls._fields)}")
    return tuple.__new__(cls, parts.values())


_APART: dict[str, Callable[[Any], dict[str, Any]]] = {
    "named tuple": lambda obj: dict(zip(obj._fields, obj, strict=True)),
    "enum": lambda obj: {"name": obj.name},
    "dictionary": _dictionary_parts,
    "wrapped dictionary": lambda obj: {
        k: v for k, v in vars(obj).items() if k not in _LEFT_AT_HOME
    },
    "dataclass": lambda obj: {name: getattr(obj, name) for name in _fields(obj)},
    "namespace": lambda obj: dict(vars(obj)),
}
_TOGETHER: dict[str, Callable[[Any, dict[str, Any]], Any]] = {
    "named tuple": _make_named_tuple,
    "enum": lambda cls, parts: cls.__members__[parts["name"]],
    "dictionary": _make_dictionary,
    "wrapped dictionary": _make_wrapped,
    "dataclass": _make_dataclass,
    "namespace": lambda cls, parts: cls(**parts),
}

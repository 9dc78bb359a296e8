"""Reading a plan or a profile from YAML or JSON text that nobody has looked at yet.

Text becomes plain mappings, lists and scalars, with the line of each value and a problem for each
key given twice. Whatever the text is (nested without end, aliases that multiply, numbers of a
million digits, bytes that are no text), the worst that happens is a `PlanError` or `ProfileError`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

import yaml

from lightning_edge.errors import PlanError, ProfileError
from lightning_edge.plan.problems import Origin, Path, Problem, shown

__all__: list[str] = []

_MOST_DEPTH = 12
_YAML = "tag:yaml.org,2002:"
_PLAIN = {_YAML + name for name in ("null", "bool", "int", "float", "str")}
# What else YAML sees in unquoted text (2001-01-01, =, <<) or brackets; a plan takes it as written.
_HARMLESS = {_YAML + name for name in ("timestamp", "value", "merge", "seq", "map")}


@dataclass(frozen=True)
class Kind:
    """What a text is to be, and how much of it there can sensibly be."""

    name: str
    error: type[PlanError] | type[ProfileError]
    most_bytes: int
    most_values: int


PLAN = Kind("plan", PlanError, 64 * 1024, 20_000)
"""A plan of a thousand devices is half of this."""
PROFILE = Kind("profile", ProfileError, 4 * 1024 * 1024, 400_000)
"""A profile of 100 unequal devices and 100 unequal blocks is half of this."""


class _TooMuchError(Exception):
    """The text cannot be what it is to be."""


@dataclass
class Reading:
    """What a text says: its values, the line of each, and keys that were given twice."""

    kind: Kind
    tree: object = None
    lines: dict[Path, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    values: int = 0

    def count_value(self, depth: int) -> None:
        """Refuse text that says too much: a few aliases can stand for billions of values."""
        self.values += 1
        if self.values > self.kind.most_values:
            most = self.kind.most_values
            raise _TooMuchError(f"more than {most} values (aliases repeat what they name)")
        if depth > _MOST_DEPTH:
            raise _TooMuchError(f"lists and mappings nested more than {_MOST_DEPTH} deep")

    def check_tag(self, path: Path, node: yaml.Node) -> None:
        """Report a tag such as `!!binary`: it would change what is read."""
        if node.tag not in _PLAIN | _HARMLESS:
            tag = shown(node.tag.replace(_YAML, "!!"))
            text = f"the tag {tag} means nothing in a {self.kind.name}: remove it"
            self.problems.append(Problem(path, text))


class _Loader(yaml.SafeLoader):
    """Stops early: the scanner's time grows with the square of the depth."""

    def __init__(self, text: str, kind: Kind) -> None:
        self._composed = Reading(kind)
        self._depth = -1
        super().__init__(text)  # rejects control characters

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._depth += 1
        self._composed.count_value(self._depth)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


def read_file(path: FilePath, kind: Kind = PLAN) -> str:
    """Return the text of a file, or raise the kind's error if there is none of a sensible size."""
    try:
        with path.open("rb") as file:
            content = file.read(kind.most_bytes + 1)
    except (OSError, ValueError) as error:  # ValueError: a name with a null character
        reason = getattr(error, "strerror", None) or error
        raise kind.error(f"cannot be read: {reason}", shown_path(path)) from error
    if len(content) > kind.most_bytes:
        text = f"is not a {kind.name}: longer than {kind.most_bytes // 1024} KiB"
        raise kind.error(text, shown_path(path))
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise kind.error(f"is not a text in UTF-8: {error}", shown_path(path)) from error


def shown_path(path: FilePath) -> str:
    """Return a file's name so that it can be printed anywhere."""
    return str(path).encode("utf-8", "backslashreplace").decode("utf-8")


def parse_yaml(text: str, source: str, kind: Kind = PLAN) -> tuple[Any, Origin, list[Problem]]:
    """Return the values, where they stand, and the problems of a YAML text."""
    reading = Reading(kind)
    try:
        loader = _Loader(text, kind)
        node = loader.get_single_node()
        if node is not None:
            reading.tree = _from_node(loader, node, (), reading)
    except (yaml.YAMLError, ValueError, _TooMuchError) as error:
        raise kind.error(_why(error, "YAML", kind), source) from error
    return reading.tree, Origin(source, reading.lines), reading.problems


def parse_json(text: str, source: str, kind: Kind = PLAN) -> tuple[Any, list[Problem]]:
    """Return the values and the problems of a JSON text."""
    reading = Reading(kind)
    try:
        if len(text) > kind.most_bytes:
            raise _TooMuchError(f"longer than {kind.most_bytes // 1024} KiB")
        tree = json.loads(text, object_pairs_hook=_Object)
        reading.tree = _from_json(tree, (), reading)
    except (ValueError, RecursionError, _TooMuchError) as error:  # JSONDecodeError is a ValueError
        raise kind.error(_why(error, "JSON", kind), source) from error
    return reading.tree, reading.problems


def _from_node(loader: yaml.SafeLoader, node: yaml.Node, path: Path, reading: Reading) -> object:
    reading.count_value(len(path))
    reading.lines.setdefault(path, node.start_mark.line + 1)
    reading.check_tag(path, node)
    if isinstance(node, yaml.SequenceNode):
        return [
            _from_node(loader, item, (*path, index), reading)
            for index, item in enumerate(node.value)
        ]
    if isinstance(node, yaml.MappingNode):
        mapping: dict[object, object] = {}
        for key_node, value_node in node.value:
            key = _scalar(loader, key_node)
            where = (*path, key) if isinstance(key, str | int) else path
            reading.lines.setdefault(where, key_node.start_mark.line + 1)
            reading.check_tag(where, key_node)
            if key in mapping:
                line = key_node.start_mark.line + 1
                problem = Problem(where, f"the key {shown(key)} is given again in line {line}")
                reading.problems.append(problem)
            mapping[key] = _from_node(loader, value_node, where, reading)
        return mapping
    return _scalar(loader, node)


def _scalar(loader: yaml.SafeLoader, node: yaml.Node) -> object:
    """Return a scalar as YAML reads it; what is no bool, number or text stays as it is written."""
    if not isinstance(node, yaml.ScalarNode):
        return "<a list or mapping>"
    if node.tag in _PLAIN:
        try:
            value: object = loader.construct_object(node)
            return value
        except (ValueError, LookupError):  # such as `!!int abc`, `!!int ""`, `!!bool maybe`
            pass
    return str(node.value)


class _Object(list[tuple[str, object]]):
    """The pairs of a JSON object, kept as a list because a mapping would hide repeated keys."""


def _from_json(value: object, path: Path, reading: Reading) -> object:
    reading.count_value(len(path))
    if isinstance(value, _Object):
        mapping: dict[str, object] = {}
        for key, item in value:
            if key in mapping:
                problem = Problem((*path, key), f"the key {shown(key)} is given twice")
                reading.problems.append(problem)
            mapping[key] = _from_json(item, (*path, key), reading)
        return mapping
    if isinstance(value, list):
        return [_from_json(item, (*path, index), reading) for index, item in enumerate(value)]
    return value


def _why(error: Exception, language: str, kind: Kind) -> str:
    if isinstance(error, _TooMuchError):
        return f"is not a {kind.name}: {error}"
    if isinstance(error, RecursionError):
        return f"is not a {kind.name}: lists and mappings nested more than {_MOST_DEPTH} deep"
    if isinstance(error, json.JSONDecodeError):
        return f"line {error.lineno}, column {error.colno}: not {language}: {error.msg}"
    mark = getattr(error, "problem_mark", None)
    if isinstance(error, yaml.MarkedYAMLError) and mark is not None:
        where = f"line {mark.line + 1}, column {mark.column + 1}"
        return f"{where}: not {language}: {shown(error.problem)[1:-1]}"
    first = (str(error).splitlines() or [type(error).__name__])[0]
    return f"not {language}: {shown(first)[1:-1]}"

"""Reading the values of one mapping, with a problem for each that cannot be used."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import MISSING
from numbers import Real
from typing import Any

from lightning_edge.plan.frozen import FrozenMap
from lightning_edge.plan.participants import ALL, PROVENANCES
from lightning_edge.plan.problems import Path, Problem, did_you_mean, shown, unknown_keys
from lightning_edge.plan.values import is_list

__all__: list[str] = []


class Fields:
    """The entries of a mapping that was given; each is asked for once.

    Whatever was given, every question is answered with a value of the right type, so that reading
    goes on and all problems are found.

    Args:
        path: Where the mapping stands.
        given: It should be a mapping.
        what: What it describes, for messages.
        problems: Collects what is wrong.
    """

    def __init__(self, path: Path, given: object, what: str, problems: list[Problem]) -> None:
        self.path, self.problems = path, problems
        self._known: set[str] = set()
        self._given: Mapping[Any, Any] = given if isinstance(given, Mapping) else {}
        self._sound = isinstance(given, Mapping)
        if not self._sound:
            problems.append(Problem(path, f"{what} is a mapping, found {shown(given)}"))

    def has(self, key: str) -> bool:
        """Whether a key is there (with a value: `key:` in YAML is as good as nothing)."""
        self._known.add(key)
        return self._given.get(key) is not None

    def get(self, key: str, default: object = MISSING) -> object:
        """Return any value; report a missing one that has no default."""
        if self.has(key):
            return self._given[key]
        if default is MISSING and self._sound:
            self.problems.append(Problem(self.path, f"the key {key} is missing"))
        return default

    def number(
        self, key: str, default: object = MISSING, *, least: float = 0.0, positive: bool = False
    ) -> Any:
        """Return a finite number that is not below `least`, or the default."""
        given = self.get(key, default)
        return self.as_number((*self.path, key), given, default, least, positive)

    def as_number(
        self, path: Path, given: object, default: object, least: float, positive: bool
    ) -> Any:
        """Return a value as a number; YAML reads 1e-3 as a text, and hands write it so."""
        if given is default:
            return 1.0 if default is MISSING else default
        number = math.nan
        if not isinstance(given, bool) and isinstance(given, str | Real):
            with suppress(ValueError, OverflowError):
                number = float(given)
        if math.isfinite(number) and number >= least and (number > 0 or not positive):
            return number
        limit = "a number above 0" if positive else f"a number from {least:g} up"
        self.problems.append(Problem(path, f"must be {limit}, found {shown(given)}"))
        return 1.0

    def whole(self, key: str, default: object = MISSING, *, positive: bool = False) -> Any:
        """Return a whole number (bytes, rows, cores), or the default."""
        number = self.number(key, default, positive=positive)
        return number if number is default else round(number)

    def text(self, key: str, default: object = MISSING) -> str:
        """Return a text that can name something, or the default."""
        given = self.get(key, default)
        return self.as_text((*self.path, key), given, default)

    def as_text(self, path: Path, given: object, default: object = MISSING) -> str:
        """Return a value as a name; a number is one too (`15` names a power mode)."""
        if given is default:
            return default if isinstance(default, str) else "?"
        if isinstance(given, int) and not isinstance(given, bool):
            given = str(given)
        if isinstance(given, str) and given.strip() == given != "" and given.isprintable():
            return given
        self.problems.append(Problem(path, f"must be a name, found {shown(given)}"))
        return "?"

    def texts(self, key: str, default: object = MISSING) -> tuple[str, ...]:
        """Return a list of names; a single text is a list of one."""
        given = self.get(key, default)
        if given is default:
            return default if isinstance(default, tuple) else ("?",)
        path = (*self.path, key)
        if isinstance(given, str):
            return (self.as_text(path, given),)
        if not is_list(given) or not given:
            self.problems.append(Problem(path, f"must be a list of names, found {shown(given)}"))
            return ("?",)
        return tuple(self.as_text((*path, i), item) for i, item in enumerate(given))

    def numbers(self, key: str, *, positive: bool = False) -> tuple[float, ...]:
        """Return a list of at least one number; a single number is a list of one."""
        given = self.get(key)
        path = (*self.path, key)
        items = given if is_list(given) else (given,)
        if given is MISSING or not items:
            if given is not MISSING:
                self.problems.append(Problem(path, "must list at least one number"))
            return (1.0,)
        return tuple(
            self.as_number((*path, i) if is_list(given) else path, item, MISSING, 0.0, positive)
            for i, item in enumerate(items)
        )

    def entries(self, key: str, default: object = MISSING) -> list[tuple[Path, str, object]]:
        """Return the entries of a mapping by name, with their paths."""
        given = self.get(key, default)
        if given is default:
            return []
        if not isinstance(given, Mapping):
            text = f"must be a mapping of names, found {shown(given)}"
            self.problems.append(Problem((*self.path, key), text))
            return []
        where = (*self.path, key)
        return [((*where, str(k)), self.as_text(where, k), value) for k, value in given.items()]

    def items(self, key: str, default: object = MISSING) -> list[tuple[Path, object]]:
        """Return the items of a list, with their paths."""
        given = self.get(key, default)
        if given is default:
            return []
        if not is_list(given):
            self.problems.append(
                Problem((*self.path, key), f"must be a list, found {shown(given)}")
            )
            return []
        return [((*self.path, key, i), item) for i, item in enumerate(given)]

    def flag(self, key: str, default: bool) -> bool:
        """Return true or false."""
        given = self.get(key, default)
        if not isinstance(given, bool):
            text = f"must be true or false, found {shown(given)}"
            self.problems.append(Problem((*self.path, key), text))
            return default
        return given

    def provenance(self) -> FrozenMap[str, str]:
        """Return where the numbers come from: one text for all, or a mapping by field."""
        given = self.get("provenance", {})
        if isinstance(given, str):
            given = {ALL: given}
        path = (*self.path, "provenance")
        if not isinstance(given, Mapping):
            given = {ALL: given}
        for key, value in given.items():
            if value not in PROVENANCES:
                known = ", ".join(PROVENANCES)
                text = f"{shown(key)} is {shown(value)}, not one of {known}"
                self.problems.append(Problem(path, text + did_you_mean(value, PROVENANCES)))
        return FrozenMap({str(key): str(value) for key, value in given.items()})

    def close(self) -> None:
        """Report the keys that nobody asked for."""
        self.problems += unknown_keys(self.path, self._given, self._known)

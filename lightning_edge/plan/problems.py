"""What is wrong with a plan, and where: one sentence with the line to change."""

from __future__ import annotations

import reprlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from lightning_edge.errors import PlanError, ProfileError

__all__: list[str] = []

Path = tuple[str | int, ...]
"""Where a value sits in the mapping form, such as `("pipelines", 0, "stages", 1, "start")`."""


@dataclass(frozen=True)
class Problem:
    """One thing to change."""

    path: Path
    text: str

    def __str__(self) -> str:
        return f"{spell(self.path)}: {self.text}" if self.path else self.text


@dataclass(frozen=True)
class Origin:
    """The file a plan was read from, and the line of each value in it."""

    source: str
    lines: Mapping[Path, int]

    def line(self, path: Path) -> int | None:
        """Return the line of the value at `path`, or of the nearest value around it."""
        for length in range(len(path), -1, -1):
            if path[:length] in self.lines:
                return self.lines[path[:length]]
        return None


def refuse(
    problems: Sequence[Problem],
    origin: Origin | None = None,
    error: type[PlanError] | type[ProfileError] = PlanError,
) -> None:
    """Raise one `PlanError` (or `error`) with all problems; do nothing if there are none."""
    if not problems:
        return
    if origin is None:
        raise error([str(problem) for problem in problems])
    texts = []
    for problem in problems:
        line = origin.line(problem.path)
        texts.append(str(problem) if line is None else f"line {line}: {problem}")
    raise error(texts, origin.source)


def spell(path: Path) -> str:
    """Write a path as one would in Python: `pipelines[0].stages[1].start`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        elif part.isidentifier():
            text += f".{part}" if text else part
        else:
            text += f"[{shown(part)}]"
    return text


def shown(value: object) -> str:
    """Return a value as a user would recognise it, shortened, whatever it is."""
    if isinstance(value, str):
        text = value if len(value) <= 60 else f"{value[:57]}..."
        # backslashreplace: a lone surrogate could not be printed to any terminal.
        return '"' + text.encode("utf-8", "backslashreplace").decode("utf-8") + '"'
    if value is None:
        return "nothing"
    try:
        return reprlib.repr(value).encode("utf-8", "backslashreplace").decode("utf-8")
    except ValueError:  # Python refuses to print integers of thousands of digits
        return "a huge number" if isinstance(value, int) else f"a {type(value).__name__}"


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """Return `; did you mean "stages"?`, or nothing if no known word is near."""
    if not isinstance(word, str):
        return ""
    folded = {name.casefold(): name for name in known}
    near = get_close_matches(word.casefold(), folded, n=1, cutoff=0.6)
    return f"; did you mean {shown(folded[near[0]])}?" if near else ""


def unknown_keys(
    path: Path, mapping: Mapping[object, object], known: Collection[str]
) -> list[Problem]:
    """Return a problem for each key that means nothing here."""
    return [
        Problem(
            (*path, key) if isinstance(key, str) else path,
            f"{shown(key)} is not a key here{did_you_mean(key, known)}"
            f" (known: {', '.join(sorted(known))})",
        )
        for key in mapping
        if not isinstance(key, str) or key not in known
    ]

"""A predicted or measured step as lines of characters.

0 orin   FFFFFFFF--..BBBBBBFFBBBBBBBBB---SS     F forward   B backward   S optimizer's step
1 pi     ..--FFFFBBBBBBBBFFFFBBBBBBBB---SS.     - messages or sums only  . waiting
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning_edge.plan.prediction import Event, Prediction

__all__: list[str] = []

LETTERS = {"forward": "F", "backward": "B", "step": "S"}
LEGEND = "F forward, B backward, S optimizer's step, - communication only, . waiting"


def draw(prediction: Prediction, width: int) -> str:
    """Return one line per device; a column shows what took most of its piece of time."""
    names = {rank: f"{rank} {d.name}" for rank, d in prediction.devices.items()}
    margin = max(map(len, names.values()))
    columns = max(10, width - margin - 2)
    end = max((event.end_s for event in prediction.timeline), default=0.0) or 1.0
    lines = [
        f"{name.ljust(margin)}  {line(_of(prediction.timeline, rank), columns, end)}"
        for rank, name in names.items()
    ]
    scale = f"{''.ljust(margin)}  0{f'{end:.3g} s'.rjust(columns - 1)}"
    return "\n".join([*lines, scale, LEGEND])


def _of(events: Iterable[Event], rank: int) -> list[Event]:
    return [event for event in events if event.rank == rank]


def line(events: Sequence[Event], columns: int, end_s: float) -> str:
    """Return the events of one device as a line."""
    piece = end_s / columns
    computing = [dict.fromkeys("FBS", 0.0) for _ in range(columns)]
    talking = [0.0] * columns
    for event in events:
        letter = LETTERS.get(event.kind)
        first = min(columns - 1, int(event.start_s / piece))
        last = min(columns - 1, int(event.end_s / piece))
        for column in range(first, last + 1):
            overlap = min(event.end_s, (column + 1) * piece) - max(event.start_s, column * piece)
            if letter is None:
                talking[column] = min(piece, talking[column] + max(0.0, overlap))
            else:
                computing[column][letter] += max(0.0, overlap)
    text = ""
    for shares, talk in zip(computing, talking, strict=True):
        rest = piece - sum(shares.values())
        letter = max(shares, key=lambda key: shares[key])
        if shares[letter] >= max(rest, 1e-12 * piece):
            text += letter
        else:
            text += "-" if min(talk, rest) > piece / 2 or talk > rest / 2 else "."
    return text
